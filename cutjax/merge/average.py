"""Merged parameters as means: of the weights, over what went into each channel.

A shared channel is the mean of the channels that went into it. Whoever reads one that
several channels of a network went into reads it once for each of them: merging by M,
unmerging by its transpose of zeros and ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutjax.dims import kept, leaves
from cutjax.errors import KeepError, MismatchError, listed, warn
from cutjax.graph import Graph
from cutjax.merge.behind import held_behind
from cutjax.merge.join import Joint, Parts
from cutjax.merge.network import Network, Networks
from cutjax.merge.slots import Slots, beside, one_to_one, summed
from cutjax.merge.ways import MIXING, at_width
from cutjax.readers import channel_axes
from cutjax.recover.program import Program, positions, terminals
from cutjax.recover.rows import is_matrix
from cutjax.shrink import narrowed


def averaged(networks: Networks, job: Joint) -> Parts:
    """The parameters of a merged network, by averaging.

    Args:
        networks: by name.
        job: their merged architecture.

    Raises:
        KeepError: a parameter that is read in two ways has several channels of one
            network in a shared one.
    """
    roles = read_axes(next(iter(job.own.values())))
    slots = job.slots
    _check_uses(job, networks)
    some = {name: networks[name] for name in job.members}
    shared = {
        path: mean_of(some, slots, path, roles.get(path, ()), job)
        for path in used(job.shared, job.trunk)
    }
    own, reads = {}, {}
    for name, net in networks.items():
        prog, held = job.own[name], net.leaves
        wanted = job.wanted(name)
        paths = used(prog, wanted)
        cut = {p: narrowed(held[p], net.graph.axes[p], job.keeps[name]) for p in paths}
        own[name] = {p: leaf for p, leaf in cut.items() if leaf.size}
        mixed = [i for i in wanted if job.ways[name].get(i) == MIXING]
        moved = [i for i in mixed if prog.kernel(i) in prog.origins]
        reads[name] = {
            path: _reading(net, slots[name], path, roles[path], job, name)
            for path in dict.fromkeys(kernel_of(prog, i) for i in moved)
        }
        for index in (i for i in mixed if i not in moved):
            _add(reads[name], held_behind(job, net, name, index))
    _warn_of_alike(own, reads)
    return Parts({**shared, **_unread(networks, [shared, *own.values()])}, own, reads)


def _unread(networks: Networks, held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Random keys and counters that no answer depends on: training may read them."""
    first = next(iter(networks.values()))
    return {
        path: leaf
        for path, leaf in first.leaves.items()
        if not jnp.issubdtype(leaf.dtype, jnp.inexact)
        and not any(path in leaves for leaves in held)
        and not leaf.shape
    }


def _add(reads: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Take up parameters that a kernel is computed from."""
    for path, leaf in more.items():
        if path in reads and not np.array_equal(reads[path], leaf):
            raise KeepError(
                f"{path!r} is used in several ways, and what reads shared channels is "
                "not the same in all: give each use a parameter of its own"
            )
    reads.update(more)


def _warn_of_alike(own: Mapping[str, Any], reads: Mapping[str, Any]) -> None:
    """Say of which networks nothing is left: what they answer is what others answer."""
    alike = [name for name in own if not own[name] and not reads[name]]
    if len(alike) > 1:
        warn(
            f"merge: {listed(alike)} keep no parameter of their own, so that all of "
            "them answer alike: what answers reads shared channels without a kernel; "
            "share fewer groups"
        )


def used(prog: Program, indices: Sequence[int]) -> list[str]:
    """The parameters that some equations read."""
    numbers = {
        var: i for i, var in enumerate(prog.frame.jaxpr.invars[: len(prog.paths)])
    }
    eqns = prog.frame.jaxpr.eqns
    found = {numbers[a] for i in indices for a in eqns[i].invars if _is_in(a, numbers)}
    return [prog.paths[i] for i in sorted(found)]


def _is_in(atom: Any, numbers: Mapping[Any, int]) -> bool:
    return not hasattr(atom, "val") and atom in numbers


def kernel_of(prog: Program, index: int) -> str:
    """The parameter that a reader reads."""
    return prog.paths[prog.origins[prog.kernel(index)]]


def read_axes(prog: Program) -> dict[str, tuple[int, ...]]:
    """By parameter, the axes along which it reads channels, wherever it does."""
    found: dict[str, tuple[int, ...]] = {}
    for index in sorted(prog.frame.sites):
        reader = prog.reader(index)
        if is_matrix(reader) and prog.kernel(index) in prog.origins:
            path, axes = kernel_of(prog, index), _read_along(prog, index)
            found[path] = tuple(sorted({*found.get(path, ()), *axes}))
    return found


def _check_uses(job: Joint, networks: Networks) -> None:
    """Check that what is read in one place and used in another is shared one to one."""
    prog, graph = job.shared, next(iter(networks.values())).graph
    for path in used(prog, job.trunk):
        whole = not one_axis(graph, path)
        groups = {leaf.name for axis in graph.axes[path] for leaf in leaves(axis)}
        torn = [g for g in groups & {*job.common} if not _one_to_one(job, g, whole)]
        if torn and in_several_ways(prog, path):
            raise KeepError(
                f"{path!r} is used in several ways; so {torn[0]!r} can only be shared "
                f"one to one{' and whole' if whole else ''}; or give each use a "
                "parameter of its own"
            )


def one_axis(graph: Graph, path: str) -> bool:
    """Whether a parameter has channels along one axis at most."""
    free = {group.name for group in graph.free}
    held = [{x.name for x in leaves(axis)} & free for axis in graph.axes[path]]
    return sum(map(bool, held)) < 2


def _one_to_one(job: Joint, group: str, whole: bool) -> bool:
    """Whether each shared channel is one channel of every network that shares."""
    found = [job.slots[name][group] for name in job.members]
    return all(
        one_to_one(to, job.common[group]) and not (whole and (to < 0).any())
        for to in found
    )


def in_several_ways(prog: Program, path: str) -> bool:
    """Whether a parameter is read in one place and used otherwise in another."""
    number = prog.paths.index(path)
    uses = terminals(prog, number)
    ways = {_read_along(prog, i) if _reads(prog, i, number) else () for i in uses}
    return len(ways) > 1


def _reads(prog: Program, index: int, number: int) -> bool:
    if index < 0 or index not in prog.frame.sites or not is_matrix(prog.reader(index)):
        return False
    return prog.origins.get(prog.kernel(index)) == number


def _read_along(prog: Program, index: int) -> tuple[int, ...]:
    reader, kernel = prog.reader(index), prog.kernel(index)
    param = prog.frame.jaxpr.invars[prog.origins[kernel]]
    axes = channel_axes(reader, 1 - reader.site.at)
    if kernel is param:
        return tuple(axes)
    shape = param.aval.shape
    where = np.unravel_index(full_positions(prog, kernel), shape)
    return tuple(a for a, at in enumerate(where) if any(_varies(at, b) for b in axes))


def full_positions(prog: Program, var: Any) -> np.ndarray:
    """`positions` at full size."""
    shape = prog.frame.jaxpr.invars[prog.origins[var]].aval.shape
    return positions(at_width(prog, {}), var, shape)


def _varies(at: np.ndarray, axis: int) -> bool:
    return bool((at != np.take(at, [0], axis)).any())


def mean_of(
    networks: Networks,
    slots: Mapping[str, Slots],
    path: str,
    read: tuple[int, ...],
    job: Joint,
) -> Any:
    """A parameter of the shared side.

    Args:
        networks: those that share channels, by name.
        slots: where the channels of each go.
        path: of the parameter.
        read: the axes along which it is read: those are added up, not averaged.
        job: the merged architecture.
    """
    first = next(iter(networks.values()))
    if jnp.issubdtype(first.leaves[path].dtype, jax.dtypes.extended):
        return first.leaves[path]  # Random keys.
    if not jnp.issubdtype(first.leaves[path].dtype, jnp.inexact):
        return _same_of(networks, slots, path, job)
    total, weight = 0.0, 0.0
    for name, net in networks.items():
        axes, leaf = net.graph.axes[path], net.leaves[path]
        values, ones = precise(leaf), np.ones(leaf.shape, np.float32)
        along, made = range(leaf.ndim), [a for a in range(leaf.ndim) if a not in read]
        total = total + summed(values, axes, slots[name], along)
        weight = weight + summed(ones, axes, slots[name], made)
    mean = total / np.maximum(weight, 1)
    cut = narrowed(mean, first.graph.axes[path], job.common)
    return jnp.asarray(cut, first.leaves[path].dtype)


def _same_of(
    networks: Networks, slots: Mapping[str, Slots], path: str, job: Joint
) -> Any:
    """What networks have in common of whole numbers or truths: no means are taken.

    Raises:
        KeepError: several channels of a network go into one.
        MismatchError: they differ.
    """
    first = next(iter(networks.values()))
    leaf = first.leaves[path]
    no_means = f"{path!r} holds {leaf.dtype}, of which no means are taken"
    value, known = np.zeros(leaf.shape, leaf.dtype), np.zeros(leaf.shape, bool)
    for name, net in networks.items():
        given = np.asarray(net.leaves[path]), np.ones(leaf.shape, np.int32)
        along = net.graph.axes[path], slots[name], range(leaf.ndim)
        here, count = (summed(array, *along) for array in given)
        if (count > 1).any():
            raise KeepError(
                f"{no_means}, and several channels of {name!r} go into one: share "
                "them one to one"
            )
        if (known & (count > 0) & (here != value)).any():
            raise MismatchError(
                f"{no_means}, and that of {name!r} differs where channels are shared; "
                "make it floating, or do not share what depends on it, see "
                "`cutjax.merge.until`"
            )
        value, known = np.where(count > 0, here, value), known | (count > 0)
    cut = narrowed(value, first.graph.axes[path], job.common)
    return jnp.asarray(cut, leaf.dtype)


def precise(leaf: Any) -> np.ndarray:
    """An array on the host in float32, or in what is wider."""
    return np.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def _reading(
    net: Network, slots: Slots, path: str, read: tuple[int, ...], job: Joint, name: str
) -> Any:
    """The part of a kernel from shared channels to a network's own."""
    axes, leaf = net.graph.axes[path], net.leaves[path]
    whole = np.array(summed(precise(leaf), axes, slots, read))
    free = [group.name for group in net.graph.free]
    alone = [
        beside(axis, free) if i in read else np.ones(axis.size, bool)
        for i, axis in enumerate(axes)
    ]
    if not all(fixed.all() for fixed in alone):
        # What lies beside channels and is of no group, the own side reads.
        whole[np.ix_(*alone)] = 0
    for i, axis in enumerate(axes):
        stays = kept(axis, job.common if i in read else job.keeps[name])
        whole = np.take(whole, np.flatnonzero(stays), i)
    return jnp.asarray(whole, leaf.dtype)
