"""Statistics of large activations, in few bits, in other containers; what is none."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cutjax as cj
from cutjax.errors import MismatchError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
SPREAD = [X[:32] + 2, X[32:] - 2]
"""Batches whose means differ: their mean variance is not that of all."""
ALL = np.concatenate(SPREAD).astype(np.float64)


def recalibrated(train: Any, params: Any, batches: Any = SPREAD) -> Any:
    return cj.recalibrate(train, params, batches, progress=False)


def averaging(m: float, dtype: Any = jnp.float32) -> Any:
    """A function that keeps a running mean and variance of its inputs."""

    def mix(old: Any, new: Any) -> Any:
        return (m * old + (1 - m) * new).astype(dtype)

    def train(p: Any, x: Any) -> Any:
        old = p["bn"]
        mean, var = mix(old["mean"], x.mean(0)), mix(old["var"], x.var(0))
        return x, {"bn": {**old, "mean": mean, "var": var}}

    return train


def begun(dtype: Any = jnp.float32) -> Any:
    return {"bn": {"mean": jnp.zeros(4, dtype), "var": jnp.ones(4, dtype)}}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, np.array([1e5, 1, 1e-2, 1e4])])
@pytest.mark.parametrize("m", [0.0, 0.9, 0.999])
def test_statistics_of_any_size(m, scale):
    x = (X * scale + scale).astype(np.float32)
    got = recalibrated(averaging(m), begun(), [x[:32], x[32:]])["bn"]
    double = x.astype(np.float64)
    np.testing.assert_allclose(got["mean"], double.mean(0), rtol=3e-4)
    np.testing.assert_allclose(got["var"], double.var(0), rtol=3e-4)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_statistics_in_bfloat16_are_measured_in_float32(momentum):
    net = nn.BatchNorm(use_running_average=False, momentum=momentum)
    params = net.init(jax.random.key(0), X)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    got = recalibrated(lambda p, x: net.apply(p, x, mutable=["batch_stats"]), params)[
        "batch_stats"
    ]
    assert got["var"].dtype == jnp.bfloat16
    for name, want in (("mean", ALL.mean(0)), ("var", ALL.var(0))):
        found = np.asarray(got[name], np.float64)
        np.testing.assert_allclose(found, want, rtol=2**-7)


@pytest.mark.parametrize("m", [0.9, 0.999])
def test_an_average_rounded_to_bfloat16_is_refused(m):
    with pytest.raises(MismatchError, match="is no running average"):
        recalibrated(averaging(m, jnp.bfloat16), begun(jnp.bfloat16))


def test_statistics_in_a_state_of_nnx():
    norm = nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
    graphdef, weights, state = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def train(p: Any, x: Any) -> Any:
        module = nnx.merge(graphdef, weights, p["state"])
        out = module(x)
        return out, {"state": nnx.state(module, nnx.BatchStat)}

    got = nnx.to_pure_dict(recalibrated(train, {"state": state})["state"])
    np.testing.assert_allclose(got["mean"], ALL.mean(0), atol=1e-5)
    np.testing.assert_allclose(got["var"], ALL.var(0), rtol=1e-5)


@pytest.mark.parametrize("steps", [0, 3, 60])
def test_haiku_knows_its_statistics_and_trains_on_from_them(steps):
    net = hk.transform_with_state(lambda x, t: hk.BatchNorm(True, True, 0.9)(x, t))
    weights, state = net.init(jax.random.key(0), X, True)
    for _ in range(steps):
        _, state = net.apply(weights, state, None, 3 * X, True)

    def train(p: Any, x: Any) -> Any:
        out, new = net.apply(weights, p["state"], None, x, True)
        return out, {"state": new}

    got = recalibrated(train, {"state": state})["state"]
    old, new = (s["batch_norm/~/var_ema"] for s in (state, got))
    assert new["counter"] == old["counter"] and new["counter"].dtype == jnp.int32
    # The average of a state that went on with all data at once is that of all data.
    _, on = net.apply(weights, got, None, ALL.astype(np.float32), True)
    for stats in (got, on):
        mean, var = (stats[f"batch_norm/~/{n}_ema"]["average"] for n in ("mean", "var"))
        np.testing.assert_allclose(mean[0], ALL.mean(0), atol=1e-5)
        np.testing.assert_allclose(var[0], ALL.var(0), rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [jax.random.key(3), jax.random.PRNGKey(3), jnp.array(7), jnp.array(True)],
    ids=["key", "raw key", "counter", "flag"],
)
def test_what_is_no_number_stays_as_it_is(other):
    def train(p: Any, x: Any) -> Any:
        out, updates = averaging(0.9)(p, x)
        old = p["bn"]["other"]
        keys = jnp.issubdtype(old.dtype, jax.dtypes.prng_key) or old.shape
        new = jax.random.split(old)[0] if keys else (old + 1).astype(old.dtype)
        return out, {"bn": {**updates["bn"], "other": new}}

    got = recalibrated(train, {"bn": {**begun()["bn"], "other": other}})["bn"]
    assert got["other"].dtype == other.dtype
    assert jnp.array_equal(got["other"], other)
    np.testing.assert_allclose(got["var"], ALL.var(0), rtol=1e-5)


UNKNOWN = {
    "direction": lambda old, x: old / jnp.linalg.norm(old + 1e-6),
    "growing": lambda old, x: 2 * old + x.mean(0),
    "product": lambda old, x: 0.9 * old * x.mean(0),
    "square": lambda old, x: (0.9 * old + 0.1 * x.mean(0)) ** 2,
}


@pytest.mark.parametrize("rule", UNKNOWN)
def test_what_moves_otherwise_is_refused(rule):
    def train(p: Any, x: Any) -> Any:
        return x, {"bn": {"seen": UNKNOWN[rule](p["bn"]["seen"], x)}}

    with pytest.raises(MismatchError, match="'bn/seen' is no running average"):
        recalibrated(train, {"bn": {"seen": jnp.ones(4)}}, [X])


def test_what_does_not_move_or_is_replaced_is_left_or_taken():
    def train(p: Any, x: Any) -> Any:
        return x, {"bn": {"same": p["bn"]["same"], "last": x.max(0)}}

    start = {"bn": {"same": jnp.full(4, 5.0), "last": jnp.zeros(4)}}
    got = recalibrated(train, start, [X])["bn"]
    assert jnp.array_equal(got["same"], start["bn"]["same"])
    np.testing.assert_allclose(got["last"], X.max(0))
