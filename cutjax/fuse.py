"""Fusing per-task scores over the tasks that are needed.

A vote is an order statistic of per-task ranks: a channel that any task ranks high stays
under `union` (the best rank counts), one that all rank high under `intersection`. Ranks
alone have no scale, and a plan weighs scores against costs; so each rank is given the
score that tasks give at that rank on average (quantile normalisation). That map is
increasing, and an order statistic of the values is the value of the order statistic.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from cutjax.errors import DataError, KeepError
from cutjax.given import check_scores

Scores = Mapping[str, Float[np.ndarray, "_"]]
"""Per group, one score per channel."""

Fuse = Callable[[Mapping[str, Scores]], dict[str, np.ndarray]]


def _stack(scores: Mapping[str, Scores]) -> Float[np.ndarray, "tasks channels"]:
    """All channels of all groups, one row per task, each row summing to one."""
    if not scores:
        raise KeepError("no task to fuse")
    check_scores(scores)
    first, *rest = scores.values()
    if any(
        {n: len(v) for n, v in s.items()} != {n: len(v) for n, v in first.items()}
        for s in rest
    ):
        raise KeepError("the tasks' scores name different groups")
    rows = [
        np.concatenate([np.asarray(s[n], np.float64) for n in first] or [np.zeros(0)])
        for s in scores.values()
    ]
    out = np.stack(rows)
    if not np.isfinite(out).all():
        raise DataError("scores are NaN or infinite; fusing them would hide it")
    total = np.abs(out).sum(axis=1, keepdims=True)
    return out / np.where(total > 0, total, 1.0)


def _split(fused: np.ndarray, like: Scores) -> dict[str, np.ndarray]:
    if not like:
        return {}
    ends = np.cumsum([len(v) for v in like.values()])[:-1]
    return dict(zip(like, np.split(fused.astype(np.float32), ends), strict=True))


def vote(scores: Mapping[str, Scores], k: int = 1) -> dict[str, np.ndarray]:
    """Score by the k-th best of the tasks' ranks: high when k tasks rank it high.

    Args:
        scores: per task and group, f32[n].
        k: how many tasks must claim a channel; 1 is the union, T the intersection.

    Returns:
        Per group, f32[n]: in the scale of scores normalised to sum one per task.

    Raises:
        KeepError: k is not between 1 and the number of tasks.

    Reference:
        CUT (2504.09803), fusion with n votes; DiSparse (CVPR 2022), union.
    """
    if not 1 <= k <= len(scores):
        raise KeepError(
            f"k={k} of {len(scores)} tasks; k is between 1 and their number"
        )
    rows = _stack(scores)
    order = np.argsort(rows, axis=1, kind="stable")
    scale = np.sort(rows, axis=1).mean(axis=0)
    placed = np.empty_like(rows)
    for row, sort, values in zip(placed, order, rows, strict=True):
        row[sort] = scale
        # Ties share the mean of their places: position must not decide between them.
        _, tie, number = np.unique(values, return_inverse=True, return_counts=True)
        row[:] = (np.bincount(tie, row) / number)[tie]
    fused = np.sort(placed, axis=0)[len(scores) - k]
    return _split(fused, next(iter(scores.values())))


def union(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """Keep what any task claims: `vote` with k = 1."""
    return vote(scores, 1)


def majority(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """Keep what at least half of the tasks claim: `vote` with k = ceil(T / 2)."""
    return vote(scores, math.ceil(len(scores) / 2))


def intersection(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """Keep what all tasks claim: `vote` with k = T."""
    return vote(scores, len(scores))


def mean(
    scores: Mapping[str, Scores], weights: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Weighted mean of the tasks' scores, each normalised to sum one.

    Args:
        scores: per task and group, f32[n].
        weights: per task; equal, if not given.

    Returns:
        Per group, f32[n].

    Raises:
        KeepError: weights that name other tasks, are negative, or sum to zero.
    """
    weights = dict.fromkeys(scores, 1.0) if weights is None else weights
    given = [0.0, *weights.values()]
    if set(weights) != set(scores) or min(given) < 0 or not 0 < sum(given) < math.inf:
        raise KeepError(
            f"weights {dict(weights)} do not fit tasks {list(scores)}: one per task, "
            "none negative, one above zero"
        )
    w = np.array([weights[task] for task in scores])
    fused = (w / w.sum()) @ _stack(scores)
    return _split(fused, next(iter(scores.values())))


def maximum(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """The largest of the tasks' scores, each normalised to sum one.

    Args:
        scores: per task and group, f32[n].

    Returns:
        Per group, f32[n].
    """
    return _split(_stack(scores).max(0), next(iter(scores.values())))


def minimum(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """The smallest of the tasks' scores, each normalised to sum one.

    Args:
        scores: per task and group, f32[n].

    Returns:
        Per group, f32[n].
    """
    return _split(_stack(scores).min(0), next(iter(scores.values())))


def geometric(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """Geometric mean of the tasks' scores: what one task can do without is cheap.

    Args:
        scores: per task and group, f32[n], not negative.

    Returns:
        Per group, f32[n], in the scale of scores normalised to sum one per task.

    Raises:
        DataError: a score is negative.
    """
    rows = _stack(scores)
    if (rows < 0).any():
        task = list(scores)[int((rows < 0).any(axis=1).argmax())]
        raise DataError(
            f"scores of {task!r} are negative, and a geometric mean of such is not "
            "defined; use fuse.mean, or a criterion without signs"
        )
    with np.errstate(divide="ignore"):
        fused = np.exp(np.log(rows).mean(0))
    return _split(fused, next(iter(scores.values())))
