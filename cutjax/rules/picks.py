"""Channels picked by constant indices: which axis the picked positions make."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cutjax.unify import Var

ONE_BY_ONE = (
    "picked one by one by constant indices; jnp.split, jnp.concatenate and transposes "
    "are understood"
)
COPIES = "copies by constant indices"
STRIDE = "picked with a stride by constant indices"

MANY = 16
"""More runs than this are too many pieces of one axis."""


class Digit(NamedTuple):
    """One digit of indices that count like an odometer: how many, how far apart."""

    count: int
    step: int


def picked(s: Any, var: Var, index: np.ndarray) -> Var | None:
    """The axis made of the positions `index` of an axis; None where that stays whole.

    Either the axis is cut at the borders of the runs of consecutive positions, and the
    runs are laid end to end; or it is a grid whose axes are read in another order; or
    it falls apart, and is pinned.
    """
    if s.pinned(var):
        return None
    runs = _runs(index)
    if len(runs) <= MANY and not _crumbles(runs):
        return s.concat([s.segment(var, start, stop) for start, stop in runs])
    out = _reordered(s, var, _digits(index))
    if out is None:
        s.pin(var, ONE_BY_ONE)
    return out


def _runs(index: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs `start, stop` of consecutive ascending positions."""
    if not index.size:
        return []
    borders = np.flatnonzero(np.diff(index) != 1) + 1
    starts, last = index[np.r_[0, borders]], index[np.r_[borders - 1, -1]]
    return [(int(a), int(b) + 1) for a, b in zip(starts, last, strict=True)]


def _crumbles(runs: list[tuple[int, int]]) -> bool:
    """Whether more than half of the pieces between the borders are single channels."""
    borders = np.unique(np.array(runs))
    pieces = [
        b - a
        for a, b in pairwise(borders)
        if any(start <= a and b <= stop for start, stop in runs)
    ]
    singles = sum(size == 1 for size in pieces)
    return bool(singles > 2 and 2 * singles > len(pieces))


def _digits(index: np.ndarray) -> list[Digit] | None:
    """Indices that count over a grid, from the slowest digit; None if they do not."""
    out: list[Digit] = []
    while index.size > 1:
        steps = np.diff(index)
        other = np.flatnonzero(steps != steps[0])
        count = int(other[0]) + 1 if other.size else index.size
        if index.size % count:
            return None
        rows = index.reshape(-1, count)
        if (rows - rows[:, :1] != steps[0] * np.arange(count)).any():
            return None
        out.append(Digit(count, int(steps[0])))
        index = rows[:, 0]
    return [*out[::-1], Digit(1, int(index[0]))]


def _reordered(s: Any, var: Var, digits: list[Digit] | None) -> Var | None:
    """A grid within the axis, its digits in another order, some of them repeated."""
    if digits is None or min(digit.step for digit in digits) < 0:
        return None
    *digits, (_, start) = digits
    sizes = [d for d in digits if d.step]
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i].step)
    unit = span = sizes[order[-1]].step if sizes else 1
    for i in order[::-1]:
        if sizes[i].step != span:
            return None
        span *= sizes[i].count
    start -= start % unit
    if not sizes or start + span > var.size:
        return None
    axes = s.news([d.count for d in sizes])
    rest = s.new(unit, STRIDE)
    s.unify(
        s.segment(var, start, start + span),
        s.product([*(axes[i] for i in order), rest]),
    )
    left = iter(axes)
    return s.product([next(left) if d.step else s.new(d.count, COPIES) for d in digits])


def varying(column: np.ndarray) -> list[int]:
    """The axes of an array of indices along which it is not the same throughout."""
    first = (np.take(column, [0], b) for b in range(column.ndim))
    return [b for b, start in enumerate(first) if (column != start).any()]


def along(column: np.ndarray, axis: int) -> np.ndarray:
    """An array that varies along one axis only, as a line."""
    return np.moveaxis(column, axis, -1).reshape(-1, column.shape[axis])[0]


def renumbered(k: Any, index: np.ndarray, dims, columns, batch) -> np.ndarray:
    """Constant indices in kept coordinates.

    Args:
        k: what is kept.
        index: the indices; the last axis holds one per axis of `columns`.
        dims: the axes of the array that is indexed.
        columns: which of these axes each index is of.
        batch: the axes that the other axes of `index` make.
    """
    for b, d in enumerate(batch):
        index = np.compress(k.mask(d), index, axis=b)
    index = index.copy()
    for j, i in enumerate(columns):
        mask = k.mask(dims[i])
        index[..., j] = (np.cumsum(mask) - mask)[index[..., j]]
    return index
