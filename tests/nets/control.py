"""Control flow and wrappers: scan, loops, branches, remat, recurrence, NNX."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from .base import Net, linen, normal, randomise, specimen, tree
from .plain import dense, layer


class Residual(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        y = nn.Dense(self.hidden)(x)
        return x + nn.Dense(x.shape[-1])(nn.relu(y)), None


class Scanned(nn.Module):
    """Three layers stacked by `nn.scan`; the stack itself is not cut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kw = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x = nn.Dense(6)(x)
        x, _ = nn.scan(Residual, length=3, **kw)(5)(x, None)
        return nn.Dense(2)(x)


@specimen
def scanned() -> Net:
    return linen("scanned", Scanned(), normal(2, 4), expected=(5, 6))


class ScannedRemat(nn.Module):
    """A scan over rematerialised blocks, as large models are written."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kw = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x = nn.Dense(6)(x)
        x, _ = nn.scan(nn.remat(Residual), length=2, **kw)(7)(x, None)
        return nn.Dense(2)(x)


@specimen
def scanned_remat() -> Net:
    return linen("scanned_remat", ScannedRemat(), normal(2, 4), expected=(6, 7))


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(6)(x)
        for hidden in (5, 7):
            x, _ = nn.remat(Residual)(hidden)(x)
        return nn.Dense(2)(x)


@specimen
def remat() -> Net:
    return linen("remat", Remat(), normal(3, 4), expected=(5, 6, 7))


@specimen
def lstm() -> Net:
    """One fused kernel: rows are input and state, columns the four gates."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        width = p["cell"]["kernel"].shape[1] // 4

        def step(carry: Any, xt: jax.Array) -> Any:
            c, h = carry
            z = dense(p["cell"], jnp.concatenate([xt, h], -1))
            i, f, g, o = jnp.split(z, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        zero = jnp.zeros((x.shape[0], width))
        _, hs = lax.scan(step, (zero, zero), x.swapaxes(0, 1))
        return dense(p["out"], hs.swapaxes(0, 1))

    params = tree(cell=layer(5 + 7, 28), out=layer(7, 2))
    return Net("lstm", apply, params, (normal(2, 3, 5),), (7,))


@specimen
def loops() -> Net:
    """A counted loop over one weight, then a while loop."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["first"], x))
        h = lax.fori_loop(0, 3, lambda _, h: jnp.tanh(dense(p["again"], h)), h)
        halve = (lambda s: s[0] < 2), (lambda s: (s[0] + 1, s[1] / 2))
        _, h = lax.while_loop(*halve, (0, h))
        return dense(p["last"], h)

    params = tree(first=layer(4, 6), again=layer(6, 6), last=layer(6, 2))
    known = {"reverse": False, "by_weights": False}
    return Net("loops", apply, params, (normal(2, 4),), (6,), **known)


@specimen
def branches() -> Net:
    """The data choose one of two layers; both write the same channels."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["first"], x))
        yes, no = (lambda h, n=n: jax.nn.relu(dense(p[n], h)) for n in ("yes", "no"))
        return dense(p["last"], lax.cond(x.sum() > 0, yes, no, h))

    params = tree(first=layer(4, 6), yes=layer(6, 5), no=layer(6, 5), last=layer(5, 2))
    return Net("branches", apply, params, (normal(2, 4),), (5, 6))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.wide = nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs)
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.wide(nnx.relu(self.norm(self.conv(x))))
        return self.out(nnx.relu(x).mean((1, 2)))


@specimen
def nnx_conv() -> Net:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))))

    def apply(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(x)

    return Net("nnx_conv", apply, randomise(state), (normal(2, 4, 4, 3),), (6,))
