"""How long one program for several tasks takes, beside the networks one after another.

    pytest tests/test_bench_subsets.py -m slow --benchmark-enable -s    (1 min)

Three convolutional networks of 64x64 pixels; the first layers are shared, the last ones
are each network's own. Seconds of the process, the best of turns of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax._jit import jit
from cutjax.merge import Network, programs, unique_bytes

WIDTHS = (3, 32, 64, 64, 128, 128, 256)
NAMES, BATCH, TURNS = ("age", "smile", "hair"), 8, 15


def apply(p: Any, x: Any) -> Any:
    for i in range(len(WIDTHS) - 1):
        strides = (2, 2) if i % 2 else (1, 1)
        x = jax.lax.conv_general_dilated(
            *(x, p[f"conv{i}"], strides, "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + p[f"bias{i}"])
    return x.mean((1, 2)) @ p["head"]


def params(seed: int) -> dict[str, jax.Array]:
    rng, found = np.random.default_rng(seed), {}
    for i, (n, m) in enumerate(pairwise(WIDTHS)):
        found[f"conv{i}"] = rng.normal(size=(3, 3, n, m)) / (9 * n / 2) ** 0.5
        found[f"bias{i}"] = 0.1 * rng.normal(size=m)
    found["head"] = rng.normal(size=(WIDTHS[-1], 10)) / WIDTHS[-1] ** 0.5
    return {name: jnp.asarray(leaf, jnp.float32) for name, leaf in found.items()}


def best(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The least seconds of each, in turn."""
    seconds = {name: float("inf") for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.process_time()
            jax.block_until_ready(call())
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 4, 6])
def test_one_program_beside_networks_in_turn(benchmark: Any, layers: int) -> None:
    x = jax.random.normal(jax.random.key(0), (BATCH, 64, 64, 3))
    graph = cj.trace(apply, params(0), x)
    nets = {n: Network(apply, params(i), graph) for i, n in enumerate(NAMES)}
    early = [group.name for group in graph.free][:layers]
    same = {g.name: {n: np.arange(g.size) for n in nets} for g in graph.free}
    sharing = cj.merge.until(graph, NAMES, same, early)
    merged = cj.merge.average(nets, sharing, x)
    found = programs(merged, x)
    found.compile([NAMES])
    alone = jit(apply)

    def together() -> Any:
        return found[NAMES](merged.params, x)

    def in_turn() -> Any:
        # A device that runs one program after another waits for each.
        return [jax.block_until_ready(alone(n.params, x)) for n in nets.values()]

    jax.block_until_ready((together(), in_turn()))
    benchmark.pedantic(lambda: jax.block_until_ready(together()), rounds=3)
    if benchmark.enabled:
        seconds = best({"together": together, "in turn": in_turn})
        ratio = seconds["together"] / seconds["in turn"]
        flops = found[NAMES].cost.flops / (len(nets) * graph.cost().flops)
        held = [net.params for net in nets.values()]
        bytes_ = unique_bytes(merged.params) / unique_bytes(held)
        one, other = (1e3 * seconds[name] for name in ("together", "in turn"))
        print(
            f"\n{layers} of 6 layers shared: {one:.1f} ms against {other:.1f} ms, "
            f"{ratio:.2f}x of the time; "
            f"{flops:.2f}x of the multiply-adds, {bytes_:.2f}x of the bytes"
        )
        assert ratio < 0.5 * (1 + flops)
