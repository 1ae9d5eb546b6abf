"""Which channels tasks share: the agreement of several keeps, group by group."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cutjax.dims import Keep
from cutjax.errors import KeepError


class Agreement(NamedTuple):
    """Of one group: channels that tasks keep, and how far they agree.

    `iou`: kept by all over kept by any. `pairs`: the same for every two tasks. `votes`:
    number of channels that 0, 1, ... T tasks keep. `alone`: per task, kept by no other.
    """

    iou: float
    pairs: dict[tuple[str, str], float]
    votes: tuple[int, ...]
    alone: dict[str, int]


def agreement(keeps: Mapping[str, Keep]) -> dict[str, Agreement]:
    """How far the tasks agree on the channels of each group.

    Args:
        keeps: per task, what a plan for that task alone keeps.

    Returns:
        Per group, in the order of the first task's keep.

    Raises:
        KeepError: no task, or keeps of different groups.

    Reference:
        DiSparse (CVPR 2022), section 4.4: layer-wise IoU of the tasks' masks.

    Example:
        >>> a, b = np.array([True, True, False]), np.array([False, True, True])
        >>> agreement({"age": {"g": a}, "smile": {"g": b}})["g"].iou
        0.3333333333333333
    """
    if not keeps:
        raise KeepError("no keep to compare; pass {task: keep}")
    first = next(iter(keeps.values()))
    for task, keep in keeps.items():
        if set(keep) != set(first):
            odd = sorted(set(keep) ^ set(first))[0]
            raise KeepError(f"the keep of {task!r} and the first differ in {odd!r}")
    return {name: compared({t: k[name] for t, k in keeps.items()}) for name in first}


def compared(masks: Mapping[str, np.ndarray]) -> Agreement:
    """How far the tasks agree on the channels of one group.

    Args:
        masks: per task, bool[n].

    Returns:
        The agreement.
    """
    rows = {task: np.asarray(mask, bool) for task, mask in masks.items()}
    votes = np.sum(list(rows.values()), axis=0)
    return Agreement(
        iou=iou(list(rows.values())),
        pairs={(a, b): iou([rows[a], rows[b]]) for a, b in combinations(rows, 2)},
        votes=tuple(np.bincount(votes, minlength=len(rows) + 1).tolist()),
        alone={t: int((row & (votes == 1)).sum()) for t, row in rows.items()},
    )


def iou(masks: Sequence[np.ndarray]) -> float:
    """Kept by all over kept by any; 1 where nothing is kept.

    Args:
        masks: of one shape.

    Returns:
        Between 0 and 1.
    """
    any_ = np.logical_or.reduce(masks).sum()
    return float(np.logical_and.reduce(masks).sum() / any_) if any_ else 1.0
