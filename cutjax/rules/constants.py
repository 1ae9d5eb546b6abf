"""The values of small integer arrays that depend on no parameter and no input.

Indices are often constants of the trace that went through a few equations: `x[:, perm]`
adds the size to negative ones, `jnp.arange` is an iota. Where a rule asks for such an
array it is followed back, through calls and the constants of loops, and evaluated with
numpy. Nothing is computed where nobody asks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from cutjax._compat import Literal, primitive, scan_counts
from cutjax.rules.base import shape_of

MOST = 65_536
"""Elements of the largest array that is followed."""

DEEP = 100
"""How many equations back."""


def _quotient(p: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounded towards zero, as XLA does; by zero it is whatever numpy says."""
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


def _select(p: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.asarray(np.choose(which.astype(int), cases))


def _spread(p: Any, a: np.ndarray) -> np.ndarray:
    column = [1] * len(p["shape"])
    for n, i in zip(a.shape, p["broadcast_dimensions"], strict=True):
        column[i] = n
    return np.broadcast_to(a.reshape(column), p["shape"])


def _shaped(p: Any, a: np.ndarray) -> np.ndarray:
    order = p.get("dimensions")
    return (a if order is None else a.transpose(order)).reshape(p["new_sizes"])


def _numbers(p: Any) -> np.ndarray:
    column = [1] * len(p["shape"])
    column[p["dimension"]] = -1
    numbers = np.arange(p["shape"][p["dimension"]]).reshape(column)
    return np.broadcast_to(numbers, p["shape"])


def _cut(p: Any, a: np.ndarray) -> np.ndarray:
    steps = p["strides"] or (1,) * a.ndim
    limits = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    return a[tuple(slice(*limit) for limit in limits)]


def _sorted(p: Any, *arrays: np.ndarray) -> list[np.ndarray] | None:
    if p["num_keys"] != 1:
        return None
    order = np.argsort(arrays[0], axis=p["dimension"], kind="stable")
    return [np.take_along_axis(a, order, p["dimension"]) for a in arrays]


def _numpy(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, *args: fn(*args)


def _same(p: Any, a: np.ndarray) -> np.ndarray:
    return a


_FOLDS: dict[str, Callable[..., Any]] = {
    **{"add": _numpy(np.add), "sub": _numpy(np.subtract), "mul": _numpy(np.multiply)},
    **{"max": _numpy(np.maximum), "min": _numpy(np.minimum)},
    **{"neg": _numpy(np.negative), "sign": _numpy(np.sign), "abs": _numpy(np.abs)},
    **{"div": _quotient, "rem": _numpy(np.fmod)},
    **{"lt": _numpy(np.less), "le": _numpy(np.less_equal), "eq": _numpy(np.equal)},
    **{"gt": _numpy(np.greater), "ge": _numpy(np.greater_equal)},
    **{
        "ne": _numpy(np.not_equal),
        "not": _numpy(np.invert),
        "xor": _numpy(np.bitwise_xor),
    },
    **{"and": _numpy(np.bitwise_and), "or": _numpy(np.bitwise_or)},
    "clamp": lambda p, low, a, high: np.minimum(np.maximum(a, low), high),
    **dict.fromkeys(("convert_element_type", "copy", "stop_gradient", "pvary"), _same),
    **{"select_n": _select, "iota": _numbers, "sort": _sorted},
    **{"broadcast_in_dim": _spread, "reshape": _shaped, "slice": _cut},
    "transpose": lambda p, a: a.transpose(p["permutation"]),
    "squeeze": lambda p, a: a.squeeze(tuple(p["dimensions"])),
    "rev": lambda p, a: np.flip(a, tuple(p["dimensions"])),
    "concatenate": lambda p, *args: np.concatenate(args, p["dimension"]),
    "stack": lambda p, *args: np.stack(args, p["axis"]),
    "tile": lambda p, a: np.tile(a, p["reps"]),
}
FOLDS = {primitive(name): fn for name, fn in _FOLDS.items() if primitive(name)}

ONCE = {
    primitive(name)
    for name in "jit remat closed_call custom_jvp_call custom_vjp_call".split()
} - {None}
"""Calls of one body, whose inputs and outputs are those of the equation."""


SHARDED = primitive("shard_map")


def folded(frame: Any, atom: Any, deep: int = DEEP) -> np.ndarray | None:
    """The value of an atom of a frame, if it is a small constant integer array."""
    dtype, size = getattr(atom.aval, "dtype", None), int(np.prod(shape_of(atom)))
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iub" or size > MOST:
        return None
    if isinstance(atom, Literal):
        return np.asarray(atom.val)
    if deep and atom not in frame.constants:
        found = _found(frame, atom, deep - 1)
        frame.constants[atom] = None if found is None else found.astype(dtype)
    return frame.constants.get(atom)


def _found(frame: Any, var: Any, deep: int) -> np.ndarray | None:
    index = frame.makers.get(var)
    if index is not None:
        return _made(frame, index, var, deep)
    for at, const in zip(frame.jaxpr.constvars, frame.consts, strict=True):
        if at is var:
            return np.asarray(const) if on_the_host(const) else None
    return _given(frame, var, deep)


def on_the_host(const: Any) -> bool:
    """Whether the value of a constant can be looked at."""
    if isinstance(const, jax.Array):
        return (
            not isinstance(const, Tracer)
            and const.is_fully_addressable
            and not jax.dtypes.issubdtype(const.dtype, jax.dtypes.prng_key)
        )
    return isinstance(const, np.ndarray | np.generic | int | float)


def _made(frame: Any, index: int, var: Any, deep: int) -> np.ndarray | None:
    """The value of an output of an equation."""
    eqn = frame.jaxpr.eqns[index]
    at = [out is var for out in eqn.outvars].index(True)
    if eqn.primitive in ONCE and index in frame.subs:
        (body,) = frame.subs[index]
        return folded(body, body.jaxpr.outvars[at], deep)
    fold = FOLDS.get(eqn.primitive)
    args = _all(frame, eqn.invars if fold else (), deep)
    if fold is None or args is None:
        return None
    with np.errstate(all="ignore"):
        out = fold(eqn.params, *args)
    return np.asarray(out[at] if isinstance(out, list) else out)


def _all(frame: Any, atoms: Sequence[Any], deep: int) -> list[np.ndarray] | None:
    out = []
    for atom in atoms:
        value = folded(frame, atom, deep)
        if value is None:
            return None
        out.append(value)
    return out


def _given(frame: Any, var: Any, deep: int) -> np.ndarray | None:
    """The value of an input of a body."""
    found = given(frame, var)
    return None if found is None else folded(*found, deep)


def given(frame: Any, var: Any) -> tuple[Any, Any] | None:
    """What an input of a body is called with, if that is the same every time.

    Returns:
        The frame outside, and the operand there.
    """
    if frame.outer is None:
        return None
    outer, index = frame.outer
    eqn = outer.jaxpr.eqns[index]
    at = [one is var for one in frame.jaxpr.invars].index(True)
    if eqn.primitive is jax.lax.cond_p:
        return outer, eqn.invars[1 + at]
    if eqn.primitive is SHARDED:
        # Of one shape with the whole, a shard is the whole.
        fixed = shape_of(eqn.invars[at]) == shape_of(var)
    elif eqn.primitive is jax.lax.scan_p:
        fixed = at < scan_counts(eqn.params)[0]
    else:
        fixed = eqn.primitive in ONCE
    return (outer, eqn.invars[at]) if fixed else None
