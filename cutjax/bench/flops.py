"""Multiply-adds of a function, read from its jaxpr.

A second opinion on `cutjax.cost`, which predicts the same number from widths, and on
XLA's `cost_analysis()`, which leaves out the taps of a convolution that fall on
padding. Here a convolution costs output elements x contracted elements, whatever lies
under the taps; the zeros that a transposed convolution inserts between its inputs count
as well.

Only products (`dot_general`, ragged or not) and convolutions cost something: everything
else is linear in the activations and disappears beside them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.interpreters import partial_eval

from cutjax._compat import primitive


class UncountableError(ValueError):
    """The number of multiply-adds depends on values that only a run knows."""


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-adds of one call, each as two operations.

    What does not reach an output is not counted. Calls (`jit`, `remat`, `custom_jvp`,
    `custom_vjp`) are looked into, `scan` counts its body times its length, `cond` its
    most expensive branch.

    Args:
        fn: any function that JAX can trace.
        *args: its arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        Operations, a multiply-add counted as two.

    Raises:
        UncountableError: a `while_loop` multiplies matrices; only `scan` (or
            `fori_loop` with Python integers as bounds) knows how often it runs.

    Example:
        >>> x = jax.ShapeDtypeStruct((4, 8), "float32")
        >>> count_flops(lambda x, w: x @ w, x, jax.ShapeDtypeStruct((8, 3), "float32"))
        192
    """
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr: Any = getattr(closed, "jaxpr", closed)
    alive, *_ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(alive)


def _count(jaxpr: Any) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    rule = _RULES.get(eqn.primitive)
    return rule(eqn) if rule else sum(map(_count, _jaxprs(eqn.params)))


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """Open and closed jaxprs, alone or in a sequence, whatever the primitive is."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracted)


def _conv(eqn: Any) -> int:
    # The kernel's input axis is already one group wide, for feature and batch groups.
    _, *contracted = eqn.params["dimension_numbers"].rhs_spec
    kernel = eqn.invars[1].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(kernel[axis] for axis in contracted)


def _ragged(eqn: Any) -> int:
    # Each row meets the matrix of its own run only.
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    lhs = eqn.invars[0].aval.shape
    flops = 2 * eqn.outvars[0].aval.size * math.prod(lhs[axis] for axis in contracted)
    runs_apart = set(numbers.lhs_ragged_dimensions) & set(contracted)
    return flops // eqn.outvars[0].aval.shape[0] if runs_apart else flops


def _scan(eqn: Any) -> int:
    return eqn.params["length"] * sum(map(_count, _jaxprs(eqn.params)))


def _cond(eqn: Any) -> int:
    return max(map(_count, _jaxprs(eqn.params)))


def _while(eqn: Any) -> int:
    if any(map(_count, _jaxprs(eqn.params))):
        raise UncountableError(
            "a while_loop with matrix products in it: how often it runs is known only "
            "at run time. Write it as jax.lax.scan, or as jax.lax.fori_loop with "
            "Python integers as bounds."
        )
    return 0


_RULES: Mapping[Any, Callable[[Any], int]] = {
    jax.lax.dot_general_p: _dot,
    jax.lax.conv_general_dilated_p: _conv,
    primitive("ragged_dot_general"): _ragged,
    jax.lax.scan_p: _scan,
    jax.lax.cond_p: _cond,
    jax.lax.while_p: _while,
}
