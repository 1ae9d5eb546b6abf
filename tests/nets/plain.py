"""Plain JAX: dicts, lists, tuples, several tasks, activations with own derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .base import Net, normal, specimen, tree


def dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def layer(n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (n_in, n_out), "bias": (n_out,)}


@specimen
def mlp() -> Net:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(dense(p["first"], x))
        return dense(p["last"], jax.nn.relu(dense(p["middle"], x)))

    params = tree(first=layer(5, 7), middle=layer(7, 6), last=layer(6, 3))
    return Net("mlp", apply, params, (normal(4, 5),), (6, 7))


@specimen
def mlp_nested() -> Net:
    """Parameters as a list of tuples; sigmoid(0) is not 0, the readers' rows are."""

    def apply(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        *hidden, (w, b) = params
        for wi, bi in hidden:
            x = jax.nn.sigmoid(jnp.dot(x, wi) + bi)
        return {"output": x @ w + b}

    t = tree(a=layer(4, 6), b=layer(6, 5), c=layer(5, 2))
    params = [(v["kernel"], v["bias"]) for v in t.values()]
    return Net("mlp_nested", apply, params, (normal(3, 4),), (5, 6), by_weights=False)


@specimen
def mlp_tasks() -> Net:
    """A trunk, one head with a hidden layer of its own, one without, two inputs."""

    def apply(p: Any, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        h = jax.nn.gelu(dense(p["trunk"], x) + dense(p["side"], y))
        age = dense(p["age"]["out"], jnp.tanh(dense(p["age"]["hidden"], h)))
        return {"age": age[:, 0], "smile": dense(p["smile"], h)}

    params = tree(
        trunk=layer(5, 8),
        side=layer(3, 8),
        age={"hidden": layer(8, 4), "out": layer(4, 1)},
        smile=layer(8, 2),
    )
    inputs = (normal(4, 5), normal(4, 3, seed=1))
    tasks = ("age", "smile")
    return Net("mlp_tasks", apply, params, inputs, (4, 8), tasks=tasks)


@jax.custom_jvp
def straight_relu(x: jax.Array) -> jax.Array:
    """relu with the derivative 1 everywhere: a lost rule changes the gradient."""
    return jnp.maximum(x, 0.0)


@straight_relu.defjvp
def _straight_jvp(primals: Any, tangents: Any) -> Any:
    return straight_relu(*primals), tangents[0]


@jax.custom_vjp
def straight_sign(x: jax.Array) -> jax.Array:
    """tanh whose backward pass lets only small inputs through, doubled."""
    return jnp.tanh(x)


def _sign_fwd(x: jax.Array) -> Any:
    return jnp.tanh(x), x


def _sign_bwd(x: jax.Array, ct: jax.Array) -> Any:
    return (2.0 * ct * (jnp.abs(x) < 1),)


straight_sign.defvjp(_sign_fwd, _sign_bwd)


def _with_activation(name: str, activation: Any) -> Net:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        return dense(p["last"], activation(dense(p["first"], x)))

    params = tree(first=layer(5, 9), last=layer(9, 3))
    return Net(name, apply, params, (normal(4, 5),), (9,), true_derivative=False)


@specimen
def custom_jvp() -> Net:
    return _with_activation("custom_jvp", straight_relu)


@specimen
def custom_vjp() -> Net:
    return _with_activation("custom_vjp", straight_sign)


@specimen
def nested_jit() -> Net:
    """jit inside jit, and the same inner function on two different widths."""
    inner = jax.jit(lambda p, x: jax.jit(jax.nn.silu)(dense(p, x)))

    @jax.jit
    def apply(p: Any, x: jax.Array) -> jax.Array:
        return dense(p["c"], inner(p["b"], inner(p["a"], x)))

    params = tree(a=layer(5, 6), b=layer(6, 8), c=layer(8, 3))
    return Net("nested_jit", apply, params, (normal(4, 5),), (6, 8))


@specimen
def tied_weights() -> Net:
    """An autoencoder that decodes with its encoder's weight, transposed."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["enc"], x))
        return h @ p["enc"]["kernel"].T + p["out_bias"]

    params = tree(enc=layer(5, 7), out_bias=(5,))
    return Net("tied_weights", apply, params, (normal(4, 5),), (7,), by_weights=False)


@specimen
def softmax_channels() -> Net:
    """Channels that are soft-maxed over may not be cut; those before them may."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(p["first"], x))
        return dense(p["last"], jax.nn.softmax(dense(p["route"], h)))

    params = tree(first=layer(5, 7), route=layer(7, 6), last=layer(6, 3))
    return Net("softmax_channels", apply, params, (normal(4, 5),), (7,))
