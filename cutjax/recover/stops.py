"""The readers of a program that can be refitted, and all that is to know about each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cutjax.recover.follow import Reach, bias_of, reach_of
from cutjax.recover.products import Inner, inner_of
from cutjax.recover.program import Program, positions, terminals
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


class Stop(NamedTuple):
    """A reader to be refitted.

    `index`: its equation. `path`: its parameter; `where`: the flat positions of the
    kernel in it. `bias`: path and positions of what shifts its result, if there is one.
    `kernel`: shape of the child's kernel; `groups`, `features`, `rows` per batch.
    `inner`: the product that what it makes enters, where a part of the width goes.
    `tied`: index of the first reader of the same weights, where they serve in several
    places: more than one reader, or a reader and whatever else. `taught`: whether it is
    shown what the parent reads; the child would go astray with weights as cut.
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
    tied: int | None = None
    taught: bool = False

    @property
    def at_kernel(self) -> int:
        """Which operand is the kernel."""
        return 1 - self.reader.site.at

    @property
    def blocks(self) -> Int[np.ndarray, "g f m"]:
        """Where in the parameter each weight of the kernel's blocks lies."""
        return np.asarray(kernel_blocks(self.reader, self.where, self.groups))


def stops_of(prog: Program, child: Mapping[str, Any]) -> tuple[Stop, ...]:
    """All readers, in order; nothing empty.

    Several readers of the very same matrix are tied: they get one kernel. So is one of
    a kernel that serves elsewhere too, as where rows of an embedding are looked up.

    Args:
        prog: the program.
        child: the child's parameters by path.
    """
    found = [i for i in sorted(prog.frame.sites) if is_matrix(prog.reader(i))]
    kernels = {i: prog.origins.get(prog.kernel(i)) for i in found}
    of_param: dict[int, set[int]] = {}
    for index, number in kernels.items():
        if number is not None:
            of_param.setdefault(number, set()).add(index)
    serve = {n for n, found in of_param.items() if terminals(prog, n) != found}
    shapes = {name: np.shape(leaf) for name, leaf in child.items()}
    # What is whole stays as it is: elsewhere it is right.
    whole = {n for n in serve if shapes[prog.paths[n]] == _full(prog, n)}
    free = of_param.keys() - whole
    stops = [_stop(prog, i, shapes) for i, n in kernels.items() if n in free]
    found = _own_bias(prog, [stop for stop in stops if stop is not None])
    paths = {prog.paths[n] for n in serve}
    return _shared([s._replace(tied=s.index) if s.path in paths else s for s in found])


def _full(prog: Program, number: int) -> tuple[int, ...]:
    return shape_of(prog.frame.jaxpr.invars[number])


def _stop(prog: Program, index: int, shapes: Mapping[str, Any]) -> Stop | None:
    reader, kept = prog.reader(index), prog.evaluator.k
    at, var = 1 - reader.site.at, prog.kernel(index)
    path = prog.paths[prog.origins[var]]
    sizes = [kept.count(d) for d in reader.ins[at].dims]
    if 0 in sizes or any(kept.count(d) == 0 for d in reader.outs[0].dims):
        return None
    kernel = np.broadcast_to(np.float32(0), sizes)
    reach, made = reach_of(prog, index), made_axes(reader, kernel)
    return Stop(
        *(index, reader, path, positions(prog, var, shapes[path]), reach),
        *(bias_of(prog, reach, made, shapes), kernel, groups_of(reader, kept)),
        *(features_of(reader, kernel), rows_of(reader), inner_of(prog, index)),
    )


def _own_bias(prog: Program, stops: Sequence[Stop]) -> list[Stop]:
    """Only biases that nothing but one reader's result is shifted by."""
    users: dict[str, set[int]] = {}
    places: dict[str, list[np.ndarray]] = {}
    for stop in stops:
        if stop.bias is not None:
            path, where = stop.bias
            var = stop.reach.bias[0]  # type: ignore[index]
            users.setdefault(path, set()).update(prog.users[var])
            places.setdefault(path, []).append(where)
    own = {
        path
        for path, found in users.items()
        if terminals(prog, prog.paths.index(path)) == found
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
    return tuple(sorted(out, key=lambda stop: stop.index))


def _one_each(stops: list[Stop]) -> Iterator[Stop]:
    """Of the readers of one parameter."""
    if len(stops) == 1:
        yield from stops
        return
    same: dict[Any, list[Stop]] = {}
    for stop in stops:
        blocks = stop.blocks
        same.setdefault((blocks.shape, blocks.tobytes()), []).append(stop)
    places = [found[0].where.ravel() for found in same.values()]
    times = np.bincount(np.concatenate(places))
    for found, where in zip(same.values(), places, strict=True):
        if times[where].max() > 1:
            continue
        # One matrix for several targets has no intercept of its own.
        tied = {"tied": found[0].index, "bias": None, "taught": True}
        yield from [s._replace(**tied) for s in found] if len(found) > 1 else found
