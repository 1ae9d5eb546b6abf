"""The merged function: shared channels run once, each network's own beside them.

What is shared reads what is shared; a network's own channels read both. Every equation
of the architecture is evaluated at the shared width and, for each network, at the width
of its own channels; where a kernel mixes channels, the own side gets the shared side's
operand as well. Channels of the others are never read, so that a subset of the tasks
runs the shared channels and its own: the rest is dead code.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cutjax._compat import bind, scope_of
from cutjax.merge.crossed import channels_of, check_crossed
from cutjax.merge.network import Networks
from cutjax.merge.same import same_numbers, same_program
from cutjax.merge.sharing import DROPPED, Sharing
from cutjax.merge.slots import Slots, own_keep, shared_keep, shares, slots_of
from cutjax.merge.sums import alone, is_scale, layout, mine, summands, summed_axes
from cutjax.merge.ways import (
    ALONE,
    AT_ANY_WIDTH,
    MIXING,
    SUMMED,
    TAKEN,
    at_width,
    summing,
    way_of,
)
from cutjax.readers import channel_axes
from cutjax.recover.program import Program, needs, program, read
from cutjax.resize import Evaluator, Reader, kept_of
from cutjax.shrink import take
from cutjax.unify import leaf_vars


class Joint(NamedTuple):
    """The architecture at the shared width, and at each network's own.

    `ways`: by network, how each equation that reads channels is evaluated. `outs`: what
    is wanted of each network, variables by number of the output. `trunk`: the equations
    that the shared side needs for them. `slots`: by network, where its channels go.
    `all`: its side at the width of all of these, as it counts them. `members`: the
    networks that share channels.
    """

    shared: Program
    own: Mapping[str, Program]
    keeps: Mapping[str, Mapping[str, np.ndarray]]
    common: Mapping[str, np.ndarray]
    ways: Mapping[str, Mapping[int, str]]
    outs: Mapping[str, Mapping[int, Any]]
    trunk: Sequence[int]
    slots: Mapping[str, Slots]
    all: Mapping[str, Program]
    members: tuple[str, ...]

    def wanted(self, name: str) -> list[int]:
        """The equations that a network's own side needs."""
        return needed(self.own[name], self.outs[name].values())

    def without(self, unwanted: Mapping[str, Container[int]]) -> "Joint":
        """The same, some outputs of each network by number left out."""
        outs = {
            name: {i: v for i, v in found.items() if i not in unwanted[name]}
            for name, found in self.outs.items()
        }
        job = self._replace(outs=outs)
        return job._replace(trunk=_trunk(job))


def joint(networks: Networks, sharing: Sharing, inputs: Sequence[Any]) -> Joint:
    """Infer a merged architecture.

    Args:
        networks: alike, see `network.check_alike`.
        sharing: of their channels.
        inputs: one batch, or its shapes.

    Raises:
        KeepError: channels are shared in part where something other than a kernel sums
            over them, or where an array has channels of two groups.
        MismatchError: the functions do not do the same; they may differ in numbers
            that are written into them, where nothing that is shared depends on these.
    """
    first = next(iter(networks.values()))
    common = shared_keep(first.graph, sharing)
    keeps = {n: own_keep(net.graph, sharing, n) for n, net in networks.items()}
    # Networks of one function and graph are one program at several widths.
    found = {(id(net.apply), id(net.graph)): net for net in networks.values()}
    full = {
        key: program(net.apply, net.graph, {}, inputs) for key, net in found.items()
    }
    of = {n: full[id(net.apply), id(net.graph)] for n, net in networks.items()}
    own = {name: at_width(prog, keeps[name]) for name, prog in of.items()}
    slots = {name: slots_of(sharing, name) for name in networks}
    some = tuple(n for n, net in networks.items() if shares(net.graph, slots[n]))
    # The shared side is computed as the first of those that share has it.
    one = (some or tuple(networks))[0]
    shared = at_width(of[one], common)
    for name, prog in own.items():
        same_program(shared, prog, (one, name))
    free = {group.name for group in first.graph.free}
    for prog in own.values():
        check_crossed(shared, prog, free)
    ways = {
        name: {i: way_of(shared, prog, i, free) for i in summing(prog.frame)}
        for name, prog in own.items()
    }
    outs = {name: dict(enumerate(p.frame.jaxpr.outvars)) for name, p in own.items()}
    whole = {
        name: at_width(
            prog, {group: to != DROPPED for group, to in slots[name].items()}
        )
        for name, prog in of.items()
    }
    job = Joint(shared, own, keeps, common, ways, outs, (), slots, whole, some)
    job = job._replace(trunk=_trunk(job))
    check_shared(job)
    return job


def check_shared(job: Joint) -> None:
    """Check that those who share compute alike what they share.

    Raises:
        MismatchError: names the first difference.
    """
    for name in job.members:
        names = job.members[0], name
        same_numbers(job.shared, job.own[name], job.trunk, names)


def _trunk(job: Joint) -> list[int]:
    """The equations of the shared side that some network reads."""
    atoms = []
    for name, prog in job.own.items():
        for index in job.wanted(name):
            eqn = job.shared.frame.jaxpr.eqns[index]
            if job.ways[name].get(index) == MIXING:
                atoms.append(eqn.invars[prog.frame.sites[index].at])
            elif job.ways[name].get(index) == SUMMED:
                atoms += eqn.invars
            elif job.ways[name].get(index) == TAKEN:
                atoms += eqn.outvars
    return needed(job.shared, atoms)


def needed(prog: Program, atoms: Iterable[Any]) -> list[int]:
    """The equations that make some variables; those that make nothing are left out."""
    return needs(prog, atoms, known=_empty(prog))


def _empty(prog: Program) -> dict[Any, tuple[int, ...]]:
    """The variables of which a side has no channels, and their shapes."""
    values = prog.frame.values.items()
    shapes = {v: tuple(prog.evaluator.k.count(d) for d in x.dims) for v, x in values}
    return {var: shape for var, shape in shapes.items() if 0 in shape}


class Parts(NamedTuple):
    """Merged parameters by path: shared, each network's own, and what reads the shared.

    `reads`: of the kernels of a network, the part from shared channels to its own.
    """

    shared: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]]
    reads: Mapping[str, Mapping[str, Any]]


def evaluate(
    job: Joint, parts: Parts, inputs: Sequence[Any]
) -> tuple[dict[Any, Any], dict[str, list[Any]]]:
    """Values of the shared side, and the outputs of each network (None: not wanted).

    Args:
        job: the merged architecture.
        parts: its parameters.
        inputs: leaves of the inputs.
    """
    shared = start(job.shared, parts.shared, inputs)
    for index in job.trunk:
        step(job.shared, index, shared)
    outs = {}
    for name, prog in job.own.items():
        env = start(prog, parts.own[name], inputs)
        for index in job.wanted(name):
            own_step(job, name, index, env, shared, parts.reads[name])
        made = {i: read(env, atom) for i, atom in job.outs[name].items()}
        outs[name] = [made.get(i) for i in range(len(prog.frame.jaxpr.outvars))]
    return shared, outs


def start(
    prog: Program, leaves: Mapping[str, Any], inputs: Sequence[Any]
) -> dict[Any, Any]:
    """Parameters, inputs and constants, and all of which nothing is left."""
    frame = prog.frame
    env = {v: jnp.zeros(size, v.aval.dtype) for v, size in _empty(prog).items()}
    for path, var in zip(prog.paths, frame.jaxpr.invars, strict=False):
        if path in leaves:
            env[var] = leaves[path]
    env.update(zip(frame.jaxpr.invars[len(prog.paths) :], inputs, strict=True))
    for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
        env[var] = prog.evaluator.cut_const(const, frame.values[var])
    return env


def step(prog: Program, index: int, env: dict[Any, Any]) -> None:
    """One equation on one side."""
    eqn = prog.frame.jaxpr.eqns[index]
    with scope_of(eqn):
        args = [read(env, atom) for atom in eqn.invars]
        outs = prog.evaluator.step(prog.frame, index, eqn, args)
    env.update(zip(eqn.outvars, outs, strict=True))


def own_step(
    job: Joint,
    name: str,
    index: int,
    env: dict[Any, Any],
    shared: Mapping[Any, Any],
    reads: Mapping[str, Any],
) -> None:
    """One equation on a network's side, which may read the shared one."""
    prog, way = job.own[name], job.ways[name].get(index, ALONE)
    eqn = prog.frame.jaxpr.eqns[index]
    other = job.shared.frame.jaxpr.eqns[index]
    if way == TAKEN:
        # What is empty on this side is there already.
        pairs = zip(eqn.outvars, other.outvars, strict=True)
        env.update(
            {v: facing(job, name, v, shared[w]) for v, w in pairs if v not in env}
        )
    elif way == ALONE:
        step(job.all[name] if is_scale(prog, eqn) else prog, index, env)
    else:
        if way == SUMMED:
            args = [
                terms(job, name, index, at, read(shared, a), read(env, b))
                for at, (a, b) in enumerate(zip(other.invars, eqn.invars, strict=True))
            ]
        else:
            args = operands(job, name, index, env, shared, reads)
        with scope_of(eqn):
            outs = bind(eqn, args, eqn.params)
        env.update(zip(eqn.outvars, outs, strict=True))


def facing(
    job: Joint, name: str, var: Any, value: Any, within: Collection[int] = ()
) -> Any:
    """A shared array at what a network's side has: beside channels, what is of none.

    Had it channels of its own there, they would lie across the shared ones.

    Args:
        job: the merged architecture.
        name: the network.
        var: the array, as its side knows it.
        value: on the shared side.
        within: axes that stay as they are.
    """
    prog, free = job.own[name], job.keeps[name]
    axes, dims = layout(prog, var), prog.frame.read(var).dims
    for axis, dim in enumerate(dims):
        if axis not in within and channels_of(prog, [dim], free):
            value = take(value, alone(axes[axis], job.common, free), axis)
    return value


def terms(job: Joint, name: str, index: int, at: int, shared: Any, own: Any) -> Any:
    """What a network sums: of an operand of an equation, its shared channels and own.

    Args:
        job: the merged architecture.
        name: the network.
        index: of the equation.
        at: of the operand.
        shared: its value on the shared side.
        own: on the network's.
    """
    prog = job.own[name]
    reader, free = prog.reader(index), job.keeps[name]
    var, axes = reader.eqn.invars[at], summed_axes(reader, at)
    lies = layout(prog, var)
    picked = {
        axis: mine(lies[axis], job.slots[name], job.common, free)
        for axis in axes
        if channels_of(prog, [reader.ins[at].dims[axis]], free)
    }
    return summands(facing(job, name, var, shared, axes), own, picked)


def operands(
    job: Joint,
    name: str,
    index: int,
    env: Mapping[Any, Any],
    shared: Mapping[Any, Any],
    reads: Mapping[str, Any],
) -> list[Any]:
    """Data and kernel of a network's reader, shared channels first."""
    prog = job.own[name]
    reader, at = prog.reader(index), prog.frame.sites[index].at
    data, kernel = reader.eqn.invars[at], reader.eqn.invars[1 - at]
    both = job.shared.frame.jaxpr.eqns[index].invars[at]
    path = prog.paths[prog.origins[kernel]]
    axes = [channel_axes(reader, operand) for operand in (at, 1 - at)]
    given = facing(job, name, data, shared[both], axes[0])
    sides = [(given, moved(job, name, index, reads[path]))]
    if 0 not in env[data].shape and 0 not in env[kernel].shape:
        sides.append((env[data], read(env, kernel)))
    if len(sides) == 1:
        found = sides[0]
    else:
        held = _held(prog, reader, axes[0], job.keeps[name])
        found = [
            jnp.concatenate(values, axis[held])
            for values, axis in zip(zip(*sides, strict=True), axes, strict=True)
        ]
    return list(found) if at == 0 else list(found)[::-1]


def _held(
    prog: Program, reader: Reader, axes: Sequence[int], free: Collection[str]
) -> int:
    """Which of the contracted axes has the channels; `way_of` saw to it."""
    dims = reader.ins[reader.site.at].dims
    found = (i for i, a in enumerate(axes) if channels_of(prog, [dims[a]], free))
    return next(found)


def moved(job: Joint, name: str, index: int, leaf: Any) -> Any:
    """The kernel from shared channels to a network's own, as the function moves it."""
    prog = job.own[name]
    reader, kernel = prog.reader(index), prog.kernel(index)
    env = {prog.frame.jaxpr.invars[prog.origins[kernel]]: leaf}
    dims = reader.site.inner
    inner = {prog.evaluator.k.name(v) or "" for d in dims for v in leaf_vars(d)}
    keep = {n: mask for n, mask in job.keeps[name].items() if n not in inner}
    keep |= {n: mask for n, mask in job.common.items() if n in inner}
    evaluator = Evaluator(kept_of(prog.groups, keep))
    for at in needs(prog, [kernel], known=env):
        eqn = prog.frame.jaxpr.eqns[at]
        args = [read(env, atom) for atom in eqn.invars]
        if eqn.primitive in AT_ANY_WIDTH:
            outs = bind(eqn, args, eqn.params)
        else:
            outs = evaluator.step(prog.frame, at, eqn, args)
        env.update(zip(eqn.outvars, outs, strict=True))
    return env[kernel]
