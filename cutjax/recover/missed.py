"""What compensation does not reach, and says so."""

from collections.abc import Container, Sequence
from typing import Any

from cutjax._compat import primitive
from cutjax.errors import warn
from cutjax.readers import channel_axes, is_conv
from cutjax.recover.program import Program, behind
from cutjax.recover.stops import Loops, Stop, matrices, place_of
from cutjax.resize import Reader
from cutjax.unify import Var, find

SUM = primitive("reduce_sum")

NAMED = 8
"""Parameters named in a warning, at most."""


def warn_of_missed(
    prog: Program,
    loops: Loops,
    stops: Sequence[Stop],
    used: Container[str],
    label: str,
) -> None:
    """Say which readers stay as cut, and what none of them can make up for.

    Args:
        prog: the program.
        loops: of it.
        stops: the readers that are refitted.
        used: the paths of the parameters that matter.
        label: of the warnings.
    """
    computed, several = _kept(prog, loops, stops, used)
    if computed:
        warn(
            f"{label}: kernels computed from {_list(computed)} stay as cut: the way "
            "they are computed is not undone"
        )
    if several:
        warn(
            f"{label}: kernels of {_list(several)} stay as cut: the same weights serve "
            "in several places, each time as another matrix"
        )
    for name in _averaged(prog, loops):
        warn(
            f"{label}: members of {name!r} are summed, each with kernels of its own; "
            "what those that go made is not made up for: finetune, or keep them all",
        )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def _kept(
    prog: Program, loops: Loops, stops: Sequence[Stop], used: Container[str]
) -> tuple[list[str], list[str]]:
    """The parameters of kernels that are not refitted: computed ones, and others.

    Only those of readers that channels are cut of.
    """
    refitted = {stop.place for stop in stops}
    computed, plain = dict[str, None](), dict[str, None]()
    for loop, index in matrices(prog, loops):
        home = prog if loop is None else loop.prog
        kernel, reader = home.kernel(index), home.reader(index)
        counts = [(prog.evaluator.k.count(d), d.size) for d in _read(reader)]
        cut = any(n < size for n, size in counts) and all(n for n, _ in counts)
        if cut and place_of(loop, index) not in refitted:
            names = plain if kernel in home.origins else computed
            names.update((prog.paths[i], None) for i in sorted(behind(home, kernel)))
    return [n for n in computed if n in used], [n for n in plain if n in used]


def _averaged(prog: Program, loops: Loops) -> list[str]:
    """Groups that members of an ensemble are cut of: kernels apart, results summed.

    What each member makes is right; that the sum lacks the others is not made up for.
    """
    names, kept = dict[str | None, None](), prog.evaluator.k
    for loop, index in matrices(prog, loops):
        home = prog if loop is None else loop.prog
        reader = home.reader(index)
        if is_conv(reader):
            continue
        batch = reader.eqn.params["dimension_numbers"][1][1 - reader.site.at]
        dims = [reader.ins[1 - reader.site.at].dims[axis] for axis in batch]
        cut = {find(d) for d in dims if kept.count(d) < d.size}
        if cut and not cut.isdisjoint(_summed(home)):
            names.update((kept.name(d), None) for d in cut)
    return [name for name in names if name is not None]


def _summed(prog: Program) -> set[Var]:
    """The axes that data is summed over."""
    sums = (e for e in prog.frame.jaxpr.eqns if e.primitive is SUM)
    pairs = ((prog.frame.read(e.invars[0]), e.params["axes"]) for e in sums)
    return {find(v.dims[axis]) for v, axes in pairs if v.data for axis in axes}


def _read(reader: Reader) -> list[Any]:
    operand = reader.ins[reader.site.at]
    return [operand.dims[axis] for axis in channel_axes(reader, reader.site.at)]
