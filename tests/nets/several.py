"""Sets, graphs, and nets with several inputs, outputs or ways through."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .base import Net, linen, normal, specimen, tree
from .plain import dense, layer


class PointNet(nn.Module):
    """Points are turned by a matrix that the net computes; a maximum runs over them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        turn = nn.Dense(9)(nn.relu(nn.Dense(5)(x)).max(1)).reshape(-1, 3, 3)
        x = nn.relu(nn.Dense(6)(x @ turn))
        y = nn.relu(nn.Dense(7)(x)).max(1)
        both = [x, jnp.broadcast_to(y[:, None], (*x.shape[:2], y.shape[-1]))]
        parts = nn.Dense(2)(nn.relu(nn.Dense(8)(jnp.concatenate(both, -1))))
        return {"kind": nn.Dense(4)(y), "parts": parts}


@specimen
def pointnet() -> Net:
    """The 9 numbers are 3 x 3: the inputs' coordinates stay, the turned ones (3) go.

    Features 5 of the turn, 6, 7 of the points, 8 of the parts.
    """
    x, tasks = normal(2, 4, 3), ("kind", "parts")
    return linen("pointnet", PointNet(), x, expected=(3, 5, 6, 7, 8), tasks=tasks)


@specimen
def graph_network() -> Net:
    """Messages along edges given as data, summed and averaged where they arrive.

    Two rounds share their weights: nodes 6, messages 5, embedded edges 4.
    """

    def apply(p: Any, x: jax.Array, edges: jax.Array, ends: jax.Array) -> jax.Array:
        nodes, edges = dense(p["node"], x), dense(p["edge"], edges)
        start, stop = ends[:, 0], ends[:, 1]
        n = nodes.shape[0]
        for _ in range(2):
            seen = jnp.concatenate([nodes[start], nodes[stop], edges], -1)
            message = jax.nn.relu(dense(p["message"], seen))
            total = jax.ops.segment_sum(message, stop, n)
            degree = jnp.zeros((n, 1)).at[stop].add(1.0)
            nodes = nodes + dense(p["update"], total / jnp.maximum(degree, 1.0))
        return dense(p["head"], nodes)

    params = tree(
        node=layer(3, 6),
        edge=layer(2, 4),
        message=layer(6 + 6 + 4, 5),
        update=layer(5, 6),
        head=layer(6, 2),
    )
    ends = np.random.default_rng(0).integers(0, 5, (7, 2))
    inputs = (normal(5, 3), normal(7, 2, seed=1), jnp.asarray(ends))
    return Net("graph_network", apply, params, inputs, (4, 5, 6))


class TwoEncoders(nn.Module):
    """A picture and a sentence, joined; each task reads another part."""

    @nn.compact
    def __call__(self, picture: jax.Array, words: jax.Array) -> dict[str, jax.Array]:
        a = nn.relu(nn.Conv(4, (3, 3))(picture)).mean((1, 2))
        b = nn.Embed(9, 5)(words).mean(1)
        joint = nn.relu(nn.Dense(7)(jnp.concatenate([a, b], -1)))
        match = (nn.Dense(6)(a) * nn.Dense(6)(b)).sum(-1)
        return {"answer": nn.Dense(3)(joint), "caption": nn.Dense(2)(b), "match": match}


@specimen
def two_encoders() -> Net:
    """Encoders 4 and 5, which a product ties after a projection each: 6; joint 7."""
    words = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 3)))
    inputs, tasks = (normal(2, 4, 4, 3), words), ("answer", "caption", "match")
    known = {"expected": (4, 5, 6, 7), "tasks": tasks, "by_weights": False}
    return linen("two_encoders", TwoEncoders(), *inputs, **known)


class Film(nn.Module):
    """A condition scales and shifts feature maps (FiLM), from halves of one layer."""

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        c = nn.silu(nn.Dense(4)(condition))
        x = nn.Conv(6, (3, 3))(x)
        for _ in range(2):
            scale, shift = jnp.split(nn.Dense(12)(c)[:, None, None], 2, axis=-1)
            x = x + nn.relu(nn.Conv(6, (3, 3))(x) * (1 + scale) + shift)
        return nn.Dense(2)(x.mean((1, 2)))


@specimen
def film() -> Net:
    """Scale, shift, map and stream are one group of 6; the condition's 4."""
    inputs = (normal(2, 4, 4, 3), normal(2, 3, seed=1))
    return linen("film", Film(), *inputs, expected=(4, 6))


@specimen
def switch() -> Net:
    """The data choose one of three ways through, one of which changes nothing.

    All write what the third reads: 6; inside of the two, 4 and 5.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = dense(p["first"], x)

        def way(name: str) -> Any:
            inner, outer = p[name]["up"], p[name]["down"]
            return lambda h: dense(outer, jax.nn.relu(dense(inner, h)))

        which = jnp.argmax(x.sum(0))
        h = lax.switch(which, [way("a"), way("b"), lambda h: h], h)
        return dense(p["last"], h)

    params = tree(
        first=layer(3, 6),
        a={"up": layer(6, 4), "down": layer(4, 6)},
        b={"up": layer(6, 5), "down": layer(5, 6)},
        last=layer(6, 2),
    )
    return Net("switch", apply, params, (normal(2, 3),), (4, 5, 6))
