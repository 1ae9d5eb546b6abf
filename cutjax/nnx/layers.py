"""What the layers of Flax NNX say about their sizes, from their new parameters.

`LAYERS` has an entry per class that remembers sizes: a small function of the old layer,
the new one (its parameters and the layers within it are small already) and the `Axes`
of its own parameters, which answers the fields to set. A class inherits the entry of
its parent. Shapes are read from behind: a layer under `nnx.vmap` has axes in front.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from cutjax._adapter import Axes, Entry, Fields


def _linear(old: Any, new: Any, axes: Axes) -> Fields:
    inputs, outputs = new.kernel.shape[-2:]
    return {"in_features": inputs, "out_features": outputs}


def _linear_general(old: Any, new: Any, axes: Axes) -> Fields:
    shape, outs, ins = new.kernel.shape, len(old.out_features), len(old.in_features)
    return {
        "in_features": tuple(shape[-outs - ins : -outs]),
        "out_features": tuple(shape[-outs:]),
        "batch_axis": type(old.batch_axis)(
            zip(old.batch_axis, shape[: len(shape) - outs - ins], strict=False)
        ),
    }


def _einsum(old: Any, new: Any, axes: Axes) -> Fields:
    out: dict[str, Any] = {
        "kernel_shape": tuple(new.kernel.shape[-len(old.kernel_shape) :])
    }
    if old.bias_shape is not None:
        out["bias_shape"] = tuple(new.bias.shape[-len(old.bias_shape) :])
    return out


def _convolution(old: Any, new: Any, axes: Axes) -> Fields:
    shape = tuple(new.kernel.shape[-len(old.kernel_shape) :])
    mask = old.mask
    if mask is not None and tuple(new.mask.shape) != shape:
        mask = axes.cut("kernel", mask)
    return {"kernel_shape": shape, **({} if mask is old.mask else {"mask": mask})}


def _conv(old: Any, new: Any, axes: Axes) -> Fields:
    groups = axes.groups("kernel", old.feature_group_count)
    inputs, outputs = new.kernel.shape[-2:]
    return {
        **_convolution(old, new, axes),
        "in_features": inputs * groups,
        "out_features": outputs,
        "feature_group_count": groups,
    }


def _conv_transpose(old: Any, new: Any, axes: Axes) -> Fields:
    sizes = new.kernel.shape[-2:]
    inputs, outputs = reversed(sizes) if old.transpose_kernel else sizes
    known = {"in_features": inputs, "out_features": outputs}
    return {**_convolution(old, new, axes), **known}


def _embed(old: Any, new: Any, axes: Axes) -> Fields:
    number, features = new.embedding.shape[-2:]
    return {"num_embeddings": number, "features": features}


def _lora(old: Any, new: Any, axes: Axes) -> Fields:
    return {
        "in_features": new.lora_a.shape[-2],
        "out_features": new.lora_b.shape[-1],
    }


def _norm(old: Any, new: Any, axes: Axes) -> Fields:
    for name in ("mean", "scale", "bias"):
        if getattr(new, name, None) is not None:
            return {"num_features": getattr(new, name).shape[-1]}
    # Without parameters nothing here tells the width, nor does the layer use it.
    return {}


def _group_norm(old: Any, new: Any, axes: Axes) -> Fields:
    for name in ("scale", "bias"):
        if getattr(new, name) is not None:
            groups = axes.groups(name, old.num_groups)
            width = getattr(new, name).shape[-1]
            return {"num_groups": groups, "group_size": width // groups}
    return {}


def _lstm(old: Any, new: Any, axes: Axes) -> Fields:
    inputs, hidden = new.ii.in_features, new.hi.in_features
    return {"in_features": inputs, "hidden_features": hidden}


def _fused_cell(old: Any, new: Any, axes: Axes) -> Fields:
    inputs, hidden = new.dense_i.in_features, new.dense_h.in_features
    return {"in_features": inputs, "hidden_features": hidden}


def _attention(old: Any, new: Any, axes: Axes) -> Fields:
    heads, width = new.query.out_features
    kv_heads, values = new.value.out_features
    if width != old.query.out_features[-1] and _base(old) in _BY_WIDTH:
        _keep_scale(new, math.sqrt(width / old.query.out_features[-1]))
    fields: dict[str, Any] = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": width,
        "qkv_features": heads * width,
        "in_features": new.query.in_features[0],
        "in_kv_features": new.key.in_features[0],
        "out_features": new.out.out_features[0],
    }
    if values != width and _base(old) is nnx.dot_product_attention:
        fields["attention_fn"] = attend
    elif values < width and _base(old) is _ROPE:
        fields["attention_fn"] = functools.partial(attend, inner=old.attention_fn)
    return fields


def _base(layer: Any) -> Any:
    """The attention function, without what is bound to it."""
    return getattr(layer.attention_fn, "func", layer.attention_fn)


def _keep_scale(layer: Any, factor: float) -> None:
    """Fold what 1/sqrt(width) grew by into the queries."""
    if layer.normalize_qk:
        targets = [layer.query_ln.scale]
    else:
        targets = [layer.query.kernel, layer.query.bias]
    for variable in targets:
        if variable is not None:
            variable.set_value(variable.get_value() * factor)


def attend(
    query: Any,
    key: Any,
    value: Any,
    *,
    inner: Callable[..., Any] = nnx.dot_product_attention,
    **options: Any,
) -> Any:
    """Attention for values of another width than the queries'.

    `jax.nn.dot_product_attention`, which NNX calls, wants one width for all three: the
    narrower are filled up with zeros.

    Args:
        query: [..., length, heads, width].
        key: [..., key length, key/value heads, width].
        value: [..., key length, key/value heads, value width].
        inner: what attends; its scale is 1/sqrt(width).
        **options: its options.

    Returns:
        [..., length, heads, value width].
    """
    width, values = query.shape[-1], value.shape[-1]
    full = max(width, values)

    def fill(x: Any) -> Any:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, full - x.shape[-1])])

    query = query * math.sqrt(full / width)
    return inner(fill(query), fill(key), fill(value), **options)[..., :values]


_ROPE = getattr(nnx, "dot_product_attention_with_rope", None)  # flax 0.12.12
_BY_WIDTH = {nnx.dot_product_attention, attend, _ROPE} - {None}
"""Attention that divides by the root of the width that it is given."""


LAYERS: dict[type, Entry] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Embed: _embed,
    nnx.LoRA: _lora,
    nnx.BatchNorm: _norm,
    nnx.LayerNorm: _norm,
    nnx.RMSNorm: _norm,
    nnx.InstanceNorm: _norm,
    nnx.GroupNorm: _group_norm,
    nnx.LSTMCell: _lstm,
    nnx.OptimizedLSTMCell: _fused_cell,
    nnx.SimpleCell: _fused_cell,
    nnx.GRUCell: _fused_cell,
    nnx.MultiHeadAttention: _attention,
}
"""Layers that remember sizes. Dropout, PReLU, WeightNorm, SpectralNorm, RNN,
Bidirectional, Sequential, List and Dict remember none."""
