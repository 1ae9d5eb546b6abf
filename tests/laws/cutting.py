"""Laws of the cut: mask, narrower net, full keep, tasks, cost."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from nets import Net

from .tools import (
    Case,
    answers,
    attempt,
    case_of,
    close,
    count,
    graph_of,
    run,
    run_full,
)


def check_shrink_equals_mask(cj: Any, net: Net, seed: int) -> None:
    """The small function equals the masked one, where no statistic crosses."""
    case = case_of(cj, net, seed, exact=net.exact)
    close(case.small_out, case.masked_out)


def check_shrink_equals_narrow(cj: Any, net: Net, seed: int) -> None:
    """The small function equals the same code built narrower, statistics and all."""
    case = case_of(cj, net, seed)
    narrow = attempt(net.narrow, case.kept)
    close(case.small_out, run(narrow, case.params, *net.inputs))


def check_any_keep(cj: Any, net: Net, keep: Any) -> None:
    """Both of these, and the predicted size, for a keep from outside."""
    case = Case(cj, net, graph_of(cj, net), keep)
    cost = attempt(case.graph.cost, keep)
    assert cost.params == count(case.params), f"{cost}, counted {count(case.params)}"
    if net.exact:
        close(case.small_out, case.masked_out)
    if net.narrow is not None:
        narrow = attempt(net.narrow, case.kept)
        close(case.small_out, run(narrow, case.params, *net.inputs))


def check_mask(cj: Any, net: Net, seed: int) -> None:
    """A mask is zero where the cut removes, and touches nothing else."""
    case = case_of(cj, net, seed)
    full, masked, index = map(jax.tree.leaves, (net.params, case.masked, case.index))
    for leaf, got, kept in zip(full, masked, index, strict=True):
        want = np.zeros(leaf.size, leaf.dtype)
        want[kept.ravel()] = np.asarray(leaf).ravel()[kept.ravel()]
        assert np.array_equal(np.asarray(got).ravel(), want), "mask and cut differ"


def check_full_keep(cj: Any, net: Net) -> None:
    """Keeping everything gives back the same arrays, bit for bit."""
    graph = graph_of(cj, net)
    full = {group.name: np.ones(group.size, bool) for group in graph.groups}
    for keep in ({}, full):
        for cut in (cj.cut_params, cj.mask):
            got = attempt(cut, net.params, graph, keep)
            same = jax.tree.structure(got) == jax.tree.structure(net.params)
            assert same, "another structure"
            for a, b in zip(
                jax.tree.leaves(got), jax.tree.leaves(net.params), strict=True
            ):
                assert a.dtype == b.dtype and np.array_equal(a, b), "another array"
    small = attempt(cj.shrink, net.apply, graph, full)
    close(run(small, net.params, *net.inputs), run_full(net), 2e-6)


def check_tasks(cj: Any, net: Net, seed: int) -> None:
    """A cut for one task answers that task as the mask does, with fewer parameters."""
    case = case_of(cj, net, seed, exact=net.exact)
    want = answers(case.masked_out)
    for task in net.tasks:
        small, params = _cut(cj, case, (task,))
        got = answers(run(small, params, *net.inputs))
        assert set(got) == {task}, f"asked for {task}, got {set(got)}"
        close(got[task], want[task])
        if len(net.tasks) > 1:
            assert count(params) < count(case.params), f"{task} kept every parameter"
        cost = attempt(case.graph.cost, case.keep, (task,))
        assert cost.params == count(params), f"{cost.params}, counted {count(params)}"
        if len(net.tasks) > 1:  # of one task `check_cost` counts them
            check_flops(cj, net, cost, small, params)


def _cut(cj: Any, case: Case, tasks: tuple[str, ...] | None) -> tuple[Any, Any]:
    found = []

    def cut(params: Any) -> Any:
        small, params = cj.cut(
            case.net.apply, params, case.graph, case.keep, tasks=tasks
        )
        found.append(small)
        return params

    params = run(cut, case.net.params)
    return found[0], params


def check_cost(cj: Any, net: Net, seed: int | None) -> None:
    """Predicted parameters and FLOPs are those counted in the smaller function."""
    graph = graph_of(cj, net)
    if seed is None:
        cost, params, small = attempt(graph.cost), net.params, net.apply
    else:
        case = case_of(cj, net, seed)
        cost, params, small = attempt(graph.cost, case.keep), case.params, case.small
    assert cost.params == count(params), f"{cost.params}, counted {count(params)}"
    check_flops(cj, net, cost, small, params)


def check_flops(cj: Any, net: Net, cost: Any, small: Any, params: Any) -> None:
    """Predicted FLOPs are those counted in a function."""
    if net.countable:
        flops = attempt(cj.count_flops, small, params, *net.inputs)
        assert cost.flops == flops, f"{cost.flops} FLOPs, counted {flops}"
