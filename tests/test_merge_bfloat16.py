"""Merging in bfloat16 is merging in float32, but for rounding; types stay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_merge_whole import DATA, X, apply, disordered, params

import cutjax as cj
from cutjax.merge import OWN, Merged, Network

HALF = np.where(np.arange(8) < 4, OWN, np.arange(8))
SHARING = {"b:1": {"one": HALF, "two": HALF}}


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def networks(dtype: Any) -> dict[str, Network]:
    found = {n: cast(params(s), dtype) for n, s in {"one": 0, "two": 40}.items()}
    graph = cj.trace(apply, found["one"], X.astype(dtype))
    return {name: Network(apply, p, graph) for name, p in found.items()}


def tied(nets: dict[str, Network], sharing: Any, data: Any, **options: Any) -> Merged:
    """`cj.merge.tied`, whose inputs are the same for all."""
    found = cj.merge.tied(nets, {}, dict.fromkeys(nets, data), **options)
    return Merged(lambda p, x: found.apply(p, dict.fromkeys(nets, x)), found.params)


MERGES = {
    "mtz": cj.merge.mtz,
    "least_squares": cj.merge.least_squares,
    "repair": cj.merge.repair,
    "tied": tied,
}


@pytest.mark.parametrize("name", MERGES)
def test_precision_of_parameters(name):
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        data = cast(DATA, dtype)
        merged = MERGES[name](networks(dtype), SHARING, data, progress=False)
        assert {leaf.dtype for leaf in jax.tree.leaves(merged.params)} == {
            jnp.dtype(dtype)
        }
        found.append(merged.apply(merged.params, data[0]))
    for task, want in found[0].items():
        assert found[1][task].dtype == jnp.bfloat16
        off = jnp.abs(found[1][task].astype(jnp.float32) - want).max()
        assert off < 0.03 * jnp.abs(want).max()


@pytest.mark.parametrize("data", [None, DATA], ids=["weights", "activations"])
def test_alignment_of_a_disordered_copy_is_the_same(data):
    orders = []
    for dtype in (jnp.float32, jnp.bfloat16):
        net = networks(dtype)["one"]
        found, _ = cj.merge.align_all(
            *(net.graph, {"one": net.params, "two": disordered(net.params, 1)}),
            apply=apply if data else None,
            batches=data and cast(data, dtype),
            progress=False,
        )
        orders.append(found["two"])
    for group, order in orders[0].items():
        np.testing.assert_array_equal(order, orders[1][group])
