"""Reductions, scans along an axis, sorting and windows."""

import jax

from cutjax.rules.base import (
    Moment,
    Summed,
    counts,
    rest,
    rule,
    shape_of,
    summed_over,
)
from cutjax.rules.counts import counts_next, factor, number_of, scaled, total
from cutjax.rules.moments import is_centred, squares
from cutjax.unify import POSITIONS


def _summed_shares(ev, eqn, sub, ins, outs, args):
    """A sum of what was divided by the number of summands is over those that stay."""
    (out,) = ev.bind(eqn, args)
    gone = [ins[0].dims[i] for i in eqn.params["axes"]]
    return [scaled(out, factor(ev.k, gone) if counts_next(ins[0].share, gone) else 1)]


@rule("reduce_sum", evaluate=_summed_shares)
def _sum(w, eqn, ins):
    value, axes = ins[0], eqn.params["axes"]
    gone = tuple(value.dims[i] for i in axes)
    # A cotangent shows no squares: what it is divided by was for the forward pass.
    centred = w.pulls() or is_centred(value.moment, gone)
    summed = summed_over(value.summed, gone, centred)
    w.read(value, gone, summed)
    value = value._replace(dims=rest(value.dims, axes), param=None, joined=False)
    if counts_next(value.share, gone):
        summed.mark_mean()
        w.note_mean(gone)
        mean = Moment(gone, 0)
        return [value._replace(summed=None, share=None, known=None, moment=mean)]
    number = number_of(value)
    return [
        value._replace(
            summed=summed,
            share=value.share if total(gone) == 1 else None,
            known=None if number is None else number * total(gone),
            moment=squares(value.moment),
        )
    ]


def _greatest(ev, eqn, sub, ins, outs, args):
    """Of no channels it is what it is of masked ones."""
    if 0 in args[0].shape:
        shape = counts(ev.k, outs[0].dims)
        return [jax.numpy.zeros(shape, eqn.outvars[0].aval.dtype)]
    return ev.bind(eqn, args)


@rule("reduce_max", evaluate=_greatest)
def _max(w, eqn, ins):
    """A sum's like, where nothing is negative: zeros change no such maximum."""
    if not w.nonnegative(eqn.invars[0]):
        return _pinning(w, eqn, ins)
    value, axes = ins[0], eqn.params["axes"]
    gone = tuple(value.dims[i] for i in axes)
    w.read(value, gone, Summed((gone,)))
    return [rest(value.dims, axes)]


@rule("reduce_min reduce_prod reduce_and reduce_or reduce_xor reduce argmax argmin")
def _pinning(w, eqn, ins):
    axes = eqn.params.get("axes", eqn.params.get("dimensions"))
    for value in ins:
        for i in axes:
            if i < len(value.dims):
                w.solver.pin(value.dims[i], f"reduced by {eqn.primitive}")
    return [rest(ins[0].dims, axes)] * len(eqn.outvars)


@rule("cumsum cumprod cummax cummin cumlogsumexp")
def _cumulative(w, eqn, ins):
    w.solver.pin(ins[0].dims[eqn.params["axis"]], f"{eqn.primitive} runs along it")
    return [ins[0].dims]


@rule("sort")
def _sort(w, eqn, ins):
    for value in ins:
        w.solver.pin(value.dims[eqn.params["dimension"]], "sorted")
        w.solver.unify_all(ins[0].dims, value.dims)
    return [ins[0].dims] * len(ins)


@rule("top_k approx_top_k")
def _top_k(w, eqn, ins):
    axis = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1))
    dims = list(ins[0].dims)
    w.solver.pin(dims[axis], "ranked")
    dims[axis] = w.solver.new(shape_of(eqn.outvars[0])[axis], "the best of a ranking")
    return [tuple(dims)] * len(eqn.outvars)


def _windowed(w, dims, shape, window):
    """Axes with a window of one element pass; the others stay whole."""
    out = []
    for i, d in enumerate(dims):
        if window[i] == 1 and shape[i] == d.size:
            out.append(d)
        else:
            w.solver.pin(d, POSITIONS)
            out.append(w.solver.new(shape[i], POSITIONS))
    return tuple(out)


@rule(
    "reduce_window_sum reduce_window_max reduce_window_min reduce_window "
    "select_and_gather_add"
)
def _window(w, eqn, ins):
    arrays = [v for v in ins if v.dims]
    for value in arrays[1:]:
        w.solver.unify_all(arrays[0].dims, value.dims)
    window = eqn.params["window_dimensions"]
    out = _windowed(w, arrays[0].dims, shape_of(eqn.outvars[0]), window)
    return [out] * len(eqn.outvars)


@rule("select_and_scatter_add select_and_scatter")
def _scatter_window(w, eqn, ins):
    source, operand = ins[0].dims, ins[1].dims
    if "select_jaxpr" in eqn.params:  # the general form has them the other way round
        source, operand = operand, source
    for i, size in enumerate(eqn.params["window_dimensions"]):
        if size == 1 and source[i].size == operand[i].size:
            w.solver.unify(source[i], operand[i])
        else:
            w.solver.pin(source[i], POSITIONS)
            w.solver.pin(operand[i], POSITIONS)
    return [operand]
