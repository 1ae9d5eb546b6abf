"""Constants per channel, kernels made of several parameters, loops of several tasks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .base import Net, normal, specimen, tree
from .plain import dense, layer


def sines(steps: int, width: int) -> np.ndarray:
    """The table of positions that Vaswani et al. add, as numpy makes it."""
    angle = np.arange(steps)[:, None] / 100 ** (np.arange(0, width, 2) / width)
    both = np.stack([np.sin(angle), np.cos(angle)], -1)
    return both.reshape(steps, width).astype(np.float32)


@specimen
def positions() -> Net:
    """Stream 12 with a table of constants on it, hidden 10 behind constant scales."""
    table, scales = sines(3, 12), np.linspace(0.5, 2, 10, dtype=np.float32)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["embed"], x) + table
        x = x + dense(p["down"], scales * jnp.tanh(dense(p["up"], x)))
        return dense(p["head"], x)

    params = tree(
        embed=layer(4, 12), up=layer(12, 10), down=layer(10, 12), head=layer(12, 2)
    )
    return Net("positions", apply, params, (normal(2, 3, 4),), (10, 12))


@specimen
def weight_norm() -> Net:
    """Columns of unit length (WeightNorm), and a scale made of two vectors alone.

    As in a Differential Transformer: exp of the inner product of 5 numbers. The width
    is 7; its parameters are read by sums that no data goes through.
    """

    def apply(p: Any, x: jax.Array) -> jax.Array:
        v = p["out"]["kernel"]
        unit = v / jnp.sqrt((v**2).sum(0) + 1e-3)
        scale = jnp.exp((p["lambda"]["q"] * p["lambda"]["k"]).sum())
        return jnp.tanh(dense(p["in"], x)) @ unit * scale + p["out"]["bias"]

    params = tree(
        **{"in": layer(4, 7), "out": layer(7, 2)}, **{"lambda": {"q": (5,), "k": (5,)}}
    )
    known = {"by_weights": False}
    return Net("weight_norm", apply, params, (normal(2, 4),), (5, 7), **known)


@specimen
def while_stream() -> Net:
    """As many steps as the data ask for, by weights that are used there only."""

    def apply(p: Any, x: jax.Array) -> jax.Array:
        def step(state: Any) -> Any:
            i, h = state
            return i + 1, h + dense(p["down"], jnp.tanh(dense(p["up"], h)))

        steps = 2 + (x.sum() > 0)
        _, h = lax.while_loop(lambda s: s[0] < steps, step, (0, dense(p["in"], x)))
        return dense(p["out"], h)

    params = tree(
        **{
            "in": layer(4, 6),
            "up": layer(6, 5),
            "down": layer(5, 6),
            "out": layer(6, 2),
        }
    )
    known = {"reverse": False, "by_weights": False, "countable": False}
    return Net("while_stream", apply, params, (normal(2, 4),), (5, 6), **known)


@specimen
def loop_of_tasks() -> Net:
    """Of one loop, and of one branch, each task needs a part.

    Steps carry 3 inputs on; hidden are 6 for what is carried, 7 for the other task, 5
    and 4 in the branches.
    """

    def apply(p: Any, x: jax.Array) -> dict[str, jax.Array]:
        def step(state: Any, _: Any) -> Any:
            y, q = state
            y = dense(p["back"], jnp.tanh(dense(p["hide"], y)))
            return (y, q + dense(p["low"], jnp.tanh(dense(p["high"], y)))), None

        (y, q), _ = lax.scan(step, (x, jnp.zeros((len(x), 2))), None, length=3)

        def yes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            left, right = (jax.nn.relu(dense(p[name], x)) for name in ("left", "right"))
            return dense(p["a"], left), dense(p["b"], right)

        zero = jnp.zeros((len(x), 2))
        a, b = lax.cond(x.sum() < 1e9, yes, lambda _: (zero, zero), x)
        return {"carried": y, "summed": q, "one": a, "other": b}

    params = tree(
        hide=layer(3, 6),
        back=layer(6, 3),
        high=layer(3, 7),
        low=layer(7, 2),
        left=layer(3, 5),
        right=layer(3, 4),
        a=layer(5, 2),
        b=layer(4, 2),
    )
    tasks = ("carried", "summed", "one", "other")
    known = {"by_weights": False, "tasks": tasks}
    return Net("loop_of_tasks", apply, params, (normal(2, 3),), (4, 5, 6, 7), **known)


@specimen
def fake_quantised() -> Net:
    """Eight bits, by the largest absolute value: of each token, and of each kernel.

    Straight through the rounding. A maximum of absolute values runs over the widths 6
    and 7, to which channels that are zero add nothing.
    """

    def rounded(v: jax.Array, axis: int | None) -> jax.Array:
        scale = jnp.abs(v).max(axis, keepdims=True) / 127
        near = jnp.round(v / (scale + 1e-5)) * scale
        return v + lax.stop_gradient(near - v)

    def layer_of(p: Any, x: jax.Array) -> jax.Array:
        return rounded(x, -1) @ rounded(p["kernel"], None) + p["bias"]

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(layer_of(p["one"], x))
        return layer_of(p["three"], jax.nn.relu(layer_of(p["two"], x)))

    params = tree(one=layer(4, 6), two=layer(6, 7), three=layer(7, 2))
    known = {"by_weights": False, "true_derivative": False}
    return Net("fake_quantised", apply, params, (normal(2, 4),), (6, 7), **known)
