"""From networks to one of them: aligned, zipped, regrouped; then cut like any other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.merge import OWN, Network


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def apply(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    return jax.nn.relu(h @ p["b"] + p["c"]) @ p["d"]


def params(seed: int) -> dict[str, Any]:
    shapes = {"a": (6, 12), "b": (12, 8), "c": (8,), "d": (8, 3)}
    return {k: normal(seed + i, *s) for i, (k, s) in enumerate(shapes.items())}


X = normal(90, 64, 6)
DATA = [normal(91 + i, 64, 6) for i in range(8)]
GRAPH = cj.trace(apply, params(0), X)


def networks(**given: Any) -> dict[str, Network]:
    return {name: Network(apply, p, GRAPH) for name, p in given.items()}


def disordered(p: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return cj.merge.permute(
        p, GRAPH, {g.name: rng.permutation(g.size) for g in GRAPH.free}
    )


def wrong(merged: Any, nets: dict[str, Network]) -> float:
    found = merged.apply(merged.params, X)
    pairs = [(found[n], apply(net.params, X)) for n, net in nets.items()]
    return sum(float(jnp.mean((a - b) ** 2) / jnp.var(b)) for a, b in pairs)


@pytest.mark.parametrize("data", [None, DATA], ids=["weights", "activations"])
def test_a_disordered_copy_merges_into_the_network_itself(data):
    nets = networks(one=params(0), two=disordered(params(0), 1))
    orders, _ = cj.merge.align_all(
        GRAPH,
        {n: net.params for n, net in nets.items()},
        apply=apply if data else None,
        batches=data,
        progress=False,
    )
    sharing = cj.merge.from_permutations(GRAPH, orders)
    assert wrong(cj.merge.average(nets, sharing, X), nets) < 1e-9
    assert wrong(cj.merge.average(nets, {}, X), nets) > 0.1


def test_zipped_networks_come_closer_by_least_squares():
    nets = networks(one=params(0), two=params(40))
    found = cj.merge.correlations(
        apply, GRAPH, {n: net.params for n, net in nets.items()}, DATA, progress=False
    )
    sharing, _ = cj.merge.zipit(GRAPH, found, list(nets))
    average = cj.merge.average(nets, sharing, X)
    fitted = cj.merge.least_squares(nets, sharing, DATA, progress=False)
    assert all(w <= GRAPH[g].size for g, w in cj.merge.shared_widths(sharing).items())
    assert wrong(fitted, nets) < 0.7 * wrong(average, nets)
    last = cj.merge.until(GRAPH, list(nets), sharing, ["a:1"])
    part = cj.merge.least_squares(nets, last, DATA, progress=False)
    assert wrong(part, nets) < wrong(fitted, nets)


def test_regrouped_networks_run_what_a_subset_needs_and_can_be_cut():
    nets = networks(one=params(0), two=params(40))
    losses = {"output": lambda y, t: jnp.mean((y - t) ** 2)}
    scores = {
        name: cj.saliency(
            *(apply, net.params, GRAPH, losses),
            [(x, {"output": 0 * apply(net.params, x)}) for x in DATA],
            criterion=cj.taylor,
            progress=False,
        )["output"]
        for name, net in nets.items()
    }
    levels = cj.merge.by_scores(scores, {n: {} for n in nets})
    types, info = cj.merge.regroup(levels, list(nets), exclusive=0.4)
    sharing = cj.merge.pam_sharing(GRAPH, list(nets), {n: {} for n in nets}, types)
    own = cj.merge.own_widths(sharing)
    assert any(n for found in own.values() for n in found.values())
    merged = cj.merge.least_squares(nets, sharing, DATA, progress=False)
    assert wrong(merged, nets) < wrong(cj.merge.average(nets, sharing, X), nets)
    graph = cj.trace(merged.apply, merged.params, X)
    each = [graph.cost(tasks=(name,)).flops for name in nets]
    assert max(each) < graph.cost().flops < sum(each)
    # It is a network like any other: a shared channel is cut from all that read it.
    keep = {g.name: np.arange(g.size) > 0 for g in graph.free if g.size > 1}
    small_apply, small = cj.cut(merged.apply, merged.params, graph, keep)
    masked = merged.apply(cj.mask(merged.params, graph, keep), X)
    for name, y in small_apply(small, X).items():
        np.testing.assert_allclose(y, masked[name], rtol=1e-4, atol=1e-4)
    assert OWN == -1 and info.alpha is not None
