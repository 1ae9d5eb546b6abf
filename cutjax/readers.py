"""Readers with a kernel: where a parameter mixes channels, seen as a matrix product.

Every dense layer and ungrouped convolution computes rows @ matrix: rows are positions
of the activation, features its contracted channels (times the window of a convolution).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from cutjax.resize import Reader


def is_linear(reader: Reader) -> bool:
    """Whether a parameter, moved but not changed, mixes channels of data here."""
    return mixes(reader) and reader.ins[1 - reader.site.at].param is not None


def mixes(reader: Reader) -> bool:
    """Whether it, or several parameters put together, mix channels of data here."""
    site, ins = reader.site, reader.ins
    if site.looped or site.summed is not None or len(ins) != 2:
        return False
    kernel, data = ins[1 - site.at], ins[site.at]
    if (kernel.param is None and not kernel.joined) or kernel.data or not data.data:
        return False
    p = reader.eqn.params
    if is_conv(reader):
        groups = p["feature_group_count"] * p["batch_group_count"]
        return site.at == 0 and groups == 1
    return not p["dimension_numbers"][1][0]


def hears(reader: Reader) -> bool:
    """Whether activations can be taken out here: of data, in no loop, in no mean."""
    site = reader.site
    if site.looped:
        return False
    return site.summed is None or (reader.ins[site.at].data and not site.summed.mean)


def is_conv(reader: Reader) -> bool:
    """Whether the reader is a convolution."""
    return "window_strides" in reader.eqn.params


def channel_axes(reader: Reader, operand: int) -> tuple[int, ...]:
    """The contracted axes of an operand, the window of a convolution left out."""
    numbers = reader.eqn.params["dimension_numbers"]
    if is_conv(reader):
        return ((numbers.lhs_spec, numbers.rhs_spec)[operand][1],)
    return tuple(numbers[0][operand])


def out_axes(reader: Reader) -> tuple[int, ...]:
    """The axes of the output that the kernel makes."""
    numbers = reader.eqn.params["dimension_numbers"]
    if is_conv(reader):
        return (numbers.out_spec[1],)
    rank = len(reader.outs[0].dims)
    made = len(reader.ins[1 - reader.site.at].dims) - len(numbers[0][0])
    return tuple(range(rank - made, rank) if reader.site.at == 0 else range(made))


def rows(values: Inexact[Array, "..."], axes: tuple[int, ...]) -> Inexact[Array, "p c"]:
    """An array as a matrix: `axes` flattened to features, all others to rows."""
    moved = jnp.moveaxis(values, axes, range(-len(axes), 0))
    return moved.reshape(-1, math.prod(values.shape[a] for a in axes))


def single(values: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """In single precision: float32; complex64, where they are complex."""
    dtype = jnp.complex64 if jnp.iscomplexobj(values) else jnp.float32
    return values.astype(dtype)


def kernel_matrix(
    reader: Reader, kernel: Inexact[Array, "..."]
) -> Inexact[Array, "k c m"]:
    """A kernel as one matrix [channels, made] per position of its window."""
    channels = channel_axes(reader, 1 - reader.site.at)
    if is_conv(reader):
        out, inner, *window = reader.eqn.params["dimension_numbers"].rhs_spec
        moved = jnp.transpose(kernel, (*window, inner, out))
        return moved.reshape(-1, *moved.shape[-2:])
    moved = jnp.moveaxis(kernel, channels, range(len(channels)))
    return moved.reshape(1, math.prod(kernel.shape[a] for a in channels), -1)


def energy(
    reader: Reader, values: Inexact[Array, "..."], kernel: Inexact[Array, "..."]
) -> Float[Array, "p"]:
    """What is read for each row of what a reader makes: squares, as its kernel weighs.

    The same in whatever units the channels are.
    """
    p, at = reader.eqn.params, reader.site.at
    axes, taken = channel_axes(reader, at), channel_axes(reader, 1 - at)
    squares, weights = map(_squares, (values, kernel))
    if not is_conv(reader):
        made = tuple(a for a in range(kernel.ndim) if a not in taken)
        # What is left of the kernel's axes is in order; `taken` pairs with `axes`.
        order = [sorted(taken).index(a) for a in taken]
        weights = weights.sum(made).transpose(order)
        read = tuple(range(weights.ndim))
        return jnp.tensordot(squares, weights, (axes, read)).reshape(-1)
    numbers = p["dimension_numbers"]
    out = numbers.rhs_spec[0]
    same = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    seen = jax.lax.conv_general_dilated(
        squares,
        weights.sum(out, keepdims=True),
        **{name: p[name] for name in (*same, "dimension_numbers")},
    )
    return rows(seen, out_axes(reader))[:, 0]


def _squares(values: Inexact[Array, "..."]) -> Float[Array, "..."]:
    """Of absolute values."""
    values = single(values)
    return jnp.real(values * values.conj())
