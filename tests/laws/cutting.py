"""Laws of the cut: mask, narrower net, full keep, tasks, cost."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from nets import Net

from .tools import (
    answers,
    attempt,
    close,
    count,
    graph_of,
    indices,
    kept_positions,
    leaves_of,
    random_keep,
    run,
    run_full,
)


def check_shrink_equals_mask(cj: Any, net: Net, seed: int) -> None:
    """The small function equals the masked one, where no statistic crosses."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed, exact=net.exact)
    masked = attempt(cj.mask, net.params, graph, keep)
    small = attempt(cj.shrink, net.apply, graph, keep)
    got = run(small, attempt(cj.cut_params, net.params, graph, keep), *net.inputs)
    close(got, run(net.apply, masked, *net.inputs))


def check_shrink_equals_narrow(cj: Any, net: Net, seed: int) -> None:
    """The small function equals the same code built narrower, statistics and all."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed)
    small_params = attempt(cj.cut_params, net.params, graph, keep)
    narrow = attempt(net.narrow, kept_positions(cj, net, keep))
    want = run(narrow, small_params, *net.inputs)
    small = attempt(cj.shrink, net.apply, graph, keep)
    close(run(small, small_params, *net.inputs), want)


def check_mask(cj: Any, net: Net, seed: int) -> None:
    """A mask is zero where the cut removes, and touches nothing else."""
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed)
    masked = attempt(cj.mask, net.params, graph, keep)
    pairs = zip(
        leaves_of(net.params),
        jax.tree.leaves(masked),
        jax.tree.leaves(indices(cj, net, keep)),
        strict=True,
    )
    for (path, full), got, index in pairs:
        want = np.zeros(full.size, full.dtype)
        want[index.ravel()] = np.asarray(full).ravel()[index.ravel()]
        assert np.array_equal(np.asarray(got).ravel(), want), f"mask of {path}"


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
    graph = graph_of(cj, net)
    keep = random_keep(graph, seed, exact=net.exact)
    masked = attempt(cj.mask, net.params, graph, keep)
    want = answers(run(net.apply, masked, *net.inputs))
    whole = attempt(cj.cut, net.apply, net.params, graph, keep)
    for task in net.tasks:
        kw = {"tasks": (task,)}
        small, params = attempt(cj.cut, net.apply, net.params, graph, keep, **kw)
        got = answers(run(small, params, *net.inputs))
        assert set(got) == {task}, f"asked for {task}, got {set(got)}"
        close(got[task], want[task])
        if len(net.tasks) > 1:
            assert count(params) < count(whole[1]), f"{task} kept every parameter"
        cost = attempt(graph.cost, keep, (task,))
        assert cost.params == count(params), f"{cost.params}, counted {count(params)}"
    close(answers(run(whole[0], whole[1], *net.inputs)), want)


def check_cost(cj: Any, net: Net, seed: int | None) -> None:
    """Predicted parameters and FLOPs are those counted in the smaller function."""
    graph = graph_of(cj, net)
    keep = {} if seed is None else random_keep(graph, seed)
    cost = attempt(graph.cost, keep) if keep else attempt(graph.cost)
    params = attempt(cj.cut_params, net.params, graph, keep)
    small = attempt(cj.shrink, net.apply, graph, keep)
    assert cost.params == count(params), f"{cost.params}, counted {count(params)}"
    flops = attempt(cj.count_flops, small, params, *net.inputs)
    assert cost.flops == flops, f"{cost.flops} FLOPs, counted {flops}"
