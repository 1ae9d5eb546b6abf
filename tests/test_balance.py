"""Balances against their formulas in numpy, and a task that is not to be sacrificed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from cutjax.data import Split
from cutjax.errors import DataError
from cutjax.fit import fit
from cutjax.recover.balance import (
    famo,
    gradnorm,
    named_balance,
    static,
    uncertainty,
    uniform,
)
from cutjax.recover.balanced import balanced, shared_kernel
from cutjax.recover.finetune import finetune

TASKS = ("a", "b", "c")
LOSSES = np.exp(np.random.default_rng(0).normal(size=(5, 3)) * 2)
NORMS = np.exp(np.random.default_rng(1).normal(size=(5, 3)) * 2)


def steps(balance, losses=LOSSES, norms=NORMS):
    """The weights of every step."""
    state, found = balance.init(TASKS), []
    for row, norm in zip(losses, norms, strict=True):
        args = jnp.asarray(row, jnp.float32), jnp.asarray(norm, jnp.float32)
        weights, state = jax.jit(balance.step)(state, *args)
        found.append(np.asarray(weights))
    return np.stack(found)


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


# The formulas. ----------------------------------------------------------------------


def test_uniform_and_static_weights_stay():
    np.testing.assert_array_equal(steps(uniform()), np.ones((5, 3)))
    np.testing.assert_array_equal(steps(static({"b": 4.0})), [[1, 4, 1]] * 5)


@pytest.mark.parametrize("start", [True, False])
def test_uncertainty_descends_in_the_log_variance(start):
    """d/ds of L exp(-s) + s/2 (classes, eq. 10), L exp(-s) / 2 + s/2 (numbers, 7)."""
    got = steps(uncertainty(("b",), rate=0.02, start=start))
    factor = np.array([1, 0.5, 1])
    s = np.log(2 * factor * LOSSES[0]) if start else np.zeros(3)

    def value(s, row):
        return np.sum(factor * np.exp(-s) * row + s / 2)

    for row, weights in zip(LOSSES, got, strict=True):
        np.testing.assert_allclose(weights, factor * np.exp(-s), rtol=2e-4)
        h = 1e-6 * np.eye(3)
        slope = [(value(s + d, row) - value(s - d, row)) / 2e-6 for d in h]
        s = s - 0.02 * np.array(slope)


def test_uncertainty_ends_where_all_weighed_losses_are_alike():
    row = np.array([0.01, 1.0, 30.0])
    got = steps(uncertainty(rate=0.2), [row * 3, *[row] * 200], np.ones((201, 3)))
    np.testing.assert_allclose(got[-1] * row, 0.5, rtol=1e-3)


@pytest.mark.parametrize("start", [True, False])
def test_gradnorm_descends_in_the_log_weights(start):
    """d/dlog w of sum |G - mean G r^alpha| (eq. 2), the target held, over mean G."""
    got = steps(gradnorm(rate=0.03, alpha=1.2, start=start))
    w = 1 / NORMS[0] if start else np.ones(3)
    w = w * 3 / w.sum()
    for row, norm, weights in zip(LOSSES, NORMS, got, strict=True):
        np.testing.assert_allclose(weights, w, rtol=2e-4)
        pace = row / LOSSES[0]
        mean = np.mean(w * norm)
        target = mean * (pace / pace.mean()) ** 1.2

        def value(logs, norm=norm, target=target):
            return np.abs(np.exp(logs) * norm - target).sum()

        h = 1e-7 * np.eye(3)
        logs = np.log(w)
        slope = np.array([(value(logs + d) - value(logs - d)) / 2e-7 for d in h])
        slope[np.abs(w * norm - target) < 1e-4 * mean] = 0  # in the kink
        w = np.exp(logs - 0.03 * slope / mean)
        w = w * 3 / w.sum()


def test_gradnorm_makes_norms_alike_at_one_pace():
    norms = np.array([0.1, 1.0, 20.0])
    got = steps(gradnorm(start=False), np.ones((300, 3)), [norms] * 300)
    pulled = got[-1] * norms
    np.testing.assert_allclose(pulled, pulled.mean(), rtol=0.1)
    np.testing.assert_allclose(got.sum(1), 3, rtol=1e-4)


def test_famo_is_algorithm_1():
    """z = softmax(xi), w = c z / L, xi -= beta (J^T (log L - log L') + gamma xi)."""
    got = steps(famo(rate=0.7, decay=0.01))
    xi, last = np.zeros(3), None
    for row, weights in zip(LOSSES, got, strict=True):
        if last is not None:
            z = softmax(xi)
            jacobian = np.diag(z) - np.outer(z, z)
            xi = xi - 0.7 * (jacobian.T @ (np.log(last) - np.log(row)) + 0.01 * xi)
        z = softmax(xi)
        np.testing.assert_allclose(weights, z / row / np.sum(z / row), rtol=2e-4)
        last = row


def test_famo_prefers_what_falls_least():
    """The saboteur, the sign turned, prefers what falls most."""
    losses = np.stack([0.5 ** np.arange(8), np.ones(8), 0.9 ** np.arange(8)], 1)
    for rate, slowest in ((1.0, 1), (-1.0, 0)):
        shares = (steps(famo(rate=rate), losses, losses) * losses)[-1]
        assert np.argmax(shares) == slowest


@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "famo"])
@pytest.mark.parametrize("tiny", [0.0, 1e-12, 1e-6])
def test_a_task_that_is_exact_weighs_no_more_than_is_bounded(name, tiny):
    """It is not to take everything, nor to be given up at the first noise."""
    losses = np.array([[1.0, 1.0, tiny], *[[1.0, 1.0, 1e-3]] * 20])
    norms = np.where(losses < 1e-3, np.sqrt(tiny), np.sqrt(losses))
    got = steps(named_balance(name), losses, norms)
    assert np.isfinite(got).all()
    ratio = got[:, 2] / got[:, 0]
    assert (ratio < 2e3).all() and (ratio > 0.1).all()
    start = steps(named_balance(name), losses[:1], norms[:1])[0]
    np.testing.assert_allclose(start[0], start[1], rtol=1e-5)


# In training. -----------------------------------------------------------------------


def apply(p, x):
    h = jnp.tanh(x @ p["in"]) @ p["shared"]
    h = jnp.tanh(h)
    return {"a": h @ p["a"], "b": h @ p["b"]}, None


@functools.cache
def problem():
    rng = np.random.default_rng(3)
    shapes = {"in": (4, 8), "shared": (8, 3), "a": (3, 1), "b": (3, 1)}
    params = {
        k: jnp.asarray(rng.normal(size=s) / 2, jnp.float32) for k, s in shapes.items()
    }
    x = rng.normal(size=(128, 4)).astype(np.float32)
    y = {"a": np.sin(2 * x[:, :1] + x[:, 1:2]), "b": np.sin(2 * x[:, 2:3] - x[:, 3:])}
    return params, Split(x, y)


def each(scale):
    def losses(out, y):
        return {t: scale.get(t, 1.0) * jnp.mean((out[t] - y[t]) ** 2) for t in "ab"}

    return losses


def train(balance, scale, epochs=40, **options):
    params, data = problem()
    job = balanced(
        balance, apply, params, each(scale), optax.adam(0.02), data.x[:32], tasks="ab"
    )
    after, info = fit(
        job.train_apply, job.params, job.loss, data, optimizer=job.optimizer,
        epochs=epochs, batch_size=32, progress=False, **options,
    )  # fmt: skip
    return after, info


@functools.cache
def errors(name: str) -> dict[str, float]:
    """Unscaled errors at the end, the loss of `a` counted a thousand times."""
    after, _ = train(named_balance(name, "ab"), {"a": 1000.0})
    params, data = problem()
    out, _ = apply({k: after[k] for k in params}, data.x)
    return {t: float(np.mean((out[t] - data.y[t]) ** 2)) for t in "ab"}


@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "famo"])
def test_no_task_is_sacrificed_to_a_loud_one(name):
    alone, fair = errors("uniform"), errors(name)
    assert fair["b"] < 0.8 * alone["b"], (alone, fair)
    assert max(fair.values()) < max(alone.values())


@pytest.mark.parametrize("balance", [uncertainty("ab"), gradnorm("shared"), famo()])
def test_the_state_travels_through_fit(balance):
    """One epoch by hand: weights from the losses, and a step of plain descent."""
    params, data = problem()
    job = balanced(
        balance, apply, params, each({}), optax.sgd(0.1), data.x[:32], tasks="ab"
    )
    got, info = fit(
        job.train_apply, job.params, job.loss, data, optimizer=job.optimizer,
        epochs=1, batch_size=32, progress=False,
    )  # fmt: skip
    state = balance.init("ab")

    def losses(p, x, y):
        return jnp.stack([*each({})(apply(p, x)[0], y).values()])

    slopes = jax.jit(jax.jacrev(losses))
    order = np.random.default_rng([0, 1]).permutation(128).reshape(4, 32)
    for rows in order:
        batch = data.x[rows], {t: v[rows] for t, v in data.y.items()}
        jacobian = slopes(params, *batch)
        norms = jnp.linalg.norm(jacobian["shared"].reshape(2, -1), axis=1)
        weights, state = balance.step(state, losses(params, *batch), norms)
        params = {
            k: v - 0.1 * jnp.tensordot(weights, jacobian[k], 1)
            for k, v in params.items()
        }
    for k, v in params.items():
        np.testing.assert_allclose(got[k], v, atol=2e-5)
    np.testing.assert_allclose(got["balance"], ravel_pytree(state)[0], rtol=2e-3)
    assert {"weight:a", "weight:b"} <= set(info.history[1])


def test_the_last_shared_kernel_is_found():
    params, data = problem()
    assert shared_kernel(apply, params, data.x, tasks="ab") == "shared"
    assert shared_kernel(apply, params, data.x, tasks="a") == "a"
    with pytest.raises(DataError, match="no kernel serves all"):
        apart = lambda p, x: ({"a": x @ p["in"], "b": 2 * x @ p["b"]}, None)  # noqa: E731
        own = {"in": params["in"], "b": params["in"]}
        shared_kernel(apart, own, data.x, tasks="ab")


@pytest.mark.parametrize("balance", ["uncertainty", "gradnorm", "famo"])
def test_a_function_may_return_an_array(balance):
    params, data = problem()
    alone = lambda p, x: (apply(p, x)[0]["a"], None)  # noqa: E731
    taught = data._replace(y={"teacher:output": data.y["a"]})
    options = {"tasks": "output", "epochs": 1, "balance": balance, "progress": False}
    _, info = finetune(alone, params, taught, **options)
    assert {"output", "weight:output"} <= set(info.history[-1])


def test_finetune_takes_a_name_or_a_balance():
    params, data = problem()
    taught = data._replace(y={f"teacher:{t}": v for t, v in data.y.items()})
    options = {"tasks": ("a", "b"), "epochs": 1, "batch_size": 64, "progress": False}
    for balance in ("gradnorm", static({"a": 2.0})):
        after, info = finetune(apply, params, taught, balance=balance, **options)
        assert after.keys() == params.keys() and "weight:a" in info.history[-1]
    assert info.history[-1]["weight:a"] == pytest.approx(2)
    with pytest.raises(DataError, match=r"no balance 'gradnrom'.*gradnorm"):
        finetune(apply, params, taught, balance="gradnrom", **options)
    with pytest.raises(DataError, match=r"weight of 'aa'; nearest: 'a'"):
        finetune(apply, params, taught, balance=static({"aa": 2.0}), **options)
    with pytest.raises(DataError, match="0 or more"):
        static({"a": -1.0})
    with pytest.raises(ValueError, match="would round"):
        finetune(apply, params, taught, balance="famo", dtype=jnp.bfloat16, **options)
    with pytest.raises(ValueError, match="to be a dict"):
        both = lambda w, x: ({"a": x @ w, "b": x @ w}, None)  # noqa: E731
        finetune(both, params["in"], taught, balance="famo",
                 **options)  # fmt: skip
