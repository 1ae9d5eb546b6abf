"""What saliency costs beside ordinary gradients, and what tracing costs.

    pytest tests/test_bench_saliency.py --benchmark-enable -s    (1 min on two cores)

Without `--benchmark-enable` each is run once, as a check that it runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.models import MultiTaskResNet, eval_apply, init
from cutjax.saliency.seen import per_example

TASKS = {"age": 10, "smile": 2}
BATCH = 32


def entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -picked.mean()


@pytest.fixture(scope="module")
def case() -> dict[str, Callable[[], Any]]:
    """Two compiled calls on the same batch: gate gradients, parameter gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 16, 16, 3)).astype(np.float32)
    y = {task: rng.integers(0, n, BATCH) for task, n in TASKS.items()}
    model = MultiTaskResNet(TASKS, widths=(16, 32), blocks=(1, 1))
    apply, params = eval_apply(model), init(model, x)
    graph = cj.trace(apply, params, x)
    losses = dict.fromkeys(TASKS, entropy)
    gates = jax.jit(per_example(apply, graph, losses)).lower(params, (x,), y).compile()

    def gradients(params, x, y):
        def loss(p, task):
            return entropy(apply({**params, "params": p}, x)[task], y[task])

        return [jax.grad(loss)(params["params"], task) for task in TASKS]

    ordinary = jax.jit(gradients).lower(params, x, y).compile()
    return {
        "saliency": lambda: jax.block_until_ready(gates(params, (x,), y)),
        "gradients": lambda: jax.block_until_ready(ordinary(params, x, y)),
    }


def elapsed(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", ["saliency", "gradients"])
def test_speed_of_one_batch(benchmark, case, name):
    benchmark(case[name])


def test_speed_of_saliency_beside_two_parameter_gradients(benchmark, case):
    """Per-example gate gradients of two tasks, over two gradients of all parameters."""
    rounds = 15 if benchmark.enabled else 1

    def ratio() -> float:
        for fn in case.values():
            fn()
        # Interleaved, for the machine is shared.
        pairs = [
            (elapsed(case["saliency"]), elapsed(case["gradients"]))
            for _ in range(rounds)
        ]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        return ours / theirs

    found = benchmark.pedantic(ratio, rounds=1, iterations=1)
    benchmark.extra_info["ratio"] = found
    print(f"\nsaliency of 2 tasks / 2 parameter gradients, batch {BATCH}: {found:.2f}")
    assert found < 5
