"""Channels that constants of the function tell apart.

A constant that is the same for all channels of an axis leaves these in no order; one
that differs between them does not: a position embedding of sines that is added, the
angles of rotary embeddings, the slopes of heads. No permutation of parameters is then a
symmetry, and such channels correspond only as they stand. Where such constants are
summed (the weights of an interpolation), no narrower layer would have those: the axis
is pinned. So is what an input counts through (one-hot codes of words): as rows of a
table that are looked up, they answer to inputs that calibration may never show.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cutjax._compat import Literal, primitive
from cutjax.rules.constants import on_the_host
from cutjax.unify import Var, leaf_vars
from cutjax.walk import Frame, Walker, line_of
from cutjax.zeros import (
    NO,
    YES,
    Answer,
    Held,
    Memo,
    Node,
    held_leaves,
    holds,
    settle,
    source,
    summed,
)

PICKED = {
    primitive(name)
    for name in "gather scatter scatter_add dynamic_slice dynamic_update_slice".split()
} - {None}
"""Whose constant indices say where, not what."""


def ask_told(held: Held, node: Node) -> Answer:
    """Does a constant differ between the channels of an axis?"""
    frame, atom, leaf = node
    if isinstance(atom, Literal) or not holds(held, frame, atom, leaf):
        return NO
    found = source(node)
    if not isinstance(found, int):
        if found:
            return any, found
        return NO if _uniform(held, node) else YES
    eqn = frame.jaxpr.eqns[found]
    kids = [Node(frame, a, leaf) for a in eqn.invars if holds(held, frame, a, leaf)]
    if kids or not any(holds(held, frame, v, leaf) for v in eqn.outvars):
        return any, kids
    if eqn.primitive is jax.lax.iota_p:
        axis = frame.read(atom).dims[eqn.params["dimension"]]
        return YES if any(leaf is var for var in leaf_vars(axis)) else NO
    return NO if eqn.primitive is jax.lax.broadcast_in_dim_p else YES


def _uniform(held: Held, node: Node) -> bool:
    """Whether a constant of a frame is the same all along the axes with a channel."""
    frame, var, leaf = node
    at = [v is var for v in frame.jaxpr.constvars]
    const = frame.consts[at.index(True)] if any(at) else None
    if const is None or not on_the_host(const) or not np.size(const):
        return False
    const = np.asarray(const)
    axes = (i for i, d in enumerate(frame.read(var).dims) if leaf in held(d))
    return all(bool(np.all(const == const.take([0], axis))) for axis in axes)


def ask_learnt(node: Node) -> Answer:
    """Does a value depend on parameters?"""
    frame, atom, leaf = node
    if isinstance(atom, Literal):
        return NO
    if frame.read(atom).param is not None:
        return YES
    found = source(node)
    if not isinstance(found, int):
        return any, found
    return any, [Node(frame, a, leaf) for a in frame.jaxpr.eqns[found].invars]


def pin_constants(walker: Walker) -> None:
    """Pin the axes along which constants are summed that are not all the same.

    Those, too, whose numbers are compared with numbers of the inputs.
    """
    memo: Memo = {}
    ask = functools.partial(ask_told, held_leaves())
    _pin_codes(walker, ask, memo)
    for frame, index in walker.sums:
        eqn = frame.jaxpr.eqns[index]
        if frame.read(eqn.invars[0]).const:
            for leaf in summed(walker, frame, index):
                if settle(ask, Node(frame, eqn.invars[0], leaf), memo):
                    walker.solver.where = frame.where(index)
                    walker.solver.pin(leaf, "constants that differ along it are summed")
    walker.solver.where = None


def _pin_codes(walker: Walker, ask: Callable[[Node], Answer], memo: Memo) -> None:
    """Pin what tells which input it is: positions of one-hot codes."""
    held, learnt = held_leaves(), dict[Any, bool]()
    for frame, index, const in _meetings(walker):
        eqn = frame.jaxpr.eqns[index]
        if eqn.primitive is not jax.lax.eq_p:
            continue
        for leaf in {v for d in frame.read(const).dims for v in held(d) if _free(v)}:
            others = (Node(frame, a, leaf) for a in eqn.invars if a is not const)
            given = not any(settle(ask_learnt, node, learnt) for node in others)
            if given and settle(ask, Node(frame, const, leaf), memo):
                walker.solver.where = frame.where(index)
                walker.solver.pin(leaf, "which input it is (a one-hot code)")


def ordered(walker: Walker) -> dict[Var, str]:
    """The channel axes that are told apart where a constant meets what is none.

    Args:
        walker: after its walk.

    Returns:
        By variable, the first line that does so.
    """
    memo: Memo = {}
    held = held_leaves()
    ask = functools.partial(ask_told, held)
    found: dict[Var, str] = {}
    for frame, index, atom in _meetings(walker):
        for leaf in {v for d in frame.read(atom).dims for v in held(d)} - found.keys():
            if _free(leaf) and settle(ask, Node(frame, atom, leaf), memo):
                found[leaf] = line_of(frame.where(index))
    return {**_picked(walker, held), **found}


def _free(leaf: Var) -> bool:
    return leaf.size > 1 and not leaf.pins


def _picked(walker: Walker, held: Held) -> dict[Var, str]:
    """Axes of which constant indices say where in an axis that stays whole they are."""
    found: dict[Var, str] = {}
    for frame in walker.frames:
        for index, eqn in enumerate(frame.jaxpr.eqns):
            if eqn.primitive is not jax.lax.gather_p:
                continue
            value = frame.values[eqn.outvars[0]]
            if value.index is None:
                continue  # by data
            there = {v for d in frame.read(eqn.invars[0]).dims for v in held(d)}
            made = {v for d in value.dims for v in held(d)} - there
            line = line_of(frame.where(index))
            found.update({v: line for v in made - found.keys() if _free(v)})
    return found


def _meetings(walker: Walker) -> Iterator[tuple[Frame, int, Any]]:
    """The constant operands of equations that have others too."""
    for frame in walker.frames:
        for index, eqn in enumerate(frame.jaxpr.eqns):
            if index in frame.subs:
                continue  # they meet inside
            atoms = eqn.invars[:1] if eqn.primitive in PICKED else eqn.invars
            const = [frame.read(a).const for a in eqn.invars]
            for atom in () if all(const) else atoms:
                if not isinstance(atom, Literal) and frame.read(atom).const:
                    yield frame, index, atom
