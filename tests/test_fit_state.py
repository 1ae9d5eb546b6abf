"""A run's optimiser state, taken out, cut, and gone on with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax.cut_state import cut_state
from cutjax.data import Split
from cutjax.errors import CheckpointError
from cutjax.fit import fit, last_state

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 1, 1, 3)).astype(np.float32)
DATA = Split(X, {"y": np.sin(X.sum((1, 2, 3)))})
START = {
    "w": {"a": jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32)},
    "v": {"b": jnp.asarray(RNG.normal(size=(8, 1)), jnp.float32)},
    "seen": {"mean": jnp.zeros(8)},
}
TX = optax.adam(1e-2)


def apply(p, x):
    hidden = jnp.tanh(x[:, 0, 0, :] @ p["w"]["a"])
    return (hidden - p["seen"]["mean"]) @ p["v"]["b"]


def train_apply(p, x):
    mean = jnp.tanh(x[:, 0, 0, :] @ p["w"]["a"]).mean(0)
    return apply(p, x), {"seen": {"mean": 0.9 * p["seen"]["mean"] + 0.1 * mean}}


def loss(out, y):
    return jnp.mean((out[:, 0] - y["y"]) ** 2), {}


def run(train=train_apply, params=START, **options):
    """Whole batches: every epoch is one step, whatever the order."""
    settings = {"optimizer": TX, "epochs": 10, "batch_size": 64, "progress": False}
    return fit(train, params, loss, DATA, **{**settings, **options})[0]


def gap(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), a, b)))


def test_a_run_in_two_halves(tmp_path):
    whole = run(epochs=20)
    _ = run(checkpoint=tmp_path)
    moving = last_state(tmp_path, START, TX)
    got = run(params=moving.params, opt_state=moving.opt_state)
    assert gap(got, whole) < 1e-6
    assert gap(run(params=moving.params), whole) > 1e-3  # the saboteur: new momenta


def test_masked_then_cut_then_gone_on_with(tmp_path):
    """Late cutting: what was masked is cut, momenta and all, and goes on as before."""
    graph = cj.trace(apply, START, X[:2])
    keep = {"w/a:1": np.arange(8) % 3 > 0}

    def masked(p, x):
        out, updates = train_apply(cj.mask(p, graph, keep), x)
        return out, updates

    want = cj.cut_params(run(masked, epochs=20), graph, keep)
    _ = run(masked, checkpoint=tmp_path, accumulate=1)
    moving = last_state(tmp_path, START, TX)
    small = cj.cut_params(moving.params, graph, keep)
    train = cj.shrink(train_apply, graph, keep)
    state = cut_state(moving.opt_state, graph, keep)
    got = run(train, small, opt_state=state, checkpoint=tmp_path / "small")
    assert gap(got, want) < 1e-5
    assert gap(run(train, small), want) > 1e-3
    # It is part of what the run began with.
    with pytest.raises(ValueError, match="different: start"):
        run(train, small, checkpoint=tmp_path / "small")


def test_the_average_and_the_parts_come_along(tmp_path):
    options = {"batch_size": 16, "accumulate": 2, "ema": 0.9, "epochs": 1}
    got = run(**options, checkpoint=tmp_path)
    moving = last_state(tmp_path, START, TX)
    assert gap(moving.average, got) == 0 < gap(moving.params, got)
    assert moving.updates == 2 and moving.parts == 0
    assert moving.gathered["w"]["a"].shape == (3, 8) and moving.gathered["seen"]


def test_states_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        _ = last_state(tmp_path, START, TX)
    _ = run(checkpoint=tmp_path, epochs=1)
    with pytest.raises(ValueError, match="different: shapes"):
        _ = last_state(tmp_path, START, optax.sgd(0.1))
    state = last_state(tmp_path, START, TX).opt_state
    with pytest.raises(ValueError, match="another structure than"):
        run(optimizer=optax.sgd(0.1), opt_state=state)
    small = {
        **state[0].mu,
        "w": {"a": jnp.zeros((3, 5))},
        "v": {"b": jnp.zeros((8, 1))},
    }
    with pytest.raises(ValueError, match=r"'0/mu/w/a' is \[3, 5\], expected"):
        run(opt_state=(state[0]._replace(mu=small), *state[1:]))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_statistics_among_what_is_trained_stay_or_move_alone(dtype):
    """An update with None for some leaves is of the others, in any container."""
    layer = {"a": START["w"]["a"], "mean": jnp.full(8, 0.5), "var": jnp.ones(8)}
    params = {"layer": layer, "b": START["v"]["b"]}

    def infer(p, x):
        hidden = jnp.tanh(x[:, 0, 0, :] @ p["layer"]["a"])
        return (hidden - p["layer"]["mean"]) / p["layer"]["var"] @ p["b"]

    def moving(p, x):
        return infer(p, x), {"layer": {"a": None, "mean": 0.5 * p["layer"]["mean"]}}

    options = {"epochs": 2, "batch_size": 16, "dtype": dtype, "progress": False}
    options["optimizer"] = optax.adamw(1e-2, weight_decay=0.1)
    new, _ = fit(cj.recover.frozen(infer), params, loss, DATA, **options)
    np.testing.assert_array_equal(new["layer"]["mean"], layer["mean"])
    np.testing.assert_array_equal(new["layer"]["var"], layer["var"])
    assert (new["layer"]["a"] != layer["a"]).all()
    new, _ = fit(moving, params, loss, DATA, **options)
    np.testing.assert_array_equal(new["layer"]["mean"], 0.5**8 * layer["mean"])
    assert (new["layer"]["var"] != layer["var"]).all()
    wrong = {"layer": {"a": None, "none": jnp.ones(8)}}
    with pytest.raises(ValueError, match=r"the update of 'layer' has other shapes"):
        fit(lambda p, x: (infer(p, x), wrong), params, loss, DATA, **options)
