"""What the readers of a merged network should make, from the networks it is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cutjax.dims import Axis, kept
from cutjax.merge import eager
from cutjax.merge.join import Joint
from cutjax.merge.kernels import Env, Solve
from cutjax.merge.sums import layout
from cutjax.recover.program import Program


class Batch(NamedTuple):
    """Values alive of one batch: shared, each network's own, each original's."""

    shared: Env
    own: dict[str, Env]
    full: dict[str, Env]


class Way(NamedTuple):
    """How kernels are made.

    `solve(moments of batches, kernel so far, intercept)`. `originals`: what each
    network itself reads counts, not what the merged one does. `apart`: a shared channel
    should be like each of the channels that went into it, else like their mean.
    """

    solve: Solve
    originals: bool = False
    apart: bool = False


class Job(NamedTuple):
    """What stays the same on the way."""

    joint: Joint
    full: Mapping[str, Program]
    wanted: Mapping[str, set[int]]
    rows: int
    way: Way


def wanted_of(job: Job, batch: Batch, index: int) -> dict[str, tuple[Any, Any, Any]]:
    """By network (or "" for all): what is read, what should be made, of which channels.

    What is read is None where it is the merged network's.
    """
    prog = job.joint.shared
    (out,) = prog.frame.jaxpr.eqns[index].outvars
    path = eager.affine_path(prog, index)
    made = {n: _members_of(job, n, batch, index) for n in job.joint.members}
    if not job.way.originals:
        eager.advance(prog, index, batch.shared)
    if not job.way.apart:
        total = sum(value for value, _ in made.values())
        number = sum(count for _, count in made.values())
        made = {"": (total, number)}
    found = {}
    for name, (value, number) in made.items():
        axes = layout(prog, out)
        mean, there = (
            _common(job, v, axes) for v in (value / np.maximum(number, 1), number)
        )
        like = mean.astype(out.aval.dtype)
        like = like if job.way.originals else batch.shared[out]
        target = eager.inverse(prog, path, batch.shared, out, mean, like)
        read = _read_by(job, name, batch, index) if job.way.originals else None
        found[name] = read, target, there
    return found


def _members_of(job: Job, name: str, batch: Batch, index: int) -> tuple[Any, Any]:
    """What a network makes, as it is after scale and shift, added up per shared one."""
    prog, env = job.full[name], batch.full[name]
    (out,) = prog.frame.jaxpr.eqns[index].outvars
    path = eager.affine_path(prog, index)
    value = eager.through(prog, path, env, out, env[out])
    return eager.sum_of_members(value, layout(prog, out), job.joint.slots[name])


def _read_by(job: Job, name: str, batch: Batch, index: int) -> Any:
    """What a network itself reads, in shared channels."""
    prog = job.full[name]
    data = prog.frame.jaxpr.eqns[index].invars[prog.frame.sites[index].at]
    axes = layout(prog, data)
    value, number = eager.sum_of_members(
        batch.full[name][data], axes, job.joint.slots[name]
    )
    return _common(job, value / np.maximum(number, 1), axes)


def _common(job: Job, value: Any, axes: Sequence[Axis]) -> Any:
    for i, axis in enumerate(axes):
        stays = kept(axis, job.joint.common)
        if value.shape[i] == stays.size:
            value = np.take(value, np.flatnonzero(stays), i)
    return jnp.asarray(value)
