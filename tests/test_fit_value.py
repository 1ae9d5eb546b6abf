"""Optimisers that look at the loss: what they are told is that of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_fit_options import START, X, Y, gap, mlp, squares, train

from cutjax.data import Split
from cutjax.fit import last_state


def loss(p):
    return squares(mlp(p, X)[0], {"y": Y})[0]


def listening() -> optax.GradientTransformationExtraArgs:
    """Gradient descent that keeps the value, and how far `grad` is from the updates."""

    def update(updates, state, params=None, *, value, grad, **extra):
        del state, params, extra
        off = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), updates, grad)
        small = jax.tree.map(lambda g: -0.1 * g, updates)
        return small, {"value": value, "off": jnp.stack(jax.tree.leaves(off)).max()}

    begin = {"value": jnp.zeros(()), "off": jnp.ones(())}
    return optax.GradientTransformationExtraArgs(lambda params: begin, update)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_value_is_the_loss_of_the_step(accumulate, tmp_path):
    same = Split(np.repeat(X[:1], 100, 0), {"y": np.repeat(Y[:1], 100)})
    train(
        data=same,
        optimizer=listening(),
        epochs=1,
        batch_size=100 // accumulate,
        accumulate=accumulate,
        checkpoint=tmp_path,
    )
    told = last_state(tmp_path, START, listening()).opt_state
    want, _ = squares(mlp(START, same.x)[0], same.y)
    np.testing.assert_allclose(told["value"], want, rtol=1e-5)
    assert told["off"] == 0


def test_line_search_is_that_of_optax():
    """L-BFGS by one batch of all examples, beside optax's own loop."""
    params, _ = train(optimizer=optax.lbfgs(), epochs=8, batch_size=100)
    tx, want = optax.lbfgs(), START
    state = tx.init(want)
    for _ in range(8):
        value, grad = jax.value_and_grad(loss)(want)
        given = {"value": value, "grad": grad, "value_fn": loss}
        change, state = tx.update(grad, state, want, **given)
        want = optax.apply_updates(want, change)
    assert loss(want) < 0.3 * loss(START)
    assert gap(params, want) < 1e-2


def test_a_plateau_lowers_the_rate(tmp_path):
    tx = optax.chain(
        optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    )
    train(optimizer=tx, epochs=6, batch_size=100, checkpoint=tmp_path)
    scale = last_state(tmp_path, START, tx).opt_state[1].scale
    assert float(scale) == 0.25


def test_one_that_does_not_ask_is_told_nothing():
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    plain = optax.GradientTransformation(lambda params: (), update)
    params, _ = train(optimizer=plain)
    assert gap(params, train(optimizer=optax.sgd(0.1))[0]) < 1e-6
