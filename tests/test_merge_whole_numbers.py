"""Leaves of merged networks that are no floats: masks, quantised weights, keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cutjax as cj
from cutjax.errors import KeepError, MismatchError
from cutjax.merge import Network

X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 5)), jnp.float32)
ORDER = np.random.default_rng(1).permutation(8)


def masked(w, x):
    return (jnp.tanh(x @ w["a"]) * w["m"]) @ w["b"]


def quantised(w, x):
    return jnp.tanh(x @ (w["q"].astype(jnp.float32) * w["s"])) @ w["b"]


def parameters(seed: int):
    rng = np.random.default_rng(seed)
    floats = {"a": (5, 8), "s": (8,), "b": (8, 2)}
    found = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in floats.items()}
    whole = jnp.asarray(rng.integers(-9, 9, (5, 8)), jnp.int8)
    return {**found, "m": jnp.asarray(rng.random(8) > 0.4), "q": whole}


def network(apply, params):
    return Network(apply, params, cj.trace(apply, params, X[:1]))


@pytest.mark.parametrize("fit", [cj.merge.average, cj.merge.least_squares])
@pytest.mark.parametrize("apply", [masked, quantised])
def test_whole_numbers_go_where_their_channels_go(apply, fit):
    params = parameters(0)
    graph = cj.trace(apply, params, X[:1])
    moved = cj.merge.permute(params, graph, {g.name: ORDER for g in graph.free})
    networks = {"one": network(apply, moved), "other": network(apply, params)}
    back = np.argsort(ORDER)
    orders = {
        "one": {g.name: back for g in graph.free},
        "other": {g.name: np.arange(8) for g in graph.free},
    }
    sharing = cj.merge.from_permutations(graph, orders)
    given = {"progress": False} if fit is cj.merge.least_squares else {}
    merged = fit(networks, sharing, [X] if given else X, **given)
    for out in merged.apply(merged.params, X).values():
        np.testing.assert_allclose(out, apply(params, X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("apply", [masked, quantised])
def test_whole_numbers_that_differ_are_not_shared(apply):
    networks = {n: network(apply, parameters(i)) for i, n in enumerate("ab")}
    with pytest.raises(MismatchError, match="no means are taken, and that of 'b' diff"):
        cj.merge.average(networks, {}, X)


def test_whole_numbers_are_shared_one_to_one():
    networks = {n: network(masked, parameters(0)) for n in "ab"}
    to = np.array([0, 0, 1, 2, 3, 4, 5, 6])
    sharing = {g.name: dict.fromkeys("ab", to) for g in networks["a"].graph.free}
    with pytest.raises(KeepError, match="several channels of 'a' go into one"):
        cj.merge.average(networks, sharing, X)


def test_random_keys_that_only_training_reads_stay():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = (nnx.Linear(*s, rngs=rngs) for s in ((5, 8), (8, 2)))
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.b(self.drop(self.norm(nnx.relu(self.a(x)))))

    nets, trains = {}, {}
    for seed, name in enumerate("ab"):
        model = Net(nnx.Rngs(seed))
        model.train()
        train, state = nnx.split(model)
        model.eval()
        graph_def, state = nnx.split(model)

        def run(p, x, graph_def=graph_def):
            return nnx.merge(graph_def, p)(x)

        def run_train(p, x, graph_def=train):
            net = nnx.merge(graph_def, p)
            return net(x), nnx.state(net, nnx.BatchStat)

        graph = cj.trace(run, state, X[:1])
        nets[name] = Network(run, state, graph)
        trains[name] = Network(run_train, state, graph)
    merged = cj.merge.average(nets, {}, X[:1])
    train = cj.merge.train_apply(trains, {})
    _, updates = train(merged.params, X)
    assert updates["norm"]["shared"].keys() >= {"mean/value", "var/value"}
    new = cj.recalibrate(train, merged.params, [X], progress=False)
    assert jax.tree.structure(new) == jax.tree.structure(merged.params)
