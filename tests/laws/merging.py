"""What a merged network is: C is made of C; a network reads C and its own.

The oracle runs every network whole, one equation after another, and beside it the
shared channels alone. After each equation, those of a network's channels that are
shared are overwritten with what the shared side made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutjax.dims import kept, leaves
from cutjax.merge import DROPPED
from cutjax.merge.average import read_axes
from cutjax.merge.permute import places
from cutjax.merge.slots import beside
from cutjax.merge.sums import layout
from cutjax.merge.ways import at_width
from cutjax.recover.program import program, read, terminals
from cutjax.shrink import narrowed

from .tools import free


class Shared(NamedTuple):
    """`keep`: the shared channels by group; `leaves`: their parameters, averaged."""

    keep: dict[str, np.ndarray]
    leaves: list[Any]


def shared_of(networks: Any, sharing: Any, inputs: Any) -> Shared:
    """The shared side: sums along the axes that are read, means along the others."""
    first = next(iter(networks.values()))
    roles = read_axes(program(first.apply, first.graph, {}, inputs))
    keep = {}
    for group, found in sharing.items():
        used = np.concatenate([*found.values()])
        keep[group] = np.isin(np.arange(first.graph[group].size), used)
    found = []
    for path, axes in first.graph.axes.items():
        leaf = first.leaves[path]
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            leaf = _mean(networks, sharing, path, roles.get(path, ()))
        found.append(narrowed(leaf, axes, keep))
    return Shared(keep, found)


def _mean(networks: Any, sharing: Any, path: str, along: Any) -> Any:
    first = next(iter(networks.values())).leaves[path]
    total, weight = np.zeros(first.shape), np.zeros(first.shape)
    for name, net in networks.items():
        slots = {group: found[name] for group, found in sharing.items()}
        if all((s < 0).all() for s in slots.values()):
            continue
        mean = np.asarray(net.leaves[path], np.float64)
        count = np.ones(mean.shape)
        for i, axis in enumerate(net.graph.axes[path]):
            to = places(axis, slots)
            goes = np.arange(to.size)[:, None] == to
            mean = np.moveaxis(np.tensordot(goes, mean, (1, i)), 0, i)
            if i not in along:
                count = np.moveaxis(np.tensordot(goes, count, (1, i)), 0, i)
        total, weight = total + mean, weight + count
    return jnp.asarray(total / np.maximum(weight, 1), first.dtype)


class Seats(NamedTuple):
    """Where the channels of a network sit among the shared ones, by group."""

    slots: dict[str, np.ndarray]
    here: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]
    free: set[str]


def overwritten(
    seats: Seats, axes: Any, mine: Any, made: Any, *, whole: bool = False
) -> Any:
    """An array of a network with what the shared side made of it.

    What is of no group along any axis stays each network's, unless `whole`.
    """
    groups = {x.name for axis in axes for x in leaves(axis)} & seats.free
    if not groups and not whole:
        return mine
    at, from_, alone = [], [], []
    for axis in axes:
        here = kept(axis, seats.here)
        to = places(axis, seats.slots)[here]
        rank = np.cumsum(kept(axis, seats.shared)) - 1
        at.append(np.flatnonzero(to >= 0))
        from_.append(rank[to[to >= 0]])
        alone.append(np.flatnonzero(beside(axis, seats.free)[here]))
    mine = jnp.asarray(mine)
    new = mine.at[np.ix_(*at)].set(made[np.ix_(*from_)])
    return new if whole else new.at[np.ix_(*alone)].set(mine[np.ix_(*alone)])


def listening(
    network: Any, slots: Any, shared: Shared, taken: Any, *inputs: Any
) -> Any:
    """What a network answers, its shared channels overwritten by the shared side.

    `taken`: the equations whose results it takes as they are.
    """
    graph = network.graph
    here = {group: to != DROPPED for group, to in slots.items()}
    seats = Seats(slots, here, shared.keep, {group.name for group in free(graph)})
    prog = program(network.apply, graph, {}, inputs)
    jaxpr, values = prog.frame.jaxpr, prog.frame.values
    own = []
    for i, (path, axes) in enumerate(graph.axes.items()):
        leaf = narrowed(network.leaves[path], axes, here)
        if not any(at in prog.frame.sites for at in terminals(prog, i)):
            leaf = overwritten(seats, axes, leaf, shared.leaves[i])
        own.append(leaf)
    widths, held = (shared.keep, here), (shared.leaves, own)
    sides = [at_width(prog, keep) for keep in widths]
    made, mine = envs = [
        _start(side, params, inputs) for side, params in zip(sides, held, strict=True)
    ]
    for i, eqn in enumerate(jaxpr.eqns):
        for side, env in zip(sides, envs, strict=True):
            _step(side, i, env)
        for v in (v for v in eqn.outvars if values[v].data):
            axes, whole = layout(prog, v), i in taken
            mine[v] = overwritten(seats, axes, mine[v], made[v], whole=whole)
    tree = jax.tree.structure(jax.eval_shape(network.apply, network.params, *inputs))
    return jax.tree.unflatten(tree, [read(mine, v) for v in jaxpr.outvars])


def _start(side: Any, held: Any, inputs: Any) -> dict[Any, Any]:
    frame = side.frame
    env = dict(zip(frame.jaxpr.invars, [*held, *jax.tree.leaves(inputs)], strict=True))
    for v, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
        env[v] = side.evaluator.cut_const(const, frame.values[v])
    return env


def _step(side: Any, i: int, env: dict[Any, Any]) -> None:
    """One equation; of no channels nothing is made."""
    eqn, values = side.frame.jaxpr.eqns[i], side.frame.values
    shapes = [tuple(map(side.evaluator.k.count, values[v].dims)) for v in eqn.outvars]
    if all(0 in shape for shape in shapes):
        outs = [
            jnp.zeros(shape, v.aval.dtype)
            for v, shape in zip(eqn.outvars, shapes, strict=True)
        ]
    else:
        args = [read(env, atom) for atom in eqn.invars]
        outs = side.evaluator.step(side.frame, i, eqn, args)
    env.update(zip(eqn.outvars, outs, strict=True))
