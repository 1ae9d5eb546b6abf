"""Schedules in numbers, keeps that compose, rounds of cutting and of masking."""

from __future__ import annotations

import doctest
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import NETS

import cutjax as cj
from cutjax import schedule
from cutjax.errors import BudgetError, KeepError, MismatchError


def test_schedules_in_numbers():
    assert schedule.one_shot(0.3) == (0.3,)
    found = schedule.polynomial(0.1, 4, power=3)
    want = [0.1 + 0.9 * (1 - r / 4) ** 3 for r in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, want)
    found = schedule.exponential(0.1, 5, start=0.8)
    steps = np.array(found) / np.array((0.8, *found[:-1]))
    np.testing.assert_allclose(steps, (0.1 / 0.8) ** 0.2)
    assert found[-1] == 0.1
    for shares in (schedule.polynomial(0.05, 7), schedule.exponential(0.05, 7)):
        assert all(b < a for a, b in itertools.pairwise((1.0, *shares)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: schedule.one_shot(0.0),
        lambda: schedule.one_shot(1.2),
        lambda: schedule.polynomial(0.5, 0),
        lambda: schedule.exponential(0.5, 3, start=0.4),
        lambda: schedule.polynomial(0.5, 3, start=0.4),
    ],
)
def test_schedules_that_rise_or_leave_the_range(wrong):
    with pytest.raises(BudgetError):
        _ = wrong()


def check_compose(compose: Any) -> None:
    """Positions of positions, by indexing with numpy."""
    _, graph = case("mlp_tasks")
    rng = np.random.default_rng(0)
    first, second = {}, {}
    for group in graph.free:
        first[group.name] = np.arange(group.size) % 3 > 0
        left = int(first[group.name].sum())
        second[group.name] = rng.permutation(left) < 2
    found = compose(graph, first, second)
    for name in first:
        index = np.arange(graph[name].size)[first[name]][second[name]]
        np.testing.assert_array_equal(np.flatnonzero(found[name]), index)


@functools.cache
def case(name: str) -> tuple[Any, cj.Graph]:
    net = NETS[name]()
    return net, cj.trace(net.apply, net.params, *net.inputs)


def test_keeps_compose():
    check_compose(schedule.compose)


def test_saboteur_keeps_that_are_laid_over_each_other():
    def broken(graph: cj.Graph, keep: Any, inner: Any) -> Any:
        return {n: m & np.resize(inner[n], m.size) for n, m in keep.items()}

    with pytest.raises(AssertionError):
        check_compose(broken)


def test_keeps_that_do_not_compose():
    _, graph = case("mlp_tasks")
    name = graph.free[0].name
    with pytest.raises(KeepError, match="8 channels left"):
        _ = schedule.compose(graph, {}, {name: np.ones(3, bool)})
    with pytest.raises(KeepError, match="no group"):
        _ = schedule.compose(graph, {}, {"nothing": np.ones(3, bool)})


# Rounds. ----------------------------------------------------------------------------


def magnitude(apply: Any, params: Any, graph: cj.Graph) -> Any:
    return cj.l1(apply, params, graph, progress=False)


def total(apply: Any, params: Any, graph: cj.Graph) -> Any:
    """Sum of |w| per channel: zeros of masked channels do not count."""
    leaves = {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.abs(np.asarray(v))
        for p, v in jax.tree.leaves_with_path(params)
    }
    scores = {}
    for g in graph.free:
        parts = [np.moveaxis(leaves[m.path], m.axis, 0) for m in g.members]
        sums = [p.reshape(g.size, -1).sum(1) for p in parts]
        scores[g.name] = np.sum(sums, 0).astype(np.float32)
    return dict.fromkeys(graph.tasks, scores)


def rounds(name: str, shares: Any, **given: Any) -> list[schedule.Round]:
    net, graph = case(name)
    given = {"score": magnitude, "inputs": net.inputs, **given}
    budgets = [cj.Budget(params=share, max_ratio=1.0) for share in shares]
    return [*schedule.iterate(net.apply, net.params, graph, budgets=budgets, **given)]


def shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def check_rounds(name: str, shares: Any, found: list[Any], tasks: Any = None) -> Any:
    """Budgets of the parent, subsets, and the shapes of one cut of the parent."""
    net, graph = case(name)
    full = graph.cost(tasks=tasks).params
    before = {g.name: np.ones(g.size, bool) for g in graph.free}
    for share, r in zip(shares, found, strict=True):
        assert all((before[n] | ~m).all() for n, m in r.keep.items()), "not a subset"
        assert r.cost == graph.cost(r.keep, tasks=tasks)
        assert r.cost.params <= share * full
        before = {**before, **r.keep}
    last = found[-1]
    small_apply, small = cj.cut(net.apply, net.params, graph, last.keep, tasks)
    return small_apply, small


SHARES = schedule.exponential(0.3, 3)


def perturbed(apply: Any, params: Any) -> Any:
    """A stand-in for training that moves every weight."""
    return jax.tree.map(
        lambda v: v + 0.01 * jnp.cos(jnp.arange(v.size)).reshape(v.shape), params
    )


@pytest.mark.parametrize(
    "name", ["mlp_tasks", pytest.param("resnet18", marks=pytest.mark.slow)]
)
def test_rounds_end_in_one_cut_of_the_parent(name):
    net, _ = case(name)
    found = rounds(name, SHARES, recover=perturbed)
    apply, small = check_rounds(name, SHARES, found)
    assert shapes(small) == shapes(found[-1].params)
    for r in found:
        assert sum(v.size for v in jax.tree.leaves(r.params)) == r.cost.params
    params = found[-1].params
    a, b = apply(params, *net.inputs), found[-1].apply(params, *net.inputs)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5), a, b)


def test_rounds_for_some_tasks():
    found = rounds("mlp_tasks", SHARES, tasks="smile")
    _, small = check_rounds("mlp_tasks", SHARES, found, ("smile",))
    assert shapes(small) == shapes(found[-1].params)
    assert "age" not in found[-1].params


def test_without_recovery_weights_are_those_of_the_cut():
    found = rounds("mlp_tasks", SHARES)
    _, small = check_rounds("mlp_tasks", SHARES, found)
    jax.tree.map(np.testing.assert_array_equal, small, found[-1].params)


def test_saboteur_budgets_of_what_is_left(monkeypatch):
    """Fractions taken of the ever smaller function cut too much, too early."""
    monkeypatch.setattr(schedule, "absolute", lambda budget, graph, tasks: budget)
    found = rounds("resnet18", SHARES)
    _, graph = case("resnet18")
    assert found[-1].cost.params < 0.5 * SHARES[-1] * graph.cost().params


def test_budgets_are_met_closely_and_not_earlier_than_asked():
    found, (_, graph) = rounds("resnet18", SHARES), case("resnet18")
    for share, r in zip(SHARES, found, strict=True):
        assert 0.8 * share < r.cost.params / graph.cost().params <= share


def test_scoped_fractions_are_of_the_parent():
    _, graph = case("mlp_tasks")
    budget = cj.Budget(params={"trunk": 0.5, "heads": 0.25, "all": 90}, flops=0.5)
    found = schedule.absolute(budget, graph, graph.tasks)
    trunk = graph.cost().trunk_params
    heads = graph.cost().params - trunk
    want = {"trunk": int(0.5 * trunk), "heads": int(0.25 * heads), "all": 90}
    assert found.params == want
    assert found.flops == graph.cost().flops // 2
    assert found.bytes is None


# Late cutting. ----------------------------------------------------------------------


def test_masking_rounds_choose_as_cutting_rounds():
    """With nothing trained, masking and cutting are the same rounds."""
    net, graph = case("mlp_tasks")
    cutting = rounds("mlp_tasks", SHARES, score=total)
    masking = rounds("mlp_tasks", SHARES, score=total, masked=True)
    _ = check_rounds("mlp_tasks", SHARES, masking)
    for a, b in zip(cutting, masking, strict=True):
        assert shapes(b.params) == shapes(net.params)
        jax.tree.map(np.testing.assert_array_equal, a.keep, b.keep)
        small_apply, small = cj.cut(net.apply, b.params, graph, b.keep)
        want = b.apply(b.params, *net.inputs)
        got = small_apply(small, *net.inputs)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-6), got, want
        )


def test_training_while_masking_leaves_what_is_masked():
    """An ordinary optimiser on the masked function; momentum and decay included."""
    net, _ = case("mlp_tasks")

    def train(apply: Any, params: Any) -> Any:
        tx = optax.adamw(1e-2)
        state = tx.init(params)

        def loss(p: Any) -> Any:
            return sum(jnp.sum(v**2) for v in apply(p, *net.inputs).values())

        for _ in range(3):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    found = rounds("mlp_tasks", SHARES, masked=True, recover=train)
    _ = check_rounds("mlp_tasks", SHARES, found)
    _, graph = case("mlp_tasks")
    for r in found:
        masked = cj.mask(r.params, graph, r.keep)
        jax.tree.map(np.testing.assert_array_equal, r.params, masked)
    moved = np.abs(
        np.asarray(found[-1].params["trunk"]["kernel"] - net.params["trunk"]["kernel"])
    )
    kept = found[-1].keep["trunk/kernel:1"]
    assert (moved[:, kept] > 1e-3).all()


def test_a_branch_that_goes_whole_stays_gone():
    """With a floor of 0 the branch beside the stream goes in the first round."""
    shapes_of = {"enc": (4, 8), "up": (8, 6), "down": (6, 8), "head": (8, 2)}
    params = {
        n: jnp.full(s, 0.01 if n in ("up", "down") else 1.0)
        for n, s in shapes_of.items()
    }
    x = jnp.ones((2, 4))

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["enc"])
        return (h + jnp.tanh(h @ p["up"]) @ p["down"]) @ p["head"]

    graph = cj.trace(apply, params, x)
    budgets = [cj.Budget(params=s, floor=0, max_ratio=1.0) for s in (0.4, 0.2)]
    for masked in (False, True):
        found = [
            *schedule.iterate(
                apply,
                params,
                graph,
                inputs=(x,),
                budgets=budgets,
                score=magnitude,
                masked=masked,
            )
        ]
        sizes = [[int(m.sum()) for m in r.keep.values()] for r in found]
        assert sizes == [[8, 0], [4, 0]]
        small_apply, small = cj.cut(apply, params, graph, found[-1].keep)
        got = found[-1].apply(found[-1].params, x)
        np.testing.assert_allclose(small_apply(small, x), got, rtol=1e-6)


def test_inputs_are_those_that_were_traced():
    """FLOPs of another batch size would be compared with budgets of the parent."""
    net, _ = case("mlp_tasks")
    inputs = tuple(x[:1].repeat(7, 0) for x in net.inputs)
    with pytest.raises(MismatchError, match=r"pass inputs=.*what it was traced with"):
        _ = rounds("mlp_tasks", (0.5,), inputs=inputs)


def test_what_was_traced_is_one_example_or_a_batch():
    params = {"a": jnp.ones((3, 2))}
    key = jax.random.key(0)

    def apply(p: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        return x @ p["a"] + jax.random.normal(key, (2,))

    for n in (1, 6):
        graph = cj.trace(apply, params, key, jnp.ones((n, 3)))
        found = schedule.like_traced(graph, ((key, np.ones((6, 3), np.float32)),))
        assert [a.shape for a in found] == [(), (n, 3)]
        assert schedule.traced(apply, params, graph, found).inputs == graph.inputs


def test_budgets_of_rounds_do_not_rise():
    with pytest.raises(BudgetError, match=r"budget 3 leaves .* let budgets fall"):
        _ = rounds("mlp_tasks", (0.5, 0.4, 0.5))


def test_a_budget_out_of_reach_says_so():
    with pytest.raises(BudgetError, match="least"):
        _ = rounds("mlp_tasks", (0.5, 0.0001))


def test_doctests():
    assert doctest.testmod(schedule).failed == 0


@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_one_axis_keep_their_names_when_one_of_them_is_as_good_as_gone(
    masked,
):
    rng = np.random.default_rng(0)
    sizes = {"in": (4, 9), "a": (3, 2), "b": (3, 2), "c": (3, 2)}
    p = {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in sizes.items()}

    def apply(p, x):
        parts = jnp.split(jnp.tanh(x @ p["in"]), 3, -1)
        return sum(part @ p[name] for part, name in zip(parts, "abc", strict=True))

    x = jnp.ones((2, 4))
    graph = cj.trace(apply, p, x)
    assert [g.name for g in graph.free] == ["in:1.0", "in:1.1", "in:1.2"]
    plans = [{"in:1.0": [1, 1, 1], "in:1.1": [0, 1, 0], "in:1.2": [1, 0, 1]}]
    # Of what is left there are two, of three channels and of two.
    plans.append({"in:1.0": [1, 0, 1], "in:1.1": [1, 0]})
    asked = iter(plans)

    def plan(here, scores, **_):
        keep = {name: np.array(m, bool) for name, m in next(asked).items()}
        assert set(scores["output"]) >= {g.name for g in here.free} == set(keep)
        return keep, None

    budgets = [cj.Budget(params=0.9), cj.Budget(params=0.8)]
    options = {"score": total, "inputs": (x,), "masked": masked, "plan": plan}
    found = schedule.iterate(apply, p, graph, budgets=budgets, **options)
    last = [*found][-1]
    want = {"in:1.0": [1, 0, 1], "in:1.1": [0, 1, 0], "in:1.2": [1, 0, 0]}
    jax.tree.map(np.testing.assert_array_equal, last.keep, {
        name: np.array(m, bool) for name, m in want.items()
    })  # fmt: skip
    small, cut = cj.cut(apply, p, graph, last.keep)
    np.testing.assert_allclose(last.apply(last.params, x), small(cut, x), rtol=1e-6)
