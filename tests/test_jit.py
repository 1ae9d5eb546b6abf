"""Programs that cutjax compiles in its own way can be part of the user's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax._jit import jit
from cutjax.saliency.gather import gather


@pytest.fixture(autouse=True)
def options(monkeypatch):
    """Without the word of XLA_FLAGS there are compiler options, as users have them."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.parametrize("quick", [False, True])
def test_it_works_within_transformations(quick):
    fn = jit(lambda w, x: w * x**2, quick=quick)
    assert fn(2.0, 3.0) == 18
    assert jax.jit(lambda x: fn(2.0, x))(3.0) == 18
    assert jax.jit(lambda x: x + fn(2.0, 3.0))(1.0) == 19  # of what is known
    assert jax.grad(fn, 1)(2.0, 3.0) == 12
    np.testing.assert_array_equal(
        jax.vmap(fn, (None, 0))(2.0, jnp.arange(3.0)), [0, 2, 8]
    )
    assert fn.lower(2.0, 3.0).compile()(2.0, 3.0) == 18


def test_scores_and_subsets_work_under_jit():
    def net(w, x):
        return {"t": jnp.tanh(x @ w["a"]) @ w["b"]}

    rng = np.random.default_rng(0)
    w = {
        "a": jnp.asarray(rng.normal(size=(4, 6))),
        "b": jnp.asarray(rng.normal(size=(6, 2))),
    }
    x, graph = jnp.ones((8, 4)), cj.trace(net, w, jnp.ones((1, 4)))
    criteria = {"taylor": cj.criteria.ALL["taylor"]()}

    def total(w, x):
        data = [(x, {"t": jnp.zeros((8, 2))})]
        losses = {"t": lambda out, y: ((out - y) ** 2).mean()}
        given = net, w, graph, losses, data
        return gather(*given, criteria=criteria, progress=False).total

    for a, b in zip(
        *map(jax.tree.leaves, (jax.jit(total)(w, x), total(w, x))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    networks = {n: cj.merge.Network(net, w, graph) for n in "ab"}
    merged = cj.merge.average(networks, {}, x[:1])
    for subset in (programs := cj.merge.programs(merged, x[:1])):
        run = programs[subset]
        held = run.take(merged.params)
        got = jax.jit(lambda held, x, run=run: run(held, x))(held, x)
        for a, b in zip(*map(jax.tree.leaves, (got, run(held, x))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
