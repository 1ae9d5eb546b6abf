"""How long it takes to find groups in models of real size, and to shrink them.

    pytest tests/test_bench_trace.py --benchmark-enable -s

prints, per model, the time of `trace` and of tracing the `shrink`ed function, beside
the time that JAX itself takes to trace the function. Without the option only answers
are checked, and most are left to `pytest -m slow`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import large
import numpy as np
import pytest

import cutjax as cj

MODELS = {
    "ResNet-50": (lambda: large.resnet(3, 4, 6, 3), 1 + 4 + 2 * 16),
    "ResNet-152": (lambda: large.resnet(3, 8, 36, 3), 1 + 4 + 2 * 50),
    # A stream; per layer heads, query and key widths, value widths, hidden.
    "ViT-L/16": (large.vit_large, 1 + 4 * 24),
    # A stream; per layer key heads, repeats, query-key pairs, value widths, hidden.
    "Llama, 32 layers": (large.llama, 1 + 5 * 32),
    "MLP, 250 layers": (lambda: large.mlp(250), 249),
    "MLP, 1,000 layers": (lambda: large.mlp(1000), 999),
}
"""Each with the number of its free groups, counted by hand."""


def elapsed(fn: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def fresh(fn: Any) -> Any:
    """The same function, unknown to JAX's caches."""
    return lambda *args: fn(*args)


SLOW = ("ResNet-50", "ResNet-152", "ViT-L/16", "MLP, 1,000 layers")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in MODELS],
)
def test_speed_of_tracing_and_shrinking(benchmark: Any, name: str) -> None:
    build, groups = MODELS[name]
    apply, params, inputs = build()
    graph = cj.trace(apply, params, *inputs)
    assert len(graph.free) == groups, graph
    keep = {g.name: np.arange(g.size) < max(1, g.size // 2) for g in graph.free}
    small = jax.eval_shape(lambda p: cj.cut_params(p, graph, keep), params)
    sizes = (sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (small, params))
    assert next(sizes) == graph.cost(keep).params < 0.6 * next(sizes)

    def own() -> Any:
        return jax.make_jaxpr(fresh(apply))(params, *inputs)

    def traced() -> Any:
        return cj.trace(fresh(apply), params, *inputs)

    def shrunk() -> Any:
        return jax.make_jaxpr(cj.shrink(fresh(apply), graph, keep))(small, *inputs)

    if name == "ResNet-50":  # 25.6 million by He et al., and running statistics
        assert graph.cost().params == 25_557_032 + 53_120
    if not benchmark.enabled:
        assert shrunk().out_avals == own().out_avals
        return

    def measured() -> list[float]:
        rows = [[elapsed(fn) for fn in (own, traced, shrunk)] for _ in range(5)]
        return [statistics.median(column) for column in zip(*rows, strict=True)]

    ours = benchmark.pedantic(measured, rounds=1, iterations=1)
    benchmark.extra_info.update(zip(("own", "trace", "shrink"), ours, strict=True))
    print(
        f"\n{name}: {groups} groups; JAX alone {ours[0]:.2f} s, trace {ours[1]:.2f} s, "
        f"shrink {ours[2]:.2f} s, which adds {ours[2] / ours[0] - 1:.1f}x"
    )
