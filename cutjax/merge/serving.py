"""Whether what is shared reads something, and what is a network's own serves it.

Shared channels never read own ones. So a shared group of which all that it reads is own
would answer the same to every input; and own channels that enter only what is shared
would be computed for nothing, a block of a network gone.
"""

from collections.abc import Collection, Iterator, Sequence

from cutjax._compat import Literal, user_line
from cutjax.errors import KeepError, warn
from cutjax.merge.crossed import channels_of
from cutjax.merge.join import Joint, empty
from cutjax.merge.ways import summed_by
from cutjax.recover.program import Program


def serving(
    prog: Program, indices: Sequence[int], free: Collection[str]
) -> dict[str, None]:
    """The groups of which some equations read or make channels, in order."""
    none, found = empty(prog), dict[str, None]()
    for index in indices:
        eqn = prog.frame.jaxpr.eqns[index]
        for atom in (*eqn.invars, *eqn.outvars):
            if not isinstance(atom, Literal) and atom not in none:
                dims = prog.frame.values[atom].dims
                found |= dict.fromkeys(channels_of(prog, dims, free))
    return found


def check_serving(job: Joint) -> None:
    """Check that a sharing cuts no group off; warn where a part of one is.

    Args:
        job: the merged architecture.

    Raises:
        KeepError: names the groups, and what to share or to keep.
    """
    for group, index in _starved(job):
        partly = all(job.keeps[name][group].any() for name in job.members)
        _tell(_of_starved(job, group, index), refuse=not partly)
    for name, prog in job.own.items():
        served = serving(prog, job.wanted(name), job.keeps[name])
        own = [group for group, mask in job.keeps[name].items() if mask.any()]
        idle = [group for group in own if group not in served]
        shared = [group for group in idle if _shares(job, name, group)]
        for groups in ([g for g in idle if g not in shared], shared):
            if groups:
                said = _of_idle(job, name, groups, idle)
                _tell(said, refuse=groups is not shared)


def _tell(said: str, *, refuse: bool) -> None:
    if refuse:
        raise KeepError(said)
    warn(said)


def _shares(job: Joint, name: str, group: str) -> bool:
    slots = job.slots[name].get(group)
    return slots is None or bool((slots >= 0).any())


def _starved(job: Joint) -> Iterator[tuple[str, int]]:
    """Shared groups that no input reaches, and the first equation that makes them."""
    prog, free, none = job.shared, _free(job), empty(job.shared)
    alive = {*prog.frame.jaxpr.invars[len(prog.paths) :]}
    first: dict[str, int] = {}
    reached = set[str]()
    for index in job.trunk:
        eqn = prog.frame.jaxpr.eqns[index]
        named = (a for a in eqn.invars if not isinstance(a, Literal))
        if lives := not alive.isdisjoint(named):
            alive.update(eqn.outvars)
        for value in (prog.frame.values[v] for v in eqn.outvars if v not in none):
            for group in channels_of(prog, value.dims, free) if value.data else ():
                _ = first.setdefault(group, index)
                reached |= {group} if lives else set()
    yield from ((group, at) for group, at in first.items() if group not in reached)


def _of_starved(job: Joint, group: str, index: int) -> str:
    read = _quoted(_entered(job.shared, index, _free(job)))
    line = user_line(job.shared.frame.jaxpr.eqns[index].source_info)
    return (
        f"the shared channels of {group!r} read nothing: of {read}, all that they "
        "read, no channel is shared, and what is shared reads no network's own; "
        f"whatever the input, they are the same\n  at {line}\n"
        f"  try: share {read} too, or leave {group!r} out (OWN); or "
        "`cutjax.merge.tied`, which ties only what several networks hold"
    )


def _free(job: Joint) -> Collection[str]:
    return next(iter(job.keeps.values()))


def _entered(prog: Program, index: int, free: Collection[str]) -> list[str]:
    return channels_of(prog, summed_by(prog.frame, index), free)


def _of_idle(
    job: Joint, name: str, groups: Sequence[str], idle: Collection[str]
) -> str:
    prog, free = job.own[name], job.keeps[name]
    made = {
        other: None
        for index, eqn in enumerate(prog.frame.jaxpr.eqns)
        if not {*_entered(prog, index, free)}.isdisjoint(groups)
        for var in eqn.outvars
        for other in channels_of(prog, prog.frame.values[var].dims, free)
        if other not in idle
    }
    what, into = _quoted(groups), _quoted(list(made))
    return (
        f"own channels of {what} serve network {name!r} nothing: they enter only "
        f"{into}, of which it has none of its own, and what is shared reads no "
        f"network's own\n  try: share {what} too, or keep a part of {into} own (OWN), "
        "or drop them (DROPPED); see `cutjax.merge.whole_groups`"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "what is shared"
