"""Budgets per scope, rules per group, what is feasible, pins and normalisation."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS
from test_plan import chain, drawn

import cutjax as cj
from cutjax.allocate import greedy, isomorphic, nested, threshold, uniform
from cutjax.budget import Budget
from cutjax.cost import amounts
from cutjax.errors import BudgetError, DataError, KeepError
from cutjax.feasible import feasible

ALL = [greedy, nested, uniform, threshold, isomorphic]


@functools.cache
def graph_of(name: str) -> cj.Graph:
    net = NETS[name]()
    return cj.trace(net.apply, net.params, *net.inputs)


# Scopes. ----------------------------------------------------------------------------


def by_hand(graph: cj.Graph, params: Any, tasks: tuple[str, ...]) -> dict[str, int]:
    """Leaves of trunk and heads, told apart by who needs them."""
    out = dict.fromkeys(("all", "trunk", "heads", *tasks), 0)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        reach = graph.reach[name]
        if not set(reach) & set(tasks):
            continue
        for scope in ("all", *(("trunk",) if len(reach) > 1 else ("heads", *reach))):
            out[scope] += leaf.size
    return out


def check_scopes(plan: Callable, given: dict[str, Any], tasks: Any) -> None:
    net, graph = NETS["mlp_tasks"](), graph_of("mlp_tasks")
    chosen = graph.check_tasks(tasks)
    keep, info = plan(graph, drawn(graph), tasks=tasks, budget=Budget(params=given))
    found = by_hand(graph, cj.cut_params(net.params, graph, keep), chosen)
    full = by_hand(graph, net.params, chosen)
    for scope, value in given.items():
        most = value * full[scope] if isinstance(value, float) else value
        assert found[scope] <= most, (scope, found, full)
    for scope in full:
        key = "params" if scope == "all" else f"params[{scope}]"
        assert info.amounts[key] == (found[scope], full[scope])


@pytest.mark.parametrize("allocate", ALL)
@pytest.mark.parametrize(
    ("given", "tasks"),
    [
        ({"trunk": 0.5, "heads": 0.7}, None),
        ({"trunk": 0.4}, "age"),
        ({"age": 0.6, "all": 0.8}, ("age", "smile")),
        ({"heads": 60}, None),
    ],
    ids=str,
)
def test_budgets_per_scope_are_met_counted_by_hand(given, tasks, allocate):
    check_scopes(functools.partial(cj.plan, allocate=allocate), given, tasks)


@pytest.mark.parametrize("tasks", [None, ("output",)])
def test_what_no_task_needs_counts_as_long_as_it_stays(tasks):
    """The last residual convolution of a WaveNet makes what nobody reads."""
    net, graph = NETS["wavenet"](), graph_of("wavenet")
    scores = {"output": drawn(graph)["output"]}
    keep, info = cj.plan(graph, scores, budget=Budget(params=0.8))
    _, small = cj.cut(net.apply, net.params, graph, keep, tasks)
    left = sum(leaf.size for leaf in jax.tree.leaves(small))
    assert left == info.cost.params == graph.cost(keep, tasks).params
    assert left <= 0.8 * sum(leaf.size for leaf in jax.tree.leaves(net.params))


def test_a_limit_on_one_scope_leaves_the_others_alone():
    graph = graph_of("mlp_tasks")
    keep, _ = cj.plan(graph, drawn(graph), budget=Budget(params={"age": 0.5}))
    head = next(name for name in keep if "age" in name)
    assert not keep[head].all()


def test_saboteur_a_plan_that_takes_one_scope_for_another():
    def deaf(graph, scores, *, tasks, budget):
        heads = Budget(params={"heads": 0.9})
        return cj.plan(graph, scores, tasks=tasks, budget=heads)

    check_scopes(cj.plan, {"trunk": 0.4}, None)
    with pytest.raises(AssertionError):
        check_scopes(deaf, {"trunk": 0.4}, None)


@pytest.mark.parametrize("allocate", ALL)
@pytest.mark.parametrize("name", ["resnet18", "vit_linen"])
def test_activations_are_limited(name, allocate):
    graph = graph_of(name)
    _, info = cj.plan(
        graph, drawn(graph), budget=Budget(activations=0.6), allocate=allocate
    )
    assert 0 < info.cost.activations <= 0.6 * info.full.activations
    assert "activations" in str(info)


def test_scopes_and_patterns_that_mean_nothing_are_refused():
    two, one = graph_of("mlp_tasks"), chain(3, 8, 2)
    cases = [
        (two, {"params": {"trunc": 0.5}}, "no scope 'trunc' .*nearest: 'trunk'"),
        (one, {"params": {"heads": 0.5}}, r"no params\[heads\] to limit"),
        (two, {"params": 0.5, "floor": {"nothing*": 2}}, "matches no free group"),
        (two, {"params": 0.5, "max_ratio": {"nothing*": 0.5}}, "matches no free"),
    ]
    for graph, given, said in cases:
        with pytest.raises(BudgetError, match=said):
            cj.plan(graph, drawn(graph), budget=Budget(**given))
        with pytest.raises(BudgetError, match=said):
            feasible(graph, Budget(**given))
    with pytest.raises(BudgetError, match="no scope 'smile' for the tasks age"):
        cj.plan(two, drawn(two), tasks="age", budget=Budget(params={"smile": 0.5}))


# Rules per group. -------------------------------------------------------------------


@pytest.mark.parametrize("allocate", ALL)
def test_floors_and_ratios_by_pattern(allocate):
    graph = chain(4, 20, 20, 20, 3)
    budget = Budget(
        params=0.3, floor={"w0*": 15, "w?:1": 2}, max_ratio={"w1:1": 0.5, "*": 1.0}
    )
    keep, _ = cj.plan(graph, drawn(graph), budget=budget, allocate=allocate)
    assert keep["w0:1"].sum() >= 15
    assert keep["w1:1"].sum() >= 10
    assert keep["w2:1"].sum() >= 2


def test_multiples_are_nearest_and_not_always_down():
    """Of 20 channels 8 or 16 or all may stay: 13 are nearer to 16 than to 8."""
    graph = chain(4, 20, 30, 3)
    shares = np.linspace(0, 1, 2001)
    for share in (0.3, 0.5, 0.6, 0.8):
        budget = Budget(params=share, multiple=8, max_ratio=1.0)
        keep, _ = cj.plan(graph, drawn(graph), budget=budget, allocate=uniform)
        found = np.ones_like(shares, bool)
        for mask in keep.values():
            rungs = np.array([w for w in range(8, mask.size, 8)] + [mask.size])
            away = np.abs(shares[:, None] * mask.size - rungs)
            found &= away[:, rungs == mask.sum()][:, 0] <= away.min(1) + 1e-9
        assert found.any(), "one share, of which all widths are the nearest"
    rounded = {m: [] for m in (1, 4)}
    for multiple, widths in rounded.items():
        for share in np.linspace(0.2, 1, 17).tolist():
            budget = Budget(params=share, multiple=multiple, max_ratio=1.0)
            keep, _ = cj.plan(graph, drawn(graph), budget=budget, allocate=uniform)
            widths.append(keep["w0:1"].sum())
    up = sum(b > a for a, b in zip(*rounded.values(), strict=True))
    assert up > 0, "some widths are rounded up"


# What is feasible. ------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0, 1, 3])
@pytest.mark.parametrize("name", ["mlp_tasks", "resnet18", "vit_linen"])
def test_the_table_of_what_is_feasible(name, floor):
    graph = graph_of(name)
    budget = Budget(params=0.5, floor=floor, max_ratio=1.0)
    table = feasible(graph, budget)
    full = amounts(graph, {}, graph.tasks)
    assert {key: row.full for key, row in table.rows.items()} == {
        key: n for key, n in full.items() if n
    }
    for row in table.rows.values():
        assert 0 <= row.least <= row.half <= row.full
    assert table.rows["params"].asked == 0.5 * full["params"]
    assert all(word in str(table) for word in ("least", "half", "full", "flops"))
    least = table.rows["params"].least
    _, info = cj.plan(
        graph,
        drawn(graph),
        budget=Budget(params=least, floor=floor, max_ratio=1.0),
    )
    assert info.cost.params <= least
    with pytest.raises(BudgetError, match="cannot be met"):
        cj.plan(
            graph,
            drawn(graph),
            budget=Budget(params=max(least - 1, 1), floor=floor, max_ratio=1.0),
        )
    if floor == 1:
        halves = {g.name: -(-g.size // 2) for g in graph.free}
        lower = {g.name: g.size // 2 for g in graph.free}
        half = table.rows["params"].half
        assert cost_at(graph, lower) <= half <= cost_at(graph, halves)


def cost_at(graph: cj.Graph, widths: dict[str, int]) -> int:
    keep = {n: np.arange(graph[n].size) < w for n, w in widths.items()}
    return graph.cost(keep).params


def test_an_impossible_scope_says_what_works():
    graph = graph_of("mlp_tasks")
    with pytest.raises(BudgetError, match=r"params\[trunk\] <= 1 cannot") as caught:
        cj.plan(graph, drawn(graph), budget=Budget(params={"trunk": 1}))
    share = re.search(r"try Budget\(params=\{'trunk': ([\d.]+)\}\)", str(caught.value))
    assert share is not None and "least" in str(caught.value)
    budget = Budget(params={"trunk": float(share[1])})
    cj.plan(graph, drawn(graph), budget=budget)


@pytest.mark.parametrize("allocate", ALL)
def test_where_there_is_nothing_to_cut_a_budget_says_so(allocate):
    w, x = {"a": jnp.ones((3, 2))}, jnp.ones((4, 3))
    graph = cj.trace(lambda w, x: x @ w["a"], w, x)
    scores: Any = {task: {} for task in graph.tasks}
    with pytest.raises(BudgetError, match="params <= 3 cannot be met: the least is 6"):
        _ = cj.plan(graph, scores, budget=Budget(params=0.5), allocate=allocate)
    keep, info = cj.plan(graph, scores, budget=Budget(params=1.0), allocate=allocate)
    assert keep == {} and info.cost == info.full


# Pins and normalisation. ------------------------------------------------------------


@pytest.mark.parametrize("allocate", ALL)
def test_pinned_this_time(allocate):
    graph = chain(4, 20, 20, 20, 3)
    budget = Budget(params=0.5)
    keep, info = cj.plan(
        graph, drawn(graph), budget=budget, allocate=allocate, pin=["w0*", "w2:1"]
    )
    assert keep["w0:1"].all() and keep["w2:1"].all() and not keep["w1:1"].all()
    assert info.cost.params <= 0.5 * info.full.params
    assert set(keep) == {g.name for g in graph.free}
    one, _ = cj.plan(graph, drawn(graph), budget=budget, allocate=allocate, pin="w0:1")
    assert one["w0:1"].all()


def test_pins_that_match_nothing_name_what_is_near():
    graph = chain(4, 20, 20, 3)
    with pytest.raises(KeepError, match="matches no free group; nearest: 'w1:1'"):
        cj.plan(graph, drawn(graph), budget=Budget(params=0.5), pin=["w1:2"])
    with pytest.raises(BudgetError, match="cannot be met"):
        cj.plan(graph, drawn(graph), budget=Budget(params=0.5), pin="*")


def test_normalize_sees_each_task_before_it_is_fused():
    graph = graph_of("mlp_tasks")
    scores, seen = drawn(graph), []

    def flat(given, g):
        assert g is graph
        seen.append(given)
        return {name: values / values.max() for name, values in given.items()}

    keep, _ = cj.plan(graph, scores, budget=Budget(params=0.5), normalize=flat)
    by_hand = {t: flat(s, graph) for t, s in scores.items()}
    again, _ = cj.plan(graph, by_hand, budget=Budget(params=0.5))
    assert all(np.array_equal(keep[n], again[n]) for n in keep)
    assert len(seen) == 2 * len(graph.tasks)


def test_a_normalisation_that_breaks_the_scores_is_told():
    graph = chain(4, 20, 20, 3)
    budget = Budget(params=0.5)
    with pytest.raises(KeepError, match=r"after normalize: .*lack the group"):
        cj.plan(graph, drawn(graph), budget=budget, normalize=lambda s, g: {})
    with pytest.raises(DataError, match=r"after normalize: .*are NaN"):
        cj.plan(
            graph,
            drawn(graph),
            budget=budget,
            normalize=lambda s, g: {n: v * np.nan for n, v in s.items()},
        )
