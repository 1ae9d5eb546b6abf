"""From networks to one of them: aligned, zipped, regrouped; then cut like any other."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax.merge import OWN, Network


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def apply(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    return jax.nn.relu(h @ p["b"] + p["c"]) @ p["d"]


def params(seed: int) -> dict[str, Any]:
    shapes = {"a": (6, 12), "b": (12, 8), "c": (8,), "d": (8, 3)}
    return {k: normal(seed + i, *s) for i, (k, s) in enumerate(shapes.items())}


X = normal(90, 64, 6)
DATA = [normal(91 + i, 64, 6) for i in range(8)]
GRAPH = cj.trace(apply, params(0), X)


def networks(**given: Any) -> dict[str, Network]:
    return {name: Network(apply, p, GRAPH) for name, p in given.items()}


def disordered(p: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return cj.merge.permute(
        p, GRAPH, {g.name: rng.permutation(g.size) for g in GRAPH.free}
    )


def wrong(merged: Any, nets: dict[str, Network]) -> float:
    found = merged.apply(merged.params, X)
    pairs = [(found[n], apply(net.params, X)) for n, net in nets.items()]
    return sum(float(jnp.mean((a - b) ** 2) / jnp.var(b)) for a, b in pairs)


@pytest.mark.parametrize("data", [None, DATA], ids=["weights", "activations"])
def test_a_disordered_copy_merges_into_the_network_itself(data):
    nets = networks(one=params(0), two=disordered(params(0), 1))
    orders, _ = cj.merge.align_all(
        GRAPH,
        {n: net.params for n, net in nets.items()},
        apply=apply if data else None,
        batches=data,
        progress=False,
    )
    sharing = cj.merge.from_permutations(GRAPH, orders)
    assert wrong(cj.merge.average(nets, sharing, X), nets) < 1e-9
    assert wrong(cj.merge.average(nets, {}, X), nets) > 0.1


def test_zipped_networks_come_closer_by_least_squares():
    nets = networks(one=params(0), two=params(40))
    found = cj.merge.correlations(
        apply, GRAPH, {n: net.params for n, net in nets.items()}, DATA, progress=False
    )
    sharing, _ = cj.merge.zipit(GRAPH, found, list(nets))
    average = cj.merge.average(nets, sharing, X)
    fitted = cj.merge.least_squares(nets, sharing, DATA, progress=False)
    assert all(w <= GRAPH[g].size for g, w in cj.merge.shared_widths(sharing).items())
    assert wrong(fitted, nets) < 0.7 * wrong(average, nets)
    last = cj.merge.until(GRAPH, list(nets), sharing, "a:1")
    part = cj.merge.least_squares(nets, last, DATA, progress=False)
    assert wrong(part, nets) < wrong(fitted, nets)


def test_regrouped_networks_run_what_a_subset_needs_and_can_be_cut():
    nets = networks(one=params(0), two=params(40))
    losses = {"output": lambda y, t: jnp.mean((y - t) ** 2)}
    scores = {
        name: cj.saliency(
            *(apply, net.params, GRAPH, losses),
            [(x, {"output": 0 * apply(net.params, x)}) for x in DATA],
            criterion=cj.taylor,
            progress=False,
        )["output"]
        for name, net in nets.items()
    }
    levels = cj.merge.by_scores(scores, {n: {} for n in nets})
    types, info = cj.merge.regroup(levels, list(nets), exclusive=0.4)
    sharing = cj.merge.pam_sharing(GRAPH, list(nets), {n: {} for n in nets}, types)
    own = cj.merge.own_widths(sharing)
    assert any(n for found in own.values() for n in found.values())
    merged = cj.merge.least_squares(nets, sharing, DATA, progress=False)
    assert wrong(merged, nets) < wrong(cj.merge.average(nets, sharing, X), nets)
    graph = cj.trace(merged.apply, merged.params, X)
    each = [graph.cost(tasks=(name,)).flops for name in nets]
    assert max(each) < graph.cost().flops < sum(each)
    # It is a network like any other: a shared channel is cut from all that read it.
    keep = {g.name: np.arange(g.size) > 0 for g in graph.free if g.size > 1}
    small_apply, small = cj.cut(merged.apply, merged.params, graph, keep)
    masked = merged.apply(cj.mask(merged.params, graph, keep), X)
    for name, y in small_apply(small, X).items():
        np.testing.assert_allclose(y, masked[name], rtol=1e-4, atol=1e-4)
    assert OWN == -1 and info.alpha is not None


def heads(p: Any, x: Any) -> dict[str, Any]:
    h = jax.nn.relu(x @ p["a"])
    return {"age": h @ p["b"], "smile": h @ p["c"]}


def two_headed(seed: int) -> dict[str, Any]:
    shapes = {"a": (6, 8), "b": (8, 2), "c": (8, 3)}
    return {k: normal(seed + i, *s) for i, (k, s) in enumerate(shapes.items())}


def test_each_task_of_each_network_is_a_task_of_the_merged_one():
    graph = cj.trace(heads, two_headed(0), X)
    nets = {n: Network(heads, two_headed(s), graph) for n, s in (("p", 0), ("q", 9))}
    merged = cj.merge.average(nets, cj.merge.until(graph, list(nets), {}, []), X)
    whole = cj.trace(merged.apply, merged.params, X)
    assert whole.tasks == ("p/age", "p/smile", "q/age", "q/smile")
    keep = {g.name: np.arange(g.size) > 0 for g in whole.free}
    small_apply, small = cj.cut(merged.apply, merged.params, whole, keep, ["q/age"])
    masked = merged.apply(cj.mask(merged.params, whole, keep), X)
    found = small_apply(small, X)
    assert list(found) == ["q/age"]
    np.testing.assert_allclose(found["q/age"], masked["q/age"], rtol=1e-5, atol=1e-5)


def test_a_merged_function_does_not_hold_the_networks():
    nets = networks(one=params(0), two=params(40))
    held = weakref.ref(nets["two"].params["a"])
    merged = cj.merge.average(nets, {}, X)
    del nets
    gc.collect()
    assert held() is None
    assert set(merged.apply(merged.params, X)) == {"one", "two"}


def test_pruning_after_regrouping_spares_what_is_exclusive():
    nets = networks(one=params(0), two=params(40))
    rng = np.random.default_rng(0)
    scores = {n: {g.name: rng.random(g.size) for g in GRAPH.free} for n in nets}
    sharing, info = cj.merge.pam(nets, scores, DATA, exclusive=0.3, progress=False)
    widths = cj.merge.own_widths(sharing)
    assert {g: w for g, w in widths.items() if any(w.values())} == {
        g: w for g, w in info.exclusive.items() if any(w.values())
    }
    merged = cj.merge.average(nets, sharing, X)
    graph = cj.trace(merged.apply, merged.params, X)
    own = cj.merge.exclusive_groups(graph)
    assert own and all("own" in name for name in own)
    alike = {t: {g.name: np.ones(g.size) for g in graph.free} for t in graph.tasks}
    keep, _ = cj.plan(graph, alike, budget=cj.Budget(params=0.8), pin=own)
    cut = {g.name for g in graph.free if not keep[g.name].all()}
    assert cut and not cut & {*own}


def test_gates_of_exclusive_groups_are_charged_nothing():
    half = np.where(np.arange(8) < 4, OWN, np.arange(8))
    part = {"b:1": {"one": half, "two": half}}
    merged = cj.merge.average(networks(one=params(0), two=params(40)), part, X)
    graph = cj.trace(merged.apply, merged.params, X)
    own = cj.merge.exclusive_groups(graph)
    gates = cj.stochastic.vib()
    state = gates.init(jax.random.key(0), graph)
    costs = {g.name: 0.0 if g.name in own else 1.0 for g in graph.free}

    def charged(state: Any) -> Any:
        paid = cj.stochastic.weigh(gates.penalty(state), costs)
        return sum(values.sum() for values in paid.values())

    steep = jax.grad(charged)(state)
    for group in graph.free:
        moves = bool(jnp.any(steep[group.name]["mu"] != 0))
        assert moves == (group.name not in own), group.name


def trained_gates(spared: bool) -> tuple[Any, Any, dict[str, Network]]:
    """VIB gates of a merged network that distils two others, 3 channels of each unused.

    Two of these, 4 and 5, are shared; 0 is exclusive, and free if it is `spared`.
    """
    half = np.where(np.arange(8) < 4, OWN, np.arange(8))
    unused = jnp.isin(jnp.arange(8), jnp.array([0, 4, 5]))[:, None]
    dull = [{**p, "d": jnp.where(unused, 0, p["d"])} for p in (params(0), params(40))]
    nets = networks(one=dull[0], two=dull[1])
    merged = cj.merge.average(nets, {"b:1": {"one": half, "two": half}}, X)
    graph = cj.trace(merged.apply, merged.params, X)
    own = cj.merge.exclusive_groups(graph) if spared else ()
    costs = {g.name: 0.0 if g.name in own else 0.01 for g in graph.free}
    gates, gated = cj.stochastic.vib(), cj.gate(merged.apply, graph)
    want, tx = merged.apply(merged.params, X), optax.adam(3e-2)

    def loss(state: Any, key: Any) -> Any:
        got = gated(gates.sample(key, state), merged.params, X)
        wrong = sum(jnp.mean((got[t] - want[t]) ** 2) for t in want)
        paid = cj.stochastic.weigh(gates.penalty(state), costs)
        return wrong + sum(values.sum() for values in paid.values())

    def step(carry: Any, key: Any) -> Any:
        change, opt = tx.update(jax.grad(loss)(carry[0], key), carry[1])
        return (optax.apply_updates(carry[0], change), opt), None

    state = gates.init(jax.random.key(0), graph)
    keys = jax.random.split(jax.random.key(1), 600)
    (state, _), _ = jax.lax.scan(step, (state, tx.init(state)), keys)
    keep = gates.keep(state)
    small_apply, small = cj.cut(merged.apply, merged.params, graph, keep)
    off = [jnp.abs(small_apply(small, X)[t] - want[t]).max() for t in want]
    return graph, {name: np.flatnonzero(~mask) for name, mask in keep.items()}, off


def test_gates_after_regrouping_let_go_what_is_shared_and_spare_what_is_exclusive():
    graph, gone, off = trained_gates(spared=True)
    own = cj.merge.exclusive_groups(graph)
    assert len(own) == 2 and not any(gone[name].size for name in own)
    assert sorted(gone["params/shared/b:1"]) == [0, 1]
    assert max(off) < 1e-5
    _, gone, _ = trained_gates(spared=False)
    assert all(gone[name].tolist() == [0] for name in own)


def test_tasks_may_look_at_different_inputs():
    nets = networks(one=params(0), two=params(40))
    half = np.where(np.arange(8) < 4, OWN, np.arange(8))
    merged = cj.merge.average(nets, {"b:1": {"one": half, "two": half}}, X)
    apart = cj.merge.each_its_input(merged.apply)
    inputs = {"one": DATA[0], "two": DATA[1]}
    found = apart(merged.params, inputs)
    for name, x in inputs.items():
        whole = merged.apply(merged.params, x)
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-6)
        assert np.abs(found[name] - merged.apply(merged.params, X)[name]).max() > 0.1
    graph = cj.trace(apart, merged.params, inputs)
    once = cj.trace(merged.apply, merged.params, X)
    each = [once.cost(tasks=(name,)).flops for name in nets]
    assert graph.cost().flops == sum(each) > once.cost().flops
    assert graph.cost().params == once.cost().params
    keep = {g.name: np.arange(g.size) > 0 for g in graph.free if g.size > 1}
    small_apply, small = cj.cut(apart, merged.params, graph, keep)
    masked = apart(cj.mask(merged.params, graph, keep), inputs)
    for name, y in small_apply(small, inputs).items():
        np.testing.assert_allclose(y, masked[name], rtol=1e-4, atol=1e-4)
    with pytest.raises(cj.CutjaxError, match=r"no task 'tow'.*two"):
        apart(merged.params, {"tow": X})


def normed(p: Any, x: Any, train: bool = False) -> Any:
    h, held = x @ p["params"]["a"], p["batch_stats"]
    mean, square = held["mean"], held["square"]
    if train:
        mean, square = h.mean(0), jnp.square(h).mean(0)
    h = jax.nn.relu((h - mean) / jnp.sqrt(square - mean**2 + 1e-5))
    new = {"batch_stats": {"mean": mean, "square": square}}
    return (h @ p["params"]["b"], new) if train else h @ p["params"]["b"]


def test_tasks_may_have_statistics_of_their_own():
    own = {"one": DATA[0], "two": 3 * DATA[1] + 1}
    nets, trains = {}, {}
    for i, name in enumerate(own):
        leaves = {"a": normal(i, 6, 8), "b": normal(9 + i, 8, 3)}
        p = {"params": leaves, "batch_stats": {"mean": jnp.zeros(8)}}
        p["batch_stats"]["square"] = jnp.ones(8)
        nets[name] = Network(normed, p, cj.trace(normed, p, X))
        trains[name] = nets[name]._replace(apply=partial(normed, train=True))
    merged = cj.merge.average(nets, {}, X)
    train = cj.merge.train_apply(trains, {})
    new = {
        n: cj.recalibrate(train, merged.params, [x], progress=False)
        for n, x in own.items()
    }
    states = {n: {"batch_stats": p["batch_stats"]} for n, p in new.items()}
    apart = cj.merge.own_statistics(merged, states)
    found = apart.apply(apart.params, X)
    for name in own:
        same = merged.apply(new[name], X)[name]
        np.testing.assert_allclose(found[name], same, rtol=1e-5, atol=1e-5)
    assert np.abs(found["two"] - merged.apply(new["one"], X)["two"]).max() > 0.1
    graph, once = (cj.trace(m.apply, m.params, X) for m in (apart, merged))
    assert graph.cost(tasks=("one",)).flops == once.cost(tasks=("one",)).flops
    keep = {g.name: np.arange(g.size) > 1 for g in graph.free}
    small_apply, small = cj.cut(apart.apply, apart.params, graph, keep, ["two"])
    masked = apart.apply(cj.mask(apart.params, graph, keep), X)["two"]
    assert small["params"]["shared"]["a"].shape == (6, 6)
    np.testing.assert_allclose(small_apply(small, X)["two"], masked, rtol=1e-4)
    left = cj.merge.own_statistics(merged, {"one": states["one"], "two": {}})
    same = merged.apply(merged.params, X)["two"]
    np.testing.assert_allclose(left.apply(left.params, X)["two"], same, rtol=1e-5)
    some = cj.merge.own_statistics(merged, {"one": states["one"]})
    with pytest.raises(cj.CutjaxError, match="no statistics of 'two'; give every"):
        some.apply(some.params, X)
    with pytest.raises(cj.CutjaxError, match="no states; pass"):
        cj.merge.own_statistics(merged, {})
    with pytest.raises(cj.CutjaxError, match=r"hold 'stats'.*batch_stats"):
        cj.merge.own_statistics(merged, {"one": {"stats": {}}})
