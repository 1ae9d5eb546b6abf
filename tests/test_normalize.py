"""Normalisations by their definitions; worst case and front against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS
from scipy.optimize import linprog

import cutjax as cj
from cutjax import fuse, normalize, pareto
from cutjax.agreement import agreement
from cutjax.cost import cost_of
from cutjax.errors import BudgetError, DataError, KeepError
from cutjax.isomorphic import classes


@pytest.fixture(scope="module")
def graph() -> cj.Graph:
    net = NETS["resnet18"]()
    return cj.trace(net.apply, net.params, *net.inputs)


def drawn(graph: cj.Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        g.name: (rng.random(g.size) * 10 ** rng.uniform(-2, 2)).astype(np.float32)
        for g in graph.free
    }


PER_GROUP = {
    normalize.mean: lambda v: np.abs(v).mean(),
    normalize.largest: lambda v: np.abs(v).max(),
    normalize.total: lambda v: np.abs(v).sum(),
    normalize.length: np.linalg.norm,
}


@pytest.mark.parametrize("fn", PER_GROUP, ids=lambda f: f.__name__)
def test_groups_are_of_one_size_afterwards(graph, fn):
    for values in fn(drawn(graph), graph).values():
        assert PER_GROUP[fn](values) == pytest.approx(1, rel=1e-5)


def test_standard_scores_have_no_mean_and_one_deviation(graph):
    for values in normalize.standard(drawn(graph), graph).values():
        assert values.mean() == pytest.approx(0, abs=1e-5)
        assert values.std() == pytest.approx(1, rel=1e-4)


def test_isomorphic_groups_share_a_scale(graph):
    given = drawn(graph)
    out = normalize.isomorphic(given, graph)
    for names in classes(graph):
        pool = np.concatenate([out[n] for n in names])
        assert np.abs(pool).mean() == pytest.approx(1, rel=1e-5)
        ratios = [out[n] / given[n] for n in names]
        np.testing.assert_allclose(np.concatenate(ratios), ratios[0][0], rtol=1e-5)
    assert sum(map(len, classes(graph))) == len(graph.free)


def test_per_cost_divides_by_what_a_channel_saves(graph):
    given = drawn(graph)
    for resource in ("params", "flops"):
        out = normalize.per_cost(resource)(given, graph)
        full = getattr(cost_of(graph, {}, graph.tasks), resource)
        for g in graph.free:
            less = cost_of(graph, {g.name: g.size - 1}, graph.tasks)
            saved = full - getattr(less, resource)
            np.testing.assert_allclose(out[g.name] * saved, given[g.name], rtol=1e-5)


ALL = [
    *PER_GROUP,
    *(normalize.none, normalize.standard, normalize.isomorphic, normalize.per_cost()),
]


@pytest.mark.parametrize("fn", ALL, ids=lambda f: f.__name__)
def test_no_normalisation_changes_the_order_within_a_group(graph, fn):
    given = drawn(graph)
    constant = {n: np.zeros_like(v) for n, v in given.items()}
    for name, values in fn(given, graph).items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(np.argsort(values), np.argsort(given[name]))
    for values in fn(constant, graph).values():
        assert not values.any()


# Further fusions. -------------------------------------------------------------------

TWO = {
    "a": {"g": np.array([4.0, 1.0, 0.0], np.float32), "h": np.float32([5.0])},
    "b": {"g": np.array([1.0, 4.0, 0.0], np.float32), "h": np.float32([15.0])},
}


def test_maximum_minimum_and_geometric_by_hand():
    # Each task normalised to sum one: a = .4 .1 0 | .5, b = .05 .2 0 | .75.
    by_hand = {
        fuse.maximum: [0.4, 0.2, 0.0, 0.75],
        fuse.minimum: [0.05, 0.1, 0.0, 0.5],
        fuse.geometric: np.sqrt([0.02, 0.02, 0.0, 0.375]),
        fuse.mean: [0.225, 0.15, 0.0, 0.625],
    }
    for fn, want in by_hand.items():
        got = fn(TWO)
        np.testing.assert_allclose([*got["g"], *got["h"]], want, rtol=1e-5)


def test_bad_weights_and_signs_are_errors():
    for weights in ({"a": 1.0}, {"a": 0.0, "b": 0.0}, {"a": 2.0, "b": -1.0}):
        with pytest.raises(KeepError, match="one per task, none negative"):
            fuse.mean(TWO, weights)
    with pytest.raises(KeepError, match="k=3 of 2 tasks"):
        fuse.vote(TWO, 3)
    signed = {**TWO, "b": {n: -v for n, v in TWO["b"].items()}}
    with pytest.raises(DataError, match="scores of 'b' are negative"):
        fuse.geometric(signed)


# The worst case and the front. ------------------------------------------------------


N, KEPT = 80, 40


def wide() -> tuple[cj.Graph, dict[str, Any]]:
    """Channels of one price, and two tasks that want different ones."""

    def apply(p, x):
        h = jnp.tanh(x @ p["a"])
        return {"s": h @ p["s"], "t": h @ p["t"]}

    sizes = {"a": (5, N), "s": (N, 1), "t": (N, 1)}
    graph = cj.trace(apply, {k: np.ones(s) for k, s in sizes.items()}, np.ones((1, 5)))
    rng = np.random.default_rng(1)
    # Equal weights favour `t`, whose sum is spread over few channels.
    s, t = rng.random(N), rng.random(N) ** 6
    return graph, {"s": {"a:1": np.float32(s)}, "t": {"a:1": np.float32(t)}}


BUDGET = cj.Budget(params=KEPT * 7, max_ratio=1.0)


def least_worst(scores: dict[str, Any]) -> float:
    """The smallest largest loss if channels could go in part: a linear program."""
    rows = np.array([v["a:1"] / v["a:1"].sum() for v in scores.values()])
    # Shares removed r, bound z: minimise z with rows @ r <= z, sum(r) = N - KEPT.
    found = linprog(
        [*np.zeros(N), 1.0],
        A_ub=np.column_stack([rows, -np.ones(len(rows))]),
        b_ub=np.zeros(len(rows)),
        A_eq=[[*np.ones(N), 0.0]],
        b_eq=[N - KEPT],
        bounds=[(0, 1)] * N + [(0, None)],
    )
    return float(found.fun)


def check_worst_case(plan: Any) -> None:
    graph, scores = wide()
    keep, info = plan(graph, scores, budget=BUDGET)
    got = max(pareto.predicted(scores, keep).values())
    assert info.cost.params <= KEPT * 7
    assert least_worst(scores) <= got + 1e-6
    assert got <= least_worst(scores) * 1.05


def test_worst_case_is_nearly_the_least_that_any_plan_could_reach():
    check_worst_case(pareto.worst_case)
    with pytest.raises(AssertionError):
        check_worst_case(cj.plan)


def test_the_front_holds_what_no_other_plan_beats():
    graph, scores = wide()
    found = pareto.front(graph, scores, budget=BUDGET)
    rng = np.random.default_rng(2)
    others = []
    for _ in range(300):
        mask = np.isin(np.arange(N), rng.permutation(N)[:KEPT])
        others.append(pareto.predicted(scores, {"a:1": mask}))
    assert len(found) >= 5
    for p in found:
        assert p.losses == pytest.approx(pareto.predicted(scores, p.keep))
        assert not any(all(v[t] < p.losses[t] for t in "st") for v in others)
    for a, b in itertools.combinations(found, 2):
        assert (a.losses["s"] - b.losses["s"]) * (a.losses["t"] - b.losses["t"]) < 0


def test_losses_are_relative_to_a_baseline_and_budgets_must_be_met():
    graph, scores = wide()
    keep = {"a:1": np.arange(N) < 4}
    got = pareto.predicted(scores, keep, {"s": 2.0, "t": 4.0})
    assert got["s"] == pytest.approx(scores["s"]["a:1"][4:].sum() / 2)
    with pytest.raises(BudgetError):
        pareto.worst_case(graph, scores, budget=cj.Budget(params=3))


# Agreement. -------------------------------------------------------------------------


def test_agreement_equals_set_operations():
    rng = np.random.default_rng(0)
    keeps = {t: {"g": rng.random(40) < 0.6} for t in "abc"}
    sets = {t: set(np.flatnonzero(k["g"]).tolist()) for t, k in keeps.items()}
    found = agreement(keeps)["g"]
    a, b, c = sets.values()
    assert found.iou == len(a & b & c) / len(a | b | c)
    assert found.pairs["a", "c"] == len(a & c) / len(a | c)
    assert found.alone["b"] == len(b - a - c)
    assert sum(found.votes) == 40 and found.votes[3] == len(a & b & c)
    with pytest.raises(KeepError, match=r"differ in '(g|h)'"):
        agreement({**keeps, "d": {"h": np.ones(2, bool)}})
