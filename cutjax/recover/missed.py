"""What compensation does not reach, and says so."""

from collections.abc import Container, Sequence
from typing import Any

from cutjax._compat import primitive
from cutjax.errors import listed, warn
from cutjax.readers import channel_axes, is_conv
from cutjax.recover.program import Program, behind
from cutjax.recover.stops import Loops, Stop, is_complex, matrices, place_of
from cutjax.resize import Reader
from cutjax.unify import Var, find

SUM = primitive("reduce_sum")

COMPUTED = "computed from", "the way they are computed is not undone"
COMPLEX = "of", "they are complex, and fits are of real numbers; finetune"
SEVERAL = (
    "of",
    "the same weights serve in several places, each time as another matrix",
)
"""Why kernels are not refitted, after how they stand to what is named."""


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
    for (of, why), names in _kept(prog, loops, stops, used).items():
        warn(f"{label}: kernels {of} {listed(names)} stay as cut: {why}")
    for name in _averaged(prog, loops):
        warn(
            f"{label}: members of {name!r} are summed, each with kernels of its own; "
            "what those that go made is not made up for: finetune, or keep them all",
        )


def _kept(
    prog: Program, loops: Loops, stops: Sequence[Stop], used: Container[str]
) -> dict[tuple[str, str], list[str]]:
    """By reason, the parameters of kernels that are not refitted.

    Only those of readers that channels are cut of.
    """
    refitted = {stop.place for stop in stops}
    found = dict[tuple[str, str], dict[str, None]]()
    for loop, index in matrices(prog, loops):
        home = prog if loop is None else loop.prog
        kernel, reader = home.kernel(index), home.reader(index)
        counts = [(prog.evaluator.k.count(d), d.size) for d in _read(reader)]
        cut = any(n < size for n, size in counts) and all(n for n, _ in counts)
        if cut and place_of(loop, index) not in refitted:
            why = SEVERAL if kernel in home.origins else COMPUTED
            names = found.setdefault(COMPLEX if is_complex(home, index) else why, {})
            names.update((prog.paths[i], None) for i in sorted(behind(home, kernel)))
    among = {why: [n for n in names if n in used] for why, names in found.items()}
    return {why: names for why, names in among.items() if names}


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
