"""What a random function may do next: an array in, an array out, parameters between.

The first axis is the batch. A step is drawn for a shape; None where it does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Step = Callable[[Any, jax.Array], jax.Array]
Shape = tuple[int, ...]


class Draw:
    """Random choices, and the parameters made so far."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {}

    def param(self, *shape: int) -> str:
        name = f"w{len(self.shapes):02d}"
        self.shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return name

    def width(self) -> int:
        return int(self.rng.integers(2, 7))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def axis(self, shape: Shape) -> int:
        return int(self.rng.integers(1, len(shape)))


STEPS: dict[str, Callable[[Draw, Shape], Step | None]] = {}


def step(draw: Callable[[Draw, Shape], Step | None]) -> Callable:
    STEPS[draw.__name__] = draw
    return draw


def along(vector: jax.Array, axis: int, rank: int) -> jax.Array:
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def times(x: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    """A dense layer over any axis."""
    return jnp.moveaxis(jnp.tensordot(x, kernel, ((axis,), (0,))), -1, axis)


@step
def dense(d: Draw, shape: Shape) -> Step | None:
    axis, width = d.axis(shape), d.width()
    kernel, bias = d.param(shape[axis], width), d.param(width)
    return lambda p, x: times(x, p[kernel], axis) + along(p[bias], axis, x.ndim)


@step
def transposed(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    kernel = d.param(d.width(), shape[axis])
    return lambda p, x: times(x, p[kernel].T, axis)


@step
def two_axes(d: Draw, shape: Shape) -> Step | None:
    if len(shape) < 3:
        return None
    kernel = d.param(*shape[-2:], d.width(), d.width())
    return lambda p, x: jnp.einsum("...hw,hwko->...ko", x, p[kernel])


@step
def tied(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    kernel = d.param(shape[axis], d.width())
    return lambda p, x: times(jnp.tanh(times(x, p[kernel], axis)), p[kernel].T, axis)


@step
def residual(d: Draw, shape: Shape) -> Step | None:
    axis, width = d.axis(shape), d.width()
    up, down = d.param(shape[axis], width), d.param(width, shape[axis])
    return lambda p, x: x + times(jnp.tanh(times(x, p[up], axis)), p[down], axis)


@step
def activation(d: Draw, shape: Shape) -> Step | None:
    del shape
    gauss, line = lambda x: jnp.exp(-x * x), lambda x: 2 * x + 1
    how = d.one_of(jax.nn.relu, jnp.tanh, jax.nn.gelu, jnp.sin, jnp.abs, gauss, line)
    return lambda p, x: how(x)


@step
def scale(d: Draw, shape: Shape) -> Step | None:
    axis, product = d.axis(shape), d.one_of(True, False)
    vector = d.param(shape[axis])

    def apply(p: Any, x: jax.Array) -> jax.Array:
        values = along(p[vector], axis, x.ndim)
        return x * values if product else x + values

    return apply


@step
def table(d: Draw, shape: Shape) -> Step | None:
    values = d.param(*shape[1:])
    return lambda p, x: x * p[values]


@step
def turn(d: Draw, shape: Shape) -> Step | None:
    order = [0, *(1 + d.rng.permutation(len(shape) - 1))]
    return lambda p, x: jnp.transpose(x, order)


@step
def fold(d: Draw, shape: Shape) -> Step | None:
    if len(shape) < 3:
        return None
    axis = int(d.rng.integers(1, len(shape) - 1))
    return lambda p, x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


@step
def shuffle(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    if shape[axis] % 2:
        return None

    def apply(p: Any, x: jax.Array) -> jax.Array:
        pairs = x.reshape(*x.shape[:axis], 2, -1, *x.shape[axis + 1 :])
        return jnp.swapaxes(pairs, axis, axis + 1).reshape(x.shape)

    return apply


@step
def gated(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    if shape[axis] % 2:
        return None

    def apply(p: Any, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(x, 2, axis)
        return value * jax.nn.sigmoid(gate)

    return apply


@step
def beside(d: Draw, shape: Shape) -> Step | None:
    """Put end to end with what is made of it, or with constants."""
    axis, how = d.axis(shape), d.one_of(0, 1, 2)
    kernel = d.param(shape[axis], d.width())

    def apply(p: Any, x: jax.Array) -> jax.Array:
        y = times(x, p[kernel], axis)
        other = [y, jnp.ones_like(y), -x][how]
        return jnp.concatenate([x, other], axis)

    return apply


@step
def part(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    where = d.one_of(slice(1, None), slice(None, None, 2), slice(None, None, -1))
    return lambda p, x: x[(slice(None),) * axis + (where,)]


@step
def roll(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    return lambda p, x: jnp.roll(x, 1, axis)


@step
def pad(d: Draw, shape: Shape) -> Step | None:
    axis, value = d.axis(shape), d.one_of(0.0, 1.0)
    widths = [(1, 2) if i == axis else (0, 0) for i in range(len(shape))]
    return lambda p, x: jnp.pad(x, widths, constant_values=value)


@step
def picked(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    index = d.one_of(d.rng.permutation(shape[axis]), d.rng.integers(0, shape[axis], 3))
    return lambda p, x: jnp.take(x, index, axis)


@step
def pool(d: Draw, shape: Shape) -> Step | None:
    if len(shape) < 3:
        return None
    axis, how = d.axis(shape), d.one_of(jnp.max, jnp.mean, jnp.sum)
    return lambda p, x: how(x, axis)


@step
def norm(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    weight = d.param(shape[axis])

    def apply(p: Any, x: jax.Array) -> jax.Array:
        y = x - x.mean(axis, keepdims=True)
        y = y * lax.rsqrt(x.var(axis, keepdims=True) + 0.1)
        return y * along(p[weight], axis, x.ndim)

    return apply


@step
def crossing(d: Draw, shape: Shape) -> Step | None:
    """Channels that meet without a kernel."""
    axis = d.axis(shape)
    how = d.one_of(jax.nn.softmax, jnp.cumsum, jnp.sort)
    return lambda p, x: how(x, axis)


@step
def convolution(d: Draw, shape: Shape) -> Step | None:
    if len(shape) != 3:
        return None
    c, kind = shape[-1], d.one_of("plain", "depthwise", "grouped")
    groups = {"plain": 1, "depthwise": c, "grouped": 2 if c % 2 == 0 else 1}[kind]
    kernel = d.param(3, c // groups, c if kind == "depthwise" else 2 * d.width())
    return lambda p, x: lax.conv_general_dilated(
        *(x, p[kernel], (1,), "SAME"),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


@step
def attention(d: Draw, shape: Shape) -> Step | None:
    if len(shape) != 3:
        return None
    c, heads, width = shape[-1], int(d.rng.integers(1, 4)), d.width()
    q, k, v = (d.param(c, heads, width) for _ in range(3))
    out = d.param(heads, width, c)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        a, b, value = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in (q, k, v))
        near = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", a, b), -1)
        seen = jnp.einsum("bhts,bshd->bthd", near, value)
        return x + jnp.einsum("bthd,hdc->btc", seen, p[out])

    return apply


@step
def recurrence(d: Draw, shape: Shape) -> Step | None:
    if len(shape) != 3:
        return None
    width = d.width()
    enter, again = d.param(shape[-1], width), d.param(width, width)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        def at(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jnp.tanh(now @ p[enter] + h @ p[again])
            return h, h

        _, made = lax.scan(at, jnp.zeros((len(x), width)), x.swapaxes(0, 1))
        return made.swapaxes(0, 1)

    return apply


@step
def stack(d: Draw, shape: Shape) -> Step | None:
    """Layers of one array, in a loop or one after the other."""
    axis, looped = d.axis(shape), d.one_of(True, False)
    kernels = d.param(3, shape[axis], shape[axis])

    def layer(h: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return h + jnp.tanh(times(h, kernel, axis)), None

    def apply(p: Any, x: jax.Array) -> jax.Array:
        if looped:
            return lax.scan(layer, x, p[kernels])[0]
        for i in range(3):
            x, _ = layer(x, p[kernels][i])
        return x

    return apply


@step
def branch(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    kernel, vector = d.param(shape[axis], shape[axis]), d.param(shape[axis])
    return lambda p, x: lax.cond(
        x.sum() > 0,
        lambda y: times(y, p[kernel], axis),
        lambda y: y * along(p[vector], axis, y.ndim),
        x,
    )


@step
def chosen(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    mask = along(d.rng.random(shape[axis]) < 0.5, axis, len(shape))
    return lambda p, x: jnp.where(mask, x, jnp.cos(x))


@step
def products(d: Draw, shape: Shape) -> Step | None:
    """Of the data with itself."""
    if len(shape) < 3:
        return None
    with_all = d.one_of(True, False)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        y = jnp.tanh(x)  # so that values stay small
        near = jnp.einsum("...ic,...jc->...ij", y, y)
        return jnp.einsum("...ij,...ic->...jc", near, x) if with_all else near

    return apply


@step
def squeeze_excite(d: Draw, shape: Shape) -> Step | None:
    if len(shape) != 3:
        return None
    width = d.width()
    down, up = d.param(shape[-1], width), d.param(width, shape[-1])
    return lambda p, x: (
        x * jax.nn.sigmoid(jax.nn.relu(x.mean(1) @ p[down]) @ p[up])[:, None]
    )


@step
def written(d: Draw, shape: Shape) -> Step | None:
    """Some channels set, or added to others."""
    at = (slice(None),) * d.axis(shape)
    if d.one_of(True, False):
        return lambda p, x: x.at[(*at, 0)].set(0.0)
    return lambda p, x: x.at[(*at, slice(1, None))].add(x[(*at, slice(0, -1))])


@step
def maxout(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    if shape[axis] % 2:
        return None
    return lambda p, x: x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :]).max(
        axis + 1
    )


@step
def stretched(d: Draw, shape: Shape) -> Step | None:
    axis = d.axis(shape)
    return lambda p, x: jax.image.resize(
        x, [2 * n if i == axis else n for i, n in enumerate(x.shape)], "linear"
    )
