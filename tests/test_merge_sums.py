"""Sums over channels shared in part: norms and means against loops by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import run
from test_merge import normal

import cutjax as cj
from cutjax.merge import DROPPED, OWN, Network, own


def layer_norm(h: Any) -> Any:
    mean = jnp.mean(h, -1, keepdims=True)
    var = jnp.mean(h**2, -1, keepdims=True) - mean**2
    return (h - mean) * jax.lax.rsqrt(var + 1e-3)


def rms_norm(h: Any) -> Any:
    return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-3)


def averaged(h: Any) -> Any:
    """The mean by a product with ones, divided by their number."""
    return h - (h @ jnp.ones(h.shape[-1]))[..., None] / h.shape[-1]


def unit(h: Any) -> Any:
    return h / jnp.sqrt(jnp.sum(h**2, -1, keepdims=True))


X = normal(0, 7, 5)
SLOTS = {
    "whole": {n: np.arange(6) for n in "ab"},
    "own": {n: np.full(6, OWN) for n in "ab"},
    "in part": {"a": np.array([0, 1, 2, OWN, OWN, DROPPED]), "b": np.arange(6)},
    "apart": {"a": np.full(6, OWN), "b": np.arange(6)},
    "several in one": {"a": np.array([0, 0, 1, 2, OWN, OWN]), "b": np.arange(6)},
}


def by_hand(norm: Callable, p: Any, common: Any, slots: Any) -> Any:
    """What a network makes: its norm is over all of its channels, C's over C's."""
    full = np.asarray(X @ p["a"], np.float64)
    shared = np.asarray(X @ common, np.float64)
    mine = [shared[:, s] if s >= 0 else full[:, i] for i, s in enumerate(slots)]
    there = [i for i, s in enumerate(slots) if s != DROPPED]
    normed = np.array(norm(np.stack([mine[i] for i in there], -1)))
    if shared.shape[1]:
        of_shared = np.array(norm(jnp.asarray(shared)))
    total = 0.0
    for at, i in enumerate(there):
        value = of_shared[:, slots[i]] if slots[i] >= 0 else normed[:, at]
        total = total + value[:, None] * np.asarray(p["b"])[i]
    return total


def check_norm(norm: Callable, case: str) -> None:
    def apply(p: Any, x: Any) -> Any:
        return norm(x @ p["a"]) @ p["b"]

    slots = SLOTS[case]
    params = {
        n: {"a": normal(10 * i, 5, 6), "b": normal(10 * i + 1, 6, 2)}
        for i, n in enumerate("ab")
    }
    networks = {n: Network(apply, p, cj.trace(apply, p, X)) for n, p in params.items()}
    merged = cj.merge.average(networks, {"a:1": slots}, X)
    found = run(merged.apply, merged.params, X)
    common = np.zeros((5, 6))
    there = sorted({s for to in slots.values() for s in to if s >= 0})
    for c in there:
        who = [(n, i) for n, to in slots.items() for i, s in enumerate(to) if s == c]
        common[:, c] = np.mean([np.asarray(params[n]["a"])[:, i] for n, i in who], 0)
    rank = {c: k for k, c in enumerate(there)}
    for name, p in params.items():
        to = [rank.get(int(s), int(s)) for s in slots[name]]
        want = by_hand(norm, p, common[:, there], to)
        np.testing.assert_allclose(found[name], want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", [layer_norm, rms_norm, averaged, unit])
@pytest.mark.parametrize("case", SLOTS)
def test_a_norm_is_over_all_channels_of_a_network(norm, case):
    check_norm(norm, case)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("is_scale", lambda *_: False),  # its own channels alone are counted
        ("summands", lambda shared, own, picked: own),  # and summed
        ("mine", lambda axis, slots, common, free: np.arange(3)),  # or once each
    ],
)
def test_a_norm_over_less_is_found_out(monkeypatch, name, broken):
    monkeypatch.setattr(own, name, broken)
    with pytest.raises(AssertionError):
        check_norm(layer_norm, "several in one")


MEANS = {
    "mean": lambda h: h.mean(-1, keepdims=True),
    "var": lambda h: h.var(-1, keepdims=True),
    "sum": lambda h: jnp.tanh(h).sum(-1, keepdims=True),
    "product": lambda h: h @ np.full((4, 1), 0.25, np.float32),
    "jitted": lambda h: jax.jit(lambda h: h.mean(-1, keepdims=True))(h),
}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("kept", [0, 4])
def test_what_is_made_of_a_mean_is_as_it_was(name, kept):
    """Whether its channels are all shared or all own, and whatever reads it."""

    def apply(p: Any, x: Any) -> Any:
        mean = MEANS[name](jax.nn.relu(x @ p["a"]))
        return {"mean": mean, "gated": (jnp.tanh(x @ p["b"]) * mean) @ p["c"]}

    shapes = {"a": (5, 4), "b": (5, 6), "c": (6, 2)}
    p = {k: normal(i, *s) for i, (k, s) in enumerate(shapes.items())}
    net = Network(apply, p, cj.trace(apply, p, X))
    slots = {"a:1": np.where(np.arange(4) < kept, np.arange(4), OWN)}
    slots["b:1"] = np.full(6, OWN)
    sharing = {g: dict.fromkeys("ab", to) for g, to in slots.items()}
    merged = cj.merge.average(dict.fromkeys("ab", net), sharing, X)
    found = run(merged.apply, merged.params, X)
    for task, want in apply(p, X).items():
        np.testing.assert_allclose(found[f"b/{task}"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [2, 3])
def test_a_merged_mean_counts_what_is_left_after_a_cut(kept):
    """The number that divides a sum over shared and own channels shrinks with both."""

    def apply(p: Any, x: Any) -> Any:
        return layer_norm(x @ p["a"]) @ p["b"]

    p = {"a": normal(1, 5, 6), "b": normal(2, 6, 2)}
    net = Network(apply, p, cj.trace(apply, p, X))
    slots = np.array([0, 1, 2, OWN, OWN, OWN])
    merged = cj.merge.average(
        dict.fromkeys("ab", net), {"a:1": dict.fromkeys("ab", slots)}, X
    )
    graph = cj.trace(merged.apply, merged.params, X)
    keep = {g.name: np.arange(g.size) < kept for g in graph.free}
    small, params = cj.cut(merged.apply, merged.params, graph, keep)
    narrow = {"a": p["a"][:, [*range(kept), *range(3, 3 + kept)]]}
    narrow["b"] = p["b"][np.array([*range(kept), *range(3, 3 + kept)])]
    less = Network(apply, narrow, cj.trace(apply, narrow, X))
    to = np.array([*range(kept), *[OWN] * kept])
    want = cj.merge.average(
        dict.fromkeys("ab", less), {"a:1": dict.fromkeys("ab", to)}, X
    )
    for name, out in run(small, params, X).items():
        np.testing.assert_allclose(out, want.apply(want.params, X)[name], atol=1e-4)


@pytest.mark.parametrize("name", ["mean", "sum", "product", "jitted"])
def test_a_mean_counts_channels_that_went_into_one(name):
    """All channels of both are shared, two of one network by twos."""

    def apply(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["a"])
        return {"mean": MEANS[name](h), "read": h @ p["b"]}

    few = {"a": normal(1, 5, 4), "b": normal(2, 4, 2)}
    twice = np.array([0, 0, 2, 2])
    double = {"a": few["a"][:, twice], "b": few["b"]}
    graph = cj.trace(apply, few, X)
    networks = {"p": Network(apply, double, graph), "q": Network(apply, few, graph)}
    sharing = {"a:1": {"p": twice, "q": np.arange(4)}}
    merged = cj.merge.average(networks, sharing, X)
    found = run(merged.apply, merged.params, X)
    for network, p in {"p": double, "q": few}.items():
        want = apply(p, X)["mean"]
        np.testing.assert_allclose(found[f"{network}/mean"], want, rtol=1e-4)
