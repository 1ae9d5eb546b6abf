"""How long planning takes for a ResNet-50, once scores are there.

    pytest tests/test_bench_plan.py -m '' --benchmark-enable -s    (1 min)

Without `--benchmark-enable` one of each allocation is run once, as a check that it
runs; the others are slow tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import large
import numpy as np
import pytest

import cutjax as cj
from cutjax.allocate import greedy, isomorphic, nested, threshold, uniform

ALL = (greedy, nested, uniform, threshold, isomorphic)
BUDGETS: dict[str, dict[str, Any]] = {
    "half": {"params": 0.5},
    "tenth": {"params": 0.1},
    "both": {"params": 0.3, "flops": 0.3},
    "eights": {"params": 0.1, "multiple": 8},
    "drop": {"params": 0.1, "floor": 0},
    "trunk": {"params": {"trunk": 0.3, "heads": 0.8}},
}


@pytest.fixture(scope="module")
def case() -> tuple[cj.Graph, dict[str, dict[str, np.ndarray]]]:
    """A ResNet-50 with two heads of its own width, and random scores per task."""
    model, shape = large.resnet(3, 4, 6, 3), large.shape

    def apply(p: Any, x: jax.Array) -> dict[str, jax.Array]:
        h = model.apply(p["trunk"], x)
        return {t: jnp.tanh(h @ p[t]["a"]) @ p[t]["b"] for t in ("age", "smile")}

    head = {"a": shape(1000, 256), "b": shape(256, 10)}
    params = {"trunk": model.params, "age": head, "smile": head}
    graph = cj.trace(apply, params, *model.inputs)
    rng = np.random.default_rng(0)
    scores = {
        task: {
            g.name: (rng.random(g.size) ** 2 * 10 ** rng.uniform(-0.5, 0.5)).astype(
                np.float32
            )
            for g in graph.free
        }
        for task in graph.tasks
    }
    return graph, scores


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BUDGETS))
@pytest.mark.parametrize("allocate", ALL, ids=lambda a: a.__name__)
def test_speed_of_a_plan(
    benchmark: Any, case: Any, allocate: Callable, name: str
) -> None:
    """The first plan and any later one cost the same: nothing is kept in between."""
    graph, scores = case
    budget = cj.Budget(**BUDGETS[name])
    tasks = "age" if name == "tenth" else None

    def plan() -> Any:
        return cj.plan(graph, scores, tasks=tasks, budget=budget, allocate=allocate)

    # The machine is shared, and this runs on one core: seconds of the process.
    start = time.process_time()
    _, info = plan()
    first = time.process_time() - start
    rounds = 3 if benchmark.enabled else 1
    start = time.process_time()
    benchmark.pedantic(plan, rounds=rounds, iterations=1)
    again = (time.process_time() - start) / rounds
    if benchmark.enabled:
        print(
            f"\n{allocate.__name__:>10} {name:>7}: first {first:.2f} s, then "
            f"{again:.2f} s; {info.cost.params / info.full.params:.4f} params, "
            f"{info.cost.flops / info.full.flops:.4f} flops, "
            f"{len(info.dropped)} groups dropped"
        )
        assert first < 2.0
        assert again < 0.5
