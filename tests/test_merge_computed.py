"""Heads whose kernels are computed from parameters stay each network's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.merge import Network

ORDER = np.array([4, 2, 5, 0, 1, 3])
GROUP = "trunk:1"

KERNELS = {
    "plain": lambda w: w["b"],
    "unit columns": lambda w: w["b"] / jnp.linalg.norm(w["b"], axis=0),
    "unit rows": lambda w: w["b"] / jnp.linalg.norm(w["b"], axis=1, keepdims=True),
    "one norm": lambda w: w["b"] / jnp.sqrt((w["b"] ** 2).sum()),
    "centred": lambda w: w["b"] - w["b"].mean(0),
    "masked": lambda w: w["b"] * (w["m"] > 0),
    "low rank": lambda w: w["u"] @ w["v"],
    "adapted": lambda w: w["b"] + w["u"] @ w["v"],
    "rounded": lambda w: w["b"] + jax.lax.stop_gradient(jnp.round(w["b"]) - w["b"]),
    "half": lambda w: w["b"].astype(jnp.bfloat16).astype(jnp.float32),
    "shifted": lambda w: w["b"] * 0.5 + 0.1,
}


def function(kernel):
    return lambda w, x: jnp.tanh(x @ w["trunk"]) @ kernel(w) + w["c"]


def parameters(seed: int, classes: int = 2):
    shapes = {"trunk": (4, 6), "b": (6, classes), "m": (6, classes), "u": (6, 3)}
    shapes |= {"v": (3, classes), "c": (classes,)}
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


X = jnp.asarray(np.random.default_rng(9).normal(size=(40, 4)), jnp.float32)


def pair(apply, classes: int = 2):
    """Two networks of one trunk, the second in another order; heads of their own."""
    one, other = parameters(0), parameters(1, classes)
    other = {**other, "trunk": one["trunk"][:, ORDER]}
    return {
        name: Network(apply, params, cj.trace(apply, params, X[:1]))
        for name, params in (("one", one), ("other", other))
    }


def in_order(networks):
    free = [g.name for g in networks["one"].graph.free]
    orders = {
        n: {g: np.arange(networks[n].graph[g].size) for g in free} for n in networks
    }
    orders["other"][GROUP] = np.argsort(ORDER)
    return cj.merge.from_permutations(networks["one"].graph, orders)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_head_is_its_networks_own_however_its_kernel_is_computed(kernel, classes):
    apply = function(KERNELS[kernel])
    networks = pair(apply, classes)
    merged = cj.merge.average(networks, in_order(networks), X[:1])
    answers = jax.jit(merged.apply)(merged.params, X)
    for name, net in networks.items():
        want = apply(net.params, X)
        np.testing.assert_allclose(answers[name], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fit", [cj.merge.least_squares, cj.merge.mtz])
@pytest.mark.parametrize("kernel", ["unit columns", "half"])
def test_fits_leave_such_heads_what_they_were(fit, kernel):
    apply = function(KERNELS[kernel])
    networks = pair(apply)
    merged = fit(networks, in_order(networks), [X], progress=False)
    for name, net in networks.items():
        want = apply(net.params, X)
        got = merged.apply(merged.params, X)[name]
        np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02)


def test_channels_of_its_own_read_shared_ones_by_a_computed_kernel():
    def apply(w, x):
        kernel = w["k"] / jnp.linalg.norm(w["k"], axis=0)
        return jnp.tanh(jnp.tanh(x @ w["trunk"]) @ kernel) @ w["h"]

    rng = np.random.default_rng(3)
    more = [
        {
            "k": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32),
            "h": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
        }
        for _ in range(2)
    ]
    one = {"trunk": parameters(0)["trunk"], **more[0]}
    other = {"trunk": one["trunk"][:, ORDER], **more[1]}
    networks = {
        name: Network(apply, params, cj.trace(apply, params, X[:1]))
        for name, params in (("one", one), ("other", other))
    }
    orders = in_order(networks)
    sharing = {**orders, "k:1": {n: np.full(5, cj.merge.OWN) for n in networks}}
    merged = cj.merge.average(networks, sharing, X[:1])
    for name, net in networks.items():
        got = merged.apply(merged.params, X)[name]
        np.testing.assert_allclose(got, apply(net.params, X), rtol=1e-4, atol=1e-5)


def test_what_a_computed_kernel_reads_is_shared_one_to_one():
    networks = pair(function(KERNELS["unit columns"]))
    to = np.array([0, 0, 1, 2, 3, 4])
    sharing = {GROUP: {name: to for name in networks}}
    with pytest.raises(KeepError, match="'b', so 'trunk:1', which it reads, can only"):
        cj.merge.average(networks, sharing, X[:1])


def test_a_computed_kernel_that_reads_inputs_too_is_refused_where_it_shares():
    def apply(w, x):
        both = jnp.concatenate([jnp.tanh(x @ w["trunk"]), x], 1)
        return both @ (w["k"] / jnp.linalg.norm(w["k"], axis=0))

    rng, networks = np.random.default_rng(0), {}
    for name in ("one", "other"):
        head = jnp.asarray(rng.normal(size=(10, 2)), jnp.float32)
        params = {"trunk": parameters(0)["trunk"], "k": head}
        networks[name] = Network(apply, params, cj.trace(apply, params, X[:1]))
    with pytest.raises(KeepError, match="'k', so 'trunk:1', which it reads beside"):
        cj.merge.average(networks, {}, X[:1])
    graph = networks["one"].graph
    apart = cj.merge.until(graph, [*networks], {}, [])
    merged = cj.merge.average(networks, apart, X[:1])
    for name, net in networks.items():
        got = merged.apply(merged.params, X)[name]
        np.testing.assert_allclose(got, apply(net.params, X), rtol=1e-5, atol=1e-6)


def test_networks_that_would_answer_alike_are_named():
    def apply(w, x):
        return -((jnp.tanh(x @ w["trunk"])[:, None] - w["b"].T[None]) ** 2).sum(-1)

    networks = pair(apply)
    with pytest.warns(UserWarning, match="'one', 'other' keep no parameter of their"):
        cj.merge.average(networks, in_order(networks), X[:1])
