"""Decoders of language models: rotary forms, shared key heads, caches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .base import Kept, Net, normal, specimen, tree
from .norm import affine, layernorm, rmsnorm
from .plain import dense, layer


def tokens(vocabulary: int, *shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocabulary, shape))


def heads_of(x: jax.Array, heads: int) -> jax.Array:
    """[batch, token, heads * width] as [batch, token, heads, width]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def frequencies(pairs: int) -> jax.Array:
    return 100.0 ** (-jnp.arange(pairs) / pairs)


def causal(n: int) -> jax.Array:
    return jnp.where(jnp.tril(jnp.ones((n, n), bool)), 0.0, -1e9)


def masked_attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any) -> jax.Array:
    """q, k, v: [batch, token, head, width]; `bias` is added to the logits."""
    logits = jnp.einsum("bqhw,bkhw->bhqk", q, k) * 0.5 + bias
    return jnp.einsum("bhqk,bkhv->bqhv", jax.nn.softmax(logits), v)


@specimen
def multi_query() -> Net:
    """3 query heads to one key head; slopes of distance (ALiBi) tell heads apart.

    q and k share their width (5), v and o theirs (6); the one key head is no axis, so
    nothing ties the query heads (3) to it. The stream (8) has no norm.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        q = jnp.einsum("btd,dhw->bthw", x, p["q"])
        k, v = x @ p["k"], x @ p["v"]
        slopes = 2.0 ** -(1.0 + jnp.arange(q.shape[2]))
        at = jnp.arange(x.shape[1])
        logits = jnp.einsum("bqhw,bkw->bhqk", q, k) * 0.4
        logits -= slopes[:, None, None] * jnp.abs(at[:, None] - at)
        y = jnp.einsum("bhqk,bkv->bqhv", jax.nn.softmax(logits), v)
        x = x + jnp.einsum("bqhv,hvd->bqd", y, p["o"])
        return dense(p["head"], x)

    params = tree(
        embed=layer(4, 8),
        q=(8, 3, 5),
        k=(8, 5),
        v=(8, 6),
        o=(3, 6, 8),
        head=layer(8, 2),
    )
    sizes, inputs = (3, 5, 6, 8), (normal(2, 4, 4),)
    return Net("multi_query", apply, params, inputs, sizes, by_weights=False)


def rotate_half(x: jax.Array, freq: jax.Array) -> jax.Array:
    """Llama's form: `x cos + (-b, a) sin` with the angles written twice."""
    angle = jnp.arange(x.shape[1])[:, None] * freq
    angle = jnp.concatenate([angle, angle], -1)[:, None, :]
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    turned = jnp.concatenate([-b, a], axis=-1)
    return x * jnp.cos(angle) + turned * jnp.sin(angle)


def repeat_kv(x: jax.Array, n: int) -> jax.Array:
    b, t, h, w = x.shape
    x = jnp.broadcast_to(x[:, :, :, None, :], (b, t, h, n, w))
    return x.reshape(b, t, h * n, w)


def llama_apply(p: Any, ids: jax.Array, kv: int, n: int, freq: jax.Array) -> jax.Array:
    """A grouped-query block: 2-D kernels, fused gate and up, tied embedding."""
    x = p["embedding"][ids]
    y = rmsnorm(p["norm1"], x)
    q, k, v = y @ p["q"], y @ p["k"], y @ p["v"]
    q, k, v = heads_of(q, kv * n), heads_of(k, kv), heads_of(v, kv)
    q, k = rotate_half(q, freq), rotate_half(k, freq)
    y = masked_attend(q, repeat_kv(k, n), repeat_kv(v, n), causal(x.shape[1]))
    x = x + y.reshape(*y.shape[:2], -1) @ p["o"]
    gate, up = jnp.split(rmsnorm(p["norm2"], x) @ p["gate_up"], 2, axis=-1)
    x = x + (jax.nn.silu(gate) * up) @ p["down"]
    return rmsnorm(p["last"], x) @ p["embedding"].T


@specimen
def llama() -> Net:
    """Torch-Pruning's issue 519: 2 key heads, 3 query heads to each, 4 pairs of width.

    q is 2 x 3 heads of 8 = 2 x 4 columns, of which i and i + 4 turn together: (2, 3, 4)
    of q, (2, 4) of k. v has 2 heads of 5, repeated 3 times for o. Gate and up are the
    halves of one kernel: 11. The tied embedding makes and reads the stream: 9.
    """

    def apply(p: Any, ids: jax.Array) -> jax.Array:
        return llama_apply(p, ids, 2, 3, frequencies(4))

    def narrow(kept: Kept) -> Any:
        heads = np.unique(kept("q", 1) // 8)
        kv, n = len(np.unique(heads // 3)), len(np.unique(heads % 3))
        freq = frequencies(4)[np.unique(kept("q", 1) % 4)]
        return lambda p, ids: llama_apply(p, ids, kv, n, freq)

    params = tree(
        embedding=(13, 9),
        norm1={"scale": (9,)},
        q=(9, 48),
        k=(9, 16),
        v=(9, 10),
        o=(30, 9),
        norm2={"scale": (9,)},
        gate_up=(9, 22),
        down=(11, 9),
        last={"scale": (9,)},
    )
    known = {"exact": False, "narrow": narrow, "by_weights": False}
    sizes = (2, 3, 4, 5, 9, 11)
    return Net("llama", apply, params, (tokens(13, 2, 4),), sizes, **known)


def rotate_pairs(x: jax.Array, freq: jax.Array) -> jax.Array:
    """GPT-J's form: channels 2i and 2i + 1 turn together."""
    angle = (jnp.arange(x.shape[1])[:, None] * freq)[:, None, :]
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def gptj_apply(p: Any, x: jax.Array, heads: int, freq: jax.Array) -> jax.Array:
    """Attention and MLP read one LayerNorm and are added side by side."""
    x = dense(p["embed"], x)
    y = layernorm(p["norm"], x)
    q, k, v = (heads_of(y @ p[n], heads) for n in "qkv")
    q, k = rotate_pairs(q, freq), rotate_pairs(k, freq)
    a = masked_attend(q, k, v, causal(x.shape[1]))
    hidden = jax.nn.gelu(dense(p["mlp1"], y))
    x = x + a.reshape(*a.shape[:2], -1) @ p["o"] + dense(p["mlp2"], hidden)
    return dense(p["head"], x)


@specimen
def gptj() -> Net:
    """Interleaved rotary: 3 heads of 4 pairs; values 5, hidden 7, stream 9."""

    def narrow(kept: Kept) -> Any:
        heads = len(np.unique(kept("q", 1) // 8))
        freq = frequencies(4)[np.unique(kept("q", 1) % 8 // 2)]
        return lambda p, x: gptj_apply(p, x, heads, freq)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return gptj_apply(p, x, 3, frequencies(4))

    params = tree(
        embed=layer(6, 9),
        norm=affine(9),
        q=(9, 24),
        k=(9, 24),
        v=(9, 15),
        o=(15, 9),
        mlp1=layer(9, 7),
        mlp2=layer(7, 9),
        head=layer(9, 2),
    )
    known = {"exact": False, "narrow": narrow, "by_weights": False}
    return Net("gptj", apply, params, (normal(2, 4, 6),), (3, 4, 5, 7, 9), **known)


def step(p: Any, x: jax.Array, cache: tuple[jax.Array, jax.Array], at: Any) -> Any:
    """One token [batch, d] reads the cache [batch, time, head, width] up to itself."""
    b = x.shape[0]
    q = jnp.einsum("bd,dhrw->bhrw", x, p["q"])
    k, v = (jnp.einsum("bd,dhw->bhw", x, p[n])[:, None] for n in "kv")
    keys, values = (
        lax.dynamic_update_slice(c, new, (0, at, 0, 0))
        for c, new in zip(cache, (k, v), strict=True)
    )
    logits = jnp.einsum("bhrw,bkhw->bhrk", q, keys) * 0.5
    seen = jnp.arange(keys.shape[1]) <= at
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e9))
    y = jnp.einsum("bhrk,bkhv->bhrv", weights, values)
    return x + y.reshape(b, -1) @ p["o"].reshape(-1, x.shape[-1]), (keys, values)


def cached_params() -> Any:
    return tree(
        embedding=(11, 8),
        q=(8, 2, 3, 5),
        k=(8, 2, 5),
        v=(8, 2, 6),
        o=(2, 3, 6, 8),
        mlp1=(8, 7),
        mlp2=(7, 8),
        head=(8, 4),
    )


def after(p: Any, x: jax.Array) -> jax.Array:
    return (x + jax.nn.relu(x @ p["mlp1"]) @ p["mlp2"]) @ p["head"]


@specimen
def kv_cache() -> Net:
    """The caller owns the cache: its heads and widths are an input's, and stay.

    Free are the query heads of each key head (3), the hidden width (7), the stream (8).
    """

    def apply(p: Any, ids: jax.Array, keys: jax.Array, values: jax.Array) -> Any:
        x, (keys, values) = step(p, p["embedding"][ids], (keys, values), 3)
        return after(p, x), (keys, values)

    inputs = (tokens(11, 2), normal(2, 5, 2, 5), normal(2, 5, 2, 6, seed=1))
    known = {"by_weights": False}
    return Net("kv_cache", apply, cached_params(), inputs, (3, 7, 8), **known)


@specimen
def generate() -> Net:
    """The cache is made inside and carried by a scan: it takes what the keys need.

    2 key heads, 3 query heads to each, widths 5 (q, k) and 6 (v, o), 7 hidden, 8.
    """

    def apply(p: Any, ids: jax.Array) -> jax.Array:
        b, t = ids.shape
        heads, widths = p["k"].shape[1], (p["k"].shape[2], p["v"].shape[2])
        cache = tuple(jnp.zeros((b, t, heads, w)) for w in widths)

        def body(carry: Any, now: Any) -> Any:
            at, token = now
            x, carry = step(p, p["embedding"][token], carry, at)
            return carry, after(p, x)

        _, logits = lax.scan(body, cache, (jnp.arange(t), ids.T))
        return logits.swapaxes(0, 1)

    known = {"by_weights": False}
    sizes = (2, 3, 5, 6, 7, 8)
    ids = tokens(11, 2, 4)
    return Net("generate", apply, cached_params(), (ids,), sizes, **known)
