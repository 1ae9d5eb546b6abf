"""How long matching two large networks by their weights takes.

    pytest tests/test_bench_align.py -m slow --benchmark-enable -s

Goals, on two cores: two ResNet-50s under 60 s, two ViT-B under 180 s. One time is that
of a reordered copy, which must be found whole; the other of networks that have nothing
in common, where coordinate ascent takes more sweeps.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import large
import numpy as np
import pytest

import cutjax as cj
from cutjax.merge.align import align
from cutjax.merge.permute import permute


def filled(net: large.Large, seed: int) -> Any:
    """Parameters drawn at random."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, like: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "'var'" in name or "'scale'" in name:
            return rng.uniform(0.5, 1.5, like.shape).astype(np.float32)
        return rng.standard_normal(like.shape, np.float32)

    return jax.tree_util.tree_map_with_path(fill, net.params)


def vit_base() -> large.Large:
    x = large.shape(1, 224, 224, 3)
    model = large.Vit(12, 768, 12)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return large.Large(model.apply, params, (x,))


NETS = {"ResNet-50": (lambda: large.resnet(3, 4, 6, 3), 60), "ViT-B": (vit_base, 180)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copy", "stranger"])
@pytest.mark.parametrize("name", NETS)
def test_two_large_networks(name: str, kind: str, request: Any) -> None:
    build, limit = NETS[name]
    net = build()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    a, rng = filled(net, 0), np.random.default_rng(2)
    order = {g.name: rng.permutation(g.size) for g in graph.free}
    other = permute(a, graph, order) if kind == "copy" else filled(net, 1)
    clocks = time.perf_counter, time.process_time
    began = [clock() for clock in clocks]
    found, info = align(graph, a, other)
    wall, cores = (clock() - at for clock, at in zip(clocks, began, strict=True))
    print(f"\n{name}, {kind}: {wall:.1f} s ({cores:.1f} of CPU), {info.sweeps} sweeps")
    if kind == "copy":
        same = permute(other, graph, found)
        assert jax.tree.all(jax.tree.map(np.array_equal, same, a))
    if request.config.getoption("--benchmark-enable"):
        assert wall < limit
