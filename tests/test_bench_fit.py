"""What the options of `fit` cost: time per step of a small net, beside a plain step.

    pytest tests/test_bench_fit.py --benchmark-enable -s    (half a minute on two cores)

Without `--benchmark-enable` each is run once, as a check that it runs.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax.training import step as stepping
from cutjax.training.parts import lowered

STEPS = 20
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate=4": {"accumulate": 4},
    "ema": {"ema": 0.999},
    "accumulate=4, ema": {"accumulate": 4, "ema": 0.999},
    "bfloat16": {"dtype": jnp.bfloat16},
    "scan=20": {"scan": 20},
    "scan=20, ema": {"scan": 20, "ema": 0.999},
}


def mlp(p: Any, x: Any) -> Any:
    for kernel in p[:-1]:
        x = jnp.tanh(x @ kernel)
    return x @ p[-1], None


def squares(out: Any, y: Any) -> Any:
    return jnp.mean((out - y["y"]) ** 2), {}


def runner(widths: tuple[int, ...], batch: int, options: dict) -> Callable[[], None]:
    """A call of `STEPS` steps, compiled and warm."""
    options = dict(options)
    scan, dtype = options.pop("scan", 1), options.pop("dtype", None)
    rng = np.random.default_rng(0)
    pairs = itertools.pairwise(widths)
    params = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in pairs]
    x = jnp.asarray(rng.normal(size=(1024, widths[0])), jnp.float32)
    y = {"y": jnp.asarray(rng.normal(size=(1024, widths[-1])), jnp.float32)}
    apply = mlp if dtype is None else lowered(mlp, dtype, ())
    adam = optax.adamw(1e-3)
    step = stepping.make_step(apply, squares, adam, (), **options)
    step = stepping.compiled(step, scan)
    rows = rng.integers(0, 1024, (STEPS, batch)).astype(np.int32)
    numbers = np.arange(STEPS, dtype=np.int32)
    state = [stepping.begin(params, adam, (), **options)]

    def steps() -> None:
        for start in range(0, STEPS, scan):
            part = slice(start, start + scan) if scan > 1 else start
            state[0], _ = step(state[0], (rows[part], numbers[part]), x, y)
        _ = jax.block_until_ready(state[0])

    steps()
    return steps


@pytest.mark.parametrize(
    ("widths", "batch"), [((16, 32, 4), 16), ((256, 512, 512, 10), 64)]
)
def test_time_per_step_beside_a_plain_one(benchmark, widths, batch):
    if batch > 16 and not benchmark.enabled:
        pytest.skip("the small net is enough to see that it runs")
    calls = {name: runner(widths, batch, options) for name, options in WAYS.items()}
    rounds = 15 if benchmark.enabled else 1

    def times() -> dict[str, float]:
        # Interleaved, for the machine is shared.
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                found[name].append((time.perf_counter() - start) / STEPS)
        return {name: statistics.median(t) for name, t in found.items()}

    found = benchmark.pedantic(times, rounds=1, iterations=1)
    benchmark.extra_info.update(found)
    plain = found["plain"]
    shown = ", ".join(f"{name} {t / plain:.2f}" for name, t in found.items())
    print(f"\nMLP {widths}, batch {batch}, {plain * 1e6:.0f} us / step: {shown}")
    assert all(t > 0 for t in found.values())
    if benchmark.enabled and batch == 16:
        assert found["scan=20"] < plain
