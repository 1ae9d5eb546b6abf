"""Cotangents whose second moment is the curvature of a loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutjax.saliency import curvature
from cutjax.saliency.curvature import cotangent, number_of


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LOSSES: dict[str, Any] = {
    "cross entropy": lambda o: -jax.nn.log_softmax(o)[3],
    "per position": lambda o: -jnp.mean(jax.nn.log_softmax(o.reshape(3, 2))[:, 0]),
    "squares": lambda o: jnp.mean((o - 1) ** 2),
    "norm": jnp.linalg.norm,
    "neither convex nor concave": lambda o: o[0] * o[1] + o[2] ** 2,
    "dice": lambda o: 1 - jnp.vdot(jax.nn.sigmoid(o), jnp.arange(6.0) / 15),
}


def moment(loss: Any, o: Any, number: int = 20000) -> np.ndarray:
    numbers = 12345 + 77 * jnp.arange(number, dtype=jnp.uint32)
    z = jax.jit(jax.vmap(lambda n: cotangent(loss, o, n)[0]))(numbers)
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
    values = np.linalg.eigvalsh(np.asarray(jax.hessian(LOSSES[name])(o)))
    two = len(np.unique(values.round(4))) <= 2
    np.testing.assert_allclose(got, want, atol=(0.03 if two else 0.2) * want.max())
    assert abs(np.trace(got) / np.trace(want) - 1) < (0.03 if two else 0.2)


def test_no_lapack_is_called():
    """Two batched calls at a time hang on two threads (jaxlib 0.10.2)."""
    o = jnp.ones(4)
    made = str(jax.make_jaxpr(lambda o: cotangent(jnp.linalg.norm, o, 0))(o))
    assert "dot_general" in made and "eigh" not in made


def test_the_saboteur_that_takes_no_root_is_found_out(monkeypatch):
    monkeypatch.setattr(curvature, "_root", lambda product, v: (product(v), True))
    o = jnp.asarray(2 * normal(1, 6))
    loss = LOSSES["cross entropy"]
    wrong = np.abs(moment(loss, o, 2000) - convex(loss, o)).max()
    assert wrong > 0.2 * convex(loss, o).max()


def test_a_loss_without_curvature_gives_its_gradient():
    o = jnp.asarray(normal(2, 5))
    (z,) = cotangent(lambda o: jnp.sum(jnp.abs(o)), o, 0)
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
    (z,) = cotangent(strange, o, 0)
    np.testing.assert_allclose(z, 2 * o, rtol=1e-6)


def test_leaves_that_are_no_floats_are_handed_on():
    out = {"best": jnp.int32(2), "scores": jnp.asarray(normal(3, 4), jnp.bfloat16)}

    def loss(out: Any) -> Any:
        assert out["best"].dtype == jnp.int32 and out["scores"].dtype == jnp.bfloat16
        return jnp.sum(out["scores"].astype(jnp.float32) ** 2) / 2

    (z,) = cotangent(loss, out, 1)
    assert 0.4 < np.abs(z).min() and np.abs(z).max() < 1.5


def test_the_number_is_of_the_example_alone():
    keys = jax.random.split(jax.random.key(3), 7)
    x = (jnp.asarray(normal(1, 7, 3)), jnp.arange(7), keys)
    numbers = jax.vmap(number_of)(x)
    order = np.random.default_rng(0).permutation(7)
    again = jax.vmap(number_of)(jax.tree.map(lambda a: a[order], x))
    np.testing.assert_array_equal(numbers[order], again)
    assert len(np.unique(numbers)) == 7
