"""What saliency costs beside ordinary gradients, and what tracing costs.

    pytest tests/test_bench_saliency.py --benchmark-enable -s    (1 min on two cores)

Without `--benchmark-enable` each is run once, as a check that it runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.models import MultiTaskResNet, eval_apply, init
from cutjax.saliency.gradient import per_example

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


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(self.width, (3, 3), strides, use_bias=False)(y)))
        y = norm()(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(4 * self.width, (1, 1), strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """25.6 million parameters, never allocated here."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(64, (7, 7), (2, 2), use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(64 * 2**stage, stride)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def test_speed_of_tracing_a_resnet50_from_shapes(benchmark):
    model = ResNet50()
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    graph = benchmark.pedantic(
        cj.trace,
        args=(model.apply, params, x),
        rounds=5 if benchmark.enabled else 1,
        warmup_rounds=1 if benchmark.enabled else 0,
    )
    # A stem, four residual streams, two inner widths in each of sixteen blocks.
    assert len(graph.free) == 1 + 4 + 2 * 16
    # He et al. count 25.6 million; BatchNorm's running statistics come on top.
    assert graph.cost().params == 25_557_032 + 53_120
    print(f"\n{len(graph.free)} groups, {graph.cost().params:,} numbers")
