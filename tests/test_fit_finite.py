"""What the last update breaks is looked at by no loss: it is refused all the same."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax.fit import fit

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
START = {"w": jnp.zeros(()), "mask": jnp.array([0.0, -jnp.inf])}


def infinite_slope(p, x):
    """The square root of 0: a number, but its slope is none."""
    return jnp.sqrt(p["w"]) * jnp.ones(len(x)), None


def loss(out, y):
    return jnp.where(jnp.isnan(out), 0.0, 0 * out).mean(), {}


def train(apply=infinite_slope, **options):
    settings = {"optimizer": optax.sgd(1.0), "epochs": 1, "progress": False}
    return fit(apply, START, loss, (X, {"y": X}), **{**settings, **options})


@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.9}, {"accumulate": 2, "batch_size": 25}], ids=str
)
def test_what_the_last_update_breaks_is_not_returned_and_not_kept(tmp_path, options):
    with pytest.raises(FloatingPointError, match="'w' holds NaN or infinity after"):
        train(**{"batch_size": 50, **options}, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_step_breaks_is_not_kept_within_an_epoch(tmp_path):
    with pytest.raises(FloatingPointError, match="after step 3 of epoch 1"):
        train(batch_size=5, checkpoint=tmp_path, save_every=3)
    assert not list(tmp_path.iterdir())


def test_what_was_infinite_from_the_start_may_stay():
    got, _ = train(lambda p, x: (p["w"] * x, None), batch_size=50)
    assert got["mask"][1] == -jnp.inf and got["w"] == 0
