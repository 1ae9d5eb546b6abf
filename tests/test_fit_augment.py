"""What is done to a batch before a step: by a key of its own, the same on any path."""

import fit_compiles
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax.data import Split
from cutjax.fit import fit
from cutjax.recover import finetune

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4, 4, 1)).astype(np.float32)
DATA = Split(X, {"y": X.mean((1, 2, 3))})


def noisy(key, x):
    return x + jax.random.normal(key, x.shape)


def apply(p, x):
    return x.reshape(len(x), -1) @ p["w"] + p["b"], None


def loss(out, y):
    return jnp.mean((out - y["y"]) ** 2), {}


START = {"w": jnp.ones(16) / 16, "b": jnp.zeros(())}


def train(augment=noisy, seed=3, data=DATA, train_apply=apply, start=START, **options):
    settings = {"optimizer": optax.sgd(0.05), "epochs": 2, "batch_size": 8}
    given = {**settings, "seed": seed, "augment": augment, "progress": False}
    return fit(train_apply, start, loss, data, **{**given, **options})[0]


def by_hand(seed=3, epochs=2, size=8):
    """The same descent, step by step; keys are of the seed and the step's number."""
    w = START
    for step in range(epochs * 3):
        epoch, at = divmod(step, 3)
        order = np.random.default_rng([seed, epoch + 1]).permutation(24)
        rows = order[at * size : (at + 1) * size]
        x = noisy(jax.random.fold_in(jax.random.key(seed), step), X[rows])
        y = {"y": DATA.y["y"][rows]}
        slope = jax.grad(lambda p, x=x, y=y: loss(apply(p, x)[0], y)[0])(w)
        w = jax.tree.map(lambda a, g: a - 0.05 * g, w, slope)
    return w


def gap(a, b):
    return max(float(np.abs(a[k] - b[k]).max()) for k in a)


def test_every_step_has_a_key_of_its_own():
    found = train()
    assert gap(found, by_hand()) < 1e-6
    # The saboteurs: another seed, no noise, one noise for all steps.
    assert gap(found, train(seed=4)) > 1e-3
    assert gap(found, train(augment=None)) > 1e-3
    same = train(augment=lambda key, x: noisy(jax.random.key(3), x))
    assert gap(found, same) > 1e-3


@pytest.mark.parametrize("options", [{"scan": 3}, {"scan": 2}, {"sharding": 1}])
def test_scanned_and_sharded_it_is_the_same(options):
    if "sharding" in options:
        options = {"sharding": jax.make_mesh((1,), ("data",))}
    assert gap(train(), train(**options)) < 1e-6


def test_a_resumed_run_goes_on_with_its_keys(tmp_path):
    train(epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="augmented"):
        train(augment=None, checkpoint=tmp_path)
    resumed, straight = train(checkpoint=tmp_path), train()
    assert gap(resumed, straight) == 0


def test_it_compiles_once():
    assert fit_compiles.compiled(lambda: train(epochs=3)) == 1


def test_inputs_may_be_cropped():
    def crop(key, x):
        at = jax.random.randint(key, (2,), 0, 2)
        return jax.lax.dynamic_slice(x, (0, *at, 0), (len(x), 3, 3, 1))

    def statistic(p, x):
        return (x.mean((1, 2, 3)) * p["w"], {"seen": p["seen"] + x[0, :, 0, 0]})

    start = {"w": jnp.ones(()), "seen": jnp.zeros(3)}
    found = train(crop, train_apply=statistic, start=start)
    assert found["seen"].shape == (3,)
    assert np.isfinite(found["w"])


@pytest.mark.parametrize(
    "wrong", [lambda key, x: x[:4], lambda key, x: (x, x), lambda key, x: x.mean()]
)
def test_something_else_than_a_batch_is_told(wrong):
    with pytest.raises(ValueError, match=r"augment\(key, x\) made .* of 8 examples"):
        train(wrong)


def test_a_parent_within_the_step_answers_what_was_made():
    """The child knows the parent's answers to noise only if the parent was asked."""
    parent = {"w": jnp.asarray(RNG.normal(size=16), jnp.float32), "b": jnp.zeros(())}

    def learnt(**options):
        found, _ = finetune(
            lambda p, x: ({"y": apply(p, x)[0]}, {}),
            START,
            Split(X[:8], {}),
            tasks=("y",),
            epochs=400,
            batch_size=8,
            learning_rate=0.1,
            parent=(lambda p, x: {"y": apply(p, x)[0]}, parent),
            progress=False,
            **options,
        )
        return gap(found, parent)

    # Eight pictures do not tell sixteen weights; eight new ones in each step do.
    assert learnt(augment=noisy) < 0.02
    assert learnt() > 0.2
