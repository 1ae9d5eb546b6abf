"""Gather, scatter, dynamic slices and random bits.

Indices that are data need the axis whole. Constant ones pick channels that are known:
the axis is cut between them, and the small function gets new indices, in kept
coordinates.
"""

import jax.numpy as jnp
import numpy as np

from cutjax._compat import random_unwrap_p, random_wrap_p, varying_like
from cutjax.rules.base import Value, add, counts, rule, shape_of
from cutjax.rules.picks import along, picked, renumbered, varying

INDEXED = "indexed by data"
NOT_FOLLOWED = "indexed by constants that were not followed (too many, or computed)"
OUTSIDE = "indexed by constants, some of them out of bounds"
SEVERAL = "indexed by constants along several axes at once"
PLACES = "written by constant indices to an axis that stays whole"
TOGETHER = "written to one place by constant indices"


def _known_index(w, eqn, ins, columns, sizes):
    """The constant indices of a gather or scatter; else None and why not.

    `columns` are the axes indexed, `sizes` those of the window along all axes.
    """
    index = w.constant(eqn.invars[1])
    if index is None or index.size == 0:
        return None, NOT_FOLLOWED if ins[1].const else INDEXED
    last = [ins[0].dims[i].size - sizes[i] for i in columns]
    return (index, "") if ((index >= 0) & (index <= last)).all() else (None, OUTSIDE)


def _column(index, columns, axis):
    """The indices of one axis; of an axis that is not indexed they are zero."""
    if axis in columns:
        return index[..., list(columns).index(axis)]
    return np.zeros(index.shape[:-1], int)


def _window(s, d, column, size):
    """The axis of a window of several positions that starts at a constant."""
    if varying(column):
        s.pin(d, SEVERAL)
        return s.new(size, SEVERAL)
    start = int(column.flat[0])
    return s.segment(d, start, start + size)


def _new_index(ev, ins, outs, args, columns, batch):
    """The constant indices in kept coordinates."""
    index = renumbered(ev.k, outs[0].index, ins[0].dims, columns, batch)
    return varying_like(jnp.asarray(index, args[1].dtype), args[1])


def _all_whole(ev, ins, outs):
    return all(ev.k.whole(v) for v in (*ins, *outs))


def _window_sizes(k, eqn, ins, outs):
    sizes = zip(eqn.params["slice_sizes"], ins[0].dims, strict=True)
    return {"slice_sizes": tuple(k.count(d) if n == d.size else n for n, d in sizes)}


def _gathered(ev, eqn, sub, ins, outs, args):
    if _all_whole(ev, ins, outs):
        return ev.bind(eqn, args)
    if outs[0].index is None:
        return ev.bind(eqn, args, **_window_sizes(ev.k, eqn, ins, outs))
    dn, sizes = eqn.params["dimension_numbers"], list(eqn.params["slice_sizes"])
    gone = (*dn.collapsed_slice_dims, *dn.operand_batching_dims)
    inner = [i for i in range(len(sizes)) if i not in gone]
    for i, at in zip(inner, dn.offset_dims, strict=True):
        sizes[i] = ev.k.count(outs[0].dims[at])
    batch = [d for i, d in enumerate(outs[0].dims) if i not in dn.offset_dims]
    index = _new_index(ev, ins, outs, args, dn.start_index_map, batch)
    return ev.bind(eqn, [args[0], index], slice_sizes=tuple(sizes))


@rule("gather", evaluate=_gathered)
def _gather(w, eqn, ins):
    dn, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    w.solver.pin(ins[1].dims[-1], "the index vector")
    index, reason = _known_index(w, eqn, ins, dn.start_index_map, sizes)
    read = _gather_by_data if index is None else _gather_by_constants
    windows, batch = read(w.solver, eqn, ins, reason if index is None else index)
    w.made(ins[0], windows)
    rank = len(shape_of(eqn.outvars[0]))
    dims = [(windows if i in dn.offset_dims else batch).pop(0) for i in range(rank)]
    return [Value(tuple(dims), index=index)]


def _gather_by_data(s, eqn, ins, reason):
    """The window axes and the batch axes of what is gathered."""
    dn, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins[0].dims, ins[1].dims
    windows = []
    for i, (d, size) in enumerate(zip(operand, sizes, strict=True)):
        if i in dn.operand_batching_dims:
            at = dn.operand_batching_dims.index(i)
            s.unify(d, indices[dn.start_indices_batching_dims[at]])
        elif size != d.size:
            s.pin(d, reason)
            if i not in dn.collapsed_slice_dims:
                windows.append(s.new(size, reason))
        elif i not in dn.collapsed_slice_dims:
            windows.append(d)
    return windows, list(indices[:-1])


def _gather_by_constants(s, eqn, ins, index):
    """The same, where it is known what is picked."""
    dn, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    # A constant may index several arrays: it ties none of them to another.
    windows, batch = [], list(s.news(index.shape[:-1]))
    taken = set(dn.start_indices_batching_dims)
    for at, i in enumerate(dn.operand_batching_dims):
        batch[dn.start_indices_batching_dims[at]] = ins[0].dims[i]
    for i, (d, size) in enumerate(zip(ins[0].dims, sizes, strict=True)):
        if i in dn.operand_batching_dims:
            continue
        column = _column(index, dn.start_index_map, i)
        if i not in dn.collapsed_slice_dims:
            windows.append(d if size == d.size else _window(s, d, column, size))
        elif d.size > 1:
            b, axis = _picked_along(s, d, column, taken)
            if b is not None and axis is not None:
                batch[b] = axis
    return windows, batch


def _picked_along(s, d, column, taken):
    """Single positions of `d` are picked: along which batch axis, and what it is.

    No batch axis where it is one position, no picked axis where `d` stays whole.
    """
    axes = varying(column)
    if not axes:
        at = int(column.flat[0])
        s.segment(d, at, at + 1)
        return None, None
    if len(axes) > 1 or axes[0] in taken:
        s.pin(d, SEVERAL)
        return None, None
    taken.add(axes[0])
    return axes[0], picked(s, d, along(column, axes[0]))


def _scattered(ev, eqn, sub, ins, outs, args):
    if outs[0].index is None or _all_whole(ev, ins, outs):
        return ev.bind(eqn, args)
    dn = eqn.params["dimension_numbers"]
    dims = enumerate(ins[2].dims)
    batch = [d for i, d in dims if i not in dn.update_window_dims]
    columns = dn.scatter_dims_to_operand_dims
    index = _new_index(ev, ins, outs, args, columns, batch)
    return ev.bind(eqn, [args[0], index, args[2]])


@rule(
    "scatter scatter_add scatter_mul scatter_min scatter_max scatter_sub",
    evaluate=_scattered,
)
def _scatter(w, eqn, ins):
    s, dn = w.solver, eqn.params["dimension_numbers"]
    operand, updates = ins[0].dims, ins[2].dims
    gone = (*dn.inserted_window_dims, *dn.operand_batching_dims)
    inside = iter(dn.update_window_dims)
    windows = {i: updates[next(inside)] for i in range(len(operand)) if i not in gone}
    batch = [d for i, d in enumerate(updates) if i not in dn.update_window_dims]
    sizes = [windows[i].size if i in windows else 1 for i in range(len(operand))]
    s.pin(ins[1].dims[-1], "the index vector")
    columns = dn.scatter_dims_to_operand_dims
    index, reason = _known_index(w, eqn, ins, columns, sizes)
    for i, d in enumerate(operand):
        if i in dn.operand_batching_dims:
            at = dn.operand_batching_dims.index(i)
            s.unify(d, batch[dn.scatter_indices_batching_dims[at]])
        elif i in windows and windows[i].size == d.size:
            s.unify(d, windows[i])
        elif index is None:
            for var in (d, windows[i]) if i in windows else (d,):
                s.pin(var, reason)
        elif i in windows:
            column = _column(index, columns, i)
            s.unify(windows[i], _window(s, d, column, windows[i].size))
    if index is None:
        s.unify_all(batch, ins[1].dims[:-1])
    else:
        _scatter_to_constants(s, dn, operand, batch, index)
    return [Value(operand, index=index)]


def _scatter_to_constants(s, dn, operand, batch, index):
    """Updates belong to the channels that they are written to."""
    taken = set(dn.scatter_indices_batching_dims)
    for i in dn.inserted_window_dims:
        if operand[i].size > 1:
            column = _column(index, dn.scatter_dims_to_operand_dims, i)
            b, axis = _picked_along(s, operand[i], column, taken)
            if axis is not None:
                s.unify(batch[b], axis)
            elif b is not None:
                s.pin(batch[b], PLACES)
    for b, d in enumerate(batch):
        if b not in taken:
            s.pin(d, TOGETHER)


def _starts(w, eqn, ins, first, sizes):
    """Constant starts of a window per axis, as they are clamped; None for others."""
    known = [w.constant(atom) for atom in eqn.invars[first:]]
    return [
        None if start is None else int(np.clip(start, 0, d.size - size))
        for start, d, size in zip(known, ins[0].dims, sizes, strict=True)
    ]


def _new_starts(ev, ins, outs, args):
    """The starts of a window in kept coordinates; of whole axes they stay."""
    return [
        arg
        if start is None or ev.k.count(d) == d.size
        else varying_like(jnp.asarray(ev.k.mask(d)[:start].sum(), arg.dtype), arg)
        for start, d, arg in zip(outs[0].index, ins[0].dims, args, strict=True)
    ]


def _dynamic_slice_sizes(ev, eqn, sub, ins, outs, args):
    starts = _new_starts(ev, ins, outs, args[1:])
    sizes = counts(ev.k, outs[0].dims)
    return ev.bind(eqn, [args[0], *starts], slice_sizes=sizes)


@rule("dynamic_slice", evaluate=_dynamic_slice_sizes)
def _dynamic_slice(w, eqn, ins):
    sizes = eqn.params["slice_sizes"]
    starts, out = _starts(w, eqn, ins, 1, sizes), []
    for d, size, start in zip(ins[0].dims, sizes, starts, strict=True):
        if size != d.size and start is not None:
            d = w.solver.segment(d, start, start + size)
        elif size != d.size:
            w.solver.pin(d, INDEXED)
            d = w.solver.new(size, INDEXED)
        out.append(d)
    return [Value(tuple(out), index=starts)]


def _dynamic_update(ev, eqn, sub, ins, outs, args):
    starts = _new_starts(ev, ins, outs, args[2:])
    return ev.bind(eqn, [*args[:2], *starts])


@rule("dynamic_update_slice", evaluate=_dynamic_update)
def _dynamic_update_slice(w, eqn, ins):
    starts = _starts(w, eqn, ins, 2, shape_of(eqn.invars[1]))
    for d, u, start in zip(ins[0].dims, ins[1].dims, starts, strict=True):
        if d.size == u.size:
            w.solver.unify(d, u)
        elif start is not None:
            w.solver.unify(u, w.solver.segment(d, start, start + u.size))
        else:
            w.solver.pin(d, INDEXED)
            w.solver.pin(u, INDEXED)
    return [Value(ins[0].dims, index=starts)]


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
