"""How long refitting all readers of a ResNet-50 takes, and how much memory.

    pytest tests/test_bench_recover.py -m slow --benchmark-enable -s  # 4 min, two cores

512 images of 224x224, half of all channels cut, beside what one forward pass of both
networks over the same images takes. Limit of issue 5: 60 s on two cores. Without
`--benchmark-enable` 8 images are enough to see that it runs.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import flax.linen as nn
import jax
import large
import numpy as np
import pytest

import cutjax as cj
from cutjax._jit import jit


def clock(apply: Any, params: Any, batches: list[Any]) -> float:
    """Seconds of a forward pass over all batches, judged by a few."""
    run, few = jit(apply), batches[:8]
    jax.block_until_ready(run(params, few[0]))
    began = time.perf_counter()
    for x in few:
        jax.block_until_ready(run(params, x))
    return (time.perf_counter() - began) / len(few) * len(batches)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pass more calibration data")
def test_calibration_of_a_resnet_50(request: Any) -> None:
    images = 512 if request.config.getoption("--benchmark-enable") else 8
    net = large.resnet(3, 4, 6, 3)
    rng = np.random.default_rng(0)

    def fill(path: Any, like: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "'var'" in name or "'scale'" in name:
            return rng.uniform(0.5, 1.5, like.shape).astype(np.float32)
        fan_in = max(int(np.prod(like.shape[:-1])), 1)
        return (rng.normal(size=like.shape) / np.sqrt(fan_in)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(fill, net.params)
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = {g.name: rng.permutation(g.size) < g.size // 2 for g in graph.free}
    batches = [rng.normal(size=(8, 224, 224, 3)).astype(np.float32)] * (images // 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    began = time.perf_counter()
    small, fits = cj.compensate(net.apply, params, graph, keep, batches, progress=False)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    shrunk = cj.shrink(net.apply, graph, keep)
    passes = clock(net.apply, params, batches) + clock(shrunk, small, batches)
    print(
        f"\n{images} images: {seconds:.1f} s, peak {peak:.1f} GB, {before:.1f} before; "
        f"forward passes alone {passes:.1f} s"
    )
    assert len(fits) == 54
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(small))
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 200])
def test_a_recurrence_is_no_slower_to_compile_for_its_length(benchmark, steps):
    """A GRU of width 64; per step little more than its arithmetic."""

    class Cells(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(10)(nn.RNN(nn.GRUCell(64))(nn.Dense(32)(x))[:, -1])

    rng, net = np.random.default_rng(0), Cells()
    data = [rng.normal(size=(16, steps, 12)).astype(np.float32) for _ in range(4)]
    params = net.init(jax.random.key(0), data[0])
    graph = cj.trace(net.apply, params, data[0])
    keep = {g.name: rng.permutation(g.size) < g.size // 2 for g in graph.free}
    args = (net.apply, params, graph, keep, data)
    small, _ = benchmark(lambda: cj.compensate(*args, progress=False))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(small))
