"""Sums over channels that a cut changes in another way than a mask.

A removed channel counts nothing in a sum, and zero in the masked model: the same, where
what is summed is zero at a masked channel. Parameters are; from there it is followed
forwards, from the sum asked for backwards: `tanh` keeps a zero, `exp` does not, a
product needs one zero factor, an addition zeros only. Where it is not zero the group
gets a note.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax._compat import Literal, primitive, scan_counts
from cutjax.unify import Var, find, leaf_vars
from cutjax.walk import Frame, Walker, line_of

KEEPS = {
    primitive(name)
    for name in (
        "abs asin asinh atan atanh broadcast_in_dim cbrt ceil concatenate conj "
        "convert_element_type copy cummax cummin cumsum device_put "
        "dynamic_slice dynamic_update_slice erf erf_inv expm1 floor gather imag "
        "integer_pow log1p name neg optimization_barrier pad ppermute psum "
        "psum_invariant pvary real reduce_max reduce_min reduce_precision reduce_sum "
        "reduce_window_max reduce_window_sum reshape rev round scatter scatter_add "
        "select_n sharding_constraint sign sin sinh slice sort split sqrt square "
        "squeeze stack stop_gradient sub tan tanh tile transpose unstack all_gather "
        "reduce_scatter add add_any clamp max min div pow"
    ).split()
} - {None}
"""Zero where all operands are that hold the channel."""

PRODUCTS = {
    primitive(name)
    for name in "mul and dot_general conv_general_dilated ragged_dot_general".split()
} - {None}
"""Zero where one operand is."""

# What an operand without the channels must be for zero to stay zero, by position.
OTHERS: dict[Any, Callable[[int, float], bool]] = {
    jax.lax.max_p: lambda at, value: value <= 0,
    jax.lax.min_p: lambda at, value: value >= 0,
    jax.lax.clamp_p: lambda at, value: value <= 0 if at == 0 else value >= 0,
    jax.lax.pow_p: lambda at, value: at == 1 and value > 0,
    **dict.fromkeys(
        (jax.lax.add_p, jax.lax.sub_p, jax.lax.pad_p, jax.lax.select_n_p),
        lambda at, value: value == 0,
    ),
}

# Operands that decide; the others only choose or scale.
_FIRST = {
    jax.lax.div_p: slice(1),
    jax.lax.pow_p: slice(1),
    jax.lax.select_n_p: slice(1, None),
}


NOT_ZERO = "a sum or maximum runs over these channels, not zero where masked,"


class Node(NamedTuple):
    """A question: is this value zero, or told apart, along this channel axis?"""

    frame: Frame
    atom: Any
    leaf: Var

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells questions apart: literals have no hash."""
        return id(self.frame), id(self.atom), id(self.leaf)


Memo = dict[tuple[int, int, int], bool]
Answer = tuple[Callable[[Any], bool], list[Node]]
YES: Answer = (all, [])
NO: Answer = (any, [])


def settle(ask: Callable[[Node], Answer], node: Node, memo: Memo) -> bool:
    """Answer a question by those below it; a loop that asks itself answers yes."""
    stack, asked = [node], {}
    while stack:
        top = stack[-1]
        if top.key in memo:
            stack.pop()
        elif top.key not in asked:
            asked[top.key] = ask(top)
            stack += [kid for kid in asked[top.key][1] if kid.key not in asked]
        else:
            combine, kids = asked[top.key]
            memo[top.key] = combine(memo.get(kid.key, True) for kid in kids)
            stack.pop()
    return memo[node.key]


Held = Callable[[Var], frozenset[Var]]


def held_leaves() -> Held:
    """The leaves below a variable, each looked up once: all equations are known now."""
    known = functools.cache(lambda root: frozenset(leaf_vars(root)))
    return lambda var: known(find(var))


def holds(held: Held, frame: Frame, atom: Any, leaf: Var) -> bool:
    """Whether a channel axis is among the axes of a value."""
    return any(leaf in held(d) for d in frame.read(atom).dims)


def ask_zero(held: Held, node: Node) -> Answer:
    """Is a value zero at the masked channels of an axis?"""
    frame, atom, leaf = node
    value = frame.read(atom)
    if value.param is not None or _is_zero(value.known):
        return YES
    found = source(node)
    if not isinstance(found, int):
        return (all, found) if found else NO
    eqn = frame.jaxpr.eqns[found]
    operands = eqn.invars[_FIRST.get(eqn.primitive, slice(None))]
    kids = [Node(frame, a, leaf) for a in operands if holds(held, frame, a, leaf)]
    if eqn.primitive in PRODUCTS:
        return any, kids
    if not kids:
        spread = eqn.primitive is jax.lax.broadcast_in_dim_p
        return YES if spread and _is_zero(frame.read(operands[0]).known) else NO
    keeps = eqn.primitive in KEEPS and _others_fit(held, node, eqn)
    return (all, kids) if keeps else NO


def _is_zero(known: Any) -> bool:
    return known is not None and bool(known == 0)


def _others_fit(held: Held, node: Node, eqn: Any) -> bool:
    """Whether what is the same for all channels leaves a zero where it is."""
    if eqn.primitive is jax.lax.integer_pow_p:
        return eqn.params["y"] > 0
    fits = OTHERS.get(eqn.primitive)
    if fits is None:
        return True
    frame, _, leaf = node
    others = {
        i: frame.read(atom).known
        for i, atom in enumerate(eqn.invars)
        if (eqn.primitive, i) != (jax.lax.select_n_p, 0)
        and not holds(held, frame, atom, leaf)
    }
    return all(
        value is not None and not np.iscomplexobj(value) and fits(i, float(value))
        for i, value in others.items()
    )


def source(node: Node) -> int | list[Node]:
    """The equation of its frame that made a value, or what it is outside or inside."""
    frame, atom, leaf = node
    if isinstance(atom, Literal):
        return []
    index = frame.makers.get(atom)
    if index is None:
        return [Node(f, a, leaf) for f, a in _outside(frame, atom)]
    subs = frame.subs.get(index)
    if subs is None:
        return index
    return [Node(f, a, leaf) for f, a in _inside(frame, index, subs, atom)]


def _outside(frame: Frame, var: Any) -> Iterator[tuple[Frame, Any]]:
    """What an input of a nested frame is where it is called from."""
    if frame.outer is None or var not in frame.jaxpr.invars:
        return
    outer, index = frame.outer
    eqn = outer.jaxpr.eqns[index]
    at = frame.jaxpr.invars.index(var)
    if eqn.primitive is jax.lax.cond_p:
        yield outer, eqn.invars[1 + at]
    elif eqn.primitive is jax.lax.while_p:
        yield from _outside_while(frame, outer, index, at)
    else:
        yield outer, eqn.invars[at]
        if eqn.primitive is jax.lax.scan_p:
            consts, carried = scan_counts(eqn.params)
            if consts <= at < consts + carried:
                yield frame, frame.jaxpr.outvars[at - consts]


def _outside_while(frame: Frame, outer: Frame, index: int, at: int) -> Iterator:
    eqn = outer.jaxpr.eqns[index]
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    condition, body = outer.subs[index]
    own = of_cond if frame is condition else of_body
    if at < own:
        yield outer, eqn.invars[at + (0 if frame is condition else of_cond)]
    else:
        yield outer, eqn.invars[of_cond + of_body + at - own]
        yield body, body.jaxpr.outvars[at - own]


def _inside(frame: Frame, index: int, subs: list[Frame], var: Any) -> Iterator:
    """What an output of a call, loop or branch is within."""
    eqn = frame.jaxpr.eqns[index]
    at = list(eqn.outvars).index(var)
    if eqn.primitive is jax.lax.while_p:
        subs = subs[1:]
    for sub in subs:
        yield sub, sub.jaxpr.outvars[at]


def notes(walker: Walker) -> Iterator[tuple[Var, str]]:
    """Groups whose sums a cut and a mask leave different, with a note that says so."""
    memo: Memo = {}
    held = held_leaves()
    ask = functools.partial(ask_zero, held)
    for frame, index in walker.sums:
        eqn = frame.jaxpr.eqns[index]
        for leaf in summed(walker, frame, index):
            atoms = [a for a in eqn.invars[:2] if holds(held, frame, a, leaf)]
            # Most sums are by a kernel, and there is nothing to follow.
            atoms.sort(key=lambda a: frame.read(a).param is None)
            asked = (settle(ask, Node(frame, a, leaf), memo) for a in atoms)
            if not leaf.pins and not any(asked):
                line = line_of(frame.where(index))
                yield leaf, f"{NOT_ZERO} at {line}"


def summed(walker: Walker, frame: Frame, index: int) -> list[Var]:
    """The free channel axes that an equation sums over; none, for a mean."""
    dims, summed = walker.sums[frame, index]
    if summed is not None and summed.mean:
        return []
    return [v for d in dims for v in leaf_vars(d) if v.size > 1 and not v.pins]
