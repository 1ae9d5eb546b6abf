"""Parent and child side by side: one function evaluated at both sizes, in segments.

The flat program is cut at its readers. Each segment is one compiled function that takes
the values still alive, of the parent and of the child, on to the next reader; there the
caller learns what the child reads and what it should make, and gives the child a new
kernel. Every equation runs once per batch and network.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cutjax._compat import Literal
from cutjax.readers import channel_axes
from cutjax.recover.follow import stepped, whole
from cutjax.recover.loops import Loop
from cutjax.recover.program import Program, needs, read
from cutjax.recover.rows import Sample
from cutjax.recover.stops import Stop
from cutjax.recover.target import target
from cutjax.rules.base import shape_of

MUCH = 8
"""Times as many numbers made as read, from which on they are not kept."""


class Pair(NamedTuple):
    """One value of the parent and the same value of the child."""

    parent: Any
    child: Any


class Halt(NamedTuple):
    """A place to stop at: an equation, and the reader it is or the readers in it."""

    index: int
    stops: tuple[Stop, ...]

    @property
    def loop(self) -> Loop | None:
        """What it is, unless a reader itself."""
        return self.stops[0].loop


def halts_of(stops: Iterable[Stop]) -> list[Halt]:
    """Readers, in order, by where to stop for them."""
    return [
        Halt(index, tuple(found))
        for index, found in itertools.groupby(stops, lambda stop: stop.outer)
    ]


class Facing(NamedTuple):
    """The values of both networks at a place to stop, and the parameters."""

    parent: Mapping[Any, Any]
    child: Mapping[Any, Any]
    params: Pair


class Seen(NamedTuple):
    """What a segment hands over at its reader.

    `read` is the operand of the child (of one that is taught, what it should be);
    `made(sample)` what it should make, see `target`; `kernels` a pair, as they stand;
    `full` the operand of the parent, in the rows that the child has.
    """

    read: Any
    made: Callable[[Sample], Any]
    kernels: Pair
    full: Any


def segment(prog: Program, halts: Sequence[Halt], number: int) -> Callable[..., tuple]:
    """The step from halt `number - 1` (or the start) up to halt `number`.

    Args:
        prog: the program.
        halts: all places to stop at, in order.
        number: which of them; one past the last goes on to the program's outputs.

    Returns:
        `f(params, alive) -> (made, facing)`: `params` a pair of lists, the child's as
        refitted so far, `alive` pairs of values by number. `made` are those pairs
        needed later that were not whole in `alive`: what only passes through would be
        copied; see `passing`. After the last halt there are pairs of outputs instead of
        what is faced.
    """
    eqns = prog.frame.jaxpr.eqns
    last = number == len(halts)
    start = halts[number - 1].index if number else 0
    stop = len(eqns) if last else halts[number].index
    after, aside = _alive(prog, halts[number:]), _aside(prog, start, stop)
    # What a reader makes the parent makes already; a loop it runs with the child.
    made_here = not last and halts[number].loop is None

    def run(params: Pair, alive: Mapping[int, Pair]) -> tuple:
        parent, child = (started(prog, params[side], alive, side) for side in (0, 1))
        for index in aside:
            parent.update(whole(prog, index, parent))
            child.update(stepped(prog, index, child))
        # The parent is one equation ahead: it has made what the reader makes.
        ahead = number > 0 and not _again(prog, halts[number - 1])
        for index in range(start + ahead, stop + made_here):
            parent.update(whole(prog, index, parent))
        for index in range(start, stop):
            child.update(stepped(prog, index, child))
        if last:
            return {}, _outputs(prog, parent, child)
        ids = prog.numbers
        new = [v for v in after if None in alive.get(ids[v], (None,))]
        made = {ids[v]: Pair(parent.get(v), child.get(v)) for v in new}
        if not _again(prog, halts[number]):
            (out,) = eqns[stop].outvars
            made[ids[out]] = Pair(parent[out], None)
        return made, Facing(parent, child, params)

    return run


def _again(prog: Program, halt: Halt) -> bool:
    """Whether the parent makes a result anew rather than keep it.

    That of a head over many words, of all batches, is more than all else.
    """
    if halt.loop is not None:
        return True
    eqn, (stop,) = prog.frame.jaxpr.eqns[halt.index], halt.stops
    read, made = eqn.invars[stop.reader.site.at], eqn.outvars[0]
    return math.prod(shape_of(made)) > MUCH * math.prod(shape_of(read))


def passing(
    prog: Program, halts: Sequence[Halt], number: int
) -> Callable[[Mapping[int, Pair]], dict[int, Pair]]:
    """What of the values alive passes through the step up to halt `number`.

    Args:
        prog: the program.
        halts: all of them, in order.
        number: of the step.

    Returns:
        `f(alive) -> alive`, of values or of their shapes.
    """
    after = {prog.numbers[v] for v in _alive(prog, halts[number:])}
    return lambda alive: {
        i: pair for i, pair in alive.items() if i in after and None not in pair
    }


def _outputs(prog: Program, parent: Mapping, child: Mapping) -> list[Pair]:
    found = []
    for var in prog.frame.jaxpr.outvars:
        whole = read(parent, var)
        small = prog.evaluator.cut_const(whole, prog.frame.read(var))
        found.append(Pair(small, read(child, var)))
    return found


def seen(prog: Program, stop: Stop, parent: Mapping, child: Mapping) -> Seen:
    """What is seen at a reader, given the values of both before it.

    Args:
        prog: the program, or the step of a loop that the reader is in.
        stop: the reader.
        parent: what the parent has made up to its result.
        child: what the child has made before it.
    """
    eqn = prog.frame.jaxpr.eqns[stop.index]
    data, kernel = (eqn.invars[i] for i in (stop.reader.site.at, stop.at_kernel))
    kernels = Pair(read(parent, kernel), read(child, kernel))
    full, small = read(parent, data), read(child, data)
    if stop.taught:
        small = prog.evaluator.cut_const(full, prog.frame.read(data))
    channels = channel_axes(stop.reader, stop.reader.site.at)
    rows = prog.evaluator.cut_const(full, prog.frame.read(data), channels)
    return Seen(small, target(prog, stop, parent, child), kernels, rows)


def started(
    prog: Program, params: Sequence[Any], alive: Mapping[int, Pair], side: int
) -> dict[Any, Any]:
    """What one side knows: its parameters, the constants, the values alive."""
    jaxpr = prog.frame.jaxpr
    named = list(prog.numbers)
    env = dict(zip(jaxpr.invars, params, strict=False))
    for var, const in zip(jaxpr.constvars, prog.frame.consts, strict=True):
        value = prog.frame.values[var]
        env[var] = prog.evaluator.cut_const(const, value) if side else const
    env.update(
        {named[i]: pair[side] for i, pair in alive.items() if pair[side] is not None}
    )
    return env


def _alive(prog: Program, halts: Sequence[Halt]) -> list[Any]:
    """Data made before the first of these halts and needed from it on."""
    if not halts:
        return []
    jaxpr, stop = prog.frame.jaxpr, halts[0].index
    before = {v for eqn in jaxpr.eqns[:stop] for v in eqn.outvars} | set(jaxpr.invars)
    data = {var for var in before if prog.frame.values[var].data}
    used = [atom for eqn in jaxpr.eqns[stop:] for atom in eqn.invars]
    return list(dict.fromkeys(_variables([*used, *jaxpr.outvars], data)))


def _aside(prog: Program, start: int, stop: int) -> list[int]:
    """Equations before a segment that make what it needs of parameters alone.

    They are the same for all batches: kept, there would be a copy with each.
    """
    jaxpr, values = prog.frame.jaxpr, prog.frame.values
    used = [atom for eqn in jaxpr.eqns[start : stop + 1] for atom in eqn.invars]
    if stop == len(jaxpr.eqns):
        used += jaxpr.outvars
    fixed = (a for a in used if not isinstance(a, Literal) and not values[a].data)
    return [index for index in needs(prog, fixed) if index < start]


def _variables(atoms: Iterable[Any], among: set) -> Iterable[Any]:
    return (a for a in atoms if not isinstance(a, Literal) and a in among)
