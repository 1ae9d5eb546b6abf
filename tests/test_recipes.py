"""Published methods on small nets: budgets, bounds, what each is defined by."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets.turns import by_turns
from test_saliency import LOSSES, QUIET, batched, conv_data, conv_net

import cutjax as cj
from cutjax import recipes
from cutjax.errors import BudgetError
from cutjax.mirror import named_leaves
from cutjax.schedule import exponential
from cutjax.sparse import apply_masks, density, masked, masks_of

TASKS = ("age", "smile")


def wide(n: int = 12) -> dict[str, Any]:
    """The convolutional net of test_saliency, with more channels."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        fan = np.prod(shape[:-1])
        return (rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    def norm() -> dict[str, np.ndarray]:
        one = np.ones(n, np.float32)
        shift = rng.normal(size=n).astype(np.float32)
        return {"mean": 0 * one, "var": one, "scale": one, "bias": 0.1 * shift}

    return {
        **{"c1": draw(3, 3, 2, n), "c2": draw(3, 3, n, n), "c3": draw(3, 3, n, n)},
        **{"bn1": norm(), "bn2": norm(), "age": draw(n, 1), "smile": draw(n, 3)},
    }


@pytest.fixture(scope="module")
def net() -> tuple[Any, cj.Graph, list[Any]]:
    params = wide()
    graph = cj.trace(conv_net, params, np.ones((1, 5, 5, 2), np.float32))
    assert len(graph.free) == 2
    x, y = conv_data(16)
    # Targets that the net nearly meets: what is cut makes every task worse.
    out = jax.tree.map(np.asarray, conv_net(params, x))
    y = {"age": out["age"] + 0.2 * y["age"], "smile": out["smile"].argmax(1)}
    return params, graph, batched(x, y, 8)


BUDGET = cj.Budget(params=0.5)


@pytest.mark.parametrize("name", by_turns(recipes.ONE_SHOT, 2))
def test_one_shot_recipes_meet_the_budget_for_any_tasks(net, name):
    params, graph, data = net
    recipe = recipes.ONE_SHOT[name]()
    found = cj.saliency(
        *(conv_net, params, graph, LOSSES, data), criterion=recipe.criterion, **QUIET
    )
    for tasks in (TASKS, ("smile",)):
        keep, info = recipes.planned(recipe, graph, found, budget=BUDGET, tasks=tasks)
        apply, small = cj.cut(conv_net, params, graph, keep, tasks)
        leaves = sum(v.size for v in jax.tree.leaves(small))
        assert leaves == info.cost.params <= 0.5 * info.full.params
        assert set(apply(small, data[0][0])) == set(tasks)


def test_prune_is_scoring_and_planning(net):
    params, graph, data = net
    full, recipe = (conv_net, params, graph), recipes.taylor()
    keep, _ = recipes.prune(recipe, *full, LOSSES, data, budget=BUDGET, **QUIET)
    scores = cj.taylor(*full, LOSSES, data, **QUIET)
    want, _ = cj.plan(graph, scores, budget=BUDGET)
    assert all(np.array_equal(keep[n], want[n]) for n in want)


def test_cut_keeps_what_enough_tasks_rank_high(net):
    """For some kappa: in the top kappa of at least n tasks, as CUT defines it."""
    params, graph, data = net
    scores = cj.criteria.cut(conv_net, params, graph, LOSSES, data, **QUIET)
    names = [g.name for g in graph.free]
    rows = np.stack([np.concatenate([scores[t][n] for n in names]) for t in TASKS])
    ranks = np.argsort(np.argsort(-rows, axis=1), axis=1)
    for votes in (1, 2):
        budget = cj.Budget(params=0.5, max_ratio=1.0)
        recipe = recipes.cut(votes)
        keep, _ = recipes.planned(recipe, graph, scores, budget=budget)
        got = np.concatenate([keep[n] for n in names])
        sets = [(ranks < k).sum(0) >= votes for k in range(rows.shape[1] + 1)]
        # Between two steps of kappa: a budget may end amid channels that tie.
        assert any(
            (a <= got).all() and (got <= b).all() for a, b in itertools.pairwise(sets)
        )
        other = [(ranks < k).sum(0) >= 3 - votes for k in range(rows.shape[1] + 1)]
        assert not any(np.array_equal(got, s) for s in other)


def test_reinitialised_widths_have_the_variance_of_a_narrow_draw():
    def init(key):
        a, b = jax.random.split(key)
        return {
            "a": jax.random.normal(a, (40, 600)) / np.sqrt(40),
            "b": jax.random.normal(b, (600, 300)) / np.sqrt(600),
        }

    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    graph = cj.trace(apply, init(jax.random.key(0)), jnp.ones((1, 40)))
    keep = {"a:1": np.arange(600) < 60}
    fn, small = recipes.reinitialise(init, apply, graph, keep, jax.random.key(1))
    assert fn(small, jnp.ones((2, 40))).shape == (2, 300)
    assert float(small["a"].std()) == pytest.approx(40**-0.5, rel=0.05)
    assert float(small["b"].std()) == pytest.approx(60**-0.5, rel=0.05)


# PAGCP. -----------------------------------------------------------------------------


def test_losses_at_a_keep_equal_those_of_the_cut_function(net):
    params, graph, data = net
    at = recipes.task_losses_at(conv_net, params, graph, LOSSES, data)
    keep = {g.name: np.arange(g.size) % 3 > 0 for g in graph.free}
    apply, small = cj.cut(conv_net, params, graph, keep)
    for chosen, fn, p in (({}, conv_net, params), (keep, apply, small)):
        got = at(chosen)
        for task in TASKS:
            each = [
                float(LOSSES[task](fn(p, x[i : i + 1])[task], y[task][i : i + 1]))
                for x, y in data
                for i in range(len(x))
            ]
            assert got[task] == pytest.approx(np.mean(each), rel=1e-4)


def test_pagcp_stays_within_every_tasks_bound(net):
    params, graph, data = net
    full = (conv_net, params, graph, LOSSES, data)
    scores = cj.fuse.mean(cj.taylor(*full, **QUIET))
    gone = []
    for bound in (1.05, 1.5):
        keep, found = recipes.pagcp(*full, scores, bound=bound, share=1.0, **QUIET)
        assert all(found.met.values()) and found.bound == bound
        at = recipes.task_losses_at(*full)
        before, after = at({}), at(keep)
        assert found.before == before and found.after == after
        assert all(after[t] <= bound * before[t] for t in TASKS)
        gone.append(sum(int((~m).sum()) for m in keep.values()))
    assert 0 < gone[0] < gone[1]
    # The finished model is measured again; a ruined one is found out.
    apply, small = cj.cut(conv_net, params, graph, keep)
    inner = cj.trace(apply, small, data[0][0])
    args = (LOSSES, data, found.before, bound)
    good = recipes.recheck(apply, small, inner, *args)
    assert all(good.met.values())
    for task in TASKS:
        assert good.after[task] == pytest.approx(found.after[task], rel=1e-4)
    ruined = {**small, "smile": small["smile"] * 30}
    bad = recipes.recheck(apply, ruined, inner, *args)
    assert bad.met == {"age": True, "smile": False} and "ABOVE" in str(bad)
    with pytest.raises(BudgetError, match=r"bound=0\.9 must be above 1"):
        recipes.pagcp(*full, scores, bound=0.9, **QUIET)


def test_pagcp_bounds_of_groups_multiply_to_the_whole():
    from cutjax.recipes.pagcp import _rises

    for decay in (1.0, 0.7):
        rises = _rises(1.3, decay, 9)
        assert np.prod(1 + np.array(rises)) == pytest.approx(1.3, rel=1e-6)
        np.testing.assert_allclose(np.array(rises[1:]) / rises[:-1], decay, rtol=1e-6)


# Rounds. ----------------------------------------------------------------------------


def test_cosprune_and_its_twin_in_rounds(net):
    params, graph, data = net
    trained = []

    def recover(fn, now):
        trained.append(jax.tree.leaves(now)[0].shape)
        return now

    budgets = [cj.Budget(params=s, floor=2) for s in exponential(0.4, 3)]
    for criterion in (None, cj.taylor()):
        trained.clear()
        rounds = list(
            recipes.cosprune_rounds(
                *(conv_net, params, graph, LOSSES, data),
                budgets=budgets,
                recover=recover,
                criterion=criterion,
                **QUIET,
            )
        )
        assert len(trained) == 3
        for budget, now in zip(budgets, rounds, strict=True):
            assert now.cost.params <= budget.params * graph.cost().params
        for a, b in itertools.pairwise(rounds):
            assert all((a.keep[n] | ~b.keep[n]).all() for n in b.keep)


def test_iterative_magnitude_rewinds_and_never_brings_back(net):
    params, graph, _ = net
    x, y = conv_data(16)
    seen = []

    def train(start, masks):
        seen.append(masks)
        tx = masked(optax.adam(1e-2), masks)

        def loss(p):
            out = conv_net(p, x)
            return sum(LOSSES[t](out[t], y[t]) for t in TASKS)

        state, grad = tx.init(start), jax.jit(jax.grad(loss))
        for _ in range(3):
            updates, state = tx.update(grad(start), state, start)
            start = optax.apply_updates(start, updates)
        assert jax.tree.all(jax.tree.map(np.array_equal, masks_of(state), masks))
        return start

    ticket, masks = recipes.imp(params, graph, train, exponential(0.2, 3))
    assert density(masks).whole == pytest.approx(0.2, abs=1e-3)
    for a, b in zip([*seen, masks], [*seen[1:], masks], strict=False):
        for m, n in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert (m | ~n).all()
    # Rewound: what stays has the weight of the start.
    want = apply_masks(params, masks)
    assert jax.tree.all(jax.tree.map(np.array_equal, ticket, want))


# Unstructured. ----------------------------------------------------------------------


def loop_scores(params: Any, data: Any, task: str, batch: int) -> dict[str, np.ndarray]:
    """CUT's scores by a plain loop over batches of a size."""
    x = np.concatenate([b[0] for b in data])
    y = np.concatenate([b[1][task] for b in data])
    total: dict[str, Any] = {}
    for i in range(0, len(x), batch):

        def loss(p, i=i):
            return LOSSES[task](conv_net(p, x[i : i + batch])[task], y[i : i + batch])

        slopes = named_leaves(jax.grad(loss)(params))
        for path, w in named_leaves(params).items():
            product = np.abs(np.asarray(slopes[path]) * w)
            total[path] = total.get(path, 0.0) + product
    return total


@pytest.mark.parametrize("votes", [1, 2])
def test_cut_weights_equals_the_definition_at_the_kappa_it_found(net, votes):
    params, graph, data = net
    args = (conv_net, params, graph, LOSSES, data)
    masks, info = recipes.cut_weights(*args, density=0.3, votes=votes, batch=4, **QUIET)
    assert 0.3 * 0.995 <= info.realised.whole <= 0.3
    got = {p: np.asarray(m) for p, m in named_leaves(masks).items()}
    trunk, kept = ("c1", "c2", "c3"), {}
    for task in TASKS:
        scores = loop_scores(params, data, task, 4)
        flat = np.concatenate([scores[p].ravel() for p in (*trunk, task)])
        level = np.sort(flat)[-round(info.asked * flat.size)]
        kept[task] = {p: scores[p] >= level * (1 - 1e-5) for p in (*trunk, task)}
    wrong = total = 0
    for path in trunk:
        want = (sum(kept[t][path].astype(int) for t in TASKS)) >= votes
        wrong, total = wrong + (want != got[path]).sum(), total + want.size
    assert wrong / total < 2e-3
    for task in TASKS:
        assert (kept[task][task] == got[task]).mean() > 0.9
    assert set(got) == {*trunk, *TASKS}


def test_the_other_unstructured_methods_meet_their_density(net):
    params, graph, data = net
    args = (conv_net, params, graph, LOSSES, data)
    found = {
        "snip": recipes.snip_weights(*args, density=0.2, **QUIET),
        "disparse": recipes.disparse_weights(*args, density=0.2, **QUIET),
        "static": recipes.disparse_weights(*args, density=0.2, static=True, **QUIET),
        "lth": recipes.lth_weights(params, graph, density=0.2),
    }
    for name, (masks, info) in found.items():
        assert 0.199 <= density(masks).whole <= 0.2, name
        assert info.realised.trunk is not None and set(info.realised.heads) == set(
            TASKS
        )
    sizes = np.concatenate(
        [np.abs(params[p]).ravel() for p in ("c1", "c2", "c3", *TASKS)]
    )
    level = np.sort(sizes)[-int(0.2 * sizes.size)]
    assert ((np.abs(params["c2"]) >= level) == found["lth"][0]["c2"]).mean() > 0.99
    different = [np.asarray(m["c2"]).tobytes() for m, _ in found.values()]
    assert len(set(different)) == 4


def test_disparse_dynamic_trains_and_keeps_its_density(net):
    params, graph, _ = net
    x, y = conv_data(16)
    tx = recipes.disparse_dynamic(
        optax.sgd(1e-2), params, graph, density=0.3, stop=6, every=2
    )

    @jax.jit
    def step(p, state):
        slopes = {
            t: jax.grad(lambda q, t=t: LOSSES[t](conv_net(q, x)[t], y[t]))(p)
            for t in TASKS
        }
        total = jax.tree.map(lambda *g: sum(g), *slopes.values())
        updates, state = tx.update(total, state, p, task_grads=slopes)
        return optax.apply_updates(p, updates), state

    p, state = params, tx.init(params)
    first = masks_of(state)
    for _ in range(7):
        p, state = step(p, state)
    last = masks_of(state)
    assert density(last).whole == pytest.approx(density(first).whole)
    assert density(first).whole == pytest.approx(0.3, abs=0.01)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True)
    )
    for path, mask in named_leaves(last).items():
        assert not np.asarray(named_leaves(p)[path])[~np.asarray(mask)].any()
