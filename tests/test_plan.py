"""Plans against budgets, counted leaves and exact optima; broken planners."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import milp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax import fuse
from cutjax.allocate import Meter, isomorphic, nested, threshold
from cutjax.bench.flops import count_flops
from cutjax.budget import Budget
from cutjax.cost import amounts, cost_of
from cutjax.errors import BudgetError, DataError, KeepError

RULES = {"floor": 1, "multiple": 1, "max_ratio": 1.0}


@functools.cache
def graph_of(name: str) -> cj.Graph:
    net = NETS[name]()
    return cj.trace(net.apply, net.params, *net.inputs)


def drawn(graph: cj.Graph, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random scores, groups and tasks on scales of their own."""
    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    for task in graph.tasks:
        out[task] = {
            g.name: (rng.random(g.size) * 10 ** rng.uniform(-1, 1)).astype(np.float32)
            for g in graph.free
        }
    return out


def counted(net: Any, graph: cj.Graph, keep: Any, tasks: Any) -> tuple[int, int]:
    """Leaves and multiply-adds of what `cut` returns."""
    apply, params = cj.cut(net.apply, net.params, graph, keep, tasks)
    leaves = sum(int(np.prod(v.shape)) for v in jax.tree.leaves(params))
    return leaves, count_flops(apply, params, *net.inputs)


BUDGETS = [
    {"params": 0.6},
    {"params": 0.3},
    {"flops": 0.5},
    {"params": 0.5, "flops": 0.4},
    {"bytes": 0.5, "params": 0.9},
    {"params": 200},
]
PLANNED = ["mlp_tasks", "resnet18", "vgg", "vit_linen", "densenet", "resnext"]


def check_budget(plan: Callable, name: str, given: dict[str, Any], **rules: Any) -> Any:
    """What is left, counted independently, is within the budget."""
    net, graph = NETS[name](), graph_of(name)
    budget = Budget(**given, **rules)
    try:
        keep, info = plan(graph, drawn(graph), budget=budget)
    except BudgetError as error:
        # Only where even the narrowest model is too much.
        least = {g.name: budget.least(g.size) for g in graph.free}
        cost = amounts(graph, least, graph.tasks)
        limits = budget.limits(amounts(graph, {}, graph.tasks))
        assert any(cost[r] > limit for r, limit in limits.items()), error
        return None
    leaves, flops = counted(net, graph, keep, graph.tasks)
    full = counted(net, graph, {}, graph.tasks)
    assert (info.cost.params, info.cost.flops) == (leaves, flops)
    assert (info.full.params, info.full.flops) == full
    for resource, value in given.items():
        whole = {"params": full[0], "flops": full[1], "bytes": 4 * full[0]}[resource]
        left = {"params": leaves, "flops": flops, "bytes": 4 * leaves}[resource]
        assert left <= (value * whole if isinstance(value, float) else value)
    return keep


@pytest.mark.parametrize("given", BUDGETS, ids=str)
@pytest.mark.parametrize("name", by_turns(PLANNED, 4))
def test_budgets_are_met_counted_from_what_cut_returns(name, given):
    check_budget(cj.plan, name, given)


@pytest.mark.parametrize("name", ["mlp_tasks", "resnet18", "vit_linen"])
def test_uniform_budgets_are_met_by_one_share(name):
    plan = functools.partial(cj.plan, allocate=cj.uniform)
    graph, keep = graph_of(name), check_budget(plan, name, {"params": 0.5})
    assert keep is not None
    shares = [keep[g.name].mean() for g in graph.free]
    assert max(shares) - min(shares) <= max(1 / g.size for g in graph.free)
    check_budget(plan, name, {"params": 0.5, "flops": 0.4})


def test_a_subset_of_tasks_is_counted_by_itself():
    net, graph = NETS["mlp_tasks"](), graph_of("mlp_tasks")
    for tasks in (("age",), ("smile",), ("age", "smile")):
        budget = Budget(params=0.5)
        keep, info = cj.plan(graph, drawn(graph), tasks=tasks, budget=budget)
        leaves, flops = counted(net, graph, keep, tasks)
        full, _ = counted(net, graph, {}, tasks)
        assert (leaves, flops) == (info.cost.params, info.cost.flops)
        assert leaves <= 0.5 * full == 0.5 * info.full.params
        assert info.tasks == tasks
    alone, _ = cj.plan(graph, drawn(graph), tasks="smile", budget=Budget(params=0.5))
    hidden = next(name for name in alone if "age" in name)
    assert alone[hidden].all(), "what the tasks do not use is no saving"


def test_a_whole_budget_cuts_nothing():
    graph = graph_of("resnet18")
    for budget in (Budget(params=1.0), Budget(flops=graph.cost().flops)):
        keep, info = cj.plan(graph, drawn(graph), budget=budget)
        assert all(mask.all() for mask in keep.values())
        assert info.cost == info.full


# Rules for widths. ------------------------------------------------------------------


def wide(x: Any, *sizes: int) -> tuple[Callable, Any]:
    """A plain chain of dense layers, from shapes only."""
    shape = {
        f"w{i}": jax.ShapeDtypeStruct((a, b), jnp.float32)
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }

    def apply(p, x):
        for w in p.values():
            x = jnp.tanh(x @ w)
        return x

    return apply, shape


def chain(*sizes: int) -> cj.Graph:
    x = jax.ShapeDtypeStruct((1, sizes[0]), jnp.float32)
    return cj.trace(*wide(x, *sizes), x)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    st.sampled_from([0.15, 0.4, 0.7]),
    st.integers(0, 99),
)
def test_floors_multiples_and_ratios_hold(multiple, floor, max_ratio, share, seed):
    graph = chain(3, 16, 7, 24, 20, 2)
    budget = Budget(params=share, multiple=multiple, floor=floor, max_ratio=max_ratio)
    for allocate in (cj.greedy, cj.uniform, nested, threshold, isomorphic):
        try:
            keep, _ = cj.plan(
                graph, drawn(graph, seed), budget=budget, allocate=allocate
            )
        except BudgetError:
            continue
        for mask in keep.values():
            width, size = int(mask.sum()), mask.size
            assert width == size or width % multiple == 0
            assert width >= min(floor, size)
            assert size - width <= max_ratio * size + 1e-9


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_the_ladder_of_widths_by_definition(size, multiple, floor, max_ratio):
    budget = Budget(params=0.5, multiple=multiple, floor=floor, max_ratio=max_ratio)
    allowed = [
        w
        for w in range(1, size + 1)
        if w == size
        or (w % multiple == 0 and w >= floor and size - w <= max_ratio * size + 1e-9)
    ]
    assert budget.widths(size) == allowed[::-1]
    assert budget.least(size) == allowed[0]


def test_pinned_groups_stay_whole():
    x = jax.ShapeDtypeStruct((1, 4), jnp.float32)
    apply, shape = wide(x, 4, 30, 20, 3)
    graph = cj.trace(apply, shape, x, pin="w0:1")
    keep, info = cj.plan(graph, drawn(graph), budget=Budget(params=0.5))
    assert set(keep) == {"w1:1"} == set(info.widths)
    assert info.cost.params == 4 * 30 + 30 * keep["w1:1"].sum() + keep["w1:1"].sum() * 3


def test_ties_go_to_the_lower_index():
    graph = chain(4, 10, 10, 2)
    flat = {"output": {g.name: np.ones(g.size, np.float32) for g in graph.free}}
    for allocate in (cj.greedy, cj.uniform, nested, isomorphic):
        keep, _ = cj.plan(graph, flat, budget=Budget(params=0.5), allocate=allocate)
        for mask in keep.values():
            width = int(mask.sum())
            assert 0 < width <= 10 and mask[:width].all()
        again, _ = cj.plan(graph, flat, budget=Budget(params=0.5), allocate=allocate)
        assert all(np.array_equal(keep[n], again[n]) for n in keep)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from([0.2, 0.3, 0.5, 0.7]),
    st.sampled_from([0.05, 0.1, 0.25]),
    st.sampled_from(["chain", "resnet18", "mlp_tasks"]),
)
def test_keeps_of_two_budgets_are_nested_group_by_group(seed, share, more, name):
    graph = chain(4, 12, 9, 15, 3) if name == "chain" else graph_of(name)
    scores = drawn(graph, seed)
    (task, *_) = graph.tasks
    small, large = (
        cj.plan(graph, scores, tasks=task, fuse=fuse.union, budget=Budget(params=b))[0]
        for b in (share, share + more)
    )
    # Groups may trade channels between budgets; within a group the best stay longest.
    for group, mask in small.items():
        fewer, others = sorted((mask, large[group]), key=np.sum)
        assert (fewer <= others).all(), group


# Early groups that cost nothing. ----------------------------------------------------


def pyramid() -> cj.Graph:
    """16 channels where nothing costs, 256 where everything does."""
    sizes = (3, 16, 16, 64, 256, 256)
    p = {
        f"c{i}": jax.ShapeDtypeStruct((3, 3, a, b), jnp.float32)
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }
    p["head"] = jax.ShapeDtypeStruct((256, 10), jnp.float32)

    def apply(p, x):
        for i in range(5):
            x = jax.lax.conv_general_dilated(
                x,
                p[f"c{i}"],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ p["head"]

    return cj.trace(apply, p, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))


def check_early_groups(allocate: Callable) -> None:
    graph = pyramid()
    rng = np.random.default_rng(0)
    scale = {16: 0.2, 64: 0.5, 256: 1.0}
    scores = {
        g.name: (rng.uniform(0.5, 1, g.size) * scale[g.size]).astype(np.float32)
        for g in graph.free
    }
    for limit in ({"params": 0.32}, {"flops": 0.32}, {"params": 0.1}):
        keep, info = cj.plan(
            graph,
            {"output": scores},
            budget=Budget(**limit, max_ratio=0.9),
            allocate=allocate,
        )
        early = [keep[g.name].sum() for g in graph.free if g.size == 16]
        assert min(early) >= 12, (limit, early, info.widths)


def test_early_groups_that_cost_nothing_are_not_starved():
    check_early_groups(nested)


def test_exchange_keeps_the_first_group_and_more_score():
    """It may starve the second early group, where that wins more score elsewhere."""
    graph = pyramid()
    for seed, limit in enumerate(({"params": 0.32}, {"flops": 0.32}, {"params": 0.1})):
        rng = np.random.default_rng(seed)
        scores = {
            g.name: rng.uniform(0.5, 1, g.size).astype(np.float32) for g in graph.free
        }
        budget = Budget(**limit, max_ratio=0.9)
        one, two = (a(graph, scores, graph.tasks, budget) for a in (nested, cj.greedy))
        assert two["c0:3"] >= 12
        assert milp.kept_score(scores, two) >= milp.kept_score(scores, one)


# What cannot be met. ----------------------------------------------------------------


@pytest.mark.parametrize("resource", ["params", "flops", "bytes"])
@pytest.mark.parametrize("name", ["resnet18", "vit_linen", "mlp_tasks"])
def test_an_impossible_budget_says_the_least_which_then_works(name, resource):
    graph = graph_of(name)
    rules = {"floor": 2, "multiple": 2}
    with pytest.raises(BudgetError) as caught:
        cj.plan(graph, drawn(graph), budget=Budget(**{resource: 1}, **rules))
    said = str(caught.value)
    least = int(re.search(r"the least is ([\d,]+)", said)[1].replace(",", ""))
    tried = float(re.search(rf"try Budget\({resource}=([\d.]+)\)", said)[1])
    assert "floor=2" in said and "multiple=2" in said
    for value in (least, tried):
        budget = Budget(**{resource: value}, **rules)
        _, info = cj.plan(graph, drawn(graph), budget=budget)
        whole = getattr(info.full, resource)
        limit = value if isinstance(value, int) else value * whole
        assert getattr(info.cost, resource) <= limit
    with pytest.raises(BudgetError, match="the least is"):
        cj.plan(graph, drawn(graph), budget=Budget(**{resource: least - 1}, **rules))
    with pytest.raises(BudgetError, match="the least is"):
        budget = Budget(**{resource: least - 1}, **rules)
        cj.plan(graph, drawn(graph), budget=budget, allocate=cj.uniform)


def test_of_two_limits_the_impossible_one_is_named():
    graph = graph_of("resnet18")
    with pytest.raises(BudgetError, match="flops <= 1 cannot be met"):
        cj.plan(graph, drawn(graph), budget=Budget(params=0.9, flops=1))


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"params": 0.0},
        {"params": 1.5},
        {"flops": -3},
        {"params": 0.5, "floor": -1},
        {"params": 0.5, "floor": {"*": -1}},
        {"params": {"trunk": 1.5}},
        {"params": {}},
        {"activations": 0.0},
        {"params": float("nan")},
        {"params": 0.5, "multiple": 0},
        {"params": 0.5, "max_ratio": 1.1},
    ],
    ids=str,
)
def test_budgets_that_mean_nothing_are_refused(bad):
    with pytest.raises(BudgetError):
        Budget(**bad)


def test_scores_that_do_not_fit_are_refused():
    graph = chain(4, 6, 5, 2)
    scores, budget = drawn(graph), Budget(params=0.5)
    good = scores["output"]
    with pytest.raises(KeepError, match="no task 'ouput'; nearest: 'output'"):
        cj.plan(graph, scores, tasks="ouput", budget=budget)
    with pytest.raises(KeepError, match="no scores for task 'output'"):
        cj.plan(graph, {"other": good}, tasks="output", budget=budget)
    with pytest.raises(DataError, match=r"scores\['output'\]\['w0:1'\] are NaN"):
        bad = {**good, "w0:1": good["w0:1"] * np.nan}
        cj.plan(graph, {"output": bad}, budget=budget)
    with pytest.raises(KeepError, match=r"have shape \(5,\), not \(6,\)"):
        cj.plan(graph, {"output": {**good, "w0:1": good["w1:1"]}}, budget=budget)
    with pytest.raises(KeepError, match="lack the group 'w1:1'"):
        cj.plan(graph, {"output": {"w0:1": good["w0:1"]}}, budget=budget)
    with pytest.raises(KeepError, match="no group 'w0:2'; nearest: 'w0:1'"):
        cj.plan(graph, {"output": {**good, "w0:2": good["w0:1"]}}, budget=budget)


# What the plan says. ----------------------------------------------------------------


def test_claims_are_counted_per_task():
    graph = chain(4, 6, 2)
    scores = {
        "x": {"w0:1": np.array([6, 5, 4, 3, 2, 1], np.float32)},
        "y": {"w0:1": np.array([6, 1, 2, 3, 4, 5], np.float32)},
    }
    two = cj.trace(
        lambda p, x: {
            "x": jnp.tanh(x @ p["w0"]) @ p["w1"],
            "y": jnp.tanh(x @ p["w0"]) @ p["w1"],
        },
        graph.shapes,
        jax.ShapeDtypeStruct((1, 4), jnp.float32),
    )
    keep, info = cj.plan(two, scores, budget=Budget(params=0.5))
    assert keep["w0:1"].sum() == 3
    claims = info.claims["w0:1"]
    # x claims 0 1 2, y claims 0 4 5: one shared, channel 3 nobody's.
    assert claims.alone == {"x": 2, "y": 2}
    assert (claims.shared, claims.nobody) == (1, 1)
    assert info.widths == {"w0:1": (3, 6)}
    assert "w0:1" in str(info) and "3 / 6" in str(info)


def test_the_meter_follows_the_cost_polynomial():
    graph = graph_of("vit_linen")
    meter = Meter(graph, graph.tasks, ("params", "flops", "bytes"))
    rng, widths = np.random.default_rng(0), {}
    for _ in range(40):
        group = graph.free[rng.integers(len(graph.free))]
        width = int(rng.integers(1, group.size + 1))
        before = cost_of(graph, widths, graph.tasks)
        saved = meter.saving(group.name, width)
        widths[group.name] = width
        meter.set(group.name, width)
        cost = cost_of(graph, widths, graph.tasks)
        for resource, left in meter.totals.items():
            assert left == getattr(cost, resource)
            assert saved[resource] == getattr(before, resource) - left


# Saboteurs. -------------------------------------------------------------------------


def test_saboteur_a_global_threshold_starves_early_groups():
    with pytest.raises(AssertionError):
        check_early_groups(threshold)


def test_saboteur_a_plan_that_ignores_flops():
    def deaf(graph, scores, *, budget):
        keep, info = cj.plan(graph, scores, budget=Budget(params=budget.params))
        return keep, info

    with pytest.raises(AssertionError):
        check_budget(deaf, "resnet18", {"params": 0.9, "flops": 0.4})


def test_saboteur_one_channel_too_many():
    def generous(graph, scores, *, budget):
        keep, info = cj.plan(graph, scores, budget=budget)
        keep = {
            n: np.where(m.all(), m, m | (np.arange(m.size) == np.argmin(m)))
            for n, m in keep.items()
        }
        return keep, info

    with pytest.raises(AssertionError):
        check_budget(generous, "resnet18", {"params": 0.3})
