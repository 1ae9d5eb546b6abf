"""Groups of which a merged network can have all channels or none, and why."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cutjax._compat import user_line
from cutjax.dims import leaves
from cutjax.merge.average import in_several_ways, one_axis
from cutjax.merge.crossed import Torn, across, channels_of
from cutjax.merge.join import needed
from cutjax.merge.network import Network
from cutjax.merge.serving import serving
from cutjax.merge.ways import at_width, summing, way_of
from cutjax.recover.program import Program, program

DEAD = "all that it enters is shared whole"


def whole_groups(network: Network, inputs: Sequence[Any] | Any) -> dict[str, str]:
    """The groups whose channels are all shared, or none of them.

    Some channels of a group can be shared and others be a network's own where kernels
    mix them. That is not so where an array has channels of two groups (heads and their
    width), where something other than a kernel or a sum reads them, or where a kernel
    that reads and makes channels is used in several ways. Nor is it of use where all
    that a group enters must be shared: own channels would serve nothing.

    Args:
        network: any of those that are to be merged: they are alike.
        inputs: one batch of inputs, or its shapes.

    Returns:
        By group, why.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> def apply(w, x):
        ...     heads = jnp.einsum("bi,ihw->bhw", x, w["a"])
        ...     return jnp.einsum("bhw,hwo->bo", heads, w["b"]) @ w["c"]
        >>> shapes = {"a": (2, 3, 4), "b": (3, 4, 5), "c": (5, 1)}
        >>> w = {name: jnp.ones(shape) for name, shape in shapes.items()}
        >>> x = jnp.ones((1, 2))
        >>> net = cj.merge.Network(apply, w, cj.trace(apply, w, x))
        >>> list(cj.merge.whole_groups(net, x))
        ['a:1', 'a:2']
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    prog = program(network.apply, network.graph, {}, given)
    free = {group.name: group.size for group in network.graph.free}
    found: dict[str, str] = {}

    def note(reasons: Iterable[tuple[str, str]]) -> bool:
        new = {n: why for n, why in reasons if n in free and n not in found}
        found.update(new)
        return bool(new)

    def own() -> Program:
        keep = {name: np.zeros(free[name], bool) for name in found}
        return at_width(prog, keep)

    note(_crossed(prog, free))
    note(_tied(prog, network))
    while note(_summed(prog, own(), free)):
        pass
    side = own()
    served = serving(side, needed(side, side.frame.jaxpr.outvars), free)
    note((name, DEAD) for name in free if name not in served)
    return found


def _made(prog: Program, index: int) -> list[Any]:
    eqn = prog.frame.jaxpr.eqns[index]
    return [prog.frame.values[var] for var in eqn.outvars]


def _crossed(prog: Program, free: Collection[str]) -> Iterator[tuple[str, str]]:
    for index in needed(prog, prog.frame.jaxpr.outvars):
        line = user_line(prog.frame.jaxpr.eqns[index].source_info)
        for value in _made(prog, index):
            for pair in across(prog, value.dims, free) if value.data else ():
                for name, other in (pair, pair[::-1]):
                    yield name, f"an array has it and {other!r}, at {line}"


def _summed(
    prog: Program, own: Program, free: Collection[str]
) -> Iterator[tuple[str, str]]:
    """What is summed, or where that is shared whole, what the sum makes."""
    for index in summing(prog.frame):
        try:
            way_of(prog, own, index, free)
        except Torn as torn:
            values = _made(prog, index)
            made = [n for v in values for n in channels_of(prog, v.dims, free)]
            split = [n for n in torn.groups if own.evaluator.k.count(own.groups[n])]
            line = user_line(prog.frame.jaxpr.eqns[index].source_info)
            for name in split or made:
                yield name, f"read without a kernel, at {line}"


def _tied(prog: Program, network: Network) -> Iterator[tuple[str, str]]:
    for path, axes in network.graph.axes.items():
        if not one_axis(network.graph, path) and in_several_ways(prog, path):
            for axis in axes:
                for leaf in leaves(axis):
                    yield leaf.name, f"{path!r} is used in several ways"
