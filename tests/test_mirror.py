"""Pytrees that mirror parameters are cut along with them, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax.errors import MismatchError
from cutjax.merge.merged import mirrors
from cutjax.mirror import mirrored, namesake

PARAMS = {
    "params": {"a": {"kernel": jnp.ones((3, 8))}, "b": {"kernel": jnp.ones((8, 2))}},
    "batch_stats": {"a": {"mean": jnp.ones(8)}},
}
KEEP = {"params/a/kernel:1": np.arange(8) < 5}


def apply(p, x):
    hidden = x @ p["params"]["a"]["kernel"] - p["batch_stats"]["a"]["mean"]
    return jax.nn.relu(hidden) @ p["params"]["b"]["kernel"]


@pytest.fixture(scope="module")
def graph():
    return cj.trace(apply, PARAMS, jnp.ones((1, 3)))


def test_momenta_of_all_and_of_one_collection_are_cut_along(graph):
    small = cj.cut_params(PARAMS, graph, KEEP)
    for part in (lambda tree: tree, lambda tree: tree["params"]):
        state = optax.adam(1e-3).init(part(PARAMS))
        cut = cj.cut_params(state, graph, KEEP)
        again = optax.adam(1e-3).init(part(small))
        assert jax.tree.structure(cut) == jax.tree.structure(again)
        assert jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, again)


def test_a_training_step_shrinks_with_its_optimizer_state(graph):
    optimizer = optax.adam(1e-2)

    def step(params, state, x):
        grads = jax.grad(lambda p: jnp.sum(apply(p, x) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    x = jnp.arange(6.0).reshape(2, 3)
    small = cj.cut_params(PARAMS, graph, KEEP)
    got, _ = cj.shrink(step, graph, KEEP)(small, optimizer.init(small), x)
    full, _ = step(cj.mask(PARAMS, graph, KEEP), optimizer.init(PARAMS), x)
    for a, b in zip(
        jax.tree.leaves(got),
        jax.tree.leaves(cj.cut_params(full, graph, KEEP)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_leaf_of_another_shape_is_refused(graph):
    factored = {"mu": {"params": {"a": {"kernel": jnp.ones(8)}}}}
    with pytest.raises(MismatchError, match=r"'mu/params/a/kernel' is \[8\].*init"):
        cj.cut_params(factored, graph, KEEP)


def test_common_names_mean_nothing():
    shapes = {"0": (2,), "1/0": (3,)}
    assert namesake("out/0", shapes) is None
    assert mirrored("x/1/0", (3,), shapes) is None


NESTED = {
    "trunk": {"w": jnp.ones((4, 32)), "mean": jnp.zeros(32)},
    "heads": {"age": jnp.ones((32, 1)), "smile": jnp.ones((32, 1))},
}
HALF = {"trunk/w:1": np.arange(32) < 16}


def in_train_mode(p, x):
    """Outputs nested like the parameters, beside new statistics."""
    hidden = x @ p["trunk"]["w"]
    mean = 0.9 * p["trunk"]["mean"] + 0.1 * hidden.mean(0)
    out = {"heads": {k: jnp.tanh(hidden - mean) @ w for k, w in p["heads"].items()}}
    return {"out": out, "state": {"trunk": {"mean": mean}}}


@pytest.mark.parametrize("batch", [1, 16, 31, 32, 33])
def test_outputs_are_no_state_at_any_size_of_the_batch(batch):
    x = jnp.arange(4.0 * batch).reshape(batch, 4)
    graph = cj.trace(in_train_mode, NESTED, x)
    assert graph.tasks == ("out",)
    assert graph.reach["heads/smile"] == ("out",)
    assert [g.name for g in graph.free] == ["trunk/w:1"]
    small = cj.cut_params(NESTED, graph, HALF)
    # A graph of another size of the batch is as good.
    for known in (graph, cj.trace(in_train_mode, NESTED, jnp.ones((31, 4)))):
        got = cj.shrink(in_train_mode, known, HALF)(small, x)
        assert got["out"]["heads"]["age"].shape == (batch, 1)
        assert got["state"]["trunk"]["mean"].shape == (16,)


def test_tasks_nested_like_parameters_stay_apart():
    def apply(p, x):
        hidden = jnp.tanh(x @ p["trunk"]["w"] - p["trunk"]["mean"])
        smile = {"heads": {"smile": hidden @ p["heads"]["smile"]}}
        return {"main": hidden @ p["heads"]["age"], "aux": smile}

    for batch in (31, 32):
        x = jnp.ones((batch, 4))
        graph = cj.trace(apply, NESTED, x)
        assert graph.tasks == ("aux", "main")
        small_apply, small = cj.cut(apply, NESTED, graph, HALF, tasks="main")
        assert list(small["heads"]) == ["age"]
        assert list(small_apply(small, x)) == ["main"]


def test_flat_outputs_named_like_flat_parameters_are_no_state():
    params = {"age": jnp.ones((4, 1)), "smile": jnp.ones((4, 1))}
    graph = cj.trace(
        lambda p, x: {k: x @ w for k, w in p.items()}, params, jnp.ones((4, 4))
    )
    assert graph.tasks == ("age", "smile")


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_zero_gradients_of_one_key_are_small(batch):
    params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}

    def net(p, x):
        return jnp.tanh(x @ jax.lax.stop_gradient(p["a"])) @ p["b"]

    def loss(p, x):
        return net(p, x).sum()

    x = jnp.ones((batch, 3))
    graph = cj.trace(net, params, x)
    keep = {"a:1": np.arange(8) < 4}
    small = cj.cut_params(params, graph, keep)
    shapes = jax.tree.map(jnp.shape, small)
    got = cj.shrink(jax.grad(loss), graph, keep)(small, x)
    assert jax.tree.map(jnp.shape, got) == shapes
    _, got = cj.shrink(jax.value_and_grad(loss), graph, keep)(small, x)
    assert jax.tree.map(jnp.shape, got) == shapes


def test_a_training_step_returns_outputs_beside_what_mirrors_at_equal_sizes():
    optimizer = optax.adam(1e-2)

    def step(params, state, x):
        def loss(p):
            out = in_train_mode(p, x)
            return sum(jnp.sum(v**2) for v in out["out"]["heads"].values()), out

        grads, out = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return out, (optax.apply_updates(params, updates), state), grads

    x = jnp.arange(128.0).reshape(32, 4) / 64
    graph = cj.trace(in_train_mode, NESTED, x)
    small = cj.cut_params(NESTED, graph, HALF)
    state = optimizer.init(small)
    out, new, grads = cj.shrink(step, graph, HALF)(small, state, x)
    assert out["out"]["heads"]["smile"].shape == (32, 1)
    assert out["state"]["trunk"]["mean"].shape == (16,)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, (small, state))
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, small)


@pytest.mark.parametrize("batch", [31, 32])
def test_answers_of_a_merged_network_are_no_updates(batch):
    def train(p, x):
        out = in_train_mode(p, x)
        return out["out"], out["state"]

    x = jnp.ones((batch, 4))
    net = cj.merge.Network(train, NESTED, cj.trace(train, NESTED, x))
    assert mirrors(net, (x,)) == {2: "trunk/mean"}
