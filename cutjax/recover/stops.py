"""The readers of a program that can be refitted, and all that is to know about each."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

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
from cutjax.recover.program import NOWHERE, Program, terminals
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

    `index`: its equation, of one step if it is in a `loop`. `paths`: the parameters
    that its kernel is put together of, mostly one; `where`: its flat positions in them,
    laid end to end. `bias`: path and positions of what shifts its result, if there is
    one. `kernel`: shape of the child's kernel; `groups`, `features`, `rows` per batch
    and step. `inner`: the product that what it makes enters, where a part of the width
    goes. `affine`: how the kernel is computed from what lies at `where`, if it is not
    just that.
    `tied`: place of the first reader of the same weights, where they serve in several
    places: more than one reader, steps of a loop, or a reader and whatever else.
    `apart`: whether each of several has a bias of its own, or none.
    `taught`: whether it is shown what the parent reads; the child would go astray with
    weights as cut.
    """

    index: int
    reader: Reader
    paths: tuple[str, ...]
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
    apart: bool = False
    taught: bool = False
    affine: Affine | None = None

    @property
    def path(self) -> str:
        """What its kernel is called."""
        return " + ".join(self.paths)

    @property
    def padded(self) -> bool:
        """Whether some of its kernel lies in no parameter."""
        return bool((self.where == NOWHERE).any())

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

    def held(
        self, sizes: Mapping[str, int]
    ) -> Iterator[tuple[str, Bool[np.ndarray, " n"], Int[np.ndarray, " k"]]]:
        """By parameter, which of the kernel's numbers it holds, and where in it.

        Args:
            sizes: of the child's parameters, by path.
        """
        flat, start = self.where.ravel(), 0
        for path in self.paths:
            held = (start <= flat) & (flat < start + sizes[path])
            yield path, held, flat[held] - start
            start += sizes[path]

    @property
    def blocks(self) -> Int[np.ndarray, "g f m"]:
        """Where in the parameters each weight of the kernel's blocks lies."""
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
    reads, made_of = list(_reads(prog, loops)), dict[Place, tuple[int, ...]]()
    found = [_stop(prog, child, *read) for read in reads]
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    stops = _shared([stop for stop in found if stop is not None], sizes)
    known = {stop.place for stop in stops}
    for loop, index, source in reads:
        # Of several parameters and left out: to each of them that is elsewhere.
        if not source.path:
            place = place_of(loop, index)
            if len(source.numbers) == 1 or place in known:
                made_of[place] = source.numbers
    serve = _serving(prog, loops, made_of)
    # What is whole stays as it is: elsewhere it is right.
    whole = {prog.paths[n] for n in serve if shapes[prog.paths[n]] == _full(prog, n)}
    free = [s for s in stops if whole.isdisjoint(s.paths)]
    paths = {prog.paths[n] for n in serve}
    return tuple(
        s._replace(tied=s.tied or s.place) if s.loop or paths & {*s.paths} else s
        for s in _own_bias(prog, loops, free)
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
    by_param: dict[tuple[int, ...], list[tuple[Loop | None, int, Source]]] = {}
    for loop, index in matrices(prog, loops):
        home = prog if loop is None else loop.prog
        source = source_of(home, home.kernel(index))
        if source is not None and not is_complex(home, index):
            by_param.setdefault(source.numbers, []).append((loop, index, source))
    for numbers, found in by_param.items():
        edges, rounds = set[Edge](), set[Edge]()
        for loop, index, source in found:
            home = prog if loop is None else loop.prog
            made = home.frame.jaxpr.eqns[index].outvars[0]
            edges |= {*source.edges, (home.kernel(index), made)}
            rounds |= {*source.rounds}
        plain = [read for read in found if not read[2].path]
        only = plain or serves_only(prog, loops, numbers[0], edges, rounds)
        yield from found if only and not plain else plain


def is_complex(home: Program, index: int) -> bool:
    """Whether a reader's kernel is; fits are of real numbers."""
    return bool(jnp.issubdtype(home.kernel(index).aval.dtype, jnp.complexfloating))


def place_of(loop: Loop | None, index: int) -> Place:
    """Where an equation is, of the program or of a loop."""
    return (index,) if loop is None else (loop.index, index)


def _serving(
    prog: Program, loops: Loops, made_of: Mapping[Place, tuple[int, ...]]
) -> set[int]:
    """The parameters that serve elsewhere than in the readers that are made of them."""
    read_at: dict[int, set[Place]] = {}
    for place, numbers in made_of.items():
        for number in numbers:
            read_at.setdefault(number, set()).add(place)
    return {n for n, places in read_at.items() if _used(prog, loops, n) != places}


def _used(prog: Program, loops: Loops, number: int) -> set[Place]:
    """Where a parameter is used, moved or not."""
    found = set[Place]()
    for index in terminals(prog, number):
        loop = loops.get(index)
        if loop is not None:
            found |= {(index, at) for at in terminals(loop.prog, number)}
        if loop is None or any(number in prog.sources.get(v, ()) for v in loop.varies):
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
    atom = home.kernel(index)
    sizes = home.sizes(atom)
    if 0 in sizes or any(kept.count(d) == 0 for d in reader.outs[0].dims):
        return None
    shapes = {name: np.shape(leaf) for name, leaf in child.items()}
    affine = affine_of(home, source, atom, child) if source.path else None
    found, groups = lies(home, source, shapes), groups_of(reader, kept)
    if found is None or (source.path and affine is None):
        return None
    if not _whole(np.asarray(kernel_blocks(reader, found[1], groups)) == NOWHERE):
        return None
    kernel = np.broadcast_to(np.float32(0), sizes)
    reach, made = reach_of(home, index), made_axes(reader, kernel)
    return Stop(
        *(index, reader, *found, reach),
        *(bias_of(home, reach, made, shapes), kernel, groups),
        *(features_of(reader, kernel), rows_of(reader), inner_of(home, index)),
        *(loop, None, False, loop is not None, affine),
    )


def _whole(padding: Bool[np.ndarray, "g f m"]) -> bool:
    """Whether it is of all that a number read is for, or of all that makes one."""
    read, made = padding.all(2, keepdims=True), padding.all(1, keepdims=True)
    return bool((padding == (read | made)).all())


def _own_bias(prog: Program, loops: Loops, stops: Sequence[Stop]) -> list[Stop]:
    """Only biases that nothing is shifted by but one reader's result.

    Or those of all readers that are tied, if they have it in common.
    """
    users: dict[str, set[Place]] = {}
    places: dict[str, list[np.ndarray]] = {}
    for stop in stops:
        if stop.bias is not None:
            path, where = stop.bias
            var = stop.reach.bias.var  # type: ignore[union-attr]
            found = {place_of(stop.loop, i) for i in stop.home(prog).users[var]}
            users.setdefault(path, set()).update(found)
            if stop.apart or stop.tied in (None, stop.place):
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


def _shared(stops: Sequence[Stop], sizes: Mapping[str, int]) -> tuple[Stop, ...]:
    """Those of one matrix tied; those that share only a part of it left out."""
    times = Counter(path for stop in stops for path in stop.paths)
    alone = [s for s in stops if all(times[path] == 1 for path in s.paths)]
    rest = [s for s in stops if any(times[path] > 1 for path in s.paths)]
    found = [*alone, *_one_each(rest, sizes)]
    return tuple(sorted(found, key=lambda stop: stop.place))


def _one_each(stops: Sequence[Stop], sizes: Mapping[str, int]) -> Iterator[Stop]:
    """Of the readers of parameters that some have in common."""
    same: dict[Any, list[Stop]] = {}
    for stop in stops:
        arrays = stop.blocks, *(stop.affine or ())
        key = stop.paths, *((a.shape, a.tobytes()) for a in arrays)
        same.setdefault(key, []).append(stop)
    held = [[*found[0].held(sizes)] for found in same.values()]
    times = {path: np.zeros(sizes[path], np.int32) for s in stops for path in s.paths}

    def count(parts: Sequence[Any], by: int) -> None:
        for path, _, where in parts:
            times[path][where] += by

    def clash(parts: Sequence[Any]) -> bool:
        return any(times[path][where].max() > 1 for path, _, where in parts)

    for parts in held:
        count(parts, 1)
    torn = list[bool]()
    for parts in held:
        # A kernel of several gives way to one of theirs, and to the next of several.
        torn.append(len(parts) > 1 and clash(parts))
        count(parts, -1 if torn[-1] else 0)
    for found, parts, gone in zip(same.values(), held, torn, strict=True):
        if gone or clash(parts):
            continue
        tied = {"tied": found[0].place, "apart": _apart(found), "taught": True}
        yield from [s._replace(**tied) for s in found] if len(found) > 1 else found


def _apart(stops: Sequence[Stop]) -> bool:
    """Whether results are not all shifted by the one bias: not by one intercept."""
    first, *others = (s.bias for s in stops)
    return first is None or any(
        bias is None or bias[0] != first[0] or not np.array_equal(bias[1], first[1])
        for bias in others
    )
