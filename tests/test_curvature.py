"""Cotangents whose second moment is the curvature of a loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutjax.saliency import curvature
from cutjax.saliency.curvature import cotangent, key_of


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


KEY = jax.random.key(0)
LOSSES: dict[str, Any] = {
    "cross entropy": lambda o: -jax.nn.log_softmax(o)[3],
    "per position": lambda o: -jnp.mean(jax.nn.log_softmax(o.reshape(3, 2))[:, 0]),
    "squares": lambda o: jnp.mean((o - 1) ** 2),
    "norm": jnp.linalg.norm,
    "neither convex nor concave": lambda o: o[0] * o[1] + o[2] ** 2,
    "dice": lambda o: 1 - jnp.vdot(jax.nn.sigmoid(o), jnp.arange(6.0) / 15),
}


def moment(loss: Any, o: Any, number: int = 20000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(5), number)
    z = jax.jit(jax.vmap(lambda k: cotangent(loss, o, k)[0]))(keys)
    return np.asarray(z, np.float64).T @ np.asarray(z) / number


def convex(loss: Any, o: Any) -> np.ndarray:
    """The Hessian without its concave directions, by eigenvalues."""
    values, vectors = np.linalg.eigh(np.asarray(jax.hessian(loss)(o), np.float64))
    return (vectors * np.maximum(values, 0)) @ vectors.T


@pytest.mark.parametrize("name", LOSSES)
def test_second_moments_are_the_convex_part_of_the_hessian(name):
    o = jnp.asarray(2 * normal(1, 6))
    want = convex(LOSSES[name], o)
    got = moment(LOSSES[name], o)
    np.testing.assert_allclose(got, want, atol=0.04 * np.abs(want).max())


def test_the_saboteur_that_takes_no_root_is_found_out(monkeypatch):
    monkeypatch.setattr(curvature, "_root", lambda product, start: product(start))
    o = jnp.asarray(2 * normal(1, 6))
    loss = LOSSES["cross entropy"]
    wrong = np.abs(moment(loss, o, 2000) - convex(loss, o)).max()
    assert wrong > 0.2 * convex(loss, o).max()


def test_a_loss_without_curvature_gives_its_gradient():
    o = jnp.asarray(normal(2, 5))
    (z,) = cotangent(lambda o: jnp.sum(jnp.abs(o)), o, KEY)
    np.testing.assert_array_equal(z, np.sign(o))


def test_a_loss_without_a_second_derivative_gives_its_gradient():
    @jax.custom_vjp
    def strange(o):
        return jnp.sum(o**2)

    def back(o, g):
        like = jax.ShapeDtypeStruct(o.shape, o.dtype)
        return (jax.pure_callback(lambda v: 2 * np.asarray(v), like, o) * g,)

    strange.defvjp(lambda o: (strange(o), o), back)
    o = jnp.asarray(normal(2, 5))
    (z,) = cotangent(strange, o, jax.random.key(0))
    np.testing.assert_allclose(z, 2 * o, rtol=1e-6)


def test_leaves_that_are_no_floats_are_handed_on():
    out = {"best": jnp.int32(2), "scores": jnp.asarray(normal(3, 4), jnp.bfloat16)}

    def loss(out: Any) -> Any:
        assert out["best"].dtype == jnp.int32 and out["scores"].dtype == jnp.bfloat16
        return jnp.sum(out["scores"].astype(jnp.float32) ** 2) / 2

    (z,) = cotangent(loss, out, jax.random.key(1))
    np.testing.assert_allclose(np.abs(z), 1, atol=1e-2)


def test_the_key_is_of_the_example_alone():
    x = (
        jnp.asarray(normal(1, 7, 3)),
        jnp.arange(7),
        jax.random.split(jax.random.key(3), 7),
    )
    keys = jax.random.key_data(jax.vmap(key_of)(x))
    order = np.random.default_rng(0).permutation(7)
    again = jax.vmap(key_of)(jax.tree.map(lambda a: a[order], x))
    np.testing.assert_array_equal(keys[order], jax.random.key_data(again))
    assert len(np.unique(keys, axis=0)) == 7


def test_small_eigenvalues_are_those_of_lapack_without_calling_it():
    """Two calls of its `eigh` at a time hang on two threads (jaxlib 0.10.2)."""
    a = normal(1, 40, 8, 8)
    a = np.concatenate([a + a.swapaxes(1, 2), np.zeros((1, 8, 8)), np.eye(8)[None]])
    values, vectors = jax.vmap(curvature._eigen)(jnp.asarray(a, jnp.float32))
    np.testing.assert_allclose(
        np.sort(values), np.linalg.eigvalsh(a), atol=1e-5 * np.abs(a).max()
    )
    got = np.einsum("bij,bj,bkj->bik", vectors, values, vectors)
    np.testing.assert_allclose(got, a, atol=2e-5)
    o = jnp.ones(4)
    made = str(jax.make_jaxpr(lambda k: cotangent(jnp.linalg.norm, o, k))(KEY))
    assert "scan" in made and "eigh" not in made
