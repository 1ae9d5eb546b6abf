"""Nets in which a statistic crosses the channels; the oracle is the narrower net."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .base import Kept, Net, linen, normal, specimen, tree
from .plain import dense, layer


class GroupNormNet(nn.Module):
    groups: tuple[int, int]
    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for groups, width in zip(self.groups, self.widths, strict=True):
            x = nn.Conv(groups * width, (3, 3))(x)
            x = nn.relu(nn.GroupNorm(num_groups=groups)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def digits(index: np.ndarray, minor: int) -> tuple[int, int]:
    """How many groups and how many positions within a group an axis has kept."""
    major, low = np.unique(index // minor), np.unique(index % minor)
    return len(major), len(low)


@specimen
def groupnorm() -> Net:
    """4 groups of 2 channels, then 3 groups of 5: both factors can be cut."""

    def narrow(kept: Kept) -> Any:
        sizes = [
            digits(kept(f"params/Conv_{i}/kernel", 3), minor)
            for i, minor in enumerate((2, 5))
        ]
        groups, widths = zip(*sizes, strict=True)
        return GroupNormNet(groups, widths).apply

    x, module = normal(2, 5, 5, 3), GroupNormNet((4, 3), (2, 5))
    sizes = (2, 3, 4, 5)
    return linen("groupnorm", module, x, expected=sizes, exact=False, narrow=narrow)


def layernorm(p: Any, x: jax.Array) -> jax.Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-6) * p["scale"] + p["bias"]


def rmsnorm(p: Any, x: jax.Array, count: int | None = None) -> jax.Array:
    """Root mean square; `count` overrides what the sum is divided by."""
    total = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(total / (count or x.shape[-1]) + 1e-6) * p["scale"]


def affine(n: int) -> dict[str, tuple[int, ...]]:
    return {"scale": (n,), "bias": (n,)}


@specimen
def mixer() -> Net:
    """Tokens stay; hidden tokens, channels and hidden channels are groups."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        y = layernorm(p["norm1"], x).swapaxes(1, 2)
        y = dense(p["tokens2"], jax.nn.gelu(dense(p["tokens1"], y)))
        x = x + y.swapaxes(1, 2)
        y = dense(p["channels1"], layernorm(p["norm2"], x))
        x = x + dense(p["channels2"], jax.nn.gelu(y))
        return dense(p["head"], x.mean(1))

    params = tree(
        embed=layer(3, 8),
        norm1=affine(8),
        tokens1=layer(4, 6),
        tokens2=layer(6, 4),
        norm2=affine(8),
        channels1=layer(8, 9),
        channels2=layer(9, 8),
        head=layer(8, 2),
    )
    known = {"exact": False, "narrow": lambda kept: apply}
    return Net("mixer", apply, params, (normal(2, 4, 3),), (6, 8, 9), **known)


def swiglu_apply(p: Any, x: jax.Array, count: int | None = None) -> jax.Array:
    x = x @ p["embed"]
    y = rmsnorm(p["norm"], x, count)
    x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
    return rmsnorm(p["last"], x, count) @ p["head"]


@specimen
def swiglu() -> Net:
    params = tree(
        embed=(5, 8),
        norm={"scale": (8,)},
        gate=(8, 11),
        up=(8, 11),
        down=(11, 8),
        last={"scale": (8,)},
        head=(8, 3),
    )
    known = {"exact": False, "narrow": lambda kept: swiglu_apply}
    return Net("swiglu", swiglu_apply, params, (normal(4, 5),), (8, 11), **known)


@specimen
def channel_mean() -> Net:
    """A mean, a variance and a product of counts in plain arithmetic."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["first"], x))
        h = h - h.mean((1, 2), keepdims=True)
        h = h / (1.0 + jnp.abs(h).mean(-1, keepdims=True))
        return dense(p["last"], h.mean(1))

    params = tree(first=layer(4, 7), last=layer(7, 2))
    known = {"exact": False, "narrow": lambda kept: apply}
    return Net("channel_mean", apply, params, (normal(2, 3, 4),), (7,), **known)
