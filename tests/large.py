"""Models of real size, as shapes only: nothing of them is ever allocated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Large(NamedTuple):
    """A function, the shapes of its parameters and of its inputs."""

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def _linen(model: nn.Module, x: Any) -> Large:
    return Large(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), (x,))


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(self.width, (3, 3), strides, use_bias=False)(y)))
        y = norm()(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(4 * self.width, (1, 1), strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """He et al.'s with bottlenecks: (3, 4, 6, 3) blocks are ResNet-50."""

    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(64 * 2**stage, stride)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def resnet(*blocks: int) -> Large:
    return _linen(ResNet(blocks), shape(1, 224, 224, 3))


class Vit(nn.Module):
    """ViT with Linen's own attention."""

    layers: int
    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (16, 16), (16, 16))(x)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("pos", nn.initializers.normal(), (1, *x.shape[1:]))
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(y)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(1))


def vit_large() -> Large:
    return _linen(Vit(24, 1024, 16), shape(1, 224, 224, 3))


def rms(scale: jax.Array, x: jax.Array) -> jax.Array:
    return scale * x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def rotate(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 1e4 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def llama(
    layers: int = 32, d: int = 4096, heads: int = 32, groups: int = 8, up: int = 14336
) -> Large:
    """A decoder of Llama 3's shape: rotary, grouped queries, SwiGLU, RMSNorm."""
    width, vocabulary = d // heads, 128256

    def attention(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = (
            (x @ p[name]).reshape(*x.shape[:2], -1, width) for name in ("q", "k", "v")
        )
        q, k = rotate(q), rotate(k)
        k, v = (jnp.repeat(a, heads // groups, 2) for a in (k, v))
        scores = jnp.einsum("bqhw,bkhw->bhqk", q, k) / width**0.5
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        y = jnp.einsum("bhqk,bkhw->bqhw", weights, v)
        return y.reshape(*x.shape[:2], -1) @ p["o"]

    def apply(p: Any, tokens: jax.Array) -> jax.Array:
        x = p["embedding"][tokens]
        for block in p["blocks"]:
            x = x + attention(block, rms(block["norm1"], x))
            y = rms(block["norm2"], x)
            y = jax.nn.silu(y @ block["gate"]) * (y @ block["up"])
            x = x + y @ block["down"]
        return rms(p["norm"], x) @ p["head"]

    block = {
        "norm1": shape(d),
        "q": shape(d, d),
        "k": shape(d, groups * width),
        "v": shape(d, groups * width),
        "o": shape(d, d),
        "norm2": shape(d),
        "gate": shape(d, up),
        "up": shape(d, up),
        "down": shape(up, d),
    }
    ends = {"embedding": shape(vocabulary, d), "head": shape(d, vocabulary)}
    params = {**ends, "norm": shape(d), "blocks": [block] * layers}
    return Large(apply, params, (shape(1, 64, dtype=jnp.int32),))


def mlp(layers: int) -> Large:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        for layer in p:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x

    layer = {"kernel": shape(64, 64), "bias": shape(64)}
    return Large(apply, [layer] * layers, (shape(1, 64),))
