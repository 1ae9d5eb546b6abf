"""Elementwise primitives: operands of one shape share their axes, scalars tie nothing.

Division and multiplication carry a second duty: a sum divided by the number of things
summed is a mean, and that number shrinks with the axis.
"""

import math
from typing import Any

import numpy as np

from cutjax._compat import varying_like
from cutjax.rules.base import Summed, Value, rule
from cutjax.unify import Var

UNARY = """abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e
bitcast_convert_type cbrt ceil clz conj convert_element_type copy cos cosh
digamma erf_inv erf erfc exp2 exp expm1 floor imag integer_pow is_finite
lgamma log1p log2 log logistic name neg not one_minus_square
population_count real reduce_precision round rsqrt sign sin sinh sqrt square
stop_gradient tan tanh sharding_constraint reshard layout_constraint
polynomial reciprocal zeros_like random_clone"""
NARY = """add_jaxvals add and atan2 clamp complex eq eq_to ge gt igamma_grad_a igamma
igammac le le_to lt lt_to max min mulhi ne nextafter or polygamma pow
regularized_incomplete_beta rem select_n shift_left shift_right_arithmetic
shift_right_logical sub xor zeta random_gamma threefry2x32 threefry4x32
philox2x32 philox4x32"""
# Through these a sum of n things stays a sum of n things, up to a factor.
LINEAR = ("convert_element_type", "neg", "copy", "stop_gradient", "reduce_precision")


def same_axes(w: Any, eqn: Any, ins: list[Value]) -> list[tuple[Var, ...]]:
    """Operands of one shape share their axes; scalars and axes of size 1 tie none."""
    rank = max(len(value.dims) for value in ins)
    full = [value.dims for value in ins if len(value.dims) == rank]
    out = []
    for column in zip(*full, strict=True):
        # An axis of size 1 broadcasts beside a longer one, and ties nothing.
        first, *rest = [d for d in column if d.size != 1] or column
        for d in rest:
            w.solver.unify(first, d)
        out.append(first)
    return [tuple(out)] * len(eqn.outvars)


@rule(" ".join(n for n in UNARY.split() if n not in LINEAR) + " " + NARY)
def _infer(w, eqn, ins):
    return same_axes(w, eqn, ins)


@rule(" ".join(LINEAR))
def _linear(w, eqn, ins):
    return [ins[0]._replace(known=None)]


@rule("device_put optimization_barrier")
def _each(w, eqn, ins):
    return list(ins)


@rule("add sub")
def _add(w, eqn, ins):
    (dims,) = same_axes(w, eqn, ins)
    a, b = ins[0].summed, ins[1].summed
    if a is None or b is None or _total(a) != _total(b):
        return [dims]
    return [ins[0]._replace(dims=dims, known=None, param=None, summed=_both(a, b))]


def _both(a: Summed, b: Summed) -> Summed:
    return a if a is b else Summed(a.dims, (a, b))


def _total(summed: Summed) -> int:
    return math.prod(d.size for d in summed.dims)


def _number(value) -> float | None:
    return None if value.known is None else float(value.known)


def _is_count(number: float | None, total: int) -> int | None:
    """0 for the full count, 1 for one less (an unbiased variance), else None."""
    for less in (0, 1):
        if number is not None and total > less + 1 and _near(number, total - less):
            return less
    return None


def _near(a: float, b: int) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)


def _scaled_sum(ins, divide: bool):
    """The summed operand, and the number that divides it; None where there is none."""
    for i in (0,) if divide else (0, 1):
        number = _number(ins[1 - i])
        if ins[i].summed is not None and number:
            return i, number if divide else 1.0 / number
    return None


def _infer_scale(divide: bool):
    def infer(w, eqn, ins):
        (dims,) = same_axes(w, eqn, ins)
        found = _scaled_sum(ins, divide)
        if found is None:
            return [dims]
        i, number = found
        summed = ins[i].summed
        if _is_count(number, _total(summed)) is None:
            return [ins[i]._replace(dims=dims, known=None, param=None)]
        summed.mark_mean()
        w.note_mean(summed.dims)
        return [dims]

    return infer


def _evaluate_scale(divide: bool):
    def evaluate(ev, eqn, sub, ins, outs, args):
        found = _scaled_sum(ins, divide)
        if found is not None:
            i, number = found
            dims = ins[i].summed.dims
            kept = math.prod(ev.k.count(d) for d in dims)
            total = _total(ins[i].summed)
            if kept != total:
                new = _new_count(ev, eqn, number, total, kept, dims)
                factor = new if divide else 1.0 / new
                args = list(args)
                number = np.asarray(factor, args[1 - i].dtype)
                args[1 - i] = varying_like(number, args[i])
        return ev.bind(eqn, args)

    return evaluate


def _new_count(ev, eqn, number: float, total: int, kept: int, dims) -> float | int:
    less = _is_count(number, total)
    if less is not None:
        # A variance over a single kept channel would divide by zero.
        return max(kept - less, 1)
    cut = math.prod(d.size for d in dims if ev.k.count(d) != d.size)
    if float(number).is_integer() and number >= cut and number % cut == 0:
        raise ev.error(
            eqn,
            f"a sum over {total} positions is divided by {number:g}, which looks like "
            f"a count of the {cut} channels being cut, but is not the number summed",
            "divide by the number of elements summed (`jnp.mean`), or pin the group: "
            "`trace(..., pin=(group,))`",
        )
    return number


rule("div", evaluate=_evaluate_scale(True))(_infer_scale(True))
rule("mul", evaluate=_evaluate_scale(False))(_infer_scale(False))
