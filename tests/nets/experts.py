"""Mixtures of experts, and low-rank adapters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .base import Net, normal, specimen, tree
from .plain import dense, layer


def experts(n: int) -> Any:
    """Stream 6 between an input of 5 and an output of 2; `n` experts of 7."""
    return tree(
        embed=layer(5, 6),
        router=layer(6, n),
        up=(n, 6, 7),
        down=(n, 7, 6),
        head=layer(6, 2),
    )


def mixed(p: Any, x: jax.Array, weights: jax.Array) -> jax.Array:
    """Every expert on every token, weighed: [token, expert] over [token, d]."""
    h = jax.nn.relu(jnp.einsum("nd,edf->nef", x, p["up"]))
    return jnp.einsum("ne,nef,efd->nd", weights, h, p["down"])


@specimen
def moe_sigmoid() -> Net:
    """Independent gates: whole experts (4) are a group, widths (7), stream (6)."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        x = x + mixed(p, x, jax.nn.sigmoid(dense(p["router"], x)))
        return dense(p["head"], x)

    known = {"by_weights": False}
    return Net("moe_sigmoid", apply, experts(4), (normal(3, 5),), (4, 6, 7), **known)


@specimen
def moe_top2() -> Net:
    """The router's columns are ranked, so all stay; the experts (4) need not.

    With fewer columns the tokens would go elsewhere. `one_hot` compares the choice with
    the experts' numbers, which a cut keeps: what goes to an expert that is gone finds
    none, as in the masked net. Widths within (7), stream (6).
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        logits = dense(p["router"], x)
        best, index = lax.top_k(logits, 2)
        chosen = jax.nn.one_hot(index, logits.shape[-1])
        weights = jnp.einsum("nk,nke->ne", jax.nn.softmax(best), chosen)
        return dense(p["head"], x + mixed(p, x, weights))

    sizes, inputs = (4, 6, 7), (normal(3, 5),)
    return Net("moe_top2", apply, experts(4), inputs, sizes, by_weights=False)


@specimen
def moe_switch() -> Net:
    """Each expert has room for 3 tokens; the first come are served, in one einsum.

    What comes back is weighed by the router's own columns, which are ranked: the
    experts stay with them. Widths within (7), stream (6).
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        logits = dense(p["router"], x)
        chosen = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
        place = (jnp.cumsum(chosen, axis=0) - 1) * chosen
        room = jax.nn.one_hot(place.sum(-1).astype(int), 3)
        dispatch = jnp.einsum("ne,nc->nec", chosen, room)
        inputs = jnp.einsum("nec,nd->ecd", dispatch, x)
        h = jax.nn.relu(jnp.einsum("ecd,edf->ecf", inputs, p["up"]))
        outputs = jnp.einsum("ecf,efd->ecd", h, p["down"])
        weights = dispatch * jax.nn.softmax(logits)[..., None]
        return dense(p["head"], x + jnp.einsum("nec,ecd->nd", weights, outputs))

    known = {"by_weights": False}
    return Net("moe_switch", apply, experts(4), (normal(4, 5),), (6, 7), **known)


def ragged() -> Net:
    """Tokens sorted by their expert, then one ragged product: only widths are free.

    No specimen: JAX cannot vmap a ragged product.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x)
        expert = jnp.argmax(dense(p["router"], x), axis=-1)
        order = jnp.argsort(expert)
        sizes = jnp.bincount(expert, length=p["up"].shape[0])
        h = jax.nn.relu(lax.ragged_dot(x[order], p["up"], sizes))
        y = lax.ragged_dot(h, p["down"], sizes)
        return dense(p["head"], x + y[jnp.argsort(order)])

    return Net("ragged", apply, experts(3), (normal(4, 5),), (6, 7))


@specimen
def lora() -> Net:
    """Each rank is a group of its own (3 and 2); hidden 7, merged or side by side."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        first, last = p["first"], p["last"]
        merged = first["kernel"] + 0.5 * (first["a"] @ first["b"])
        x = jax.nn.gelu(x @ merged + first["bias"])
        return dense(last, x) + (x @ last["a"]) @ last["b"]

    params = tree(
        first={**layer(5, 7), "a": (5, 3), "b": (3, 7)},
        last={**layer(7, 4), "a": (7, 2), "b": (2, 4)},
    )
    known = {"by_weights": False}
    return Net("lora", apply, params, (normal(3, 5),), (2, 3, 7), **known)
