"""Which values are never negative: their maximum takes no notice of zeros."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cutjax._compat import Literal, primitive
from cutjax.rules.constants import ONCE, given

DEEP = 64
"""Equations that are followed back."""

NEVER = {
    primitive(name) for name in "abs square exp exp2 logistic erfc iota".split()
} - {None}
"""Whose results are never negative."""

IF_ALL = {
    primitive(name)
    for name in (
        "add add_any mul div min reduce_sum reduce_max reduce_min cumsum pow sqrt cbrt "
        "convert_element_type copy reshape broadcast_in_dim transpose squeeze rev "
        "slice concatenate stop_gradient reduce_precision sign ceil floor round tanh "
        "log1p expm1 tile split stack optimization_barrier name"
    ).split()
} - {None}
"""Whose results are not, if no operand is."""


def nonnegative(frame: Any, atom: Any) -> bool:
    """Whether a value is known to have no negative element.

    Args:
        frame: the frame that it is in, walked so far.
        atom: a variable or literal of it.
    """
    memo: dict[tuple[int, int], bool] = {}

    def known(frame: Any, atom: Any, deep: int) -> bool:
        if isinstance(atom, Literal):
            return bool(np.all(np.asarray(atom.val) >= 0))
        key = id(frame), id(atom)
        if key not in memo:
            memo[key] = False  # A loop that asks itself is not known.
            memo[key] = deep > 0 and _known(frame, atom, deep - 1, known)
        return memo[key]

    return known(frame, atom, DEEP)


def _known(frame: Any, var: Any, deep: int, known: Callable[..., bool]) -> bool:
    index = frame.makers.get(var)
    if index is None:
        outside = None if var in frame.jaxpr.constvars else given(frame, var)
        return outside is not None and known(*outside, deep)
    eqn = frame.jaxpr.eqns[index]
    if eqn.primitive in ONCE and index in frame.subs:
        (body,) = frame.subs[index]
        at = [out is var for out in eqn.outvars].index(True)
        return known(body, body.jaxpr.outvars[at], deep)
    if eqn.primitive in NEVER or _is_square(eqn):
        return True
    operands: Sequence[Any] = eqn.invars
    if eqn.primitive is jax.lax.max_p:
        return any(known(frame, atom, deep) for atom in operands)
    if eqn.primitive is jax.lax.select_n_p:
        operands = operands[1:]
    elif eqn.primitive is not jax.lax.integer_pow_p and eqn.primitive not in IF_ALL:
        return False
    return all(known(frame, atom, deep) for atom in operands)


def _is_square(eqn: Any) -> bool:
    if eqn.primitive is jax.lax.integer_pow_p:
        return eqn.params["y"] % 2 == 0
    return eqn.primitive is jax.lax.mul_p and eqn.invars[0] is eqn.invars[1]
