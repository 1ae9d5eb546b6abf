"""Laws on random functions: what nobody thought of when a rule was written.

What fails here is named by its seed and its steps: `anyhow(seed)` makes it again.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from laws import CJ
from laws.tools import close, graph_of, run, run_full
from nets.anyhow import anyhow
from test_merge_listening import check as check_merged

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.recover import rotate


def seeds(default: int, every: int) -> pytest.MarkDecorator:
    slow = pytest.mark.slow
    found = [
        pytest.param(seed, marks=slow if seed >= default else ())
        for seed in range(every)
    ]
    return pytest.mark.parametrize("seed", found)


@functools.cache
def net(seed: int) -> Any:
    return anyhow(seed)[0]


def batches(seed: int, count: int) -> list[Any]:
    shape, rng = net(seed).inputs[0].shape, np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), "float32") for _ in range(count)]


CUTS = {
    "mask": lambda n: laws.check_shrink_equals_mask(CJ, n, 0),
    "zeros": lambda n: laws.check_mask(CJ, n, 0),
    "gates": lambda n: laws.check_gates(CJ, n, 0),
    "cost": lambda n: laws.check_cost(CJ, n, 0),
    "tasks": lambda n: laws.check_tasks(CJ, n, 0),
}


@pytest.mark.parametrize("law", CUTS)
@seeds(6, 60)
def test_cut(seed: int, law: str) -> None:
    CUTS[law](net(seed))


def permutations(seed: int) -> dict[str, np.ndarray]:
    """Of every group that may change places."""
    graph, rng = graph_of(CJ, net(seed)), np.random.default_rng(seed)
    found = {}
    for group in graph.free:
        order = {group.name: rng.permutation(group.size)}
        try:
            cj.merge.permute(net(seed).params, graph, order)
        except KeepError as error:
            assert "a constant tells them apart" in str(error)
        else:
            found |= order
    return found


@seeds(6, 60)
def test_order_is_free_and_found_again(seed: int) -> None:
    graph, params = graph_of(CJ, net(seed)), net(seed).params
    moved = cj.merge.permute(params, graph, permutations(seed))
    close(run(net(seed).apply, moved, *net(seed).inputs), run_full(net(seed)), 2e-5)
    found, _ = cj.merge.align(graph, params, moved)
    close(cj.merge.permute(moved, graph, found), params)


@seeds(3, 40)
def test_networks_shared_in_part(seed: int) -> None:
    check_merged(cj.merge.average, net(seed), seed)


def off(answers: Any, wanted: Any) -> float:
    pairs = zip(jax.tree.leaves(answers), jax.tree.leaves(wanted), strict=True)
    return float(sum(jnp.sum((a - b) ** 2) for a, b in pairs))


@seeds(3, 40)
def test_compensated_is_not_worse(seed: int) -> None:
    graph, rng = graph_of(CJ, net(seed)), np.random.default_rng(seed)
    keep = {
        g.name: rng.permutation(g.size) < max(1, g.size * 2 // 3) for g in graph.free
    }
    job, data = (net(seed).apply, net(seed).params, graph, keep), batches(seed, 6)
    small, as_cut = cj.cut(*job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few rows
        fitted, _ = cj.compensate(*job, data, progress=False)
    wanted = [run(net(seed).apply, net(seed).params, x) for x in data]
    before, after = (
        sum(off(run(small, p, x), y) for x, y in zip(data, wanted, strict=True))
        for p in (as_cut, fitted)
    )
    whole = off(wanted, jax.tree.map(jnp.zeros_like, wanted))
    assert after <= 1.001 * before + 1e-6 * whole


@seeds(3, 40)
def test_turned_it_is_the_same_function(seed: int) -> None:
    graph, data = graph_of(CJ, net(seed)), batches(seed, 6)
    found = rotate(net(seed).apply, net(seed).params, graph, data, progress=False)
    close(
        run(net(seed).apply, found.params, *net(seed).inputs), run_full(net(seed)), 1e-3
    )
