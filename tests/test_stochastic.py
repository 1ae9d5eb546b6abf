"""Trained gates: penalties by integration and sampling, toys, cutting them along."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax import stochastic
from cutjax.errors import BudgetError, KeepError
from cutjax.stochastic import straight
from cutjax.stochastic.base import at_least_one

KINDS = {
    "vib": stochastic.vib(),
    "hard_concrete": stochastic.hard_concrete(),
    "threshold": stochastic.straight_threshold(),
    "topk": stochastic.straight_topk(0.5),
}


def of(name: str) -> tuple[Any, cj.Graph]:
    net = NETS[name]()
    return net, cj.trace(net.apply, net.params, *net.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_start_open_and_fit_the_graph(kind):
    _, graph = of("mlp_tasks")
    gates = KINDS[kind]
    state = gates.init(jax.random.key(0), graph)
    sizes = {g.name: (g.size,) for g in graph.free}
    for values in (gates.sample(jax.random.key(1), state), gates.mean(state),
                   gates.penalty(state), gates.keep(state)):  # fmt: skip
        assert {name: v.shape for name, v in values.items()} == sizes
    graph.check_keep(gates.keep(state))
    if kind != "topk":
        assert all(mask.all() for mask in gates.keep(state).values())
        assert all((m > 0.85).all() for m in gates.mean(state).values())


# Penalties and values. --------------------------------------------------------------


def check_divergence(found: Any) -> None:
    """KL(N(mu, s^2) || N(0, v)) by numerical integration, at the best v."""
    for mu, s in [(1.0, 0.5), (0.3, 1.2), (-2.0, 0.1), (0.01, 1.0)]:
        x = np.linspace(mu - 12 * s, mu + 12 * s, 200_001)
        log_p = -0.5 * ((x - mu) / s) ** 2 - np.log(s * np.sqrt(2 * np.pi))

        def kl(v: float, x: Any = x, log_p: Any = log_p) -> float:
            log_q = -0.5 * x**2 / v - 0.5 * np.log(2 * np.pi * v)
            return float(np.trapezoid(np.exp(log_p) * (log_p - log_q), x))

        around = (mu**2 + s**2) * np.array([0.8, 0.95, 1.0, 1.05, 1.25])
        values = [kl(v) for v in around]
        assert int(np.argmin(values)) == 2, "the closed form takes the best normal"
        state = {"g": {"mu": jnp.full(1, mu), "log_var": jnp.full(1, 2 * np.log(s))}}
        np.testing.assert_allclose(found(state)["g"][0], values[2], rtol=1e-4)


def test_the_penalty_of_vib_is_a_divergence():
    check_divergence(stochastic.vib().penalty)


def test_saboteur_a_divergence_without_the_half():
    with pytest.raises(AssertionError):
        check_divergence(lambda s: {"g": 2 * stochastic.vib().penalty(s)["g"]})


def test_vib_samples_have_mean_and_spread():
    gates = stochastic.vib()
    mu, log_var = jnp.array([0.5, -1.0]), jnp.log(jnp.array([0.04, 1.0]))
    state = {"g": {"mu": mu, "log_var": log_var}}
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = np.asarray(jax.vmap(lambda k: gates.sample(k, state)["g"])(keys))
    np.testing.assert_allclose(draws.mean(0), mu, atol=0.03)
    np.testing.assert_allclose(draws.var(0), [0.04, 1.0], rtol=0.05)
    for var, on in ((0.9, True), (1.1, False)):
        around = {"g": {"mu": mu, "log_var": jnp.log(jnp.array([0.04, var]))}}
        assert gates.keep(around)["g"].tolist() == [True, on]


def test_the_penalty_of_vib_does_not_overflow():
    state = {"g": {"mu": jnp.array([1e3, 0.0]), "log_var": jnp.array([-200.0, 0.0])}}
    gates = stochastic.vib()
    slope = jax.grad(lambda s: gates.penalty(s)["g"].sum())(state)
    assert all(
        np.isfinite(v).all() for v in jax.tree.leaves((slope, gates.penalty(state)))
    )


def check_expected(penalty: Any) -> None:
    """P(gate > 0) by sampling."""
    gates = stochastic.hard_concrete()
    state = {"g": {"logit": jnp.array([-4.0, -1.0, 0.0, 1.5, 4.0])}}
    keys = jax.random.split(jax.random.key(0), 40_000)
    draws = np.asarray(jax.vmap(lambda k: gates.sample(k, state)["g"])(keys))
    assert draws.min() == 0.0 and draws.max() == 1.0
    np.testing.assert_allclose(penalty(gates, state), (draws > 0).mean(0), atol=0.01)


def test_the_penalty_of_hard_concrete_is_the_expected_number():
    check_expected(lambda gates, state: gates.penalty(state)["g"])


def test_saboteur_the_probability_before_stretching():
    with pytest.raises(AssertionError):
        check_expected(lambda gates, state: jax.nn.sigmoid(state["g"]["logit"]))


def test_hard_concrete_samples_have_a_derivative():
    """d sample / d logit against finite differences, where it is not clipped."""
    gates, key = stochastic.hard_concrete(), jax.random.key(3)

    def sample(logit: Any) -> Any:
        return gates.sample(key, {"g": {"logit": logit}})["g"]

    logit = jnp.linspace(-2, 2, 50)
    slope = jax.vmap(jax.grad(lambda v, i: sample(logit.at[i].set(v))[i]))(
        logit, jnp.arange(50)
    )
    value, h = sample(logit), 1e-2
    inside = np.asarray((value > 0.05) & (value < 0.95))
    number = (sample(logit + h) - sample(logit - h)) / (2 * h)
    np.testing.assert_allclose(slope[inside], number[inside], rtol=1e-2)
    assert inside.sum() > 5 and (np.asarray(slope)[np.asarray(value) == 0] == 0).all()


def check_through(through: Any) -> None:
    """Hard forwards, the identity backwards, also where scores are large."""
    score = jnp.array([-1e6, 0.2, 0.7, 3e7])
    weight = jnp.array([1.0, -2.0, 3.0, 4.0])

    def f(s: Any) -> Any:
        return (weight * through(s > 0.5, s)).sum()

    assert float(f(score)) == 7.0
    np.testing.assert_array_equal(jax.grad(f)(score), weight)


def test_straight_through_by_its_definition():
    check_through(straight.through)


def test_saboteur_the_usual_trick_rounds():
    def usual(hard: Any, s: Any) -> Any:
        return (s + jax.lax.stop_gradient(hard - s)) * 1.0

    with pytest.raises(AssertionError):
        check_through(usual)


def test_saboteur_no_derivative():
    with pytest.raises(AssertionError):
        check_through(lambda hard, s: hard.astype(s.dtype))


def test_topk_counts_and_keeps_one_in_each_group():
    gates = stochastic.straight_topk(0.4)
    state = {
        "a": {"score": jnp.array([3.0, 3.0, 3.0, 9.0])},
        "b": {"score": jnp.array([0.0, -1.0, 0.5, 0.1, 0.2, 0.3])},
    }
    keep = gates.keep(state)
    # Four of ten, all in `a`; the best of `b` stays as well.
    assert keep["a"].tolist() == [True] * 4
    assert np.flatnonzero(keep["b"]).tolist() == [2]
    for name, gate in gates.mean(state).items():
        np.testing.assert_array_equal(gate, keep[name])
    assert float(gates.penalty(state)["a"].sum()) == 0
    with pytest.raises(BudgetError, match="density=2"):
        _ = stochastic.straight_topk(2.0)


def test_no_group_is_left_empty():
    empty = {"a": np.zeros(3, bool)}
    assert at_least_one(empty, {"a": np.array([1, 7, 2])})["a"].tolist() == [0, 1, 0]


# What is charged. -------------------------------------------------------------------


def test_a_task_pays_for_the_groups_it_reaches():
    _, graph = of("mlp_tasks")
    penalties = {"trunk/kernel:1": jnp.full(8, 0.5), "age/hidden/kernel:1": jnp.ones(4)}
    paid = stochastic.per_task(graph, penalties)
    assert {t: float(v) for t, v in paid.items()} == {"age": 8.0, "smile": 4.0}
    with pytest.raises(KeepError, match="no group"):
        _ = stochastic.per_task(graph, {"trunk": jnp.ones(8)})


@pytest.mark.parametrize("resource", ["params", "flops"])
def test_channel_costs_are_what_one_channel_saves(resource):
    _, graph = of("resnet18")
    costs = stochastic.channel_costs(graph, resource)
    full = getattr(graph.cost(), resource)
    for group in graph.free:
        keep = {group.name: np.arange(group.size) > 0}
        saved = full - getattr(graph.cost(keep), resource)
        assert costs[group.name] == pytest.approx(saved / full)
    weighed = stochastic.weigh({g.name: jnp.ones(g.size) for g in graph.free}, costs)
    name = graph.free[0].name
    assert float(weighed[name][0]) == pytest.approx(costs[name])
    with pytest.raises(KeepError, match="resource"):
        _ = stochastic.channel_costs(graph, "seconds")
    with pytest.raises(KeepError, match="no cost"):
        _ = stochastic.weigh({"x": jnp.ones(2)}, costs)


# Training. --------------------------------------------------------------------------

USEFUL = (1, 4, 5, 10)


def toy() -> tuple[Any, Any, cj.Graph, jax.Array, jax.Array]:
    """Twelve channels of independent inputs; the target depends on four of them."""
    x = jax.random.normal(jax.random.key(0), (256, 12))
    useful = jnp.zeros(12).at[jnp.array(USEFUL)].set(jnp.array([1.0, 1.2, 0.8, 1.5]))
    y = jnp.tanh(x) @ useful

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return (jnp.tanh(x @ p["a"]) @ p["b"])[:, 0]

    noise = 0.1 * jax.random.normal(jax.random.key(1), (12, 1))
    params = {"a": jnp.eye(12), "b": 0.5 + noise}
    return apply, params, cj.trace(apply, params, x), x, y


def learn(kind: str, charge: float, steps: int = 400) -> tuple[Any, Any, Any]:
    apply, params, graph, x, y = toy()
    gates = {**KINDS, "topk": stochastic.straight_topk(4 / 12)}[kind]
    gated = cj.gate(apply, graph)
    tx = optax.adam(3e-2)

    def loss(tree: Any, key: Any) -> jax.Array:
        out = gated(gates.sample(key, tree["gates"]), tree["params"], x)
        paid = gates.penalty(tree["gates"])
        return jnp.mean((out - y) ** 2) + charge * sum(v.sum() for v in paid.values())

    def step(carry: Any, key: Any) -> Any:
        tree, state = carry
        grads = jax.grad(loss)(tree, key)
        grads["params"]["a"] = jnp.zeros((12, 12))  # channels stay what they are
        updates, state = tx.update(grads, state, tree)
        return (optax.apply_updates(tree, updates), state), None

    tree = {"gates": gates.init(jax.random.key(2), graph), "params": params}
    keys = jax.random.split(jax.random.key(3), steps)
    (tree, _), _ = jax.jit(lambda t: jax.lax.scan(step, (t, tx.init(t)), keys))(tree)
    return gates, tree, graph


CHARGES = {"vib": 0.02, "hard_concrete": 0.05, "threshold": 0.02, "topk": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_useless_channels_are_found(kind):
    gates, tree, _ = learn(kind, CHARGES[kind])
    keep = gates.keep(tree["gates"])["a:1"]
    assert tuple(np.flatnonzero(keep)) == USEFUL


@pytest.mark.parametrize("kind", ["threshold", "topk"])
def test_saboteur_gates_without_a_derivative(kind, monkeypatch):
    monkeypatch.setattr(straight, "through", lambda hard, s: hard.astype(s.dtype))
    gates, tree, _ = learn(kind, CHARGES[kind])
    keep = gates.keep(tree["gates"])["a:1"]
    assert tuple(np.flatnonzero(keep)) != USEFUL


@pytest.mark.parametrize("kind", ["vib", "hard_concrete"])
def test_saboteur_without_a_charge_they_are_not(kind):
    gates, tree, _ = learn(kind, 0.0)
    keep = gates.keep(tree["gates"])["a:1"]
    assert tuple(np.flatnonzero(keep)) != USEFUL


# Cutting the gates along. -----------------------------------------------------------


def close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 2e-5, 1e-6), a, b)


@pytest.mark.parametrize("name", by_turns(["mlp_tasks", "vgg"], 2))
@pytest.mark.parametrize("kind", ["vib", "hard_concrete", "threshold"])
def test_learned_gates_are_cut_along(name, kind):
    """Gates and parameters are one pytree; the cut one equals the masked one."""
    net, graph = of(name)
    gates = KINDS[kind]
    state = gates.init(jax.random.key(0), graph)
    noise = iter(jax.random.split(jax.random.key(1), 99))
    state = jax.tree.map(
        lambda v: v + 0.3 * jax.random.normal(next(noise), v.shape), state
    )
    rng = np.random.default_rng(0)
    keep = {g.name: rng.permutation(g.size) < (g.size + 1) // 2 for g in graph.free}
    tree = {"gates": state, "params": net.params}

    # Traced with the sample, the whole state is used; the mean is cut by that graph.
    sampled = stochastic.gated_tree(
        net.apply, graph, lambda s: gates.sample(jax.random.key(2), s)
    )
    mean = stochastic.gated_tree(net.apply, graph, gates.mean)
    whole = cj.trace(sampled, tree, *net.inputs)
    assert {g.name for g in whole.free} == {f"params/{g.name}" for g in graph.free}
    small = cj.cut_params(tree, whole, stochastic.renamed(keep))
    for g in graph.free:
        for values in small["gates"][g.name].values():
            assert values.shape == (keep[g.name].sum(),)
    got = cj.shrink(mean, whole, stochastic.renamed(keep))(small, *net.inputs)
    gated = cj.gate(net.apply, graph)
    mask = cj.mask(net.params, graph, keep)
    close(got, gated(gates.mean(state), mask, *net.inputs))
    hard = {n: jnp.where(keep[n], v, 0.0) for n, v in gates.mean(state).items()}
    if name == "mlp_tasks":
        close(got, gated(hard, net.params, *net.inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_gates_are_cut_along(kind):
    """The state of `straight_topk` is sorted and stays; its values can go along."""
    net, graph = of("mlp_tasks")
    gates = KINDS[kind]
    state = gates.init(jax.random.key(0), graph)
    state = jax.tree.map(lambda v: v + 0.3 * jnp.sin(jnp.arange(v.size)), state)
    keep = gates.keep(state)
    tree = {"gates": gates.mean(state), "params": net.params}
    fn = stochastic.gated_tree(net.apply, graph, lambda values: values)
    whole = cj.trace(fn, tree, *net.inputs)
    small_fn, small = cj.cut(fn, tree, whole, stochastic.renamed(keep))
    hard = {n: jnp.where(keep[n], v, 0.0) for n, v in gates.mean(state).items()}
    want = cj.gate(net.apply, graph)(hard, net.params, *net.inputs)
    close(small_fn(small, *net.inputs), want)
