"""Rows of the first axis that are no examples: a warning, and never without reason."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax.saliency.criterion import Problem
from cutjax.saliency.mixing import may_mix, warn_of_mixing


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


P = {"a": normal(0, 5, 8), "b": normal(1, 8, 3)}
X = normal(2, 6, 5)


def centred(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    return jnp.tanh((h - h.mean(0)) @ p["b"])


def attention(p: Any, x: Any) -> Any:
    h = x @ p["a"]
    return jax.nn.softmax(h @ h.T / 20) @ h @ p["b"]


def readout(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["a"]).sum(0) @ p["b"]


def recurrence(p: Any, x: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"] + h)
        return h, h @ p["b"]

    return jax.lax.scan(step, jnp.zeros(8), x[::-1])[1][::-1]


def scored(apply: Any, x: Any = X) -> None:
    losses = {"output": lambda out, y: jnp.mean(out**2)}
    graph = cj.trace(apply, P, x)
    data = [(x, {"output": 0.0})] * 2
    cj.taylor(apply, P, graph, losses, data, progress=False)


@pytest.mark.parametrize("apply", [centred, attention, readout, recurrence])
@pytest.mark.parametrize("within", by_turns([jax.jit, lambda f: f, jax.checkpoint], 3))
def test_rows_that_are_no_examples(apply, within):
    with pytest.warns(UserWarning, match="examples are not independent") as found:
        scored(within(apply))
    # What one example alone is centred to has no gradient, and that is said as well.
    others = [w for w in found if "no gradient" not in str(w.message)]
    assert len(others) == 1 and len(found) == 1 + (apply is centred)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored(lambda p, x: jax.vmap(lambda x: apply(p, x))(x), X[None].repeat(2, 0))


def noisy(p: Any, x: Any) -> Any:
    """Numbers of one key for a whole batch: not those of an example alone."""
    return x @ p["a"] @ p["b"] + jax.random.normal(jax.random.key(0), (len(x), 3))


def sorted_by_size(p: Any, x: Any) -> Any:
    """It looks at all, but answers each by itself."""
    order = jnp.argsort(x.sum(1))
    y = x[order] @ p["a"] @ p["b"] * (jnp.bincount(order, length=9).sum() > 0)
    return jnp.zeros_like(y).at[order].set(y)


def statistics(p: Any, x: Any) -> Any:
    """What no loss asks for may be of the whole batch."""
    return {"output": x @ p["a"] @ p["b"], "mean": x.mean(0) @ p["a"]}


@pytest.mark.parametrize("apply", [noisy, sorted_by_size, statistics])
def test_no_warning_without_reason(apply):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored(apply)
    assert may_mix(apply, P, (X,)) == (apply is not noisy)


@pytest.mark.parametrize("name", by_turns(NETS, 8))
def test_no_warning_of_nets_in_inference(name):
    net = NETS[name]()
    if name == "fast_weights":
        pytest.skip("it trains on the batch")
    if len({len(a) for a in jax.tree.leaves(net.inputs) if np.ndim(a)}) > 1:
        pytest.skip("its inputs have no examples in front")
    inputs = jax.tree.map(lambda a: np.concatenate([a, a[::-1]]), net.inputs)
    graph = cj.trace(net.apply, net.params, *net.inputs, on_unknown="pin")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tasks = dict.fromkeys(graph.tasks)
        warn_of_mixing(Problem(net.apply, net.params, graph, tasks), inputs)
