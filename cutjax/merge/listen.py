"""Activations where channels are read, as matrices with the channels in columns."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.dims import Axis, Fixed, Leaf
from cutjax.graph import Graph
from cutjax.merge.blocks import Block, blocks
from cutjax.readers import hears
from cutjax.resize import Kept, Reader, Run, freeze
from cutjax.shrink import rewrite

Unit = tuple[str, ...]
"""One group, or two whose channels are the rows and columns of a grid."""

Heard = dict[Unit, list[Float[Array, "_ _"]]]

MOST = 4096
"""Channels of a grid: what is gathered of it is a square of as many."""


def activations(
    apply: Callable[..., Any], graph: Graph, *, grids: bool
) -> Callable[..., Heard]:
    """What readers read, outside of loops and of means that normalise.

    Args:
        apply: the function.
        graph: its graph.
        grids: where two groups meet in an activation (heads and their width), note all
            pairs of their channels; otherwise each group alone, the other's channels
            being rows like any positions.

    Returns:
        `f(params, *inputs)`: per unit, one matrix per reader.
    """
    free = frozenset(group.name for group in graph.free)

    def heard(params: Any, *inputs: Any) -> Heard:
        found: Heard = {}

        def hook(kept: Kept, reader: Reader, run: Run, args: list[Any]) -> list[Any]:
            _note(found, kept, reader, args[reader.site.at], free, grids)
            return run(args)

        rewrite(apply, graph, {}, hook=hook, flat=True)(params, *inputs)
        return found

    return heard


def _note(
    found: Heard,
    kept: Kept,
    reader: Reader,
    operand: Any,
    free: frozenset[str],
    grids: bool,
) -> None:
    site = reader.site
    if not hears(reader):
        return

    def label(var: Any) -> Axis:
        name = kept.name(var)
        return Leaf(name, var.size) if name in free and name else Fixed(var.size)

    axes = [freeze(dim, label) for dim in reader.ins[site.at].dims]
    for block in blocks(axes, free):
        read = [name for i in site.axes for name in block.pieces[i].labels]
        for unit in _units([n for n in block.labels if n], read, grids):
            matrix = _columns(operand, block, unit)
            if not grids or matrix.shape[1] <= MOST or len(unit) == 1:
                found.setdefault(unit, []).append(matrix)


def _units(held: list[str], read: Sequence[str | None], grids: bool) -> list[Unit]:
    """What to note of a block that holds these groups."""
    once = [name for name in held if held.count(name) == 1]
    if not grids:
        return [(name,) for name in once if name in read]
    if len(once) != len(held) or len(held) > 2 or not {*held} & {*read}:
        return []
    return [tuple(sorted(held))]


def _columns(operand: Any, block: Block, unit: Unit) -> Float[Array, "rows n"]:
    part = block.of(operand)
    at = [block.labels.index(name) for name in unit]
    moved = jnp.moveaxis(part, at, range(-len(at), 0))
    n = 1
    for i in at:
        n *= part.shape[i]
    found = moved.reshape(-1, n)
    if jnp.iscomplexobj(found):
        found = jnp.concatenate([found.real, found.imag])
    return found.astype(jnp.float32)
