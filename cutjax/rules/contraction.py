"""Contractions: dot_general and convolution, where groups are made and read."""

from cutjax.rules.base import Summed, Value, rule, shape_of
from cutjax.rules.moments import is_centred, multiplied
from cutjax.unify import POSITIONS, WINDOW


@rule("dot_general")
def _dot(w, eqn, ins):
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    a, b = ins[0].dims, ins[1].dims
    for i, j in (
        *zip(left, right, strict=True),
        *zip(left_batch, right_batch, strict=True),
    ):
        w.solver.unify(a[i], b[j])
    free_a = [a[i] for i in range(len(a)) if i not in (*left, *left_batch)]
    free_b = [b[j] for j in range(len(b)) if j not in (*right, *right_batch)]
    batch = [a[i] for i in left_batch]
    inner = [a[i] for i in left]
    cost = (*batch, *inner, *free_a, *free_b)
    summed = _weighted_sum(w, ins, inner, free_a, free_b)
    w.contraction(ins, (left, right), inner, (free_a, free_b), cost, summed)
    return [Value((*batch, *free_a, *free_b), summed=summed)]


def _weighted_sum(w, ins, inner, free_a, free_b):
    """What a mean may end: an inner product of activations, or one with ones."""
    a, b = ins
    plain = [all(d.size == 1 for d in free) for free in (free_a, free_b)]
    product = a.data and b.data and all(plain)
    ones = (a.data and b.const and plain[1]) or (b.data and a.const and plain[0])
    if not inner or not (product or ones):
        return None
    centred = w.pulls() or is_centred(multiplied(a, b), inner)
    return Summed((tuple(inner),), centred=centred)


def _groups(k, eqn, ins, outs):
    """New group counts: kept features over kept features per group."""
    spec = eqn.params["dimension_numbers"]
    lhs, rhs = ins[0].dims, ins[1].dims
    new = {}
    if eqn.params["feature_group_count"] > 1:
        each = max(k.count(rhs[spec.rhs_spec[1]]), 1)
        new["feature_group_count"] = k.count(lhs[spec.lhs_spec[1]]) // each
    if eqn.params["batch_group_count"] > 1:
        each = max(k.count(outs[0].dims[spec.out_spec[0]]), 1)
        new["batch_group_count"] = k.count(lhs[spec.lhs_spec[0]]) // each
    return new


@rule("conv_general_dilated", resize=_groups)
def _conv(w, eqn, ins):
    s, p = w.solver, eqn.params
    spec = p["dimension_numbers"]
    lhs = [ins[0].dims[i] for i in spec.lhs_spec]
    rhs = [ins[1].dims[i] for i in spec.rhs_spec]
    shape = eqn.outvars[0].aval.shape
    for d in lhs[2:]:
        s.pin(d, POSITIONS)
    for d in rhs[2:]:
        s.pin(d, WINDOW)
    batch, features = _tie_groups(s, lhs, rhs, p)
    out = [batch, features, *(s.new(shape[i], POSITIONS) for i in spec.out_spec[2:])]
    dims = [None] * len(shape)
    for d, i in zip(out, spec.out_spec, strict=True):
        dims[i] = d
    made = ([batch], [features])
    cost = (*out, rhs[1], *rhs[2:])
    # Within a group only: what is merely carried along is read by whoever mixes it.
    axes = ([spec.lhs_spec[1]], [spec.rhs_spec[1]])
    w.contraction(ins, axes, [rhs[1]], made, cost)
    return [tuple(dims)]


def _tie_groups(s, lhs, rhs, p):
    """Couple features across the kernel; returns (batch axis, feature axis) made."""
    groups, batch_groups = p["feature_group_count"], p["batch_group_count"]
    if groups == 1:
        s.unify(lhs[1], rhs[1])
    else:
        outer, each = s.new(groups), s.new(rhs[0].size // groups)
        s.unify(lhs[1], s.product([outer, rhs[1]]))
        s.unify(rhs[0], s.product([outer, each]))
    if batch_groups == 1:
        return lhs[0], rhs[0]
    outer = s.new(batch_groups)
    batch, each = s.news([lhs[0].size // batch_groups, rhs[0].size // batch_groups])
    s.unify(lhs[0], s.product([outer, batch]))
    s.unify(rhs[0], s.product([outer, each]))
    return batch, rhs[0]


@rule("ragged_dot_general")
def _ragged_dot(w, eqn, ins):
    """Rows in runs, each run with its own matrix: runs and matrices stay whole."""
    p = eqn.params["ragged_dot_dimension_numbers"]
    (left, right), (left_batch, right_batch) = p.dot_dimension_numbers
    a, b, runs = (value.dims for value in ins[:3])
    reason = "the groups of a ragged product"
    for d in (
        *(a[i] for i in p.lhs_ragged_dimensions),
        *(b[j] for j in p.rhs_group_dimensions),
        *runs,
    ):
        w.solver.pin(d, reason)
    w.solver.unify_all([a[i] for i in left], [b[j] for j in right])
    w.solver.unify_all([a[i] for i in left_batch], [b[j] for j in right_batch])
    taken = (*right, *right_batch, *p.rhs_group_dimensions)
    batch = [a[i] for i in left_batch]
    inner = [a[i] for i in left]
    free_a = [a[i] for i in range(len(a)) if i not in (*left, *left_batch)]
    free_b = [b[j] for j in range(len(b)) if j not in taken]
    out = [*batch, *free_a, *free_b]
    sizes = shape_of(eqn.outvars[0])
    if len(sizes) > len(out):
        out = [w.solver.new(sizes[0], reason), *out]
    cost = (*batch, *inner, *free_a, *free_b)
    w.contraction(ins, (left, right), inner, (free_a, free_b), cost)
    return [tuple(out)]
