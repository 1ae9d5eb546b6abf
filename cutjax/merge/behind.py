"""Kernels that are computed of parameters, and what each network holds of these.

Heads with weight normalisation, masks, adapters or fake quantisation: a network's own
kernel is computed of its own parameters, whole along what it reads of the shared side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cutjax.dims import Axis, kept, leaves
from cutjax.errors import KeepError
from cutjax.merge.crossed import channels_of
from cutjax.merge.join import Joint
from cutjax.merge.network import Network
from cutjax.merge.sharing import DROPPED
from cutjax.merge.slots import beside, one_to_one, summed
from cutjax.recover.program import Program, behind

Keep = Mapping[str, np.ndarray]


def paths_behind(prog: Program, index: int) -> list[str]:
    """The parameters that the kernel of a reader is made of."""
    return [prog.paths[i] for i in sorted(behind(prog, prog.kernel(index)))]


def keeps_of(job: Joint, name: str, index: int) -> tuple[Keep, set[str]]:
    """What of each group a network's own kernel has, to read what is shared.

    Shared channels to read, own ones to make; of what lies between, all that the
    network has.

    Returns:
        Masks by group, and the groups that are read.
    """
    prog = job.own[name]
    reader, free = prog.reader(index), [*job.keeps[name]]
    read = {*channels_of(prog, reader.site.inner, free)}
    made = {*channels_of(prog, [d for v in reader.outs for d in v.dims], free)}
    keep = {group: to != DROPPED for group, to in job.slots[name].items()}
    keep |= {group: job.keeps[name][group] for group in made}
    keep |= {g: job.common.get(g, np.ones(len(job.keeps[name][g]), bool)) for g in read}
    return keep, read


def held_behind(job: Joint, net: Network, name: str, index: int) -> dict[str, Any]:
    """The parameters of a network's computed kernel, by path.

    Raises:
        KeepError: what it reads is not shared one to one, so that they cannot be
            ordered as what is shared.
    """
    prog, slots = job.own[name], job.slots[name]
    keep, read = keeps_of(job, name, index)
    found = {}
    for path in paths_behind(prog, index):
        axes, leaf = net.graph.axes[path], np.asarray(net.leaves[path])
        along = [i for i, a in enumerate(axes) if read & {x.name for x in leaves(a)}]
        _check(job, name, path, read, [axes[i] for i in along])
        leaf = summed(leaf, axes, slots, along)
        for i, axis in enumerate(axes):
            leaf = np.take(leaf, np.flatnonzero(kept(axis, keep)), i)
        found[path] = jnp.asarray(leaf)
    return found


def _check(
    job: Joint, name: str, path: str, read: set[str], axes: Sequence[Axis]
) -> None:
    said = f"a kernel is computed from {path!r}, so "
    if any(beside(axis, read).any() for axis in axes):
        raise KeepError(
            f"{said}{min(read)!r}, which it reads beside what is of no group, cannot "
            "be shared: keep it apart, see `cutjax.merge.until`"
        )
    for group in read & {*job.slots[name]}:
        if not one_to_one(job.slots[name][group], job.common[group]):
            raise KeepError(
                f"{said}{group!r}, which it reads, can only be shared one to one and "
                f"whole, and network {name!r} does not: share all of it by a "
                "permutation, or keep it apart"
            )
