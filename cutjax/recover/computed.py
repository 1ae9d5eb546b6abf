"""Where kernels come from: of which parameters, how computed, and how to undo it.

A kernel is a moved copy of a parameter, or put together of several, or computed from
one: `w * c`, `w + a @ b`. Where each weight is a number times one of the parameter plus
another number, a new kernel says what the parameter has to be. What is rounded on the
way and handed its gradients straight through, `w + stop_gradient(q(w) - w)`, is `w`.
"""

import itertools
import math
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cutjax._compat import Literal, primitive
from cutjax.recover.follow import ADD, DIV, MUL, NEG, SUB, stepped
from cutjax.recover.loops import Loop
from cutjax.recover.program import (
    MOVES,
    NOWHERE,
    SAME,
    Program,
    behind,
    needs,
    positions,
    read,
)
from cutjax.rules.base import shape_of

STOP = primitive("stop_gradient")
SUMS = ADD | {SUB}

TINY = 1e-6
"""A scale so much smaller than the largest one cannot be divided by."""

Edge = tuple[Any, Any]
"""An operand of an equation and a result of it."""


class Source(NamedTuple):
    """What a kernel is made of: `var`, which is put together of parameters `numbers`.

    `path`: equations from it to the kernel, in order; empty if it is the kernel.
    `edges`: what they take and make. `rounds`: edges by which is added what only stands
    for rounding.
    """

    var: Any
    numbers: tuple[int, ...]
    path: tuple[int, ...] = ()
    edges: tuple[Edge, ...] = ()
    rounds: tuple[Edge, ...] = ()

    @property
    def number(self) -> int:
        """Of the parameter, where it is one: whatever is computed is of one."""
        return self.numbers[0]


class Affine(NamedTuple):
    """A kernel is `scale` times what its parameter holds plus `offset`."""

    scale: np.ndarray
    offset: np.ndarray

    def undone(self, kernel: Any) -> np.ndarray:
        """What the parameter has to hold for a kernel."""
        return (np.asarray(kernel, np.float32) - self.offset) / self.scale


def source_of(
    prog: Program, atom: Any, known: dict[Any, Any] | None = None
) -> Source | None:
    """The parameter that a kernel is an affine function of, weight by weight."""
    known = {} if known is None else known
    if not isinstance(atom, Literal) and atom not in known:
        known[atom] = _source(prog, atom, known)
    return None if isinstance(atom, Literal) else known[atom]


def _source(prog: Program, atom: Any, known: dict[Any, Any]) -> Source | None:
    numbers = prog.sources.get(atom, ())
    if numbers:
        dtypes = [prog.frame.jaxpr.invars[n].aval.dtype for n in numbers]
        floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
        return Source(atom, numbers) if floats else None
    index = prog.frame.makers.get(atom)
    if index is None:
        return None
    eqn = prog.frame.jaxpr.eqns[index]
    found = [*_operands(prog, index, atom, known)]
    if eqn.primitive in ADD:
        # What is stopped may stand for rounding: it comes second.
        found = [f for f in found if not _stopped(prog, f[0])] or found
    # Of a sum of parameters one can take up all; of a product none is the one.
    single = len(found) == 1 or eqn.primitive in SUMS
    if not found or not single or len({s.number for _, s in found}) < len(found):
        return None
    var, source = found[0]
    others = (a for a in eqn.invars if a is not var and eqn.primitive in ADD)
    rounds = [
        (other, atom)
        for other in others
        if _stopped(prog, other) and source.number in behind(prog, other)
    ]
    return source._replace(
        path=(*source.path, index),
        edges=(*source.edges, (var, atom)),
        rounds=(*source.rounds, *rounds),
    )


def _operands(
    prog: Program, index: int, out: Any, known: dict[Any, Any]
) -> Iterator[tuple[Any, Source]]:
    """The operands of an equation that what it makes may be scaled and shifted from."""
    eqn = prog.frame.jaxpr.eqns[index]
    moves = eqn.primitive in MOVES or eqn.primitive in (STOP, NEG)
    either = eqn.primitive in SUMS or eqn.primitive is MUL
    count = 1 if moves or eqn.primitive is DIV else 2 if either else 0
    for atom in eqn.invars[:count]:
        source = source_of(prog, atom, known)
        if source is None or len(source.numbers) > 1:
            continue
        if moves or shape_of(atom) == shape_of(out):
            yield atom, source


def _stopped(prog: Program, atom: Any) -> bool:
    index = None if isinstance(atom, Literal) else prog.frame.makers.get(atom)
    return index is not None and prog.frame.jaxpr.eqns[index].primitive is STOP


def lies(
    prog: Program, source: Source, shapes: Mapping[str, Any]
) -> tuple[tuple[str, ...], np.ndarray] | None:
    """The parameters that a kernel is put together of, and where in them it lies.

    None where it has one number twice.
    """
    paths = [prog.paths[n] for n in source.numbers]
    where = positions(prog, source.var, *(shapes[path] for path in paths))
    ends = np.cumsum([0, *(math.prod(shapes[path]) for path in paths)])
    at = where[where != NOWHERE]
    held = np.zeros(ends[-1], bool)
    held[at] = True
    if np.count_nonzero(held) < at.size:
        return None
    # A part of what was put together may be of fewer parameters.
    some = [held[a:b].any() for a, b in itertools.pairwise(ends)]
    if not all(some):
        before = np.cumsum(np.where(some, 0, np.diff(ends)))
        each = np.searchsorted(ends, where, "right") - 1
        where = np.where(where == NOWHERE, where, where - before[each])
    where = np.asarray(_carried(prog, source, where))
    return tuple(itertools.compress(paths, some)), where


def affine_of(
    prog: Program, source: Source, atom: Any, child: Mapping[str, Any]
) -> Affine | None:
    """How a kernel is computed in the child; None if it cannot be undone.

    Args:
        prog: the program.
        source: of the kernel.
        atom: the kernel.
        child: the child's parameters, by path.
    """
    frame = prog.frame
    env = dict(zip(frame.jaxpr.invars, child.values(), strict=False))
    for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
        env[var] = prog.evaluator.cut_const(const, frame.values[var])
    for index in needs(prog, [atom], env):
        env.update(stepped(prog, index, env))
    ones = np.ones(prog.sizes(source.var), np.float32)
    scale = np.asarray(_carried(prog, source, ones, env))
    held = np.asarray(_carried(prog, source, env[source.var]), np.float32)
    offset = np.asarray(env[atom], np.float32) - scale * held
    if source.rounds:
        if sum(frame.jaxpr.eqns[i].primitive in SUMS for i in source.path) > 1:
            return None
        offset = 0 * offset
    size = np.abs(scale)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        return None
    return Affine(scale, offset) if size.min() > TINY * size.max() else None


def _carried(prog: Program, source: Source, value: Any, scale: Any = None) -> Any:
    """A value moved along a path; and scaled, given all other values there."""
    for index, (var, out) in zip(source.path, source.edges, strict=True):
        eqn = prog.frame.jaxpr.eqns[index]
        if eqn.primitive in MOVES - SAME:
            outs = prog.evaluator.step(prog.frame, index, eqn, [value])
            value = outs[eqn.outvars.index(out)]
        elif scale is not None:
            value = value * _factor(eqn, var, scale)
    return value


def _factor(eqn: Any, var: Any, env: Mapping[Any, Any]) -> Any:
    at = eqn.invars.index(var)
    if eqn.primitive in (MUL, DIV):
        other = np.asarray(read(env, eqn.invars[1 - at]), np.float32)
        return other if eqn.primitive is MUL else 1 / other
    return -1 if eqn.primitive is NEG or (eqn.primitive is SUB and at) else 1


def serves_only(
    prog: Program,
    loops: Mapping[int, Loop],
    number: int,
    edges: Container[Edge],
    rounds: Container[Edge],
) -> bool:
    """Whether a parameter serves nothing but some kernels that are made of it.

    Args:
        prog: the program.
        loops: of it; they make anew what they need of parameters alone.
        number: of the parameter.
        edges: the ways from it to kernels, as of `Source`, and on to what is made.
        rounds: where a way from it may end.
    """
    inner = (_closed(loop.prog, {}, number, edges, rounds) for loop in loops.values())
    return _closed(prog, loops, number, edges, rounds) and all(inner)


def _closed(
    prog: Program,
    loops: Mapping[int, Loop],
    number: int,
    edges: Container[Edge],
    rounds: Container[Edge],
) -> bool:
    values, seen = prog.frame.values, set()
    # Whether a variable is on the way to a kernel: what is made aside must end.
    todo = [(prog.frame.jaxpr.invars[number], True)]
    while todo:
        var, way = todo.pop()
        seen.add((var, way))
        for index in prog.users.get(var, ()):
            if index < 0 or (index in loops and var in loops[index].varies):
                return False
            outs = () if index in loops else prog.frame.jaxpr.eqns[index].outvars
            for out in outs:
                if (var, out) in rounds:
                    continue
                along = prog.origins.get(out) == number or (var, out) in edges
                if values[out].data and not (way and along):
                    return False
                if not values[out].data and (out, way and along) not in seen:
                    todo.append((out, way and along))
    return True
