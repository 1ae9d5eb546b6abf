"""Equinox: a smaller module of the same classes. Not imported by cutjax itself.

No adapter is needed to cut the function:

    params, static = eqx.partition(model, eqx.is_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)

and `eqx.combine` of cut parameters is a module that computes right wherever the code
reads no static size; but its static fields tell the old sizes, and LayerNorm, RMSNorm,
GroupNorm, MultiheadAttention and grouped convolutions check or use theirs. `cut` sets
them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx  # pyright: ignore[reportMissingImports]

from cutjax._adapter import Axes, Edit, Fields, Table, new_fields
from cutjax._agreement import Suspects, inputs_like, prove
from cutjax.dims import Keep
from cutjax.errors import CutjaxError
from cutjax.graph import Graph
from cutjax.shrink import cut_params, shrink
from cutjax.trace import trace as infer

Call = Callable[..., Any]
ROUTE = "cutjax.equinox"


def split(model: Any, *, call: Call | None = None) -> tuple[Callable[..., Any], Any]:
    """A model as a pure function in inference mode, and its arrays.

    Args:
        model: an Equinox module, or a pytree that holds some: `(model, state)`.
        call: what to ask of it: `lambda model, x: jax.vmap(model)(x)`, or with state
            `lambda both, x: jax.vmap(both[0], (0, None))(x, both[1])[0]`;
            `model(*inputs)`, if not given.

    Returns:
        `(apply, params)`; `params` is the model with None for all that is no array.

    Raises:
        CutjaxError: no Equinox module in it.
    """
    if not _modules(model):
        raise CutjaxError(
            f"a {type(model).__name__} holds no Equinox module; for any function see "
            "cutjax.trace(apply, params, *inputs)"
        )
    params, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_array)

    def apply(params: Any, *inputs: Any) -> Any:
        whole = eqx.combine(params, static)
        return whole(*inputs) if call is None else call(whole, *inputs)

    return apply, params


def trace(
    model: Any,
    *inputs: Any,
    call: Call | None = None,
    pin: Iterable[str] = (),
    on_unknown: str = "raise",
) -> Graph:
    """The channel groups of an Equinox model, in inference mode.

    Args:
        model: see `split`.
        *inputs: arrays or shapes.
        call: see `split`.
        pin: see `cutjax.trace`.
        on_unknown: see `cutjax.trace`.

    Returns:
        The graph; its groups are named by path, as `layers/0/weight:0`.

    Raises:
        CutjaxError: no Equinox module, or whatever `cutjax.trace` raises.
    """
    apply, params = split(model, call=call)
    return infer(apply, params, *inputs, pin=pin, on_unknown=on_unknown)


def cut(
    model: Any,
    graph: Graph,
    keep: Keep,
    *inputs: Any,
    params: Any = None,
    edit: Mapping[type, Edit] | None = None,
    call: Call | None = None,
) -> Any:
    """A smaller model of the same classes, whose layers tell their new sizes.

    Checked, always, to compute what `cutjax.cut(*split(model), graph, keep)` computes;
    see `cutjax.nnx.cut`, which does and takes the same.

    Args:
        model: the full model; it is not changed.
        graph: from `cutjax.equinox.trace(model, *inputs)`.
        keep: the channels to keep.
        *inputs: what to check with; random arrays of the traced shapes, if not given.
        params: small arrays to put in; those of the model, cut, if not given.
        edit: for classes of your own that remember sizes:
            `{Block: lambda old, new: {"heads": new.attention.num_heads}}`.
        call: as given to `trace`.

    Returns:
        The smaller model, in the mode of the full one.

    Raises:
        CutjaxError: the model's own code does not work at these widths.
        KeepError: the keep does not fit the graph.
        MismatchError: the arrays do not match the graph.
    """
    apply, arrays = split(model, call=call)
    small = cut_params(arrays, graph, keep) if params is None else params
    # Every module in it is made anew: fields are set before anybody sees it.
    new = eqx.combine(small, eqx.filter(model, eqx.is_array, inverse=True))
    old_modules, modules = _modules(model), _modules(new)
    edit = dict(edit or {})
    for found in new_fields(old_modules, modules, LAYERS, edit, graph, keep):
        object.__setattr__(*found)
    inputs = inputs_like(graph, inputs, ROUTE)
    suspects = Suspects(modules, LAYERS, ROUTE)
    prove(shrink(apply, graph, keep), small, *split(new, call=call), inputs, suspects)
    return new


def _modules(tree: Any) -> dict[str, Any]:
    """Every module in a pytree, by path, those within others first."""
    return {"/".join(path): module for path, module in _walk(tree, ())}


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, eqx.Module):
        fields = dataclasses.fields(node)  # pyright: ignore[reportArgumentType]
        # What a static field holds belongs to the full model too.
        names = [f.name for f in fields if not f.metadata.get("static", False)]
        inner = {n: getattr(node, n) for n in names if hasattr(node, n)}
    elif isinstance(node, tuple) and hasattr(node, "_fields"):
        inner = dict(zip(node._fields, node, strict=True))  # pyright: ignore
    elif isinstance(node, list | tuple):
        inner = dict(enumerate(node))
    elif isinstance(node, dict):
        inner = node
    else:
        return
    for key, child in inner.items():
        yield from _walk(child, (*path, str(key)))
    if isinstance(node, eqx.Module):
        yield path, node


def _linear(old: Any, new: Any, axes: Axes) -> Fields:
    outputs, inputs = new.weight.shape[-2:]
    sizes = {"in_features": inputs, "out_features": outputs}
    return {k: v for k, v in sizes.items() if getattr(old, k) != "scalar"}


def _conv(old: Any, new: Any, axes: Axes) -> Fields:
    rank = old.num_spatial_dims + 2
    groups = axes.groups("weight", old.groups, -rank)
    outputs, inputs = new.weight.shape[-rank : 2 - rank]
    return {
        "in_channels": inputs * groups,
        "out_channels": outputs,
        "groups": groups,
    }


def _embedding(old: Any, new: Any, axes: Axes) -> Fields:
    number, size = new.weight.shape[-2:]
    return {"num_embeddings": number, "embedding_size": size}


def _shape(old: Any, new: Any, axes: Axes) -> Fields:
    for array in (new.weight, new.bias):
        if array is not None:
            return {"shape": tuple(array.shape[-len(old.shape) :])}
    return {}


def _group_norm(old: Any, new: Any, axes: Axes) -> Fields:
    if new.weight is None:
        return {}
    groups = axes.groups("weight", old.groups)
    return {"channels": new.weight.shape[-1], "groups": groups}


def _batch_norm(old: Any, new: Any, axes: Axes) -> Fields:
    return {} if new.weight is None else {"input_size": new.weight.shape[-1]}


def _cell(old: Any, new: Any, axes: Axes) -> Fields:
    inputs, hidden = new.weight_ih.shape[-1], new.weight_hh.shape[-1]
    return {"input_size": inputs, "hidden_size": hidden}


def _mlp(old: Any, new: Any, axes: Axes) -> Fields:
    """One number for all hidden layers: the widest of them."""
    ends = new.layers[0].in_features, new.layers[-1].out_features
    widest = max((layer.out_features for layer in new.layers[:-1]), default=0)
    return {
        "in_size": ends[0],
        "out_size": ends[1],
        "width_size": widest or old.width_size,
    }


def _attention(old: Any, new: Any, axes: Axes) -> Fields:
    heads = axes.groups("query_proj/weight", old.num_heads, -2)
    width = new.query_proj.out_features // heads
    if width != old.qk_size:
        _keep_scale(new.query_proj, math.sqrt(width / old.qk_size))
    return {
        "num_heads": heads,
        "query_size": new.query_proj.in_features,
        "key_size": new.key_proj.in_features,
        "value_size": new.value_proj.in_features,
        "output_size": new.output_proj.out_features,
        "qk_size": width,
        "vo_size": new.value_proj.out_features // heads,
    }


def _keep_scale(queries: Any, factor: float) -> None:
    """Fold what 1/sqrt(width), taken when called, grew by into the queries."""
    for name in ("weight", "bias"):
        array = getattr(queries, name)
        if array is not None:
            object.__setattr__(queries, name, array * factor)


LAYERS: Table = {
    eqx.nn.Linear: _linear,
    eqx.nn.Conv: _conv,
    eqx.nn.ConvTranspose: _conv,
    eqx.nn.Embedding: _embedding,
    eqx.nn.LayerNorm: _shape,
    eqx.nn.RMSNorm: _shape,
    eqx.nn.GroupNorm: _group_norm,
    eqx.nn.BatchNorm: _batch_norm,
    eqx.nn.GRUCell: _cell,
    eqx.nn.LSTMCell: _cell,
    eqx.nn.MLP: _mlp,
    eqx.nn.MultiheadAttention: _attention,
}
"""Layers that remember sizes; WeightNorm, SpectralNorm, PReLU, Sequential do not."""
