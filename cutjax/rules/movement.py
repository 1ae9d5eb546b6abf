"""Primitives that move elements: reshape, transpose, broadcast, slice, concatenate."""

import math

import jax.numpy as jnp
import numpy as np

from cutjax.rules.base import counts, rest, rule, shape_of
from cutjax.rules.counts import beside, counted, lack, scaled, some_of, spread


def _new_sizes(k, eqn, ins, outs):
    return {"new_sizes": counts(k, outs[0].dims)}


def _shape(k, eqn, ins, outs):
    return {"shape": counts(k, outs[0].dims)}


@rule("reshape", resize=_new_sizes)
def _reshape(w, eqn, ins):
    order = eqn.params.get("dimensions") or range(len(ins[0].dims))
    dims = [ins[0].dims[i] for i in order]
    return [ins[0]._replace(dims=_regroup(w.solver, dims, shape_of(eqn.outvars[0])))]


def _regroup(s, dims, sizes):
    """Axes of the reshaped array: blocks of equal size are merged and split."""
    if 0 in sizes:
        return s.news(sizes, "an empty array")
    out = [s.new(1) if n == 1 else None for n in sizes]
    old = [d for d in dims if d.size != 1]
    new = [i for i, n in enumerate(sizes) if n != 1]
    while old:
        a, b = [old.pop(0)], [new.pop(0)]
        while (p := math.prod(d.size for d in a)) != (
            q := math.prod(sizes[i] for i in b)
        ):
            if p < q:
                a.append(old.pop(0))
            else:
                b.append(new.pop(0))
        merged = s.product(a)
        if len(b) == 1:
            out[b[0]] = merged
            continue
        parts = s.news([sizes[i] for i in b])
        s.unify(merged, s.product(parts))
        for i, part in zip(b, parts, strict=True):
            out[i] = part
    return tuple(out)


@rule("transpose")
def _transpose(w, eqn, ins):
    dims = tuple(ins[0].dims[i] for i in eqn.params["permutation"])
    return [ins[0]._replace(dims=dims)]


@rule("squeeze")
def _squeeze(w, eqn, ins):
    gone = eqn.params["dimensions"]
    return [ins[0]._replace(dims=rest(ins[0].dims, gone))]


def _spread(ev, eqn, sub, ins, outs, args):
    """Shares of a cotangent that is copied to fewer are larger."""
    shares = spread(ins[0].share, _new_axes(ins[0].dims, outs[0].dims))
    value = scaled(args[0], 1 if shares is None else lack(ev.k, shares))
    return ev.bind(eqn, [value, *args[1:]], **_shape(ev.k, eqn, ins, outs))


def _new_axes(before, after):
    return [d for d in after if d.size != 1 and all(d is not old for old in before)]


@rule("broadcast_in_dim", evaluate=_spread)
def _broadcast(w, eqn, ins):
    out = [w.solver.new(n) for n in eqn.params["shape"]]
    for d, i in zip(ins[0].dims, eqn.params["broadcast_dimensions"], strict=True):
        if d.size == out[i].size:
            out[i] = d
    new = _new_axes(ins[0].dims, out)
    shares = spread(ins[0].share, new)
    if shares is not None and counted(shares) is not None:
        w.note_mean(shares.dims)
        shares = None
    # Copies of a parameter along new axes are no longer that parameter.
    value = ins[0]._replace(param=None, joined=False) if new else ins[0]
    return [value._replace(dims=tuple(out), share=shares)]


@rule("concatenate")
def _concatenate(w, eqn, ins):
    axis = eqn.params["dimension"]
    first, *rest = [v.dims for v in ins]
    for dims in rest:
        for i, (a, b) in enumerate(zip(first, dims, strict=True)):
            if i != axis:
                w.solver.unify(a, b)
    joined = w.solver.concat([v.dims[axis] for v in ins])
    return [beside(ins, (*first[:axis], joined, *first[axis + 1 :]))]


@rule("stack")
def _stack(w, eqn, ins):
    axis = eqn.params["axis"]
    for value in ins[1:]:
        w.solver.unify_all(ins[0].dims, value.dims)
    dims = ins[0].dims
    new = w.solver.new(len(ins), "stacked arrays")
    return [beside(ins, (*dims[:axis], new, *dims[axis:]))]


@rule("unstack")
def _unstack(w, eqn, ins):
    axis = eqn.params["axis"]
    dims = ins[0].dims
    w.solver.pin(dims[axis], "unstacked")
    return [some_of(ins[0], rest(dims, [axis]))] * len(eqn.outvars)


def _slice_limits(k, eqn, ins, outs):
    start, limit = list(eqn.params["start_indices"]), list(eqn.params["limit_indices"])
    strides = eqn.params["strides"] or (1,) * len(start)
    for i, d in enumerate(ins[0].dims):
        if k.count(d) == d.size:
            continue
        mask = k.mask(d)
        if strides[i] > 1:
            limit[i] = int(mask.sum())
        else:
            before, inside = mask[: start[i]].sum(), mask[start[i] : limit[i]].sum()
            start[i], limit[i] = int(before), int(before + inside)
    return {"start_indices": tuple(start), "limit_indices": tuple(limit)}


@rule("slice", resize=_slice_limits)
def _slice(w, eqn, ins):
    p = eqn.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    out = []
    for d, start, limit, step, size in zip(
        ins[0].dims,
        p["start_indices"],
        p["limit_indices"],
        strides,
        shape_of(eqn.outvars[0]),
        strict=True,
    ):
        if size == d.size:
            out.append(d)
        elif step == 1:
            out.append(w.solver.segment(d, start, limit))
        else:
            out.append(_every_nth(w.solver, d, start, step, size))
    return [some_of(ins[0], tuple(out))]


def _every_nth(s, d, start, step, size):
    """Every `step`-th position: one column of the axis folded to (size, step)."""
    whole = start < step and size * step == d.size
    if whole and not s.pinned(d):
        outer, inner = s.new(size), s.new(step, "sliced with a stride")
        s.unify(d, s.product([outer, inner]))
        return outer
    s.pin(d, "sliced with a stride")
    return s.new(size, "sliced with a stride")


def _split_sizes(k, eqn, ins, outs):
    axis = eqn.params["axis"]
    return {"sizes": tuple(k.count(out.dims[axis]) for out in outs)}


@rule("split", resize=_split_sizes)
def _split(w, eqn, ins):
    axis, start, out = eqn.params["axis"], 0, []
    dims = ins[0].dims
    for size in map(int, eqn.params["sizes"]):
        piece = w.solver.segment(dims[axis], start, start + size)
        out.append(some_of(ins[0], (*dims[:axis], piece, *dims[axis + 1 :])))
        start += size
    return out


def _padding(k, eqn, ins, outs):
    config = []
    for (lo, hi, inner), d, out in zip(
        eqn.params["padding_config"], ins[0].dims, outs[0].dims, strict=True
    ):
        if inner == 0 and (k.count(d) != d.size or k.count(out) != out.size):
            before, after = k.mask(d), k.mask(out)
            lo = after[:lo].sum() if lo >= 0 else -before[:-lo].sum()
            hi = after[out.size - hi :].sum() if hi >= 0 else -before[hi:].sum()
        config.append((int(lo), int(hi), inner))
    return {"padding_config": tuple(config)}


@rule("pad", resize=_padding)
def _pad(w, eqn, ins):
    s, out = w.solver, []
    sizes = shape_of(eqn.outvars[0])
    for config, d, size in zip(
        eqn.params["padding_config"], ins[0].dims, sizes, strict=True
    ):
        lo, hi, inner = map(int, config)
        every = inner and lo >= 0 and hi >= 0 and lo + hi == inner
        crop = (max(-lo, 0), d.size - max(-hi, 0))
        if size == d.size and lo == inner == 0:
            out.append(d)
        elif s.pinned(d) or (inner and not every) or crop[0] > crop[1]:
            s.pin(d, "padded between or cropped")
            out.append(s.new(size, "a padded axis that stays whole"))
        elif every:
            # Cotangents of a strided slice go back to where it took from.
            out.append(s.product([d, s.new(inner + 1, "sliced with a stride")]))
        else:
            left = s.segment(d, *crop)
            out.append(s.concat([s.new(max(lo, 0)), left, s.new(max(hi, 0))]))
    return [tuple(out)]


@rule("bitcast_convert_type")
def _bitcast(w, eqn, ins):
    """Wider numbers read as narrower ones have an axis of these, and back."""
    dims, shape = ins[0].dims, shape_of(eqn.outvars[0])
    if len(shape) == len(dims):
        return [dims]
    if len(shape) > len(dims):
        return [(*dims, w.solver.new(shape[-1], "the bits of one number"))]
    w.solver.pin(dims[-1], "the bits of one number")
    return [dims[:-1]]


def _tile_reps(k, eqn, ins, outs):
    pairs = zip(outs[0].dims, ins[0].dims, strict=True)
    return {"reps": tuple(k.count(o) // max(k.count(d), 1) for o, d in pairs)}


@rule("tile", resize=_tile_reps)
def _tile(w, eqn, ins):
    pairs = zip(eqn.params["reps"], ins[0].dims, strict=True)
    return [tuple(w.solver.product([w.solver.new(int(r)), d]) for r, d in pairs)]


@rule("rev")
def _rev(w, eqn, ins):
    for i in eqn.params["dimensions"]:
        w.solver.pin(ins[0].dims[i], "reversed")
    return [ins[0].dims]


def _iota(ev, eqn, sub, ins, outs, args):
    """Kept channels keep their own numbers, as in the masked model."""
    axis = eqn.params["dimension"]
    dims = outs[0].dims
    if ev.k.count(dims[axis]) == dims[axis].size:
        return ev.bind(eqn, args, shape=counts(ev.k, dims))
    numbers = np.flatnonzero(ev.k.mask(dims[axis]))
    column = [1] * len(dims)
    column[axis] = numbers.size
    values = jnp.asarray(numbers, eqn.params["dtype"]).reshape(column)
    return [jnp.broadcast_to(values, counts(ev.k, dims))]


@rule("iota", evaluate=_iota)
def _iota_infer(w, eqn, ins):
    return [w.solver.news(eqn.params["shape"])]
