"""Pictures at several scales, and sampling between positions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .base import Net, linen, normal, specimen, tree
from .conv import conv
from .plain import dense, layer


def resized(x: jax.Array, like: jax.Array, method: str) -> jax.Array:
    n, h, w, _ = like.shape
    return jax.image.resize(x, (n, h, w, x.shape[-1]), method)


class Pyramid(nn.Module):
    """BiFPN: two scales, fused up and down by learned, normalised weights."""

    def fuse(self, name: str, *maps: jax.Array) -> jax.Array:
        w = nn.relu(self.param(name, nn.initializers.ones, (len(maps),)))
        total = sum(w[i] * x for i, x in enumerate(maps)) / (w.sum() + 1e-4)
        y = nn.Conv(6, (3, 3), feature_group_count=6)(nn.silu(total))
        return nn.Conv(6, (1, 1))(y)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = nn.relu(nn.Conv(4, (3, 3))(x))
        b = nn.relu(nn.Conv(5, (3, 3), (2, 2))(a))
        a, b = nn.Conv(6, (1, 1))(a), nn.Conv(6, (1, 1))(b)
        top = self.fuse("down", a, resized(b, a, "nearest"))
        return nn.Conv(4, (1, 1))(
            self.fuse("up", b, b, nn.max_pool(top, (2, 2), (2, 2)))
        )


@specimen
def bifpn() -> Net:
    """Backbone 4 and 5. How many maps are fused (2, 3) is no width: their weights stay.

    The first fusion ties a and b; the second its own output with b: one group of 6.
    The last output's 6 is another.
    """
    return linen("bifpn", Pyramid(), normal(1, 4, 4, 3), expected=(4, 5, 6, 6))


class HighResolution(nn.Module):
    """HRNet: two resolutions side by side, each gets the other's features."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        high = nn.relu(conv(4)(x))
        low = nn.relu(conv(7, s=2)(high))
        high = high + conv(4)(nn.relu(conv(5)(high)))
        low = low + conv(7)(nn.relu(conv(6)(low)))
        both = high + resized(conv(4, 1)(low), high, "bilinear")
        low = low + conv(7, s=2)(high)
        low = resized(low, both, "bilinear")
        return nn.Conv(2, (1, 1))(jnp.concatenate([both, low], -1))


@specimen
def hrnet() -> Net:
    """Streams 4 and 7, which exchange through kernels; inside the blocks 5 and 6."""
    x = normal(2, 6, 6, 3)
    return linen("hrnet", HighResolution(), x, expected=(4, 5, 6, 7))


def sample(x: jax.Array, at: jax.Array) -> jax.Array:
    """Bilinear values of x [h, w, c] at positions [..., 2], zero outside."""
    low = jnp.floor(at)
    out = 0.0
    for di in (0, 1):
        for dj in (0, 1):
            corner = low + jnp.asarray([di, dj], at.dtype)
            weight = (1 - jnp.abs(at - corner)).prod(-1, keepdims=True)
            i, j = jnp.moveaxis(corner.astype(int), -1, 0)
            inside = (i >= 0) & (j >= 0) & (i < x.shape[0]) & (j < x.shape[1])
            out = out + jnp.where(inside[..., None], x[i, j], 0.0) * weight
    return out


@specimen
def deformable() -> Net:
    """3 offsets per position, computed from the data: channels go, positions stay.

    Sampled are 5 channels; a kernel [3 taps, 5, 6] reads them; offsets come from a
    hidden layer of 4. A tap is a group's channel as well: its two coordinates (3 x 2
    columns, of which the 2 stay) and its slice of the kernel.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["stem"], x))
        offsets = dense(p["offset2"], jnp.tanh(dense(p["offset1"], h)))
        offsets = offsets.reshape(*offsets.shape[:-1], 3, 2)
        grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, h.shape[1:3]), indexing="ij"))
        at = jnp.moveaxis(grid, 0, -1)[:, :, None] + offsets
        taps = jax.vmap(sample)(h, at)
        y = jnp.einsum("bijtc,tcd->bijd", taps, p["kernel"])
        return dense(p["head"], jax.nn.relu(y))

    params = tree(
        stem=layer(3, 5),
        offset1=layer(5, 4),
        offset2=layer(4, 6),
        kernel=(3, 5, 6),
        head=layer(6, 2),
    )
    known = {"by_weights": False}
    return Net(
        "deformable", apply, params, (normal(2, 3, 3, 3),), (3, 4, 5, 6), **known
    )


@specimen
def interpolated() -> Net:
    """`map_coordinates` over two pictures' channels at places that the net computes.

    A spatial transformer: 6 numbers are a 2 x 3 matrix, and stay.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["stem"], x))
        theta = dense(p["theta2"], jnp.tanh(dense(p["theta1"], h.mean((1, 2)))))
        rows, columns = jnp.meshgrid(jnp.arange(3.0), jnp.arange(3.0), indexing="ij")
        grid = jnp.stack([rows, columns, jnp.ones((3, 3))])
        at = jnp.einsum("bkl,lij->bkij", theta.reshape(-1, 2, 3), grid)

        def channel(picture: jax.Array, at: jax.Array) -> jax.Array:
            return jax.scipy.ndimage.map_coordinates(picture, list(at), order=1)

        every = jax.vmap(channel, in_axes=(-1, None), out_axes=-1)
        return dense(p["head"], jax.vmap(every)(h, at))

    params = tree(
        stem=layer(3, 5), theta1=layer(5, 4), theta2=layer(4, 6), head=layer(5, 2)
    )
    known = {"by_weights": False}
    return Net("interpolated", apply, params, (normal(2, 3, 3, 3),), (4, 5), **known)


def features(p: Any, x: jax.Array) -> jax.Array:
    """[b, h, w, 3] to [b, h * w, d]."""
    x = jax.nn.relu(dense(p["in"], x))
    return dense(p["out"], x).reshape(x.shape[0], -1, p["out"]["kernel"].shape[1])


@specimen
def correlation() -> Net:
    """RAFT: every position of one picture against every position of the other.

    The two feature maps meet in a product over 7 channels, which leaves positions only;
    they are pooled, and looked up at 3 places that depend on data (each a column that
    makes it and a row that reads what was found). Encoders 4 and 5 inside, context 6,
    motion 8.
    """

    def apply(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        b, h, w, _ = x.shape
        one, two = features(p["one"], x), features(p["two"], y)
        volume = jnp.einsum("bic,bjc->bij", one, two) / 7**0.5
        volume = volume.reshape(b * h * w, h, w, 1)
        pooled = nn.avg_pool(volume, (2, 2), (2, 2)).reshape(b, h * w, -1)
        context = jax.nn.relu(dense(p["context"], x)).reshape(b, h * w, -1)
        place = jax.nn.sigmoid(dense(p["place"], context)) * (h * w - 1)
        found = jnp.take_along_axis(
            volume.reshape(b, h * w, -1), place.astype(int), axis=2
        )
        seen = jnp.concatenate([found, pooled], -1)
        motion = jax.nn.relu(dense(p["motion"], jnp.concatenate([seen, context], -1)))
        return dense(p["flow"], motion)

    params = tree(
        one={"in": layer(3, 4), "out": layer(4, 7)},
        two={"in": layer(3, 5), "out": layer(5, 7)},
        context=layer(3, 6),
        place=layer(6, 3),
        motion=layer(3 + 4 + 6, 8),
        flow=layer(8, 2),
    )
    known = {"by_weights": False}
    inputs = (normal(2, 4, 4, 3), normal(2, 4, 4, 3, seed=1))
    return Net("correlation", apply, params, inputs, (3, 4, 5, 6, 7, 8), **known)


class Volumes(nn.Module):
    """Volumes: a dilated branch, a strided one, and a transposed convolution back."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3, 3))(x))
        wide = nn.Conv(5, (3, 3, 3), kernel_dilation=(2, 2, 2))(x)
        down = nn.relu(nn.Conv(6, (2, 2, 2), (2, 2, 2))(x))
        up = nn.ConvTranspose(5, (2, 2, 2), (2, 2, 2))(down)
        return nn.Conv(2, (1, 1, 1))(nn.relu(wide + up))


@specimen
def volumes() -> Net:
    """The dilated branch and the transposed one are added: 5; before them 4 and 6."""
    return linen("volumes", Volumes(), normal(1, 4, 4, 4, 2), expected=(4, 5, 6))


@specimen
def grouped_transpose() -> Net:
    """A transposed convolution in 3 groups, 2 channels in and 4 out of each: all free.

    The stem makes 3 x 2, the head reads 3 x 4.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["stem"], x))
        groups = h.shape[-1] // p["up"]["kernel"].shape[2]
        h = jax.lax.conv_general_dilated(
            h,
            p["up"]["kernel"],
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return dense(p["head"], jax.nn.relu(h))

    up = {"kernel": (2, 2, 2, 12)}
    params = tree(stem=layer(3, 6), up=up, head=layer(12, 2))
    x = normal(2, 3, 3, 3)
    return Net("grouped_transpose", apply, params, (x,), (2, 3, 4))
