"""Which channels together tell least about labels: mutual information by kernels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from cutjax.errors import DataError
from cutjax.given import said


class Growth(NamedTuple):
    """Channels as they join a set, and what the set tells after each of them."""

    order: Int[np.ndarray, "n"]
    information: Float[np.ndarray, "n"]

    @property
    def levels(self) -> Float[np.ndarray, "n"]:
        """Of each channel, the least alpha that the set has not exceeded with it."""
        out = np.empty(self.order.size)
        out[self.order] = np.maximum.accumulate(self.information)
        return out


def information(
    activations: Float[np.ndarray, "N n"],
    labels: Shaped[np.ndarray, "_ *b"],
    variance: float = 0.1,
) -> Growth:
    """Grow the set of channels that together tell least about labels, greedily.

    Mutual information by kernels: H(T) - sum over y of p(y) H(T | y), summed over
    labels, with H(T) = -mean_i log mean_j exp(-|h_i - h_j|^2 / 2 variance). No estimate
    exceeds the labels' entropy, and a handful of independent channels reaches it
    whatever they tell: what has not joined by then cannot be told apart.

    Args:
        activations: of N examples; 128 are usual, memory is N^2 n numbers.
        labels: int[N], or [N, b] for several labels, each of any number of classes.
        variance: of the kernels; activations are standardised per channel.

    Returns:
        The order in which channels joined, and the information after each, in nats.

    Raises:
        DataError: NaN, another number of labels, labels that are all the same,
            activations that are no matrix, or a variance that is not above 0.

    Example:
        >>> x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        >>> found = information(x, np.array([0, 0, 1, 1]))
        >>> found.order.tolist(), (found.information > 0.1).tolist()
        ([1, 0], [False, True])

    Reference:
        He et al., Pruning-Aware Merging, KDD 2021, section 4.2; the bound is that of
        Kolchinsky & Tracey, Entropy 2017.
    """
    if not variance > 0:
        raise DataError(f"variance={variance}: give a number above 0; 0.1 is usual")
    same = _same(activations, labels)
    number = same.sum(1, dtype=np.float64)
    most = float(-np.log(number / len(same)).mean(0).sum())
    kernels, left = _kernels(activations, variance), np.arange(activations.shape[1])
    weights = np.concatenate([np.ones_like(same[..., :1]), same], 2)
    order, found = [], []
    while left.size:
        told = _told(kernels[:, : left.size] @ weights, number)
        tied = np.flatnonzero(told == told.min())
        least = tied[left[tied].argmin()]
        if told[least] >= most - 1e-6:  # what is left is all the same
            break
        order.append(left[least])
        found.append(told[least])
        weights = weights * kernels[:, least, :, None]
        # The last takes its place: no copy of what can be a gigabyte.
        kernels[:, least], left[least] = kernels[:, left.size - 1], left[-1]
        left = left[:-1]
    order, found = [*order, *np.sort(left)], [*found, *np.full(left.size, most)]
    return Growth(np.array(order, int), np.array(found, np.float64))


def _told(
    sums: Float[np.ndarray, "N c k"], number: Float[np.ndarray, "N b"]
) -> Float[np.ndarray, "c"]:
    """Information from sums of kernels over all examples and over those alike."""
    log = np.log(np.asarray(sums, np.float64))
    conditional = log[..., 1:] - np.log(number)[:, None]
    return (conditional - (log[..., :1] - np.log(len(sums)))).mean(0).sum(1)


def _same(
    activations: Float[np.ndarray, "N n"], labels: Shaped[np.ndarray, "_ *b"]
) -> Float[np.ndarray, "N N b"]:
    """Which examples have the same value of each label."""
    columns = np.asarray(labels).reshape(len(labels), -1)
    if len(columns) != len(activations):
        raise DataError(f"{len(columns)} labels for {len(activations)} examples")
    if activations.ndim != 2:
        raise DataError(
            f"activations are {said(activations)}; pass [N, n], a row per example and "
            "a column per channel"
        )
    if not (np.isfinite(activations).all() and np.isfinite(columns).all()):
        raise DataError("activations or labels are NaN or infinite")
    if not len(columns) or (columns == columns[0]).all(0).any():
        raise DataError("a label is the same for all examples: nothing tells of it")
    return (columns[:, None] == columns[None]).astype(np.float32)


def _kernels(
    activations: Float[np.ndarray, "N n"], variance: float
) -> Float[np.ndarray, "N n N"]:
    spread = activations.std(0)
    scaled = (activations - activations.mean(0)) / np.where(spread > 0, spread, 1.0)
    apart = scaled[:, :, None] - scaled.T[None]
    return np.exp(-(apart**2) / (2 * variance)).astype(np.float32)
