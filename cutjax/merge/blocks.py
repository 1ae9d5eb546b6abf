"""Arrays as blocks whose axes each hold one group, or none that moves.

A product of axes becomes several axes of a block, a concatenation several blocks: what
an array has in common with another is then a sum of products over plain axes.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cutjax.dims import Axis, Concat, Leaf, Product, leaves
from cutjax.shrink import take

Label = str | None


class Piece(NamedTuple):
    """Positions of an axis as a grid; each axis of the grid holds a group, or none."""

    at: Int[np.ndarray, "..."]
    labels: tuple[Label, ...]


class Block(NamedTuple):
    """A part of an array: `pieces` along its axes; what the axes of the block hold."""

    pieces: tuple[Piece, ...]

    @property
    def labels(self) -> tuple[Label, ...]:
        """The group along each axis of the block."""
        return tuple(label for piece in self.pieces for label in piece.labels)

    def of(self, array: Any) -> Any:
        """This part of an array, one axis per label."""
        for i, piece in enumerate(self.pieces):
            at = piece.at.ravel()
            if at.size != array.shape[i] or (np.diff(at) != 1).any():
                array = take(array, at, i)
        return array.reshape([n for piece in self.pieces for n in piece.at.shape])


def blocks(axes: Sequence[Axis], free: frozenset[str]) -> list[Block]:
    """The parts of an array with these axes.

    Args:
        axes: the axes.
        free: the groups that move; all else keeps its place.

    Example:
        >>> heads = Product((Leaf("heads", 2), Leaf("width", 3)))
        >>> axes = (Concat((heads, Leaf("g", 4))), Leaf("width", 3))
        >>> [b.labels for b in blocks(axes, frozenset({"heads", "width"}))]
        [('heads', 'width', 'width'), (None, 'width')]
    """
    return [*map(Block, itertools.product(*(_pieces(axis, free) for axis in axes)))]


def _pieces(axis: Axis, free: frozenset[str]) -> list[Piece]:
    if not any(leaf.name in free for leaf in leaves(axis)):
        return [Piece(np.arange(axis.size), (None,))]
    match axis:
        case Product(parts):
            found = [Piece(np.zeros((), int), ())]
            for part in parts:
                each = itertools.product(found, _pieces(part, free))
                found = [_times(outer, part.size, inner) for outer, inner in each]
            return found
        case Concat(parts):
            starts = np.cumsum([0, *(part.size for part in parts)])[:-1]
            return [
                Piece(piece.at + start, piece.labels)
                for part, start in zip(parts, starts, strict=True)
                for piece in _pieces(part, free)
            ]
        case Leaf(name, size):
            return [Piece(np.arange(size), (name,))]
    return []


def _times(outer: Piece, size: int, inner: Piece) -> Piece:
    at = np.multiply.outer(outer.at * size, np.ones(inner.at.shape, int)) + inner.at
    return Piece(at, outer.labels + inner.labels)
