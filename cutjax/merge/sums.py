"""Sums over channels of which some are shared: such as those of a LayerNorm.

A network sums over its own channels and over those of the shared ones that are its:
as often as several of its channels went into one. So a mean is divided by their number,
and counts as one when the merged network is cut.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from cutjax._compat import primitive
from cutjax.dims import Axis, Fixed, Leaf, kept
from cutjax.merge.permute import places
from cutjax.merge.slots import Slots, beside
from cutjax.readers import channel_axes
from cutjax.recover.program import Program
from cutjax.resize import Reader, freeze

SCALES = frozenset(map(primitive, ("div", "mul")))
"""What divides a sum by a count."""


def layout(prog: Program, var: Any) -> list[Axis]:
    """The axes of a variable at full size."""

    def name(v: Any) -> Axis:
        found = prog.evaluator.k.name(v)
        return Leaf(found, v.size) if found else Fixed(v.size)

    return [freeze(d, name) for d in prog.frame.values[var].dims]


def is_sum(reader: Reader) -> bool:
    """Whether an equation sums over axes, or weighs with constants what it sums."""
    if reader.eqn.primitive in (jax.lax.reduce_sum_p, jax.lax.reduce_max_p):
        return True
    return reader.site.summed is not None and any(v.const for v in reader.ins)


def summed_axes(reader: Reader, at: int) -> Sequence[int]:
    """The axes of an operand of a sum that are summed over."""
    params = reader.eqn.params
    return params["axes"] if "axes" in params else channel_axes(reader, at)


def is_scale(prog: Program, eqn: Any) -> bool:
    """Whether an equation may divide a sum by the number of things summed."""
    if eqn.primitive not in SCALES:
        return False
    a, b = map(prog.frame.read, eqn.invars)
    numbers = a.known is not None or b.known is not None
    return numbers and (a.summed is not None or b.summed is not None)


def mine(
    axis: Axis,
    slots: Slots,
    common: Mapping[str, Bool[np.ndarray, "_"]],
    free: Collection[str],
) -> Int[np.ndarray, "_"]:
    """The shared channels of a network along an axis, each as often as it is several.

    Args:
        axis: the layout.
        slots: where the channels of the network go.
        common: by group, the positions that are shared.
        free: the groups that are not pinned: what is of none of them, is left out.

    Returns:
        Positions along the axis at the shared width.

    Example:
        >>> common = {"g": np.array([True, False, True])}
        >>> mine(Leaf("g", 3), {"g": np.array([2, 2, -1])}, common, ["g"]).tolist()
        [1, 1]
    """
    to = places(axis, slots)
    at = np.sort(to[(to >= 0) & ~beside(axis, free)])
    return (np.cumsum(kept(axis, common)) - 1)[at]


def alone(
    axis: Axis, common: Mapping[str, Bool[np.ndarray, "_"]], free: Collection[str]
) -> Int[np.ndarray, "_"]:
    """The positions of an axis at the shared width that are of none of some groups.

    Args:
        axis: the layout.
        common: by group, the positions that are shared.
        free: the groups.

    Example:
        >>> from cutjax.dims import Concat
        >>> axis = Concat((Leaf("g", 3), Fixed(2)))
        >>> alone(axis, {"g": np.array([True, False, True])}, ["g"]).tolist()
        [2, 3]
    """
    rank = np.cumsum(kept(axis, common)) - 1
    return rank[beside(axis, free)]


def summands(
    shared: Shaped[Array | np.ndarray, "..."],
    own: Shaped[Array | np.ndarray, "..."],
    picked: Mapping[int, Int[np.ndarray, "_"]],
) -> Shaped[Array | np.ndarray, "..."]:
    """What a network sums: its part of the shared operand, and its own.

    Args:
        shared: the operand of a sum on the shared side.
        own: that of the network's own side; its channels may be none.
        picked: along axes with channels, which of the shared ones are the network's.
    """
    for axis, at in picked.items():
        if not np.array_equal(at, np.arange(shared.shape[axis])):
            shared = jnp.take(shared, at, axis)
    if 0 in own.shape:
        return shared
    (axis,) = picked
    return jnp.concatenate([shared, own], axis)
