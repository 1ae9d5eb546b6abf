"""The cost of removing a *set* of channels, from the Gram matrix of gate gradients.

With the empirical Fisher F = mean over examples of g g^T for the Hessian of the gates,
removing the set S costs 1/2 1_S^T F 1_S: channels whose gradients agree cost more
together than apart, channels that cancel cost less.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cutjax.saliency.criterion import (
    Criterion,
    Measure,
    Problem,
    Scores,
    Sums,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.seen import GATES, Seen


def _gram(seen: Seen, problem: Problem):
    return {
        g: jnp.einsum("bti,btj,b->tij", v, v, seen.weights)
        for g, v in seen.gates.items()
    }


GRAM = Measure("gates: Gram matrix", frozenset({GATES}), _gram)


@criterion
def gram() -> Criterion:
    """Marginal cost of a channel when the cheapest set is grown one by one.

    Returns:
        A criterion: per group, channels go one after another, always the one that adds
        least to 1/2 1_S^T F 1_S; the score is what it adds, never below what went
        before it. F is kept per group.

    Reference:
        Hassibi & Stork, NIPS 1992 (OBS without refitting) with the empirical Fisher of
        Theis et al., 2018, for gates; per group as in Liu et al., Group Fisher Pruning,
        ICML 2021.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        found = sums.mean()
        return {
            task: {g: grown(v[i]) for g, v in found.items()}
            for i, task in enumerate(problem.tasks)
        }

    return Criterion("gram", scores, GRAM)


def grown(fisher: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """The marginal costs along the greedy order, never falling."""
    n = len(fisher)
    scores, reached = np.zeros(n), -np.inf
    marginal = np.diag(fisher) / 2
    left = np.ones(n, bool)
    for _ in range(n):
        at = int(np.argmin(np.where(left, marginal, np.inf)))
        reached = max(reached, marginal[at])
        scores[at] = reached
        left[at] = False
        marginal = marginal + fisher[at]
    return scores.astype(np.float32)
