"""Backbones for pictures: shifted windows, ConvNeXt, EfficientNet, BiT, sub-pixels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .base import Kept, Net, linen, normal, specimen, tree
from .conv import conv, norms
from .norm import affine, layernorm
from .plain import dense, layer


def windows(x: Any) -> Any:
    """[batch, 4, 4, d] as [batch * 4 windows, 4 positions, d]."""
    b, h, w, d = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, 4, d)


def unwindows(x: jax.Array, b: int) -> jax.Array:
    x = x.reshape(b, 2, 2, 2, 2, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 4, 4, -1)


def relative_index() -> np.ndarray:
    """[position, position] into a table of the 9 offsets within a window of 2 x 2."""
    at = np.stack(np.meshgrid(np.arange(2), np.arange(2), indexing="ij")).reshape(2, 4)
    offset = at[:, :, None] - at[:, None, :] + 1
    return offset[0] * 3 + offset[1]


def shift_mask() -> np.ndarray:
    """[window, position, position]: -100 between what was not adjacent."""
    region = np.asarray([0, 0, 1, 2])
    region = (region[:, None] * 3 + region).reshape(1, 4, 4, 1)
    region = windows(region)[..., 0]
    return np.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)


def swin_apply(p: Any, x: jax.Array, heads: int) -> jax.Array:
    b = x.shape[0]
    x = dense(p["embed"], x)
    y = jnp.roll(layernorm(p["norm1"], x), (-1, -1), axis=(1, 2))
    qkv = dense(p["qkv"], windows(y))
    qkv = qkv.reshape(*qkv.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)
    logits = qkv[0] @ qkv[1].swapaxes(-1, -2) * 0.5
    table = p["bias"][relative_index().reshape(-1)]
    logits = logits + table.reshape(4, 4, -1).transpose(2, 0, 1)
    logits = logits.reshape(b, 4, *logits.shape[1:]) + shift_mask()[None, :, None]
    weights = jax.nn.softmax(logits).reshape(b * 4, *logits.shape[2:])
    y = (weights @ qkv[2]).swapaxes(1, 2)
    y = dense(p["out"], y.reshape(*y.shape[:2], -1))
    x = x + jnp.roll(unwindows(y, b), (1, 1), axis=(1, 2))
    y = jax.nn.gelu(dense(p["mlp1"], layernorm(p["norm2"], x)))
    x = x + dense(p["mlp2"], y)
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return dense(p["head"], dense(p["merge"], jnp.concatenate(corners, -1)))


@specimen
def swin() -> Net:
    """Windows of 2 x 2, shifted; positions are the input's and stay, as does the table.

    Stream 7, which merging reads four times over; heads 2, tied to the table's columns;
    one width 3 for q, k, v (the reshape lays them side by side); hidden 5; merged 6.
    """
    params = tree(
        embed=layer(3, 7),
        norm1=affine(7),
        qkv=layer(7, 18),
        bias=(9, 2),
        out=layer(6, 7),
        norm2=affine(7),
        mlp1=layer(7, 5),
        mlp2=layer(5, 7),
        merge=layer(28, 6),
        head=layer(6, 2),
    )

    def narrow(kept: Kept) -> Any:
        heads = len(kept("bias", 1))
        return lambda p, x: swin_apply(p, x, heads)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return swin_apply(p, x, 2)

    known = {"exact": False, "narrow": narrow, "by_weights": False}
    x = normal(2, 4, 4, 3)
    return Net("swin", apply, params, (x,), (2, 3, 5, 6, 7), **known)


class ConvNeXt(nn.Module):
    widths: tuple[int, int, int] = (6, 11, 9)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stem, hidden, deep = self.widths
        x = nn.LayerNorm()(nn.Conv(stem, (2, 2), (2, 2))(x))
        y = nn.Conv(stem, (7, 7), feature_group_count=stem)(x)
        y = nn.gelu(nn.Dense(hidden)(nn.LayerNorm()(y)))
        scale = self.param("scale", nn.initializers.ones, (stem,))
        x = x + scale * nn.Dense(stem)(y)
        x = nn.Conv(deep, (2, 2), (2, 2))(nn.LayerNorm()(x))
        return nn.Dense(3)(nn.LayerNorm()(x.mean((1, 2))))


@specimen
def convnext() -> Net:
    """A depthwise 7 x 7 and LayerScale keep the stream (6); hidden 11; next stage 9."""

    def narrow(kept: Kept) -> Any:
        names = ("Conv_0", "Dense_0", "Conv_2")
        widths = tuple(
            len(kept(f"params/{n}/kernel", 1 if n == "Dense_0" else 3)) for n in names
        )
        return ConvNeXt(widths).apply

    known = {"exact": False, "narrow": narrow}
    x = normal(2, 8, 8, 3)
    return linen("convnext", ConvNeXt(), x, expected=(6, 9, 11), **known)


class Efficient(nn.Module):
    """Inverted residual, hard-sigmoid squeeze-and-excite, LayerScale, drop path."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn, ones = norms(train), nn.initializers.ones
        x = nn.hard_swish(bn()(conv(6)(x)))
        y = nn.silu(bn()(conv(10, 1)(x)))
        y = nn.silu(bn()(conv(10, feature_group_count=10)(y)))
        s = nn.relu(nn.Conv(3, (1, 1))(y.mean((1, 2), keepdims=True)))
        y = y * nn.hard_sigmoid(nn.Conv(10, (1, 1))(s))
        y = bn()(conv(6, 1)(y)) * self.param("layer_scale", ones, (6,))
        if train:
            shape = (x.shape[0], 1, 1, 1)
            alive = jax.random.bernoulli(self.make_rng("dropout"), 0.8, shape)
            y = jnp.where(alive, y / 0.8, 0.0)
        return nn.Dense(3)((x + y).mean((1, 2)))


@specimen
def efficientnet() -> Net:
    """Hidden 10, squeezed 3, stream 6.

    Dropped paths are drawn per picture, so the bits are the same for any width.
    """
    sizes = (3, 6, 10)
    x = normal(4, 4, 4, 3)
    return linen(
        "efficientnet", Efficient(), x, train=True, dropout=True, expected=sizes
    )


def standardised(p: Any, x: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution whose kernel has mean 0 and variance 1 over all that it reads."""
    w = p["kernel"]
    w = w - w.mean((0, 1, 2), keepdims=True)
    w = w / jnp.sqrt(w.var((0, 1, 2), keepdims=True) + 1e-5)
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=names
    )


def groupnorm(p: Any, x: jax.Array, groups: int) -> jax.Array:
    """Statistics over the positions and channels of each group."""
    y = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    y = y - y.mean((1, 3), keepdims=True)
    y = y / jnp.sqrt(jnp.square(y).mean((1, 3), keepdims=True) + 1e-5)
    return y.reshape(x.shape) * p["scale"] + p["bias"]


def big_transfer(p: Any, x: jax.Array, groups: int, inner: int) -> jax.Array:
    """A pre-activation residual block between two standardised convolutions."""
    x = standardised(p["stem"], x)
    y = jax.nn.relu(groupnorm(p["norm1"], x, groups))
    y = jax.nn.relu(groupnorm(p["norm2"], standardised(p["conv1"], y), inner))
    x = x + standardised(p["conv2"], y)
    return dense(p["head"], x.mean((1, 2)))


@specimen
def weight_standard() -> Net:
    """The kernel's own mean runs over its input channels: a statistic, as in the norms.

    The stream is 2 groups of 5, the inner channels 3 groups of 4.
    """
    params = tree(
        stem={"kernel": (3, 3, 3, 10)},
        norm1=affine(10),
        conv1={"kernel": (3, 3, 10, 12)},
        norm2=affine(12),
        conv2={"kernel": (1, 1, 12, 10)},
        head=layer(10, 2),
    )

    def narrow(kept: Kept) -> Any:
        groups = len(np.unique(kept("stem/kernel", 3) // 5))
        inner = len(np.unique(kept("conv1/kernel", 3) // 4))
        return lambda p, x: big_transfer(p, x, groups, inner)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return big_transfer(p, x, 2, 3)

    known = {"exact": False, "narrow": narrow, "by_weights": False}
    x = normal(2, 4, 4, 3)
    return Net("weight_standard", apply, params, (x,), (2, 3, 4, 5), **known)


def to_depth(x: jax.Array, r: int) -> jax.Array:
    """[b, h, w, c] as [b, h / r, w / r, r * r * c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // r, r, w // r, r, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // r, w // r, -1)


def to_space(x: jax.Array, r: int) -> jax.Array:
    """Sub-pixels as PyTorch lays them out: [b, h, w, c * r * r] to [b, hr, wr, c]."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, -1, r, r).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * r, w * r, -1)


class SuperResolution(nn.Module):
    """Unshuffle, work small, shuffle twice: through channels, then into the picture."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Conv(5, (3, 3))(x))
        y = nn.relu(nn.Conv(7, (3, 3))(to_depth(y, 2)))
        y = nn.relu(to_space(nn.Conv(6 * 4, (3, 3))(y), 2))
        y = to_space(nn.Conv(3 * 4, (3, 3))(y), 2)
        return y + jax.image.resize(x, y.shape, "nearest")


@specimen
def pixel_shuffle() -> Net:
    """What becomes positions stays: 5 of 4 x 5 channels are free, 6 of 6 x 4.

    Between the shuffles 7; the last 3 are the colours of the output.
    """
    x = normal(2, 4, 4, 3)
    return linen("pixel_shuffle", SuperResolution(), x, expected=(5, 6, 7))
