"""Ways to hold a model: NNX, Equinox, Haiku; and mixed precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .base import Kept, Net, linen, normal, randomise, specimen
from .conv import norms


class NnxBlock(nnx.Module):
    """A pre-norm block of width 6 from NNX's own layers."""

    def __init__(self, heads: int, rngs: nnx.Rngs):
        self.embed = nnx.Linear(3, 6, rngs=rngs)
        self.norm1 = nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, 6, qkv_features=8, decode=False, rngs=rngs
        )
        self.norm2 = nnx.RMSNorm(6, rngs=rngs)
        self.mlp1 = nnx.Linear(6, 7, rngs=rngs)
        self.mlp2 = nnx.Linear(7, 6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp2(nnx.gelu(self.mlp1(self.norm2(x))))
        return self.head(x)


def nnx_by_hand(p: Any, x: jax.Array) -> jax.Array:
    """`NnxBlock` written out over its own state, of any widths."""

    def linear(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["kernel"] + p["bias"]

    def normed(p: Any, x: jax.Array) -> jax.Array:
        if "bias" in p:
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p.get("bias", 0.0)

    x, a = linear(p["embed"], x), p["attention"]
    y = normed(p["norm1"], x)
    q, k, v = (
        jnp.einsum("btd,dhw->bthw", y, a[n]["kernel"]) + a[n]["bias"]
        for n in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("bqhw,bkhw->bhqk", q, k) / 2)
    y = jnp.einsum("bhqk,bkhv->bqhv", weights, v)
    x = x + jnp.einsum("bthw,hwd->btd", y, a["out"]["kernel"]) + a["out"]["bias"]
    hidden = jax.nn.gelu(linear(p["mlp1"], normed(p["norm2"], x)))
    return linear(p["head"], x + linear(p["mlp2"], hidden))


@specimen
def nnx_transformer() -> Net:
    """2 heads; q and k are 4 wide, v another 4; stream 6, hidden 7.

    NNX's softmax is computed in float32 whatever comes in: it rounds.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: NnxBlock(2, nnx.Rngs(0))))

    def apply(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(x)

    def narrow(kept: Kept) -> Any:
        return lambda state, x: nnx_by_hand(nnx.to_pure_dict(state), x)

    known = {"exact": False, "narrow": narrow, "by_weights": False}
    known["true_derivative"] = False
    params, x = randomise(state), normal(2, 3, 3)
    return Net("nnx_transformer", apply, params, (x,), (2, 4, 4, 6, 7), **known)


def is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def equinox(name: str, model: Any, *inputs: Any, **known: Any) -> Net:
    """A specimen from the shapes of an Equinox module: arrays are its parameters."""
    arrays, static = eqx.partition(model, is_shape)

    def apply(arrays: Any, *inputs: Any) -> Any:
        return jax.vmap(eqx.combine(arrays, static))(*inputs)

    return Net(name, apply, randomise(arrays), inputs, **known)


class EquinoxConv(eqx.Module):
    """Channels first, one picture at a time."""

    stem: eqx.nn.Conv2d
    wide: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, groups: int, width: int, hidden: int):
        keys = jax.random.split(jax.random.key(0), 4)
        n = groups * width
        self.stem = eqx.nn.Conv2d(3, n, 3, padding=1, key=keys[0])
        self.wide = eqx.nn.Conv2d(n, n, 3, padding=1, groups=n, key=keys[1])
        self.norm = eqx.nn.GroupNorm(groups, n)
        self.hidden = eqx.nn.Linear(n * 4, hidden, key=keys[2])
        self.head = eqx.nn.Linear(hidden, 2, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.wide(jax.nn.relu(self.stem(x))))
        x = eqx.nn.MaxPool2d(2, 2)(jax.nn.silu(x)).ravel()
        return self.head(jax.nn.relu(self.hidden(x)))


@specimen
def equinox_conv() -> Net:
    """3 norm groups of 4 channels, flattened over positions; hidden 7."""

    def narrow(kept: Kept) -> Any:
        stem = kept("stem/weight", 0)
        groups, width = len(np.unique(stem // 4)), len(np.unique(stem % 4))
        hidden = len(kept("hidden/weight", 0))
        model = eqx.filter_eval_shape(EquinoxConv, groups, width, hidden)
        own, static = eqx.partition(model, is_shape)

        def small(arrays: Any, x: jax.Array) -> jax.Array:
            # The cut arrays sit in a module that still tells the full sizes.
            own_arrays = jax.tree.unflatten(
                jax.tree.structure(own), jax.tree.leaves(arrays)
            )
            return jax.vmap(eqx.combine(own_arrays, static))(x)

        return small

    known = {"exact": False, "narrow": narrow, "by_weights": False}
    model, x = eqx.filter_eval_shape(EquinoxConv, 3, 4, 7), normal(2, 3, 4, 4)
    return equinox("equinox_conv", model, x, expected=(3, 4, 7), **known)


class EquinoxAttention(eqx.Module):
    """A post-norm-free block: attention, then an MLP, on one sequence."""

    embed: eqx.nn.Linear
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 4)
        self.embed = eqx.nn.Linear(3, 6, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(
            2, 6, qk_size=3, vo_size=4, key=keys[1]
        )
        self.mlp = eqx.nn.MLP(6, 6, 7, depth=1, key=keys[2])
        self.head = eqx.nn.Linear(6, 2, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(x)
        x = x + self.attention(x, x, x)
        x = x + jax.vmap(self.mlp)(x)
        return jax.vmap(self.head)(x)


@specimen
def equinox_attention() -> Net:
    """2 heads; q and k 3 wide, v 4; stream 6; hidden 7."""
    known = {"expected": (2, 3, 4, 6, 7), "by_weights": False}
    model, x = eqx.filter_eval_shape(EquinoxAttention), normal(2, 4, 3)
    return equinox("equinox_attention", model, x, **known)


def haiku_resnet(x: jax.Array, train: bool) -> jax.Array:
    def bn(x: jax.Array) -> jax.Array:
        return hk.BatchNorm(True, True, 0.9)(x, is_training=train)

    x = jax.nn.relu(bn(hk.Conv2D(6, 3, with_bias=False)(x)))
    y = jax.nn.relu(bn(hk.Conv2D(5, 3, with_bias=False)(x)))
    x = jax.nn.relu(x + bn(hk.Conv2D(6, 3, with_bias=False)(y)))
    return hk.Linear(2)(x.mean((1, 2)))


@specimen
def haiku_batchnorm() -> Net:
    """Stream 6, inner 5; the averages that eval mode reads are parameters too.

    Haiku keeps two numbers per average, of which eval mode reads one: the other is
    filled in where the module is called.
    """
    net = hk.transform_with_state(haiku_resnet)
    x = normal(2, 4, 4, 3)
    params, state = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), x)
    averages = {name: entry["average"] for name, entry in state.items()}
    variables = randomise({"params": params, "averages": averages})

    def apply(p: Any, x: jax.Array) -> jax.Array:
        state = {
            name: {"average": y, "hidden": y, "counter": jnp.zeros((), int)}
            for name, y in p["averages"].items()
        }
        return net.apply(p["params"], state, None, x, False)[0]

    known = {"by_weights": False}
    return Net("haiku_batchnorm", apply, variables, (x,), (5, 6), **known)


def haiku_sequence(x: jax.Array) -> jax.Array:
    core = hk.LSTM(5)
    start = jax.tree.map(lambda s: s.astype(x.dtype), core.initial_state(x.shape[0]))
    x, _ = hk.dynamic_unroll(core, x, start, time_major=False)
    return hk.Linear(2)(jnp.tanh(hk.Linear(4)(x)))


@specimen
def haiku_lstm() -> Net:
    """One kernel of 3 + 5 rows and 4 x 5 columns: the state is 5; then 4."""
    net = hk.without_apply_rng(hk.transform(haiku_sequence))
    x = normal(2, 3, 3)
    params = randomise(jax.eval_shape(net.init, jax.random.key(0), x))
    known = {"by_weights": False}
    return Net("haiku_lstm", net.apply, params, (x,), (4, 5), **known)


class Mixed(nn.Module):
    """Convolutions in bfloat16, norm and head in float32, all parameters float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half = {"dtype": jnp.bfloat16}
        x = nn.relu(nn.Conv(6, (3, 3), **half)(x))
        x = x + nn.relu(nn.Conv(6, (3, 3), feature_group_count=2, **half)(x))
        x = norms(False)()(x.astype(jnp.float32)).mean((1, 2))
        return nn.Dense(2)(nn.relu(nn.Dense(7)(x)))


@specimen
def mixed_precision() -> Net:
    """The stream is 2 groups of 3; hidden 7.

    Weights and inputs are quarters, so that bfloat16 is exact and the order of a sum
    does not show.
    """
    known = {"expected": (2, 3, 7), "true_derivative": False, "by_weights": False}
    x = jnp.round(normal(2, 4, 4, 3))
    net = linen("mixed_precision", Mixed(), x, **known)
    return replace(net, params=jax.tree.map(lambda w: jnp.round(4 * w) / 4, net.params))
