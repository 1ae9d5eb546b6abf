"""Kernels of merged networks fitted in closed form, against independent solvers."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import run
from nets import NETS
from test_merge import SPLIT, X, check_each_as_it_was, mlp, mlps, normal, rescaled

import cutjax as cj
from cutjax.errors import DataError
from cutjax.merge import Network
from cutjax.merge.merged import answers


def test_mtz_equals_an_independent_solver():
    networks = mlps(3, 3)
    data = [normal(200 + i, 256, 5) for i in range(8)]
    merged = cj.merge.mtz(
        networks, {}, data, damping=1e-9, rows=1 << 20, progress=False
    )
    x = np.concatenate(data).astype(np.float64)
    read, made = [], []
    for net in networks.values():
        p = jax.tree.map(np.float64, net.params)
        h = np.maximum(x @ p["a"], 0)
        read.append(np.c_[h, np.ones(len(h))])
        made.append(h @ p["b"] + p["c"])
    want = np.linalg.lstsq(np.concatenate(read), np.concatenate(made), rcond=None)[0]
    shared = merged.params["params"]["shared"]
    np.testing.assert_allclose(shared["b"], want[:-1], atol=2e-3)
    np.testing.assert_allclose(shared["c"], want[-1], atol=2e-3)
    # Both read the same x: the first kernel is the plain mean.
    mean = (networks["a"].params["a"] + networks["b"].params["a"]) / 2
    np.testing.assert_allclose(shared["a"], mean, atol=1e-4)


def test_least_squares_equals_an_independent_solver():
    networks = mlps(3, 4)
    data = [normal(300 + i, 256, 5) for i in range(8)]
    merged = cj.merge.least_squares(
        networks, SPLIT, data, damping=1e-9, rows=1 << 20, progress=False
    )
    x = np.concatenate(data)
    p = merged.params["params"]
    shared = np.maximum(x @ p["shared"]["a"], 0) @ p["shared"]["b"] + p["shared"]["c"]
    shared = np.maximum(shared, 0)
    for name, net in networks.items():
        h = np.maximum(x @ p["shared"]["a"], 0) @ p["reads"][name]["b"]
        h = h + np.maximum(x @ p["own"][name]["a"], 0) @ p["own"][name]["b"]
        h = np.maximum(h + p["own"][name]["c"], 0)
        read = np.c_[shared, h, np.ones(len(h))].astype(np.float64)
        want = np.linalg.lstsq(read, np.asarray(mlp(net.params, x)), rcond=None)[0]
        best = read @ want
        got = np.asarray(merged.apply(merged.params, x)[name])
        np.testing.assert_allclose(got, best, atol=2e-2 * np.abs(best).max())


def test_repair_sets_spread_and_mean_to_those_of_the_networks():
    networks = mlps(3, 4)
    data = [normal(400 + i, 256, 5) for i in range(4)]
    merged = cj.merge.repair(networks, {}, data, rows=1 << 20, progress=False)
    plain = cj.merge.average(networks, {}, X)
    x, made = np.concatenate(data), []
    for net in networks.values():
        h = np.maximum(x @ net.params["a"], 0)
        made.append(h @ net.params["b"] + net.params["c"])
    # Of all rows together: wider, by how far apart the networks' means are.
    pooled = np.concatenate(made).std(0)
    spread, mean = (np.mean([way(m, 0) for m in made], 0) for way in (np.std, np.mean))
    assert (pooled / spread > 1.05).any()

    def second(p: Any) -> Any:
        return np.maximum(x @ p["a"], 0) @ p["b"] + p["c"]

    got = second(merged.params["params"]["shared"])
    np.testing.assert_allclose(got.std(0), spread, rtol=1e-3)
    np.testing.assert_allclose(got.mean(0), mean, atol=1e-3)
    averaged = second(plain.params["params"]["shared"]).std(0)
    assert (np.abs(averaged / spread - 1) > 0.05).any()
    answers = merged.apply(merged.params, x)
    for name, net in networks.items():
        own = np.asarray(mlp(net.params, x))
        np.testing.assert_allclose(answers[name].std(0), own.std(0), rtol=1e-2)


@pytest.mark.parametrize(
    "name", ["vgg", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_least_squares_comes_closer_than_the_average(name):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    params = {"one": net.params, "two": rescaled(net.params, 1)}
    networks = {n: Network(net.apply, p, graph) for n, p in params.items()}
    (x,) = net.inputs
    data = [jnp.concatenate([x + 0.1 * normal(i, *x.shape) for i in range(8)])]
    average = cj.merge.average(networks, {}, x)
    fitted = cj.merge.least_squares(networks, {}, data, progress=False)

    def wrong(merged: Any) -> float:
        found, total = run(merged.apply, merged.params, data[0]), 0.0
        for n, p in params.items():
            for task, want in answers(n, run(net.apply, p, data[0])).items():
                total += float(np.mean((found[task] - want) ** 2))
        return total

    assert wrong(fitted) < wrong(average)


@pytest.mark.parametrize("fit", ["least_squares", "mtz", "repair"])
def test_a_smaller_last_batch_is_left_out(fit):
    networks, (a, b) = mlps(3, 4), normal(7, 2, 16, 5)
    fitted = partial(getattr(cj.merge, fit), networks, SPLIT, progress=False)
    found, want = fitted([a, b, a[:7]]), fitted([a, b])
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
    with pytest.raises(DataError, match="batches of no examples"):
        fitted([a[:0]])


def test_a_damping_is_above_0():
    for fit in (cj.merge.least_squares, cj.merge.mtz):
        with pytest.raises(DataError, match=r"damping=-1.0: give a number above 0"):
            fit(mlps(3, 4), {}, [X], damping=-1.0, progress=False)


@pytest.mark.parametrize("name", ["interpolated", "lstm"])
def test_a_network_that_shares_nothing_is_not_fitted_to(name):
    """The shared side is the other's alone, kernels of pinned channels included."""

    def fitted(networks: Any, sharing: Any, inputs: Any) -> Any:
        return cj.merge.least_squares(networks, sharing, [inputs], progress=False)

    check_each_as_it_was(fitted, NETS[name](), "apart")


def test_repair_leaves_channels_as_they_are_that_vary_by_rounding_only():
    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["a"] + p["c"]) @ p["b"]

    nets, ones = {}, jnp.ones((64, 7))
    for i, name in enumerate(("one", "two")):
        shapes = {"a": (7, 9), "c": (9,), "b": (9, 4)}
        p = {k: normal(20 * i + j, *s) for j, (k, s) in enumerate(shapes.items())}
        nets[name] = cj.merge.Network(apply, p, cj.trace(apply, p, ones))
    # Rows that differ in the last bit, as those of a compiled product may.
    data = [jnp.where(normal(60 + i, 64, 7) > 0, 1, 1 + 2e-7) for i in range(4)]
    found = cj.merge.repair(nets, {}, data, progress=False).params["params"]["shared"]
    plain = cj.merge.average(nets, {}, ones).params["params"]["shared"]
    np.testing.assert_array_equal(found["a"], plain["a"])


@pytest.mark.parametrize("fit", [cj.merge.least_squares, cj.merge.mtz])
def test_of_one_batch_some_examples_choose_the_damping(fit):
    networks, x = mlps(3, 4), normal(7, 8, 5)
    whole = fit(networks, SPLIT, [x], progress=False)
    parts = fit(networks, SPLIT, np.split(np.asarray(x), 4), progress=False)
    pairs = zip(*map(jax.tree.leaves, (whole.params, parts.params)), strict=True)
    assert all(jnp.array_equal(a, b) for a, b in pairs)
    usual = fit(networks, SPLIT, [x], damping=1e-3, progress=False)
    pairs = zip(*map(jax.tree.leaves, (whole.params, usual.params)), strict=True)
    assert not all(jnp.allclose(a, b) for a, b in pairs)


def test_a_function_of_whole_batches_is_fitted_to_the_whole_of_one():
    """Its size is written into the function."""

    def apply(params, x):
        return mlp(params, x.reshape(8, 5))

    networks = {
        name: Network(apply, net.params, cj.trace(apply, net.params, X[:8]))
        for name, net in mlps(3, 4).items()
    }
    merged = cj.merge.least_squares(networks, SPLIT, [X[:8]], progress=False)
    assert merged.apply(merged.params, X[:8])["a"].shape == (8, 3)


def test_every_network_has_its_share_in_choosing_a_damping():
    """In whatever order they are named, and however few batches there are."""
    networks = mlps(3, 4)
    turned = dict(reversed(networks.items()))
    data = [normal(i, 6, 5) for i in range(2)]
    one = cj.merge.mtz(networks, {}, data, progress=False)
    other = cj.merge.mtz(turned, {}, data, progress=False)
    pairs = (m.params["params"]["shared"] for m in (one, other))
    for a, b in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
