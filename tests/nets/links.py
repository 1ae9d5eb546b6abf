"""Nets whose channels meet in a concatenation: dense, U-shaped, parallel, shuffled."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from .base import Net, linen, normal, specimen
from .conv import conv, norms


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = conv(5)(x)
        for growth in (3, 4):
            y = conv(growth)(nn.relu(bn()(x)))
            x = jnp.concatenate([x, y], axis=-1)
        x = nn.avg_pool(conv(6, 1)(nn.relu(bn()(x))), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(bn()(x)).mean((1, 2)))


@specimen
def densenet() -> Net:
    x = normal(2, 6, 6, 3)
    return linen("densenet", DenseNet(), x, train=True, expected=(3, 4, 5, 6))


class UNet(nn.Module):
    """Two levels, two dense tasks; `up` is how a level is enlarged."""

    up: str

    def enlarge(self, x: jax.Array, features: int) -> jax.Array:
        n, h, w, c = x.shape
        if self.up == "transpose":
            return nn.ConvTranspose(features, (2, 2), (2, 2))(x)
        if self.up == "repeat":
            return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return jax.image.resize(x, (n, 2 * h, 2 * w, c), self.up)

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        a = nn.relu(nn.Conv(4, (3, 3))(x))
        b = nn.relu(nn.Conv(6, (3, 3))(nn.max_pool(a, (2, 2), (2, 2))))
        x = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(b, (2, 2), (2, 2))))
        x = jnp.concatenate([self.enlarge(x, 7), b], -1)
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        x = jnp.concatenate([self.enlarge(x, 3), a], -1)
        x = nn.relu(nn.Conv(9, (3, 3))(x))
        depth = nn.Conv(1, (1, 1))(nn.relu(nn.Conv(3, (1, 1))(x)))
        return {"depth": depth[..., 0], "parts": nn.Conv(2, (1, 1))(x)}


def _unet(name: str, up: str, expected: tuple[int, ...]) -> Net:
    x, tasks = normal(1, 8, 8, 3), ("depth", "parts")
    return linen(name, UNet(up), x, expected=expected, tasks=tasks)


@specimen
def unet() -> Net:
    return _unet("unet", "transpose", (3, 3, 4, 5, 6, 7, 8, 9))


@specimen
def unet_repeat() -> Net:
    return _unet("unet_repeat", "repeat", (3, 4, 5, 6, 8, 9))


@specimen
def unet_nearest() -> Net:
    return _unet("unet_nearest", "nearest", (3, 4, 5, 6, 8, 9))


@specimen
def unet_bilinear() -> Net:
    return _unet("unet_bilinear", "bilinear", (3, 4, 5, 6, 8, 9))


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = nn.relu(bn()(conv(7)(x)))
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        branches = [conv(4, 1)(x), conv(5)(nn.relu(conv(3, 1)(x))), conv(2, 1)(pooled)]
        x = nn.relu(bn()(jnp.concatenate(branches, -1)))
        return nn.Dense(3)(nn.relu(conv(6)(x)).mean((1, 2)))


@specimen
def inception() -> Net:
    x = normal(2, 5, 5, 3)
    return linen("inception", Inception(), x, train=True, expected=(2, 3, 4, 5, 6, 7))


def shuffle(x: jax.Array) -> jax.Array:
    *lead, c = x.shape
    return x.reshape(*lead, 2, c // 2).swapaxes(-1, -2).reshape(*lead, c)


class Shuffle(nn.Module):
    """ShuffleNet v2 units: split, work on one half, concatenate, shuffle."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bn = norms(train)
        x = nn.relu(bn()(conv(8)(x)))
        for _ in range(self.units):
            a, b = jnp.split(x, 2, axis=-1)
            b = nn.relu(bn()(conv(6, 1)(b)))
            b = bn()(conv(6, feature_group_count=6)(b))
            b = nn.relu(bn()(conv(4, 1)(b)))
            x = shuffle(jnp.concatenate([a, b], axis=-1))
        return nn.Dense(3)(x.mean((1, 2)))


@specimen
def shuffle_once() -> Net:
    """The halves of the stem are tied by the shuffle to the branch: one group of 4.

    The stem splits into a (passed on) and b (read by the branch); the shuffle ties a
    to the branch's output; b stays on its own.
    """
    x = normal(2, 5, 5, 3)
    return linen("shuffle_once", Shuffle(1), x, train=True, expected=(4, 4, 6))


@specimen
def shuffle_twice() -> Net:
    """The second split halves what the first shuffle dealt out: a's 4 become 2 and 2.

    The first 2 (times the shuffle's 2, which nothing may cut) are passed on and tied to
    the second branch's output; the last 2 (times 2) are read by that branch.
    """
    x = normal(2, 5, 5, 3)
    return linen("shuffle_twice", Shuffle(2), x, expected=(2, 2, 4, 6, 6))


class GroupShuffle(nn.Module):
    """ShuffleNet v1: grouped convolution, channels dealt out over the groups again."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(12)(x))
        x = nn.relu(conv(12, 1, feature_group_count=2)(x))
        x = conv(10, 1, feature_group_count=2)(shuffle(x))
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


@specimen
def group_shuffle() -> Net:
    """2 groups of 6; the shuffle deals 6 = 2 x 3 over 2 new groups of 3 x 2."""
    x = normal(2, 4, 4, 3)
    return linen("group_shuffle", GroupShuffle(), x, expected=(2, 2, 3, 5, 6))
