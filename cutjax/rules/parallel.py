"""`shard_map` and the collectives inside: an axis is shards times what one holds."""

import math

import jax

from cutjax.rules.base import Value, rest, rule, shape_of, summed_over

SHARDS = "shards of a mesh axis"


def _names(entry) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _shards(mesh, spec, axis: int) -> int:
    names = _names(spec[axis]) if axis < len(spec) else ()
    return math.prod(mesh.shape[name] for name in names)


def _local(s, d, n: int):
    """What one shard holds of an axis; every shard loses the same positions."""
    if n == 1:
        return d
    local = s.new(d.size // n)
    s.unify(d, s.product([s.new(n, SHARDS), local]))
    return local


def _shard_map(ev, eqn, sub, ins, outs, args):
    p = eqn.params
    small = jax.shard_map(
        lambda *a: tuple(ev.run(sub[0], a)),
        mesh=p["mesh"],
        in_specs=p["in_specs"],
        out_specs=p["out_specs"],
        check_vma=p["check_vma"],
        axis_names=p["newly_manual_axes"],
    )
    return list(small(*args))


@rule("shard_map", evaluate=_shard_map)
def _shard_map_infer(w, eqn, ins):
    p, s = eqn.params, w.solver
    mesh, inner = p["mesh"], []
    for value, spec in zip(ins, p["in_specs"], strict=True):
        dims = [_local(s, d, _shards(mesh, spec, i)) for i, d in enumerate(value.dims)]
        inner.append(Value(tuple(dims), data=value.data, param=value.param))
    devices = math.prod(mesh.shape[name] for name in p["newly_manual_axes"])
    with w.sharded(mesh.shape), w.looping(devices):
        frame = w.enter(p["jaxpr"], inner)
    out = []
    for value, spec in zip(frame.outs, p["out_specs"], strict=True):
        shards = [_shards(mesh, spec, i) for i in range(len(value.dims))]
        pairs = zip(shards, value.dims, strict=True)
        out.append(tuple(s.product([s.new(n, SHARDS), d]) for n, d in pairs))
    return out


def _axes(w, eqn) -> tuple[list[int], int]:
    """The axes of a collective by position (vmap makes such), and its shards."""
    axes = eqn.params["axes"]
    sizes = (w.mesh.get(name, 1) for name in axes if not isinstance(name, int))
    return [axis for axis in axes if isinstance(axis, int)], math.prod(sizes)


@rule("psum psum_invariant unreduced_psum preduced")
def _psum(w, eqn, ins):
    """A sum over shards goes on summing: a mean over a sharded axis ends behind it."""
    axes, shards = _axes(w, eqn)
    out = []
    for value in ins:
        dims = rest(value.dims, axes)
        if value.summed is not None or axes:
            gone = (*(value.dims[i] for i in axes), w.solver.new(shards, SHARDS))
            value = value._replace(summed=summed_over(value.summed, gone))
        out.append(value._replace(dims=dims, known=None, param=None, joined=False))
    return out


@rule("pmax pmin")
def _extreme(w, eqn, ins):
    axes, _ = _axes(w, eqn)
    for value in ins:
        for i in axes:
            w.solver.pin(value.dims[i], f"reduced by {eqn.primitive}")
    return [rest(value.dims, axes) for value in ins]


@rule("ppermute pbroadcast")
def _alike(w, eqn, ins):
    return [value.dims for value in ins]


@rule("pvary reduced_vary_cast vary_unreduced_cast xla_metadata_value")
def _same(w, eqn, ins):
    return list(ins)


@rule("all_gather all_gather_invariant all_gather_reduced")
def _all_gather(w, eqn, ins):
    axis = eqn.params["all_gather_dimension"]
    dims, shards = ins[0].dims, w.solver.new(eqn.params["axis_size"], SHARDS)
    if not eqn.params["tiled"]:
        return [(*dims[:axis], shards, *dims[axis:])]
    gathered = w.solver.product([shards, dims[axis]])
    return [(*dims[:axis], gathered, *dims[axis + 1 :])]


@rule("reduce_scatter unreduced_reduce_scatter")
def _reduce_scatter(w, eqn, ins):
    axis, dims = eqn.params["scatter_dimension"], ins[0].dims
    if not eqn.params["tiled"]:
        w.solver.pin(dims[axis], SHARDS)
        return [(*dims[:axis], *dims[axis + 1 :])]
    local = _local(w.solver, dims[axis], eqn.params["axis_size"])
    return [(*dims[:axis], local, *dims[axis + 1 :])]


@rule("all_to_all")
def _all_to_all(w, eqn, ins):
    """Axes that change hands stay whole; the others, wherever they go, stay alike."""
    split, concat = eqn.params["split_axis"], eqn.params["concat_axis"]
    dims, sizes = list(ins[0].dims), list(shape_of(eqn.outvars[0]))
    if eqn.params["tiled"]:
        out = list(dims)
        for i in {split, concat}:
            w.solver.pin(dims[i], "exchanged between shards")
            out[i] = w.solver.new(sizes[i], "exchanged between shards")
        return [tuple(out)]
    w.solver.pin(dims.pop(split), "exchanged between shards")
    new = w.solver.new(sizes[concat], "exchanged between shards")
    return [(*dims[:concat], new, *dims[concat:])]
