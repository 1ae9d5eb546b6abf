"""What becomes of what a reader makes: its bias, and the sum that it enters.

Followed are equations that do the same to every position: additions, and products with
what depends on parameters alone. A BatchNorm in inference is such a path.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax._compat import Literal, bind, primitive
from cutjax.recover.program import SAME, Program, needs, positions, read
from cutjax.rules.base import shape_of

ADD = frozenset(map(primitive, ("add", "add_any")))
SUB, NEG = primitive("sub"), primitive("neg")
MUL, DIV = primitive("mul"), primitive("div")


class Reach(NamedTuple):
    """Where a reader's result goes.

    `path`: equations that it passes, in order. `bias`: the operand, a moved parameter,
    that is first added to it, and the sign by which a rise of the result shows in it.
    `other`: what the end of the path is then added to, an operand that is known when
    the reader's turn comes; `sign` of its error in the sum that is to come out right.
    """

    path: tuple[int, ...] = ()
    bias: tuple[Any, int] | None = None
    other: Any = None
    sign: int = 1


def reach_of(prog: Program, stop: int) -> Reach:
    """Follow the result of the reader at an equation."""
    eqns = prog.frame.jaxpr.eqns
    (var,) = eqns[stop].outvars
    path: list[int] = []
    bias, plain = None, True
    while len(users := prog.users.get(var, ())) == 1 and users[0] >= 0:
        index = users[0]
        eqn = eqns[index]
        if len(eqn.outvars) != 1 or shape_of(eqn.outvars[0]) != shape_of(var):
            break
        if eqn.primitive not in SAME and eqn.primitive is not NEG:
            at = eqn.invars.index(var)
            other = eqn.invars[1 - at] if len(eqn.invars) == 2 else None
            if other is None or not is_affine(eqn.primitive, at):
                break
            value = prog.frame.read(other)
            summed = eqn.primitive in ADD or eqn.primitive is SUB
            if value.data:
                if (
                    summed
                    and shape_of(other) == shape_of(var)
                    and _known(prog, other, stop)
                ):
                    sign = 1 if eqn.primitive in ADD else -1
                    return Reach(tuple(path), bias, other, sign)
                break
            moved = not isinstance(other, Literal) and other in prog.origins
            if summed and plain and bias is None and moved:
                bias = other, 1 if eqn.primitive in ADD else -1
            plain = plain and summed and not (eqn.primitive is SUB and at)
        elif eqn.primitive is NEG:
            plain = False
        path.append(index)
        (var,) = eqn.outvars
    return Reach((), bias)


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
    var = reach.bias[0]
    number = prog.origins[var]
    path = prog.paths[number]
    where = positions(prog, var, shapes[path])
    rank = where.ndim
    moved = where.transpose(*(a for a in range(rank) if a not in made), *made)
    sizes = [where.shape[a] for a in made]
    flat = moved.reshape(-1, int(np.prod(sizes)))
    # One number per channel: the same at all positions, and no number twice.
    if (flat != flat[:1]).any() or len(np.unique(flat[0])) != flat.shape[1]:
        return None
    return path, flat[0]
