"""Axes as values: how the channels of groups sit in the axis of an array.

An axis is a `Leaf` (the channels of one group), `Fixed` (nothing of it may go), a
`Product` (axes merged by a reshape, row-major: heads x head width) or a `Concat`
(axes laid end to end: the features of a DenseNet). A keep, one boolean vector per
group, decides for every axis which of its positions stay.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Leaf:
    """The channels of the group `name`."""

    name: str
    size: int


@dataclass(frozen=True)
class Fixed:
    """Positions that always stay; `reason` says why, if there is one to tell."""

    size: int
    reason: str = ""


@dataclass(frozen=True)
class Product:
    """Axes merged in row-major order: the last part varies fastest."""

    parts: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(part.size for part in self.parts)


@dataclass(frozen=True)
class Concat:
    """Axes laid end to end."""

    parts: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)


Axis: TypeAlias = Leaf | Fixed | Product | Concat
Keep: TypeAlias = Mapping[str, Bool[np.ndarray, "_"]]


def leaves(axis: Axis) -> Iterator[Leaf]:
    """The groups in an axis, in order of position."""
    match axis:
        case Leaf():
            yield axis
        case Product(parts) | Concat(parts):
            for part in parts:
                yield from leaves(part)
        case Fixed():
            return


def fold(
    axis: Axis, leaf: Callable[[str, int], Any], fixed: Callable[[int], Any]
) -> Any:
    """A vector over the positions of `axis` from one vector per group.

    Args:
        axis: the layout.
        leaf: from a group's name and size to its vector [size].
        fixed: from a size to the vector of a part that belongs to no group.

    Returns:
        A vector [axis.size]; a product multiplies the vectors of its parts.
    """
    match axis:
        case Leaf(name, size):
            return leaf(name, size)
        case Fixed(size):
            return fixed(size)
        case Concat(parts):
            values = [fold(part, leaf, fixed) for part in parts]
            xp = np if all(isinstance(v, np.ndarray) for v in values) else _jnp()
            return xp.concatenate(values)
        case Product(parts):
            out, *rest = [fold(part, leaf, fixed) for part in parts]
            for value in rest:
                out = (out[:, None] * value[None, :]).reshape(-1)
            return out


def _jnp():
    import jax.numpy as jnp

    return jnp


def kept(axis: Axis, keep: Keep) -> Bool[np.ndarray, "_"]:
    """Which positions of `axis` stay under `keep`.

    Example:
        >>> axis = Product((Leaf("heads", 2), Leaf("width", 2)))
        >>> kept(axis, {"heads": np.array([True, False])}).tolist()
        [True, True, False, False]
    """
    whole = partial(np.ones, dtype=bool)
    return fold(
        axis,
        lambda name, n: np.asarray(keep[name], bool) if name in keep else whole(n),
        whole,
    )


def count(axis: Axis, widths: Mapping[str, int]) -> int:
    """How many positions stay when each group keeps so many channels."""
    match axis:
        case Leaf(name, size):
            return widths.get(name, size)
        case Fixed(size):
            return size
        case Product(parts):
            return math.prod(count(part, widths) for part in parts)
        case Concat(parts):
            return sum(count(part, widths) for part in parts)


def incidence(
    axis: Axis, name: str
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Which positions of `axis` hold which channels of the group `name`.

    Returns:
        `(positions, channels)`, pair by pair; a position of a Gram matrix (the group
        twice in one product) appears with both of its channels.

    Example:
        >>> pair = Product((Leaf("a", 2), Leaf("a", 2)))
        >>> [v.tolist() for v in incidence(pair, "a")]
        [[0, 1, 2, 3, 0, 2, 1, 3], [0, 0, 1, 1, 0, 0, 1, 1]]
    """
    match axis:
        case Leaf(found, size) if found == name:
            return np.arange(size), np.arange(size)
        case Concat(parts):
            starts = np.cumsum([0, *(part.size for part in parts)])
            each = [incidence(part, name) for part in parts]
            at = [p + s for (p, _), s in zip(each, starts, strict=False)]
            return np.concatenate(at), np.concatenate([c for _, c in each])
        case Product(parts):
            found = [_among(parts, i, name) for i in range(len(parts))]
            at, channel = zip(*found, strict=True)
            return np.concatenate(at), np.concatenate(channel)
        case _:
            return np.zeros(0, int), np.zeros(0, int)


def _among(parts: tuple[Axis, ...], i: int, name: str):
    """`incidence` of one part of a product, at positions of the whole."""
    at, channel = incidence(parts[i], name)
    before = math.prod(part.size for part in parts[:i])
    after = math.prod(part.size for part in parts[i + 1 :])
    outer = np.arange(before)[:, None] * parts[i].size
    whole = (at[:, None, None] + outer) * after + np.arange(after)
    return whole.ravel(), np.repeat(channel, before * after)


def channels(axis: Axis, name: str) -> Int[np.ndarray, "_"]:
    """For each position of `axis`, its channel of the group `name`, or -1.

    Example:
        >>> channels(Product((Leaf("heads", 2), Leaf("width", 3))), "heads").tolist()
        [0, 0, 0, 1, 1, 1]
    """
    match axis:
        case Product(parts):
            # Channel numbers, one-based, of at most one part; the others say zero.
            out = np.zeros(1, int)
            for part in parts:
                inner = channels(part, name) + 1
                out = np.maximum(out[:, None], inner[None, :]).reshape(-1)
            return out - 1
        case Concat(parts):
            return np.concatenate([channels(part, name) for part in parts])
        case Leaf(found, size) if found == name:
            return np.arange(size)
        case _:
            return np.full(axis.size, -1)
