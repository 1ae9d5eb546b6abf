"""What saliency costs beside ordinary gradients, and what more criteria cost.

    pytest tests/test_bench_saliency.py --benchmark-enable -s    (2 min on two cores)

Without `--benchmark-enable` one set is run once, as a check that it runs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.criteria import ALL
from cutjax.models import MultiTaskResNet, eval_apply, init
from cutjax.saliency.criterion import Problem
from cutjax.saliency.gather import _step, _zeros
from cutjax.saliency.seen import per_example

TASKS = {"age": 10, "smile": 2}
BATCH = 32


def entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -picked.mean()


SETS = {
    "taylor": ("taylor",),
    "gates (7)": (
        *("taylor", "taylor_squared", "taylor_signed", "fisher", "gram"),
        *("random", "l1"),
    ),
    "activations (3)": ("mean_activation", "zero_rate", "mutual_information"),
    "joint": ("joint",),
    "weights (3)": ("cut", "snip", "cosprune"),
    "all of these": (
        *("taylor", "taylor_squared", "taylor_signed", "fisher", "gram"),
        *("mean_activation", "zero_rate", "mutual_information", "joint"),
        *("cut", "snip", "cosprune", "wanda"),
    ),
}


if "--benchmark-enable" not in sys.argv:
    SETS = {"taylor": SETS["taylor"]}


@pytest.fixture(scope="module")
def case() -> dict[str, Callable[[], Any]]:
    """Compiled calls on the same batch: one step of each set, and what to compare."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 16, 16, 3)).astype(np.float32)
    y = {task: rng.integers(0, n, BATCH) for task, n in TASKS.items()}
    model = MultiTaskResNet(TASKS, widths=(32, 64), blocks=(1, 1))
    apply, params = eval_apply(model), init(model, x)
    graph = cj.trace(apply, params, x)
    losses = dict.fromkeys(TASKS, entropy)

    def compiled(fn, *args) -> Callable[[], Any]:
        run = jax.jit(fn).lower(*args).compile()
        return lambda: jax.block_until_ready(run(*args))

    def gradients(params, x, y):
        def loss(p, task):
            return entropy(apply({**params, "params": p}, x)[task], y[task])

        return [jax.grad(loss)(params["params"], task) for task in TASKS]

    def activations(params, x, y):
        """One forward pass and a backward pass per task that makes no weights'."""

        def losses(x):
            out = apply(params, x)
            return jnp.stack([entropy(out[t], y[t]) for t in TASKS])

        value, pull = jax.vjp(losses, x)
        return value, jax.vmap(lambda e: pull(e)[0])(jnp.eye(len(TASKS)))

    out = {
        "forward and activation backward": compiled(activations, params, x, y),
        "parameter gradients": compiled(gradients, params, x, y),
        "gates": compiled(per_example(apply, graph, losses), params, (x,), y),
    }
    weights = np.ones(BATCH, np.float32)
    for name, chosen in SETS.items():
        criteria = {c: ALL[c]() for c in chosen}
        step = _step(Problem(apply, params, graph, losses), criteria, set())
        args = (params, (x,), y, weights)
        state = _zeros(jax.eval_shape(step, None, *args))
        out[name] = compiled(step, state, *args)
    return out


def elapsed(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def interleaved(case: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds; the machine is shared, so candidates take turns."""
    for fn in case.values():
        fn()
    times = [[elapsed(fn) for fn in case.values()] for _ in range(rounds)]
    medians = map(statistics.median, zip(*times, strict=True))
    return dict(zip(case, medians, strict=True))


def test_speed_of_criteria_beside_forward_and_activation_backward(benchmark, case):
    rounds = 25 if benchmark.enabled else 1
    found = benchmark.pedantic(interleaved, (case, rounds), rounds=1, iterations=1)
    base = found["forward and activation backward"]
    print(f"\n{len(TASKS)} tasks, batch {BATCH}; over forward + activation backward:")
    for name, seconds in found.items():
        benchmark.extra_info[name] = seconds / base
        print(f"  {name:<34}{seconds / base:6.2f}")
    assert set(found) == set(case)
