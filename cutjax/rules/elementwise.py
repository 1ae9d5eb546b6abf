"""Elementwise primitives: operands of one shape share their axes, scalars tie nothing.

Division and multiplication carry a second duty: a sum divided by the number of things
summed is a mean, and that number shrinks with the axis.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax._compat import primitive, varying_like
from cutjax.rules.base import Moment, Value, rule
from cutjax.rules.counts import (
    count_in,
    joint,
    kept_counts,
    number_of,
    powered,
    ratio,
    rooted,
    scaled,
    share,
    taken,
    total,
)
from cutjax.rules.moments import added, multiplied, raised
from cutjax.unify import Var

UNARY = """abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e
cbrt ceil clz conj convert_element_type copy cos cosh
digamma erf_inv erf erfc exp2 exp expm1 floor imag is_finite
lgamma log1p log2 log logistic name neg not one_minus_square
population_count real reduce_precision round sign sin sinh
stop_gradient tan tanh sharding_constraint reshard layout_constraint
polynomial zeros_like random_clone"""
NARY = """and atan2 complex eq eq_to ge gt igamma_grad_a igamma
igammac le le_to lt lt_to mulhi ne nextafter or polygamma
regularized_incomplete_beta rem shift_left shift_right_arithmetic
shift_right_logical xor zeta random_gamma threefry2x32 threefry4x32
philox2x32 philox4x32"""
# Through these a sum of n things stays a sum of n things, up to a factor.
LINEAR = ("convert_element_type", "neg", "copy", "stop_gradient", "reduce_precision")
# Through these what was centred is, up to a sign or what complex numbers are made of.
PARTS = ("abs", "conj", "imag", "real")


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


@rule(" ".join(n for n in UNARY.split() if n not in LINEAR + PARTS) + " " + NARY)
def _infer(w, eqn, ins):
    return same_axes(w, eqn, ins)


@rule(" ".join(PARTS))
def _part(w, eqn, ins):
    return [Value(ins[0].dims, moment=ins[0].moment)]


@rule(" ".join(LINEAR))
def _linear(w, eqn, ins):
    return [ins[0]._replace(known=None)]


@rule("device_put optimization_barrier")
def _each(w, eqn, ins):
    return list(ins)


@rule("add sub add_jaxvals")
def _add(w, eqn, ins):
    (dims,) = same_axes(w, eqn, ins)
    both = all(value.summed is not None for value in ins)
    summed = joint(ins) if both else None
    same = ins[0].share == ins[1].share
    shared = ins[0].share if same else None
    return [Value(dims, summed=summed, share=shared, moment=added(*ins))]


@rule("max min clamp select_n")
def _choose(w, eqn, ins):
    """A sum that a constant bounds or replaces is still one of as many."""
    (dims,) = same_axes(w, eqn, ins)
    if eqn.primitive is not jax.lax.select_n_p:
        return [Value(dims, summed=joint(ins))]
    shares = {v.share for v in ins[1:] if v.known is None or v.known != 0}
    same = shares.pop() if len(shares) == 1 else None
    moments = {v.moment for v in ins[1:] if v.known is None}
    moment = moments.pop() if len(moments) == 1 else None
    return [Value(dims, summed=joint(ins[1:]), share=same, moment=moment)]


_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}
POWERS = {primitive(name): power for name, power in _POWERS.items()}


@rule("integer_pow pow " + " ".join(_POWERS))
def _power(w, eqn, ins):
    (dims,) = same_axes(w, eqn, ins)
    power = POWERS.get(eqn.primitive, eqn.params.get("y"))
    if power is None:
        power = number_of(ins[1])
    summed = None if power is None else powered(ins[0], power)
    return [Value(dims, summed=summed, moment=raised(ins[0], power))]


class Quotient(NamedTuple):
    """The operand at `at` is divided by `number`; a sum rather than what is none."""

    of_sum: bool
    number: float
    at: int


def _quotient(ins, divide: bool) -> Quotient | None:
    found = []
    for i in (0,) if divide else (0, 1):
        by = number_of(ins[1 - i])
        if by:
            of_sum = ins[i].summed is not None
            found.append(Quotient(of_sum, by if divide else 1 / by, i))
    return max(found, default=None)


def _of_arrays(w, ins, dims, divide: bool) -> Value:
    if divide:
        return Value(dims, summed=ratio(ins), moment=multiplied(ins[0], Value(())))
    root = rooted(ins)
    if root is not None:
        root.summed.mark_mean()
        w.note_mean(root.summed.dims)
    return Value(dims, moment=multiplied(*ins))


def _infer_scale(divide: bool):
    def infer(w, eqn, ins):
        (dims,) = same_axes(w, eqn, ins)
        found = _quotient(ins, divide)
        if found is None:
            return [_of_arrays(w, ins, dims, divide)]
        value = ins[found.at]
        summed = value.summed
        count = None if summed is None else count_in(found.number, summed)
        if summed is None or count is None:
            shared = share(w, value, found.number, eqn.outvars[0].aval.dtype)
            moment = value.moment if value.moment and value.moment.order else None
            return [Value(dims, summed=summed, share=shared, moment=moment)]
        summed.mark_mean(*count)
        counted = summed.since(count.first)
        w.note_mean(counted)
        return [
            Value(
                dims,
                summed=summed.until(count.first),
                share=taken(w, summed, found.number, count.first),
                moment=Moment(counted, 0) if summed.power == 1 else None,
            )
        ]

    return infer


def _evaluate_scale(divide: bool):
    def evaluate(ev, eqn, sub, ins, outs, args):
        found = _quotient(ins, divide)
        if found is None or not found.of_sum:
            (out,) = ev.bind(eqn, args)
            root = rooted(ins) if found is None and not divide else None
            return [scaled(out, root.lack(ev.k) if root else 1)]
        summed = ins[found.at].summed
        count = count_in(found.number, summed)
        first = count.first if count else 0
        kept, *others = kept_counts(ev.k, summed, first)
        if others:
            raise ev.error(eqn, *_DIFFER)
        if kept != total(summed.since(first)):
            new = _new_count(ev, eqn, found.number, summed, count, kept)
            args, by = list(args), args[1 - found.at]
            number = np.full(np.shape(by), new if divide else 1 / new, by.dtype)
            args[1 - found.at] = varying_like(number, args[found.at])
        return ev.bind(eqn, args)

    return evaluate


_DIFFER = (
    "sums over groups of one size are divided by one number, and the keep leaves them "
    "different sizes",
    "keep as many channels of each, or divide each sum by the number of its elements",
)


def _new_count(ev, eqn, number: float, summed, count, kept: int) -> float | int:
    if count is not None:
        # A variance over a single kept channel would divide by zero.
        left = max(kept - count.less, 1)
        return left if summed.power == 1 else left**summed.power
    cut = total(d for d in summed.dims if ev.k.count(d) != d.size)
    whole = summed.power == 1 and float(number).is_integer()
    if whole and number >= cut and number % cut == 0:
        raise ev.error(
            eqn,
            f"a sum over {total(summed.dims)} positions is divided by {number:g}, "
            f"which looks like a count of the {cut} channels being cut, but is not the "
            "number summed",
            "divide by the number of elements summed (`jnp.mean`), or pin the group: "
            "`trace(..., pin=(group,))`",
        )
    return number


rule("div", evaluate=_evaluate_scale(True))(_infer_scale(True))
rule("mul", evaluate=_evaluate_scale(False))(_infer_scale(False))
