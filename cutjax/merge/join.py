"""The merged function: shared channels run once, each network's own beside them.

What is shared reads what is shared; a network's own channels read both. Every equation
of the architecture is evaluated at the shared width and, for each network, at the width
of its own channels; where a kernel mixes channels, the own side gets the shared side's
operand as well. Channels of the others are never read, so that a subset of the tasks
runs the shared channels and its own: the rest is dead code.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cutjax._compat import scope_of
from cutjax.errors import CutjaxError
from cutjax.merge.crossed import check_crossed
from cutjax.merge.network import Networks
from cutjax.merge.same import same_numbers, same_program
from cutjax.merge.sharing import DROPPED, Sharing
from cutjax.merge.slots import Slots, own_keep, shared_keep, shares, slots_of
from cutjax.merge.ways import (
    MIXING,
    SUMMED,
    TAKEN,
    at_width,
    summing,
    way_of,
)
from cutjax.recover.program import Program, needs, program, read


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
    try:
        # Recurrences stay loops, which compile in no time, where nothing within them
        # needs both a network's own channels and the shared ones.
        return _joint(networks, sharing, inputs, unroll=False)
    except CutjaxError:
        return _joint(networks, sharing, inputs, unroll=True)


def _joint(
    networks: Networks, sharing: Sharing, inputs: Sequence[Any], *, unroll: bool
) -> Joint:
    first = next(iter(networks.values()))
    common = shared_keep(first.graph, sharing)
    keeps = {n: own_keep(net.graph, sharing, n) for n, net in networks.items()}
    # Networks of one function and graph are one program at several widths.
    found = {(id(net.apply), id(net.graph)): net for net in networks.values()}
    full = {
        key: program(net.apply, net.graph, {}, inputs, unroll=unroll)
        for key, net in found.items()
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
    return needs(prog, atoms, known=empty(prog))


def empty(prog: Program) -> dict[Any, tuple[int, ...]]:
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


def start(
    prog: Program, leaves: Mapping[str, Any], inputs: Sequence[Any]
) -> dict[Any, Any]:
    """Parameters, inputs and constants, and all of which nothing is left."""
    frame = prog.frame
    env = {v: jnp.zeros(size, v.aval.dtype) for v, size in empty(prog).items()}
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
