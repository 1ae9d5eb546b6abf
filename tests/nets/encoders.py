"""Transformers of other shapes: relative bias, shared or stacked layers, queries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .base import Net, normal, specimen, tree
from .decoders import masked_attend, tokens
from .norm import affine, layernorm, rmsnorm
from .plain import dense, layer


def attention(n_in: int, heads: int, width: int, value: int, n_kv: int = 0) -> Any:
    """Shapes of a query, key, value and output projection."""
    n_kv = n_kv or n_in
    return {
        "q": (n_in, heads, width),
        "k": (n_kv, heads, width),
        "v": (n_kv, heads, value),
        "o": (heads, value, n_in),
    }


def attended(p: Any, x: jax.Array, y: jax.Array, bias: Any = 0.0) -> jax.Array:
    """x asks, y answers."""
    q = jnp.einsum("btd,dhw->bthw", x, p["q"])
    k, v = (jnp.einsum("btd,dhw->bthw", y, p[n]) for n in "kv")
    return jnp.einsum("bthw,hwd->btd", masked_attend(q, k, v, bias), p["o"])


def buckets(n: int) -> jax.Array:
    """T5's: the sign, small distances one by one, larger ones by their logarithm."""
    distance = jnp.arange(n)[None, :] - jnp.arange(n)[:, None]
    far = jnp.abs(distance)
    log = 1 + jnp.log2(jnp.maximum(far, 1)).astype(int)
    return jnp.where(distance > 0, 3, 0) + jnp.where(far < 2, far, jnp.minimum(log, 2))


@specimen
def t5() -> Net:
    """Encoder and decoder share one embedding and so one stream (8).

    The encoder's bias is a table of 6 buckets (looked up: whole) by heads (2); its
    widths are 3 and 4. Cross attention has heads of its own (3), widths 5 and 6.
    """

    def apply(p: Any, source: jax.Array, target: jax.Array) -> jax.Array:
        x, y = p["embedding"][source], p["embedding"][target]
        bias = p["bias"][buckets(x.shape[1])].transpose(2, 0, 1)
        z = rmsnorm(p["norm1"], x)
        x = x + attended(p["enc"], z, z, bias)
        x = rmsnorm(p["norm2"], x)
        y = y + attended(p["cross"], rmsnorm(p["norm3"], y), x)
        return y @ p["embedding"].T

    scale = {"scale": (8,)}
    params = tree(
        embedding=(11, 8),
        bias=(6, 2),
        enc=attention(8, 2, 3, 4),
        cross=attention(8, 3, 5, 6),
        **dict.fromkeys(("norm1", "norm2", "norm3"), scale),
    )
    known = {"exact": False, "narrow": lambda kept: apply, "by_weights": False}
    inputs = (tokens(11, 2, 4), tokens(11, 2, 3, seed=1))
    return Net("t5", apply, params, inputs, (2, 3, 3, 4, 5, 6, 8), **known)


@specimen
def albert() -> Net:
    """One block used twice; the embedding is factorised: 5, then 8.

    Both uses say the same: heads 2, widths 3 and 4, hidden 7.
    """

    def apply(p: Any, ids: jax.Array) -> jax.Array:
        x = dense(p["project"], p["embedding"][ids])
        for _ in range(2):
            x = layernorm(p["norm1"], x + attended(p["attention"], x, x))
            y = dense(p["mlp2"], jax.nn.gelu(dense(p["mlp1"], x)))
            x = layernorm(p["norm2"], x + y)
        return dense(p["head"], x[:, 0])

    params = tree(
        embedding=(9, 5),
        project=layer(5, 8),
        attention=attention(8, 2, 3, 4),
        norm1=affine(8),
        mlp1=layer(8, 7),
        mlp2=layer(7, 8),
        norm2=affine(8),
        head=layer(8, 2),
    )
    known = {"exact": False, "narrow": lambda kept: apply, "by_weights": False}
    ids = tokens(9, 2, 3)
    return Net("albert", apply, params, (ids,), (2, 3, 4, 5, 7, 8), **known)


@specimen
def stacked_layers() -> Net:
    """Three blocks in stacked parameters, run by a scan: the stack is whole.

    Every layer loses the same channels: heads 2, widths 4 and 5, hidden 7, stream 6.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        def block(x: jax.Array, q: Any) -> Any:
            y = rmsnorm(q["norm"], x)
            x = x + attended(q["attention"], y, y)
            return x + jax.nn.silu(x @ q["up"]) @ q["down"], None

        x, _ = lax.scan(block, dense(p["embed"], x), p["blocks"])
        return dense(p["head"], x)

    block = {
        "norm": {"scale": (3, 6)},
        "attention": {k: (3, *n) for k, n in attention(6, 2, 4, 5).items()},
        "up": (3, 6, 7),
        "down": (3, 7, 6),
    }
    params = tree(embed=layer(3, 6), blocks=block, head=layer(6, 2))
    known = {"exact": False, "narrow": lambda kept: apply, "by_weights": False}
    x = normal(2, 3, 3)
    return Net("stacked_layers", apply, params, (x,), (2, 4, 5, 6, 7), **known)


@specimen
def perceiver() -> Net:
    """Latents ask the inputs: each answers for itself, so latents (5) can be cut.

    The head reads latent by latent (5 x 6); latents are 6 wide, heads 3, widths 2, 4.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        z = jnp.broadcast_to(p["latents"], (x.shape[0], *p["latents"].shape))
        z = z + attended(p["attention"], z, dense(p["embed"], x))
        z = z + dense(p["mlp2"], jax.nn.relu(dense(p["mlp1"], z)))
        return dense(p["head"], z.reshape(z.shape[0], -1))

    params = tree(
        latents=(5, 6),
        embed=layer(3, 8),
        attention=attention(6, 3, 2, 4, n_kv=8),
        mlp1=layer(6, 7),
        mlp2=layer(7, 6),
        head=layer(30, 2),
    )
    known = {"by_weights": False}
    x = normal(2, 4, 3)
    return Net("perceiver", apply, params, (x,), (2, 3, 4, 5, 6, 7, 8), **known)


@specimen
def detr() -> Net:
    """Queries answer one by one in both tasks: they are the outputs' and stay.

    The memory (8) adds a position code; heads 2, widths 4 and 5; the queries' stream
    (6) is another; the boxes' hidden 7.
    """

    def apply(p: Any, x: jax.Array) -> dict[str, jax.Array]:
        x = dense(p["embed"], x.reshape(x.shape[0], -1, x.shape[-1])) + p["pos"]
        y = jnp.broadcast_to(p["queries"], (x.shape[0], *p["queries"].shape))
        y = y + attended(p["attention"], y, x)
        box = jax.nn.relu(dense(p["box1"], y))
        boxes = jax.nn.sigmoid(dense(p["box2"], box))
        return {"boxes": boxes, "classes": dense(p["classes"], y)}

    params = tree(
        embed=layer(3, 8),
        pos=(9, 8),
        queries=(3, 6),
        attention=attention(6, 2, 4, 5, n_kv=8),
        box1=layer(6, 7),
        box2=layer(7, 4),
        classes=layer(6, 3),
    )
    known = {"by_weights": False, "tasks": ("boxes", "classes")}
    x = normal(2, 3, 3, 3)
    return Net("detr", apply, params, (x,), (2, 4, 5, 6, 7, 8), **known)


@specimen
def gated_mlp() -> Net:
    """gMLP: one half of the hidden channels, mixed over tokens, gates the other.

    Both halves are one group of 5; tokens are the input's; stream 6.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        u, v = jnp.split(jax.nn.gelu(dense(p["mlp1"], x)), 2, axis=-1)
        v = jnp.einsum("ts,bsd->btd", p["mix"], v) + p["mix_bias"][:, None]
        return dense(p["head"], x + dense(p["mlp2"], u * v))

    params = tree(
        embed=layer(3, 6),
        mlp1=layer(6, 10),
        mix=(4, 4),
        mix_bias=(4,),
        mlp2=layer(5, 6),
        head=layer(6, 2),
    )
    known = {"by_weights": False}
    return Net("gated_mlp", apply, params, (normal(2, 4, 3),), (5, 6), **known)


@specimen
def resized_positions() -> Net:
    """A position table of 3 x 3, interpolated to the 4 x 4 of this picture (FlexiViT).

    Positions are no channels: interpolation weighs them by where they are, so they
    stay. Stream 6, hidden 7.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        x = x + jax.image.resize(p["pos"], (*x.shape[1:3], x.shape[-1]), "bicubic")
        x = x + dense(p["mlp2"], jax.nn.gelu(dense(p["mlp1"], x)))
        return dense(p["head"], x)

    params = tree(
        embed=layer(3, 6),
        pos=(3, 3, 6),
        mlp1=layer(6, 7),
        mlp2=layer(7, 6),
        head=layer(6, 2),
    )
    return Net("resized_positions", apply, params, (normal(2, 4, 4, 3),), (6, 7))
