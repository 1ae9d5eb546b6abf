"""Which row goes with which column of a matrix of similarities."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

Square = Float[np.ndarray, "n n"]


class Assigned(NamedTuple):
    """The column of each row, and how firmly: a doubly stochastic matrix, or None."""

    order: Int[np.ndarray, "n"]
    soft: Square | None = None


Assign = Callable[[Square], Assigned]


def hungarian(similarity: Square) -> Assigned:
    """The assignment with the largest sum.

    Args:
        similarity: of rows and columns.

    Returns:
        The column of each row.

    Example:
        >>> hungarian(np.array([[1.0, 2.0], [0.0, 2.0]])).order.tolist()
        [0, 1]
    """
    return Assigned(linear_sum_assignment(similarity, maximize=True)[1])


def sinkhorn(
    similarity: Square, temperature: float = 0.01, steps: int = 1000
) -> Assigned:
    """A soft assignment, by scaling rows and columns in turn; made hard in the end.

    Args:
        similarity: of rows and columns.
        temperature: in units of the largest similarity; the lower, the harder.
        steps: at most so many; it stops when all sums are one to a millionth.

    Returns:
        The soft assignment, and the hard one that has the largest sum in it.

    Reference:
        Cuturi, Sinkhorn Distances, NeurIPS 2013; Mena et al., Learning Latent
        Permutations with Gumbel-Sinkhorn Networks, ICLR 2018.

    Example:
        >>> sinkhorn(np.array([[1.0, 2.0], [0.0, 2.0]])).order.tolist()
        [0, 1]
    """
    largest = np.abs(similarity).max(initial=0.0) or 1.0
    log = np.asarray(similarity, np.float64) / (temperature * largest)
    for _ in range(steps):
        log = log - logsumexp(log, 1, keepdims=True)
        log = log - logsumexp(log, 0, keepdims=True)
        if np.abs(np.exp(log).sum(1) - 1).max(initial=0.0) < 1e-6:
            break
    soft = np.exp(log)
    return Assigned(hungarian(soft).order, soft)


def best_within(pairs: Float[np.ndarray, "n a n b"]) -> Square:
    """The similarity of each pair of rows when what is in them is matched at best.

    Args:
        pairs: of row and column, and of what is in each.
    """
    n, inner = pairs.shape[:2]
    flat = pairs.transpose(0, 2, 1, 3)
    if not affordable(n):
        # An upper bound: each may take the best, whoever else takes it.
        return flat.max(3).sum(2) if inner else flat.sum((2, 3))
    out = np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        rows, columns = linear_sum_assignment(flat[i, j], maximize=True)
        out[i, j] = flat[i, j][rows, columns].sum()
    return out


def affordable(n: int) -> bool:
    """Whether every pair of n rows can have an assignment of its own."""
    return n <= 64
