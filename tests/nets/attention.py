"""Attention: Linen's own, fused projections, causal decoder, grouped and rotary."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from .base import Kept, Net, linen, normal, specimen, tree
from .norm import affine, digits, layernorm, rmsnorm
from .plain import dense, layer


def attend(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> jax.Array:
    """q, k, v: [batch, token, head, width]; the scale stays that of the full net."""
    weights = jax.nn.softmax(jnp.einsum("bqhw,bkhw->bhqk", q, k) * scale, axis=-1)
    return jnp.einsum("bhqk,bkhv->bqhv", weights, v)


class Vit(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(10, (4, 4), (4, 4))(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        cls = self.param("cls", nn.initializers.normal(), (1, 1, 10))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos", nn.initializers.normal(), (1, 5, 10))
        for _ in range(2):
            y = nn.LayerNorm()(x)
            y = nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=12)(y)
            x = x + y
            y = nn.gelu(nn.Dense(14)(nn.LayerNorm()(x)))
            x = x + nn.Dense(x.shape[-1])(y)
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


def vit_by_hand(variables: Any, x: jax.Array) -> jax.Array:
    """`Vit` written out over its own parameters, of any widths."""
    p = variables["params"]
    conv = p["Conv_0"]
    n, h, w, c = x.shape
    x = x.reshape(n, h // 4, 4, w // 4, 4, c).swapaxes(2, 3).reshape(n, -1, 16 * c)
    x = x @ conv["kernel"].reshape(16 * c, -1) + conv["bias"]
    x = jnp.concatenate([jnp.tile(p["cls"], (n, 1, 1)), x], axis=1) + p["pos"]
    for i in range(2):
        a = p[f"MultiHeadDotProductAttention_{i}"]
        y = layernorm(p[f"LayerNorm_{2 * i}"], x)
        q, k, v = (
            jnp.einsum("btd,dhw->bthw", y, a[name]["kernel"]) + a[name]["bias"]
            for name in ("query", "key", "value")
        )
        y = attend(q, k, v, 4**-0.5)
        x = x + jnp.einsum("bthw,hwd->btd", y, a["out"]["kernel"]) + a["out"]["bias"]
        y = dense(p[f"Dense_{2 * i}"], layernorm(p[f"LayerNorm_{2 * i + 1}"], x))
        x = x + dense(p[f"Dense_{2 * i + 1}"], jax.nn.gelu(y))
    return dense(p["Dense_4"], layernorm(p["LayerNorm_4"], x)[:, 0])


@specimen
def vit_linen() -> Net:
    """Per block: heads, query and key widths, value widths, hidden; one stream."""
    known = {"exact": False, "narrow": lambda kept: vit_by_hand, "by_weights": False}
    sizes = tuple(sorted((10, *2 * (3, 4, 4, 14))))
    return linen("vit_linen", Vit(), normal(2, 8, 8, 3), expected=sizes, **known)


def fused_apply(p: Any, x: jax.Array, heads: tuple[int, ...], split: bool) -> Any:
    """A transformer over patches with one projection for query, key and value."""
    x = dense(p["embed"], x)
    cls = jnp.broadcast_to(p["cls"], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([cls, x], axis=1) + p["pos"]
    for h, block in zip(heads, p["blocks"], strict=True):
        y = dense(block["qkv"], layernorm(block["norm1"], x))
        if split:
            v = block["out"]["kernel"].shape[0]
            qk = (y.shape[-1] - v) // 2
            parts = jnp.split(y, (qk, 2 * qk), axis=-1)
            q, k, v = (z.reshape(*z.shape[:-1], h, z.shape[-1] // h) for z in parts)
        else:
            y = y.reshape(*y.shape[:-1], 3, h, y.shape[-1] // (3 * h))
            q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        y = attend(q, k, v, 4**-0.5)
        x = x + dense(block["out"], y.reshape(*y.shape[:-2], -1))
        y = dense(block["mlp1"], layernorm(block["norm2"], x))
        x = x + dense(block["mlp2"], jax.nn.gelu(y))
    return dense(p["head"], x[:, 0])


def _fused(name: str, split: bool, sizes: tuple[int, ...]) -> Net:
    block = {
        "norm1": affine(10),
        "qkv": layer(10, 36),
        "out": layer(12, 10),
        "norm2": affine(10),
        "mlp1": layer(10, 14),
        "mlp2": layer(14, 10),
    }
    params = tree(
        embed=layer(6, 10),
        cls=(1, 1, 10),
        pos=(1, 5, 10),
        blocks=[block, block],
        head=layer(10, 3),
    )

    def narrow(kept: Kept) -> Any:
        out = [kept(f"blocks/{i}/out/kernel", 0) for i in range(2)]
        heads = tuple(digits(index, 4)[0] for index in out)
        return lambda p, x: fused_apply(p, x, heads, split)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return fused_apply(p, x, (3, 3), split)

    known = {"exact": False, "narrow": narrow, "by_weights": False}
    return Net(name, apply, params, (normal(2, 4, 6),), sizes, **known)


@specimen
def vit_fused() -> Net:
    """(3, heads, width) in one axis: query, key and value share one width."""
    return _fused("vit_fused", False, tuple(sorted((10, *2 * (3, 4, 14)))))


@specimen
def vit_split() -> Net:
    """A split first: the value's width is free of the query's and key's."""
    return _fused("vit_split", True, tuple(sorted((10, *2 * (3, 4, 4, 14)))))


@specimen
def decoder() -> Net:
    """Tokens in, next-token logits out through the tied embedding; causal mask."""

    def apply(p: Any, tokens: jax.Array) -> jax.Array:
        x = p["embedding"][tokens] + p["pos"]
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        for block in p["blocks"]:
            y = rmsnorm(block["norm1"], x)
            q, k, v = (jnp.einsum("btd,dhw->bthw", y, block[n]) for n in "qkv")
            logits = jnp.einsum("bqhw,bkhw->bhqk", q, k) / jnp.sqrt(5.0)
            weights = jax.nn.softmax(jnp.where(causal, logits, -1e9), axis=-1)
            y = jnp.einsum("bhqk,bkhw->bqhw", weights, v)
            x = x + jnp.einsum("bthw,hwd->btd", y, block["o"])
            y = rmsnorm(block["norm2"], x)
            x = x + jax.nn.gelu(y @ block["mlp1"]) @ block["mlp2"]
        return rmsnorm(p["last"], x) @ p["embedding"].T

    block = {
        "norm1": {"scale": (8,)},
        "q": (8, 2, 5),
        "k": (8, 2, 5),
        "v": (8, 2, 6),
        "o": (2, 6, 8),
        "norm2": {"scale": (8,)},
        "mlp1": (8, 9),
        "mlp2": (9, 8),
    }
    params = tree(
        embedding=(11, 8), pos=(4, 8), blocks=[block, block], last={"scale": (8,)}
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 4)))
    sizes = tuple(sorted((8, *2 * (2, 5, 6, 9))))
    known = {"exact": False, "narrow": lambda kept: apply, "by_weights": False}
    return Net("decoder", apply, params, (tokens,), sizes, **known)


def rotate(x: jax.Array) -> jax.Array:
    """Rotary position: channel i and i + width/2 turn together."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 100.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


@specimen
def grouped_rotary() -> Net:
    """2 key/value heads, 3 query heads to each; the rotary halves move as pairs.

    The frequencies are made inside the function, one per pair: a cut keeps those of
    the kept pairs, and a permutation of the weights alone is no symmetry.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = x @ p["embed"]
        q, k, v = (jnp.einsum("btd,dhw->bthw", x, p[n]) for n in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2)
        x = x + jnp.einsum("bthw,hwd->btd", attend(q, k, v, 6**-0.5), p["o"])
        return x @ p["head"]

    params = tree(
        embed=(4, 8), q=(8, 6, 6), k=(8, 2, 6), v=(8, 2, 5), o=(6, 5, 8), head=(8, 3)
    )
    sizes, inputs = (2, 3, 3, 5, 8), (normal(2, 4, 4),)
    return Net("grouped_rotary", apply, params, inputs, sizes, by_weights=False)
