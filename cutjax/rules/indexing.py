"""Gather, scatter, dynamic slices and random bits."""

from cutjax._compat import random_unwrap_p, random_wrap_p
from cutjax.rules.base import add, counts, rule, shape_of

INDEXED = "indexed by data"


def _window_sizes(k, eqn, ins, outs):
    sizes = zip(eqn.params["slice_sizes"], ins[0].dims, strict=True)
    return {"slice_sizes": tuple(k.count(d) if n == d.size else n for n, d in sizes)}


@rule("gather", resize=_window_sizes)
def _gather(w, eqn, ins):
    s, dn = w.solver, eqn.params["dimension_numbers"]
    operand, indices = ins[0].dims, ins[1].dims
    windows = []
    for i, (d, size) in enumerate(zip(operand, eqn.params["slice_sizes"], strict=True)):
        if i in dn.operand_batching_dims:
            at = dn.operand_batching_dims.index(i)
            s.unify(d, indices[dn.start_indices_batching_dims[at]])
        elif size != d.size:
            s.pin(d, INDEXED)
            if i not in dn.collapsed_slice_dims:
                windows.append(s.new(size, INDEXED))
        elif i not in dn.collapsed_slice_dims:
            windows.append(d)
    s.pin(indices[-1], "the index vector")
    batch, rank = list(indices[:-1]), len(shape_of(eqn.outvars[0]))
    w.made(ins[0], windows)
    dims = [(windows if i in dn.offset_dims else batch).pop(0) for i in range(rank)]
    return [tuple(dims)]


@rule("scatter scatter_add scatter_mul scatter_min scatter_max scatter_sub")
def _scatter(w, eqn, ins):
    s, dn = w.solver, eqn.params["dimension_numbers"]
    operand, indices, updates = (v.dims for v in ins)
    inside = iter(dn.update_window_dims)
    s.pin(indices[-1], "the index vector")
    for i, d in enumerate(operand):
        if i in dn.operand_batching_dims:
            at = dn.operand_batching_dims.index(i)
            s.unify(d, indices[dn.scatter_indices_batching_dims[at]])
        elif i in dn.inserted_window_dims:
            s.pin(d, INDEXED)
        else:
            u = updates[next(inside)]
            if u.size != d.size:
                s.pin(d, INDEXED)
                s.pin(u, INDEXED)
            else:
                s.unify(d, u)
    free = [d for i, d in enumerate(updates) if i not in dn.update_window_dims]
    s.unify_all(free, indices[:-1])
    return [operand]


@rule("dynamic_slice", resize=_window_sizes)
def _dynamic_slice(w, eqn, ins):
    out = []
    for d, size in zip(ins[0].dims, eqn.params["slice_sizes"], strict=True):
        if size != d.size:
            w.solver.pin(d, INDEXED)
            d = w.solver.new(size, INDEXED)
        out.append(d)
    return [tuple(out)]


@rule("dynamic_update_slice")
def _dynamic_update_slice(w, eqn, ins):
    for d, u in zip(ins[0].dims, ins[1].dims, strict=True):
        if d.size == u.size:
            w.solver.unify(d, u)
        else:
            w.solver.pin(d, INDEXED)
            w.solver.pin(u, INDEXED)
    return [ins[0].dims]


def _bits_shape(k, eqn, ins, outs):
    key = len(ins[0].dims)
    return {"shape": counts(k, outs[-1].dims[key:])}


@rule("random_bits", resize=_bits_shape)
def _random_bits(w, eqn, ins):
    return [(*ins[0].dims, *w.solver.news(eqn.params["shape"]))]


def _bit_generator_shape(k, eqn, ins, outs):
    return {"shape": counts(k, outs[1].dims)}


@rule("rng_bit_generator", resize=_bit_generator_shape)
def _bit_generator(w, eqn, ins):
    return [ins[0].dims, w.solver.news(eqn.params["shape"])]


def _fresh_shape(k, eqn, ins, outs):
    return {"shape": counts(k, outs[0].dims)}


@rule("rng_uniform empty empty2", resize=_fresh_shape)
def _fresh(w, eqn, ins):
    return [w.solver.news(shape_of(eqn.outvars[0]))]


@rule("random_seed random_split random_fold_in")
def _keys(w, eqn, ins):
    for value in ins:
        for d in value.dims:
            w.solver.pin(d, "a batch of random keys")
    return [w.solver.news(shape_of(v), "a batch of random keys") for v in eqn.outvars]


add((random_wrap_p, random_unwrap_p), _keys)
