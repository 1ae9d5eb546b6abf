"""What becomes of what a reader makes: its bias, and the sum that it enters.

Followed are equations that do the same to every position: additions, and products with
what depends on parameters alone. A BatchNorm in inference is such a path. So is what
only moves it: under `vmap` a product's result has its axes in another order.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax._compat import Literal, bind, primitive
from cutjax.recover.program import NEG, SAME, Program, needs, positions, read
from cutjax.rules.base import shape_of

ADD = frozenset(map(primitive, ("add", "add_any")))
SUB, MUL, DIV = map(primitive, ("sub", "mul", "div"))
TRANSPOSE, RESHAPE = primitive("transpose"), primitive("reshape")
SPREAD = primitive("broadcast_in_dim")
SHAPES = frozenset((RESHAPE, primitive("squeeze"), SPREAD))


class Bias(NamedTuple):
    """A moved parameter `var` that is added to the `result` of a reader.

    `sign`: by which a rise of the result shows in it. `moves`: equations that moved the
    result before; `spread`: the one that repeated the parameter along positions.
    """

    var: Any
    result: Any
    sign: int
    moves: tuple[int, ...] = ()
    spread: int | None = None


class Reach(NamedTuple):
    """Where a reader's result goes.

    `path`: equations that it passes, in order; `moves`: those of them that only move
    it. `bias`: the first that is added to it. `other`: what the end of the path is then
    added to, an operand that is known when the reader's turn comes; `sign` of its error
    in the sum that is to come out right.
    """

    path: tuple[int, ...] = ()
    bias: Bias | None = None
    other: Any = None
    sign: int = 1
    moves: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether nothing but its place is changed on the path."""
        return self.path == self.moves


def reach_of(prog: Program, stop: int) -> Reach:
    """Follow the result of the reader at an equation."""
    eqns = prog.frame.jaxpr.eqns
    (var,) = (result,) = eqns[stop].outvars
    path: list[int] = []
    moves: list[int] = []
    bias, plain = None, True
    while len(users := prog.users.get(var, ())) == 1 and users[0] >= 0:
        index = users[0]
        eqn = eqns[index]
        if _moves(eqn):
            moves.append(index)
        elif len(eqn.outvars) != 1 or shape_of(eqn.outvars[0]) != shape_of(var):
            break
        elif eqn.primitive is NEG:
            plain = False
        elif eqn.primitive not in SAME:
            at = eqn.invars.index(var)
            other = eqn.invars[1 - at] if len(eqn.invars) == 2 else None
            if other is None or not is_affine(eqn.primitive, at):
                break
            sign = 1 if eqn.primitive in ADD else -1
            summed = eqn.primitive in ADD or eqn.primitive is SUB
            if prog.frame.read(other).data:
                same = shape_of(other) == shape_of(var)
                if summed and same and _known(prog, other, stop):
                    return Reach(tuple(path), bias, other, sign, tuple(moves))
                break
            if summed and plain and bias is None:
                found = _parameter(prog, other)
                bias = found and Bias(found[0], result, sign, tuple(moves), found[1])
            plain = plain and summed and not (eqn.primitive is SUB and at)
        path.append(index)
        (var,) = eqn.outvars
    return Reach((), bias)


def _moves(eqn: Any) -> bool:
    """Whether an equation only gives the whole of an array other axes."""
    if eqn.primitive not in SHAPES:
        return eqn.primitive is TRANSPOSE
    if eqn.primitive is RESHAPE and eqn.params["dimensions"] is not None:
        return False
    before, (after,) = eqn.invars[0], eqn.outvars
    return math.prod(shape_of(before)) == math.prod(shape_of(after))


def _parameter(prog: Program, atom: Any) -> tuple[Any, int | None] | None:
    """The moved parameter that an operand is, or repeats, and what repeats it."""
    if isinstance(atom, Literal):
        return None
    if atom in prog.origins:
        return atom, None
    index = prog.frame.makers.get(atom)
    if index is None or len(prog.users[atom]) != 1:
        return None
    eqn = prog.frame.jaxpr.eqns[index]
    (first, *_) = eqn.invars
    repeats = eqn.primitive is SPREAD and not isinstance(first, Literal)
    return (first, index) if repeats and first in prog.origins else None


def is_affine(prim: Any, at: int) -> bool:
    """Whether an operation scales or shifts its operand `at` by the other one."""
    return prim in ADD or prim in (SUB, MUL) or (prim is DIV and at == 0)


def _known(prog: Program, var: Any, stop: int) -> bool:
    return not isinstance(var, Literal) and prog.frame.makers.get(var, -1) < stop


def demand(prog: Program, reach: Reach, env: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """The path as a function of what the reader makes, on the child."""
    eqns = prog.frame.jaxpr.eqns
    made = {eqns[index].outvars[0] for index in reach.path}
    start = _start(prog, reach)
    operands = [a for i in reach.path for a in eqns[i].invars]
    named = [a for a in operands if not isinstance(a, Literal)]
    aside = [a for a in named if a not in made and a is not start]
    ready = {**env}
    for index in needs(prog, aside):
        if any(var not in ready for var in eqns[index].outvars):
            ready.update(stepped(prog, index, ready))

    def through(value: Any) -> Any:
        inner = {**ready, start: value}
        for index in reach.path:
            inner.update(stepped(prog, index, inner))
        return inner[eqns[reach.path[-1]].outvars[0]]

    return through


def _start(prog: Program, reach: Reach) -> Any:
    eqn = prog.frame.jaxpr.eqns[reach.path[0]]
    return next(
        a for a in eqn.invars if not isinstance(a, Literal) and prog.frame.read(a).data
    )


def stepped(prog: Program, index: int, env: Mapping[Any, Any]) -> dict[Any, Any]:
    """What an equation makes of what is known of the child."""
    eqn = prog.frame.jaxpr.eqns[index]
    args = [read(env, atom) for atom in eqn.invars]
    outs = prog.evaluator.step(prog.frame, index, eqn, args)
    return dict(zip(eqn.outvars, outs, strict=True))


def whole(prog: Program, index: int, env: Mapping[Any, Any]) -> dict[Any, Any]:
    """What an equation makes of what is known of the parent."""
    eqn = prog.frame.jaxpr.eqns[index]
    outs = bind(eqn, [read(env, atom) for atom in eqn.invars], eqn.params)
    return dict(zip(eqn.outvars, outs, strict=True))


def given_to(prog: Program, leaves: Sequence[Any], inputs: Any) -> dict[Any, Any]:
    """Parameters and inputs, by variable."""
    values = [*leaves, *jax.tree.leaves(inputs)]
    return dict(zip(prog.frame.jaxpr.invars, values, strict=True))


def evaluated(
    prog: Program, known: Mapping[Any, Any], atoms: Iterable[Any]
) -> dict[Any, Any]:
    """Some variables of the parent, from its inputs or whatever else is known."""
    frame, env = prog.frame, dict(known)
    env |= dict(zip(frame.jaxpr.constvars, frame.consts, strict=True))
    for index in needs(prog, atoms, known):
        env.update(whole(prog, index, env))
    return env


def bias_of(
    prog: Program, reach: Reach, made: tuple[int, ...], shapes: Mapping[str, Any]
) -> tuple[str, np.ndarray] | None:
    """The parameter that shifts what a reader makes, and where in it each channel is.

    Args:
        prog: the program.
        reach: of the reader.
        made: axes of its result that tell channels apart, outermost first.
        shapes: of the child's parameters, by path.

    Returns:
        `(path, positions [channels])`; None where there is no such parameter, where it
        serves elsewhere too, or is not one number per channel.
    """
    if reach.bias is None:
        return None
    path = prog.paths[prog.origins[reach.bias.var]]
    where = _laid_out(prog, reach.bias, shapes[path])
    rank = where.ndim
    moved = where.transpose(*(a for a in range(rank) if a not in made), *made)
    sizes = [prog.sizes(reach.bias.result)[a] for a in made]
    flat = moved.reshape(-1, math.prod(where.shape[a] for a in made))
    # One number per channel: the same at all positions, and no number twice.
    if (flat != flat[:1]).any() or len(np.unique(flat[0])) != math.prod(sizes):
        return None
    return path, flat[0]


def _laid_out(prog: Program, bias: Bias, shape: Sequence[int]) -> np.ndarray:
    """Where in a bias what is added to a result lies, along the axes of the result."""
    where = positions(prog, bias.var, shape)
    if bias.spread is not None:
        eqn = prog.frame.jaxpr.eqns[bias.spread]
        sizes = [1] * len(eqn.params["shape"])
        for size, axis in zip(
            where.shape, eqn.params["broadcast_dimensions"], strict=True
        ):
            sizes[axis] = size
        where = where.reshape(sizes)
    if where.ndim == 0:
        return where.reshape([1] * len(prog.sizes(bias.result)))
    return moved_back(prog, bias.moves, where)


def moved_back(
    prog: Program, moves: Sequence[int], value: Any, *, full: bool = False
) -> Any:
    """A value with its axes as they were before some moves.

    Args:
        prog: the program.
        moves: equations that move.
        value: as after them; axes along which all is the same may have length one.
        full: whether it is the parent's.
    """
    for index in reversed(moves):
        eqn = prog.frame.jaxpr.eqns[index]
        (after,), before = eqn.outvars, eqn.invars[0]
        if eqn.primitive is TRANSPOSE:
            value = value.transpose(np.argsort(eqn.params["permutation"]))
        elif (
            lean := _lean(shape_of(before), shape_of(after), value.shape)
        ) is not None:
            value = value.reshape(lean)
        else:
            sizes = shape_of if full else prog.sizes
            if value.shape != (shape := tuple(sizes(after))):
                value = np.broadcast_to(value, shape)
            value = value.reshape(sizes(before))
    return value


def _lean(
    before: Sequence[int], after: Sequence[int], shape: Sequence[int]
) -> list[int] | None:
    """A shape without, or with other, axes of length one; None if more is changed."""
    if [n for n in before if n > 1] != [n for n in after if n > 1]:
        return None
    left = iter(s for n, s in zip(after, shape, strict=True) if n > 1)
    return [next(left) if n > 1 else 1 for n in before]
