"""The readers of a program that can be refitted, and all that is to know about each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cutjax.recover.computed import (
    Affine,
    Edge,
    Source,
    affine_of,
    lies,
    serves_only,
    source_of,
)
from cutjax.recover.follow import Reach, bias_of, reach_of
from cutjax.recover.loops import Loop
from cutjax.recover.products import Inner, inner_of
from cutjax.recover.program import Program, terminals
from cutjax.recover.rows import (
    features_of,
    groups_of,
    is_matrix,
    kernel_blocks,
    made_axes,
    rows_of,
)
from cutjax.resize import Reader
from cutjax.rules.base import shape_of

Place = tuple[int, ...]
"""An equation of the program, or that of a loop and one of its step."""

Loops = Mapping[int, Loop]
EMPTY: Loops = {}


class Stop(NamedTuple):
    """A reader to be refitted.

    `index`: its equation, of one step if it is in a `loop`. `path`: its parameter;
    `where`: the flat positions of the kernel in it. `bias`: path and positions of what
    shifts its result, if there is one. `kernel`: shape of the child's kernel; `groups`,
    `features`, `rows` per batch and step. `inner`: the product that what it makes
    enters, where a part of the width goes. `affine`: how the kernel is computed from
    what lies at `where`, if it is not just that.
    `tied`: place of the first reader of the same weights, where they serve in several
    places: more than one reader, steps of a loop, or a reader and whatever else.
    `taught`: whether it is shown what the parent reads; the child would go astray with
    weights as cut.
    """

    index: int
    reader: Reader
    path: str
    where: Int[np.ndarray, "..."]
    reach: Reach
    bias: tuple[str, np.ndarray] | None
    kernel: Any
    groups: int
    features: int
    rows: int
    inner: Inner | None = None
    loop: Loop | None = None
    tied: Place | None = None
    taught: bool = False
    affine: Affine | None = None

    @property
    def place(self) -> Place:
        """Where it is; places have the order of equations."""
        return place_of(self.loop, self.index)

    @property
    def steps(self) -> int:
        """How often it reads in each batch."""
        return 1 if self.loop is None else self.loop.steps

    @property
    def outer(self) -> int:
        """The equation of the program that it is, or is in."""
        return self.place[0]

    def home(self, prog: Program) -> Program:
        """What its equation is one of: of a program, that or a step of its loop."""
        return prog if self.loop is None else self.loop.prog

    @property
    def at_kernel(self) -> int:
        """Which operand is the kernel."""
        return 1 - self.reader.site.at

    @property
    def blocks(self) -> Int[np.ndarray, "g f m"]:
        """Where in the parameter each weight of the kernel's blocks lies."""
        return np.asarray(kernel_blocks(self.reader, self.where, self.groups))


def stops_of(
    prog: Program, child: Mapping[str, Any], loops: Loops = EMPTY
) -> tuple[Stop, ...]:
    """All readers, in order; nothing empty.

    Several readers of the very same matrix are tied: they get one kernel. So is one of
    a kernel that serves elsewhere too, as where rows of an embedding are looked up, and
    one in a loop.

    Args:
        prog: the program.
        child: the child's parameters by path.
        loops: what of it are loops, by equation.
    """
    shapes = {name: np.shape(leaf) for name, leaf in child.items()}
    reads, of_param = list(_reads(prog, loops)), dict[int, set[Place]]()
    for loop, index, source in reads:
        if not source.path:
            of_param.setdefault(source.number, set()).add(place_of(loop, index))
    stops = [(r[2].number, _stop(prog, child, *r)) for r in reads]
    serve = {n for n, found in of_param.items() if _used(prog, loops, n) != found}
    # What is whole stays as it is: elsewhere it is right.
    whole = {n for n in serve if shapes[prog.paths[n]] == _full(prog, n)}
    free = [stop for n, stop in stops if stop is not None and n not in whole]
    paths = {prog.paths[n] for n in serve}
    return _shared(
        [
            s._replace(tied=s.place) if s.path in paths or s.loop is not None else s
            for s in _own_bias(prog, loops, free)
        ]
    )


def matrices(prog: Program, loops: Loops) -> Iterator[tuple[Loop | None, int]]:
    """Equations that are rows times a kernel, in the program and in its loops."""
    for loop in (None, *loops.values()):
        home = prog if loop is None else loop.prog
        yield from ((loop, i) for i in home.frame.sites if is_matrix(home.reader(i)))


def _reads(prog: Program, loops: Loops) -> Iterator[tuple[Loop | None, int, Source]]:
    """Those that can be refitted, and where their kernels come from.

    A parameter that kernels are computed from must serve nothing else.
    """
    by_param: dict[int, list[tuple[Loop | None, int, Source]]] = {}
    for loop, index in matrices(prog, loops):
        home = prog if loop is None else loop.prog
        source = source_of(home, home.kernel(index))
        if source is not None:
            by_param.setdefault(source.number, []).append((loop, index, source))
    for number, found in by_param.items():
        edges, rounds = set[Edge](), set[Edge]()
        for loop, index, source in found:
            home = prog if loop is None else loop.prog
            made = home.frame.jaxpr.eqns[index].outvars[0]
            edges |= {*source.edges, (home.kernel(index), made)}
            rounds |= {*source.rounds}
        plain = [read for read in found if not read[2].path]
        only = plain or serves_only(prog, loops, number, edges, rounds)
        yield from found if only and not plain else plain


def place_of(loop: Loop | None, index: int) -> Place:
    """Where an equation is, of the program or of a loop."""
    return (index,) if loop is None else (loop.index, index)


def _used(prog: Program, loops: Loops, number: int) -> set[Place]:
    """Where a parameter is used, moved or not."""
    found = set[Place]()
    for index in terminals(prog, number):
        loop = loops.get(index)
        if loop is not None:
            found |= {(index, at) for at in terminals(loop.prog, number)}
        if loop is None or any(prog.origins.get(v) == number for v in loop.varies):
            found.add((index,))
    return found


def _full(prog: Program, number: int) -> tuple[int, ...]:
    return shape_of(prog.frame.jaxpr.invars[number])


def _stop(
    prog: Program,
    child: Mapping[str, Any],
    loop: Loop | None,
    index: int,
    source: Source,
) -> Stop | None:
    home = prog if loop is None else loop.prog
    reader, kept = home.reader(index), home.evaluator.k
    path, sizes = home.paths[source.number], home.sizes(home.kernel(index))
    if 0 in sizes or any(kept.count(d) == 0 for d in reader.outs[0].dims):
        return None
    affine = affine_of(home, source, home.kernel(index), child) if source.path else None
    if source.path and affine is None:
        return None
    kernel = np.broadcast_to(np.float32(0), sizes)
    reach, made = reach_of(home, index), made_axes(reader, kernel)
    shapes = {name: np.shape(leaf) for name, leaf in child.items()}
    return Stop(
        *(index, reader, path, lies(home, source, shapes[path]), reach),
        *(bias_of(home, reach, made, shapes), kernel, groups_of(reader, kept)),
        *(features_of(reader, kernel), rows_of(reader), inner_of(home, index)),
        *(loop, None, loop is not None, affine),
    )


def _own_bias(prog: Program, loops: Loops, stops: Sequence[Stop]) -> list[Stop]:
    """Only biases that nothing but one reader's result is shifted by."""
    users: dict[str, set[Place]] = {}
    places: dict[str, list[np.ndarray]] = {}
    for stop in stops:
        if stop.bias is not None:
            path, where = stop.bias
            var = stop.reach.bias.var  # type: ignore[union-attr]
            found = {place_of(stop.loop, i) for i in stop.home(prog).users[var]}
            users.setdefault(path, set()).update(found)
            places.setdefault(path, []).append(where)
    own = {
        path
        for path, found in users.items()
        if _used(prog, loops, prog.paths.index(path)) == found
        and len(np.unique(np.concatenate(places[path]))) == sum(map(len, places[path]))
    }
    return [
        s if s.bias is None or s.bias[0] in own else s._replace(bias=None)
        for s in stops
    ]


def _shared(stops: Sequence[Stop]) -> tuple[Stop, ...]:
    """Those of one matrix tied; those that share only a part of it left out."""
    by_path: dict[str, list[Stop]] = {}
    for stop in stops:
        by_path.setdefault(stop.path, []).append(stop)
    out = [s for found in by_path.values() for s in _one_each(found)]
    return tuple(sorted(out, key=lambda stop: stop.place))


def _one_each(stops: list[Stop]) -> Iterator[Stop]:
    """Of the readers of one parameter."""
    if len(stops) == 1:
        yield from stops
        return
    same: dict[Any, list[Stop]] = {}
    for stop in stops:
        arrays = stop.blocks, *(stop.affine or ())
        key = tuple((a.shape, a.tobytes()) for a in arrays)
        same.setdefault(key, []).append(stop)
    places = [found[0].where.ravel() for found in same.values()]
    times = np.bincount(np.concatenate(places))
    for found, where in zip(same.values(), places, strict=True):
        if times[where].max() > 1:
            continue
        # One matrix for several targets has no intercept of its own.
        tied = {"tied": found[0].place, "bias": None, "taught": True}
        yield from [s._replace(**tied) for s in found] if len(found) > 1 else found
