"""Groups whose channels may be turned: only linear maps and normalisations see them.

A turn is an orthogonal matrix R for one group: every parameter's axis of the group is
multiplied by it, what writes to the channels and what reads them alike. The function
stays the same if all that is done to the channels in between commutes with R: sums,
products with what is the same for all of them, root mean squares. Scales per channel
do not; those of a normalisation go into the kernels that read it, those of a branch
(LayerScale) into the kernel that makes it. Which groups these are is found by trying:
on parameters with noise, and a random R.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cutjax.dims import Leaf
from cutjax.graph import Graph
from cutjax.readers import channel_axes
from cutjax.recover.branches import Branch, branches
from cutjax.recover.follow import whole
from cutjax.recover.program import Program, terminals
from cutjax.recover.rows import is_matrix
from cutjax.unify import PRODUCT, Var, find, parts_of

LONG = 40
"""Equations from a normalisation's scale to its readers, at most."""


class Place(NamedTuple):
    """Where the channels of a group lie in what is read: an axis, or a part of one.

    `before`, `after`: how many positions the parts of the axis around it have, as heads
    have before their width.
    """

    axis: int
    before: int = 1
    after: int = 1

    @property
    def plain(self) -> bool:
        """Whether the axis is that of the channels, and nothing else."""
        return self.before == self.after == 1

    def last(self, values: Any) -> Any:
        """An array with the channels as its last axis."""
        moved = jnp.moveaxis(values, self.axis, -1)
        size = moved.shape[-1] // (self.before * self.after)
        split = moved.reshape(*moved.shape[:-1], self.before, size, self.after)
        return jnp.moveaxis(split, -2, -1)


class Scale(NamedTuple):
    """A scale per channel before some readers: `parameter + offset`.

    `number`: of the parameter; `shift`: of the one that is added after it, or None.
    `readers`: by equation.
    """

    number: int
    offset: float
    shift: int | None
    readers: frozenset[int]


class Turn(NamedTuple):
    """How a group can be turned.

    `readers`: equation to the place of the channels in what it reads. `kernels`:
    equation to the number of its parameter. `centred`: whether means over the channels
    are taken, so that R has to leave the vector of ones as it is.
    """

    name: str
    readers: Mapping[int, Place]
    kernels: Mapping[int, int]
    scales: tuple[Scale, ...]
    branches: tuple[Branch, ...] = ()
    centred: bool = False


class Stuck(Exception):
    """Why a group cannot be turned."""


def turn_of(prog: Program, graph: Graph, name: str, env: Mapping[Any, Any]) -> Turn:
    """The readers of a group, and the scales before them; not tried yet.

    Args:
        prog: the program.
        graph: of its parameters.
        name: of the group.
        env: the values of all variables, on parameters with noise.

    Raises:
        Stuck: something is in the way.
    """
    readers = dict(_readers(prog, name))
    numbers = {i: prog.origins.get(prog.kernel(i)) for i in readers}
    kernels = {i: number for i, number in numbers.items() if number is not None}
    if not readers or len(kernels) < len(readers):
        raise Stuck("no parameter reads it as a matrix")
    vectors = [*_vectors(graph, name)]
    found = [
        (number, *seen)
        for number in vectors
        if (seen := _seen(prog, env, number, readers)) is not None
    ]
    shifts = {at: number for number, at, offset in found if offset is None}
    scales = [
        Scale(number, offset, shifts.get(at), at)
        for number, at, offset in found
        if offset is not None
    ]
    _check(prog, scales, kernels)
    scaled = tuple(b for b in branches(prog, name) if b.number in vectors)
    return Turn(name, readers, kernels, tuple(scales), scaled)


def _readers(prog: Program, name: str) -> Iterator[tuple[int, Place]]:
    group = find(prog.groups[name])
    for index in prog.frame.sites:
        reader = prog.reader(index)
        if is_matrix(reader):
            at = reader.site.at
            for axis in channel_axes(reader, at):
                place = _place(axis, find(reader.ins[at].dims[axis]), group)
                if place is not None:
                    yield index, place


def _place(axis: int, var: Var, group: Var) -> Place | None:
    if var is group:
        return Place(axis)
    parts = parts_of(var) if var.form == PRODUCT else ()
    if sum(part is group for part in parts) != 1:
        return None
    at, sizes = parts.index(group), [part.size for part in parts]
    return Place(axis, math.prod(sizes[:at]), math.prod(sizes[at + 1 :]))


def _vectors(graph: Graph, name: str) -> Iterator[int]:
    """The parameters that hold one number per channel."""
    for number, (path, axes) in enumerate(graph.axes.items()):
        size = np.prod(graph.shapes[path].shape)
        if any(axis == Leaf(name, axis.size) and axis.size == size for axis in axes):
            yield number


def _seen(
    prog: Program, env: Mapping[Any, Any], number: int, readers: Mapping[int, Place]
) -> tuple[frozenset[int], float | None] | None:
    """The readers that see a parameter as a scale, or as a shift, of each channel.

    Returns:
        Their equations, and the offset of the scale (None of a shift); None where they
        do not.
    """
    at, path = _ahead(prog, number)
    if not at or not all(i in readers and readers[i].plain for i in at):
        return None
    var = prog.frame.jaxpr.invars[number]
    rng, given = np.random.default_rng(number), env[var]

    def read(value: Any) -> Iterator[Any]:
        new = {**env, var: value}
        for index in sorted(path):
            new.update(whole(prog, index, new))
        for index in sorted(at):
            yield np.asarray(readers[index].last(new[operand(prog, index)]))

    def slopes() -> list[Any]:
        step = rng.choice([-1.0, 1.0], given.size) * rng.uniform(0.5, 1.5, given.size)
        moved = given + jnp.asarray(step.reshape(given.shape), given.dtype)
        pairs = zip(read(moved), read(given), strict=True)
        return [(after - before) / step for after, before in pairs]

    first, second = slopes(), slopes()
    if not all(_close(a, b) for a, b in zip(first, second, strict=True)):
        return None
    if all(_close(a, np.ones_like(a)) for a in first):
        return at, None
    # It reads y (p + offset) + shift; where y moves, the offset shows at p = 0.
    y = first[0].reshape(-1, given.size)
    rest = next(read(0 * given)).reshape(-1, given.size)
    y, rest = y - y.mean(0), rest - rest.mean(0)
    return at, round(float((y * rest).sum() / max((y * y).sum(), 1e-30)), 4)


def _ahead(prog: Program, number: int) -> tuple[frozenset[int], set[int]]:
    """The readers that a parameter gets to before any other, and the way to them."""
    at, path = set(), set()
    todo = [prog.frame.jaxpr.invars[number]]
    while todo:
        var = todo.pop()
        for index in prog.users.get(var, ()):
            if index in prog.frame.sites and operand(prog, index) is var:
                at.add(index)
            elif index < 0 or len(path) > LONG:
                return frozenset(), set()
            elif index not in path:
                path.add(index)
                todo += prog.frame.jaxpr.eqns[index].outvars
    return frozenset(at), path


def operand(prog: Program, index: int) -> Any:
    """What a reader reads."""
    return prog.frame.jaxpr.eqns[index].invars[prog.frame.sites[index].at]


def _close(a: Any, b: Any) -> bool:
    return bool(np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b))


def _check(prog: Program, scales: Sequence[Scale], kernels: Mapping[int, int]) -> None:
    """Each kernel can take up the one scale that it is read behind."""
    for scale in scales:
        for number in {kernels[index] for index in scale.readers}:
            same = {i for i, kernel in kernels.items() if kernel == number}
            if terminals(prog, number) != same or not same <= scale.readers:
                raise Stuck(
                    f"{prog.paths[number]} is read behind the scale "
                    f"{prog.paths[scale.number]}, and serves elsewhere without"
                )
    seen = [index for scale in scales for index in scale.readers]
    if len(seen) != len(set(seen)):
        raise Stuck("several scales lie before one reader")
