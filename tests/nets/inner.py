"""Nets that differentiate inside: forces, steps. What averages channels forward is
transposed in them: cotangents are divided first, and copied to the channels then.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .base import Net, normal, specimen, tree
from .norm import affine, layernorm, rmsnorm
from .plain import dense, layer


def energy(p: Any, x: jax.Array) -> jax.Array:
    h = layernorm(p["norm"], jnp.tanh(dense(p["embed"], x)))
    h = h + rmsnorm(p["last"], jnp.sin(dense(p["mix"], h)))
    return jnp.sin(h * h[:, :1]).var(-1, ddof=1).sum() + 0.3 * jnp.mean(h**4)


@specimen
def force() -> Net:
    """Minus the gradient of an energy by positions: three norms and a mean of all."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return -jax.grad(energy, 1)(p, x) @ p["out"]

    params = tree(
        embed=layer(3, 8),
        norm=affine(8),
        mix=layer(8, 8),
        last={"scale": (8,)},
        out=(3, 2),
    )
    known = {"exact": False, "narrow": lambda kept: apply, "by_weights": False}
    return Net("force", apply, params, (normal(2, 4, 3),), (8,), **known)


def learner(p: Any, x: jax.Array) -> jax.Array:
    h = rmsnorm(p["norm"], x @ p["embed"])
    return jax.nn.relu(h @ p["up"]) @ p["down"]


@specimen
def fast_weights() -> Net:
    """A step of gradient descent on its own weights, then an answer by the new ones."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        def loss(fast: Any) -> jax.Array:
            return jnp.mean(learner(fast, x) ** 2)

        fast = jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(loss)(p))
        return learner(fast, x)

    params = tree(embed=(3, 6), norm={"scale": (6,)}, up=(6, 7), down=(7, 2))
    known = {"exact": False, "narrow": lambda kept: apply, "by_weights": False}
    return Net("fast_weights", apply, params, (normal(4, 3),), (6, 7), **known)


@specimen
def root_norm() -> Net:
    """The first RMSNorm: a root of a sum is divided by the root of their number."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(dense(p["embed"], x))
        root = jnp.linalg.norm(h, axis=-1, keepdims=True) * h.shape[-1] ** -0.5
        h = h / (root + 0.1)
        total = jnp.square(h - h.mean(-1, keepdims=True)).sum(-1, keepdims=True)
        return h * (jax.lax.rsqrt(total) * h.shape[-1] ** 0.5) @ p["head"]

    params = tree(embed=layer(3, 8), head=(8, 2))
    known = {"exact": False, "narrow": lambda kept: apply}
    return Net("root_norm", apply, params, (normal(4, 3),), (8,), **known)
