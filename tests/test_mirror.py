"""Pytrees that mirror parameters are cut along with them, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax.errors import MismatchError
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
