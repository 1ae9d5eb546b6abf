"""Groups that only means read are gated there as the cut does, and score."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import close
from nets.base import normal

import cutjax as cj

X = normal(5, 3)
P = {"a": normal(4, 3, 8, seed=1), "b": normal(4, 8, 6, seed=2)}
KEPT = np.array([1.0, 0.0, 1.0, 1.0], np.float32)


def made(p: Any, x: jax.Array) -> jax.Array:
    """What each member makes, [4, positions, 6]."""
    return jax.vmap(lambda a, b: jnp.tanh(jnp.tanh(x @ a) @ b))(p["a"], p["b"])


def weighted(h: jax.Array, g: Any, less: float = 0) -> jax.Array:
    return jnp.tensordot(g, h, 1) / (jnp.sum(g) - less)


# By name: the end of the net, and the same by hand with a gate per member.
ENDS: dict[str, Any] = {
    "mean": (lambda h: h.mean(0), weighted),
    "summed by hand": (lambda h: h.sum(0) / 4, weighted),
    "divided before": (lambda h: (h / 4).sum(0), weighted),
    "root": (
        lambda h: jnp.sqrt((h**2).sum(0)) / 2,
        lambda h, g: jnp.sqrt(weighted(h**2, g)),
    ),
    "unbiased": (
        lambda h: h.var(0, ddof=1),
        lambda h, g: weighted((h - weighted(h, g)) ** 2, g, 1),
    ),
    "of positions too": (lambda h: h.mean((0, 1)), lambda h, g: weighted(h, g).mean(0)),
}


@pytest.mark.parametrize("how", ENDS)
def test_members_are_weighted_by_their_gates(how: str) -> None:
    end, by_hand = ENDS[how]

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return end(made(p, x))

    graph = cj.trace(apply, P, X)
    gated = cj.gate(apply, graph)
    for g in (np.ones(4, np.float32), KEPT, np.array([1.0, 0.5, 0.8, 1.2], np.float32)):
        close(gated({"a:0": jnp.asarray(g)}, P, X), by_hand(made(P, X), g))
    small, params = cj.cut(apply, P, graph, {"a:0": KEPT > 0})
    close(gated({"a:0": jnp.asarray(KEPT)}, P, X), small(params, X))


@pytest.mark.parametrize("name", ["joint", "taylor", "fisher", "gram"])
def test_members_that_differ_score_more(name: str) -> None:
    """Two members that make the mean of all are not missed; the others are."""
    shift = np.array([1.0, 0.0, 0.0, -1.0], np.float32)[:, None, None]
    params = {"a": np.repeat(P["a"][:1], 4, 0), "b": P["b"][:1] * (1 + 0.5 * shift)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("bi,eij,ejk->ebk", x, p["a"], p["b"]).mean(0)

    graph = cj.trace(apply, params, X)
    loss = {"output": lambda out, y: ((out - y) ** 2).mean()}
    data = [(X, {"output": jnp.zeros((5, 6))})]
    scores = cj.saliency(
        apply, params, graph, loss, data, criterion=name, progress=False
    )["output"]["b:0"]
    if name == "gram":  # never falling along its order: those that go first
        assert scores[[1, 2]].max() <= scores[[0, 3]].min() + 1e-7 and scores.max() > 0
    else:
        assert scores[[1, 2]].max() < 0.01 * scores[[0, 3]].min()


def test_means_that_normalise_are_not_gated() -> None:
    params = {"a": P["a"][0], "b": P["b"][0]}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["a"])
        return (h - h.mean(-1, keepdims=True)) @ p["b"]

    g = np.arange(8, dtype=np.float32)
    h = jnp.tanh(X @ params["a"])
    want = ((h - h.mean(-1, keepdims=True)) * g) @ params["b"]
    gated = cj.gate(apply, cj.trace(apply, params, X))
    close(gated({"a:1": jnp.asarray(g)}, params, X), want)
