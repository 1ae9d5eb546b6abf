"""Arrays with channels of two groups: shared alike, or refused; never in part."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.merge import OWN, Network


def tokens(p: Any, x: Any) -> Any:
    """Channels are mixed, then tokens, then channels: `bsc` has both groups."""
    h = jax.nn.relu(x @ p["a"])
    y = jax.nn.relu(jnp.einsum("btc,ts->bsc", h, p["m"]))
    return jnp.einsum("bsc,co->bso", y, p["b"]).sum(1)


def outer(p: Any, x: Any) -> Any:
    """A group across itself."""
    h = jax.nn.relu(x @ p["a"])
    return jnp.einsum("btc,btd->bcd", h, h).reshape(len(x), -1) @ p["b"]


def summed(p: Any, x: Any) -> Any:
    """Tokens that are a group, beside those of the input, which are none."""
    made = jnp.einsum("bsc,st->btc", x, p["m"])
    h = jax.nn.relu(jnp.concatenate([x, made], 1) @ p["a"])
    return jnp.tanh(h.sum(-1)) @ p["b"]


def mixed(p: Any, x: Any) -> Any:
    """The same, read by a kernel."""
    made = jnp.einsum("bsc,st->btc", x, p["m"])
    h = jax.nn.relu(jnp.concatenate([x, made], 1) @ p["a"])
    return jnp.einsum("btc,tco->bo", jnp.tanh(h @ p["c"]), p["b"])


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


X = normal(9, 5, 4, 3)
CASES = {
    tokens: {"a": normal(0, 3, 8), "m": normal(1, 4, 6), "b": normal(2, 8, 5)},
    outer: {"a": normal(0, 3, 4), "b": normal(1, 16, 2)},
    summed: {"a": normal(0, 3, 8), "m": normal(1, 4, 5), "b": normal(2, 9, 2)},
    mixed: {
        **{"a": normal(0, 3, 8), "m": normal(1, 4, 5), "c": normal(2, 8, 4)},
        "b": normal(3, 9, 4, 2),
    },
}
KINDS = {
    "shared": lambda n: np.arange(n),
    "own": lambda n: np.full(n, OWN),
    "half": lambda n: np.where(np.arange(n) < n // 2, np.arange(n), OWN),
}


@pytest.mark.parametrize("apply", CASES, ids=lambda f: f.__name__)
def test_what_is_not_refused_is_right(apply):
    """Of equal networks, nothing of which reads the other's own, nothing is lost."""
    params = CASES[apply]
    graph = cj.trace(apply, params, X)
    networks = {name: Network(apply, params, graph) for name in ("one", "two")}
    want, passed = apply(params, X), []
    for kinds in itertools.product(KINDS, repeat=len(graph.free)):
        sharing = {
            g.name: dict.fromkeys(networks, KINDS[kind](g.size))
            for g, kind in zip(graph.free, kinds, strict=True)
        }
        try:
            merged = cj.merge.average(networks, sharing, X)
        except KeepError as error:
            assert "test_merge_crossed.py" in str(error) and "whole" in str(error)
            continue
        for found in merged.apply(merged.params, X).values():
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
        passed.append({*kinds})
    assert passed == [{"shared"}, {"own"}]


def test_a_kernel_that_mixes_pinned_axes_is_stored_and_fitted_once():
    """Of the network's own side nothing is left to mix: no copy, no fit to no rows."""
    net = NETS["gated_mlp"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    networks = {n: Network(net.apply, net.params, graph) for n in ("one", "two")}
    (x,) = net.inputs
    merged = cj.merge.least_squares(networks, {}, [x], progress=False)
    p = merged.params["params"]
    assert "mix" in p["shared"]
    assert all("mix" not in own for own in p.get("own", {}).values())
    for found in merged.apply(merged.params, x).values():
        np.testing.assert_allclose(found, net.apply(net.params, x), atol=1e-4)
