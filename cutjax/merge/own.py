"""Running a merged function: the shared side, and each network's own, which reads it.

Where a kernel mixes channels, or a sum takes them all, the network's side is given what
is shared in front of its own; of what lies beside channels it has one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from cutjax._compat import bind, scope_of
from cutjax.merge.behind import keeps_of
from cutjax.merge.crossed import channels_of
from cutjax.merge.join import Joint, Parts, start, step
from cutjax.merge.sums import alone, is_scale, layout, mine, summands, summed_axes
from cutjax.merge.ways import ALONE, AT_ANY_WIDTH, SUMMED, TAKEN
from cutjax.readers import channel_axes
from cutjax.recover.program import SAME, Program, behind, needs, read
from cutjax.resize import Evaluator, Reader, kept_of
from cutjax.shrink import take


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
    axes = [channel_axes(reader, operand) for operand in (at, 1 - at)]
    given = facing(job, name, data, shared[both], axes[0])
    sides = [(given, moved(job, name, index, reads))]
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


def moved(
    job: Joint, name: str, index: int, reads: Mapping[str, Any], *, cast: bool = True
) -> Any:
    """The kernel from shared channels to a network's own, as the function makes it.

    Args:
        job: the merged architecture.
        name: the network.
        index: the reader's equation.
        reads: what its kernels are made of, by path.
        cast: whether into the type that the function computes in.
    """
    prog = job.own[name]
    frame, kernel = prog.frame, prog.kernel(index)
    keep, _ = keeps_of(job, name, index)
    evaluator = Evaluator(kept_of(prog.groups, keep))
    numbers = behind(prog, kernel)
    env = {frame.jaxpr.invars[n]: reads[prog.paths[n]] for n in numbers}
    for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
        env[var] = evaluator.cut_const(const, frame.values[var])
    for at in needs(prog, [kernel], known=env):
        eqn = frame.jaxpr.eqns[at]
        args = [read(env, atom) for atom in eqn.invars]
        if eqn.primitive in SAME and not cast:
            outs = args
        elif eqn.primitive in AT_ANY_WIDTH:
            outs = bind(eqn, args, eqn.params)
        else:
            outs = evaluator.step(frame, at, eqn, args)
        env.update(zip(eqn.outvars, outs, strict=True))
    return env[kernel]
