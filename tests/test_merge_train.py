"""Merged networks in train mode: statistics of what is shared, and of what is own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets.turns import by_turns

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.merge import DROPPED, OWN, Network


class Normed(nn.Module):
    momentum: float = 0.0

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for width in (8, 6):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(norm(train, self.momentum)(x))
        return {"label": nn.Dense(3)(x.mean((1, 2)))}


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.relu(norm(train)(nn.Conv(6, (3, 3), use_bias=False)(x)))
        for width in (4, 5):
            y = nn.relu(norm(train)(nn.Conv(width, (3, 3), use_bias=False)(x)))
            x = nn.relu(x + norm(train)(nn.Conv(6, (3, 3), use_bias=False)(y)))
        return {"label": nn.Dense(3)(x.mean((1, 2)))}


def norm(train: bool, momentum: float = 0.0) -> nn.BatchNorm:
    """By default new statistics are those of the batch alone."""
    return nn.BatchNorm(use_running_average=not train, momentum=momentum)


X = 3 + jax.random.normal(jax.random.PRNGKey(1), (64, 6, 6, 2))


def networks_of(model: nn.Module) -> tuple[dict[str, Network], dict[str, Network]]:
    """Two networks in inference, and in training."""
    params = {
        n: model.init(jax.random.PRNGKey(i), X, False) for i, n in enumerate("ab")
    }

    def apply(p: Any, x: Any) -> Any:
        return model.apply(p, x, False)

    def train(p: Any, x: Any) -> Any:
        return model.apply(p, x, True, mutable=["batch_stats"])

    graph = cj.trace(apply, params["a"], X)
    networks = {n: Network(apply, p, graph) for n, p in params.items()}
    return networks, {n: net._replace(apply=train) for n, net in networks.items()}


def test_statistics_are_made_anew():
    """After a pass over the data means and variances are those of what comes in."""
    networks, trains = networks_of(Normed(momentum=0.99))
    sharing = {
        "params/Conv_1/kernel:3": {n: np.array([0, 1, 2, OWN, OWN, OWN]) for n in "ab"}
    }
    merged = cj.merge.average(networks, sharing, X)
    both = cj.merge.train_apply(trains, sharing)
    new = cj.recalibrate(both, merged.params, [X], progress=False)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, merged.params)
    stats, kernels = new["batch_stats"], new["params"]
    made = jax.lax.conv_general_dilated(
        *(X, kernels["shared"]["Conv_0/kernel"], (1, 1), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for name, fn in (("mean", jnp.mean), ("var", jnp.var)):
        found = stats["shared"][f"BatchNorm_0/{name}"]
        np.testing.assert_allclose(found, fn(made, (0, 1, 2)), rtol=1e-3)
        assert stats["own"]["a"][f"BatchNorm_1/{name}"].shape == (3,)


KINDS = {
    "shared": lambda n: np.arange(n),
    "own": lambda n: np.full(n, OWN),
    "half": lambda n: np.where(np.arange(n) < n // 2, np.arange(n), OWN),
    "dropped": lambda n: np.full(n, DROPPED),
}


def sharings(graph: cj.Graph, number: int) -> list[Mapping[str, Any]]:
    """Each group of each network in any of the ways, some of all combinations."""
    rng = np.random.default_rng(0)
    ways = list(itertools.product(KINDS, repeat=2))
    found = []
    for _ in range(number):
        picked = [ways[i] for i in rng.integers(len(ways), size=len(graph.free))]
        found.append(
            {
                group.name: {
                    name: KINDS[kind](group.size)
                    for name, kind in zip("ab", kinds, strict=True)
                }
                for group, kinds in zip(graph.free, picked, strict=True)
            }
        )
    return found


@pytest.mark.parametrize("kind", by_turns([Residual, Normed], 2))
def test_training_and_inference_agree_however_channels_are_shared(kind):
    """With the statistics of a batch, inference makes of it what training made.

    Channels that nothing reads are among them: they have no statistics to update.
    """
    networks, trains = networks_of(kind())
    graph, fine = networks["a"].graph, 0
    for sharing in sharings(graph, 12):
        try:
            merged = cj.merge.average(networks, sharing, X)
        except KeepError:
            continue
        outs, updates = cj.merge.train_apply(trains, sharing)(merged.params, X)
        new = {**merged.params, **updates}
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, merged.params)
        for name, out in merged.apply(new, X).items():
            np.testing.assert_allclose(out, outs[name], rtol=1e-3, atol=1e-3)
        fine += 1
    assert fine > 5
