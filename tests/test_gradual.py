"""Rounds of cutting and refitting: budgets, subsets, and what rounds are for."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from nets import NETS
from test_compensate import batch_of, error, outputs, quick as quick

import cutjax as cj
from cutjax.errors import BudgetError, DataError, MismatchError
from cutjax.recover import gradually

QUIET: Any = {"progress": False}


def score(apply: Any, params: Any, graph: Any) -> Any:
    return {"output": next(iter(cj.l1(apply, params, graph).values()))}


def run(distil: Any = None, name: str = "mlp", shares: Any = (0.8, 0.5)) -> Any:
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    data = [batch_of(net, i) for i in range(3)]
    budgets = [cj.Budget(params=share) for share in shares]
    rounds = gradually(
        net.apply,
        net.params,
        graph,
        data,
        budgets=budgets,
        score=score,
        inputs=net.inputs,
        distil=distil,
        **QUIET,
    )
    return net, graph, data, list(rounds)


@pytest.mark.parametrize("distil", [None, lambda apply, params: params])
def test_rounds_meet_their_budgets_and_are_nested(distil):
    net, graph, _, rounds = run(distil)
    whole = graph.cost().params
    for round_, share in zip(rounds, (0.8, 0.5), strict=True):
        count = sum(leaf.size for leaf in jax.tree.leaves(round_.params))
        assert count == round_.cost.params <= share * whole
        _, as_cut = cj.cut(net.apply, net.params, graph, round_.keep)
        assert jax.tree.map(np.shape, round_.params) == jax.tree.map(np.shape, as_cut)
    first, last = rounds
    for name, mask in last.keep.items():
        assert not (mask & ~first.keep.get(name, mask)).any()


def test_without_distilling_a_round_is_a_refit_of_the_parent():
    net, graph, data, (*_, last) = run()
    want, _ = cj.compensate(net.apply, net.params, graph, last.keep, data, **QUIET)
    jax.tree.map(np.testing.assert_array_equal, last.params, want)


def test_what_distilling_taught_is_carried_on():
    """Every round's training must be seen by the next: here, a shift of all answers."""

    def shifted(apply: Any, params: Any) -> Any:
        return jax.tree.map(lambda a: a + 0.25 if a.ndim == 1 else a, params)

    _, _, data, (*_, plain) = run(lambda apply, params: params)
    _, _, _, (*_, taught) = run(shifted)
    x, _ = data[0]
    before, after = (outputs(r.apply, r.params, x) for r in (plain, taught))
    gap = error(after, before)
    assert gap > 1e-3


@pytest.mark.parametrize("size", [1, 24, 7])
def test_flops_are_counted_for_the_batch_of_the_graph(size):
    net = NETS["mlp_tasks"]()
    inputs = tuple(x[:1].repeat(size, 0) for x in net.inputs)
    graph = cj.trace(net.apply, net.params, *inputs)
    job = (net.apply, net.params, graph, [batch_of(net, i) for i in range(2)])
    options: Any = {"score": scores_of, "tasks": "age", **QUIET}
    options["budgets"] = [cj.Budget(flops=share) for share in (0.9, 0.7)]
    if size == 7:
        with pytest.raises(MismatchError, match="pass inputs="):
            next(gradually(*job, **options))
        options["inputs"] = inputs
    whole = graph.cost(tasks=("age",)).flops
    first, last = gradually(*job, **options)
    assert 0.6 * whole < first.cost.flops <= 0.9 * whole
    assert 0.4 * whole < last.cost.flops <= 0.7 * whole


def scores_of(apply: Any, params: Any, graph: Any) -> Any:
    return {"age": score(apply, params, graph)["output"]}


def test_budgets_do_not_rise():
    with pytest.raises(BudgetError, match=r"budget 2 leaves .* params, more than"):
        _ = run(shares=(0.5, 0.8))


def test_no_data_is_an_error():
    net = NETS["mlp"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    with pytest.raises(DataError, match="empty"):
        next(gradually(net.apply, net.params, graph, [], budgets=[], score=score))
