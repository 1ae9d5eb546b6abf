"""Pads, crops and strides of channels, their cotangents; bitcasts between widths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws.tools import close, random_keep, uneven
from nets.base import normal

import cutjax as cj

X = normal(4, 3)


def padded(h: jax.Array, low: int, high: int, inner: int = 0) -> jax.Array:
    return lax.pad(h, jnp.zeros((), h.dtype), ((0, 0, 0), (low, high, inner)))


PADS: dict[str, tuple[Any, int]] = {
    "behind": (lambda h: padded(h, 0, 2), 6),
    "around": (lambda h: padded(h, 1, 2), 6),
    "cropped": (lambda h: padded(h, -1, -2), 3),
    "moved": (lambda h: padded(h, -2, 3), 4),
    "every other": (lambda h: h[:, ::2], 3),
    "the others": (lambda h: h[:, 1::2], 3),
    "every third": (lambda h: padded(h[:, ::3], 0, 2), 2),
}
"""What comes between layers of 6 channels, and how many of them can be cut."""


@pytest.mark.parametrize("how", PADS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_of_padded_channels_is_cut(how: str, seed: int) -> None:
    middle, free = PADS[how]
    width = middle(jnp.zeros((1, 6))).shape[1]
    params = {"a": normal(3, 6, seed=1), "b": normal(width, 2, seed=2)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(middle(jnp.tanh(x @ p["a"]))) @ p["b"]

    def grad(fn: Any) -> Any:
        return jax.grad(lambda p, x: uneven(fn(p, x)))

    graph = cj.trace(apply, params, X)
    assert free in {g.size for g in graph.free}
    keep = random_keep(graph, seed)
    small, fn = cj.cut_params(params, graph, keep), cj.shrink(apply, graph, keep)
    close(fn(small, X), apply(cj.mask(params, graph, keep), X))
    close(cj.shrink(grad(apply), graph, keep)(small, X), grad(fn)(small, X))


@pytest.mark.parametrize("middle", ["an odd gap", "more than there is"])
def test_other_pads_keep_the_channels_whole(middle: str) -> None:
    config = {"an odd gap": (0, 0, 1), "more than there is": (-9, 14, 0)}[middle]
    params = {"a": normal(3, 6), "b": normal(11, 2)}
    graph = cj.trace(lambda p, x: padded(x @ p["a"], *config) @ p["b"], params, X)
    assert "padded between or cropped" in str(graph["a:1"].pinned)


def test_the_force_of_every_other_channel_frees_them() -> None:
    """Its cotangents are padded between, within the traced function."""
    params = {"a": normal(3, 6, seed=1), "b": normal(3, 2, seed=2)}

    def force(p: Any, x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: uneven(jnp.tanh(x @ p["a"])[:, ::2] @ p["b"]))(x)

    graph = cj.trace(force, params, X)
    assert graph["a:1.0"].pinned is None
    keep = {"a:1.0": np.array([True, False, True])}
    fn, small = cj.cut(force, params, graph, keep)
    close(fn(small, X), force(cj.mask(params, graph, keep), X))


BITS: dict[str, tuple[Any, int]] = {
    "as halves": (lambda h: h.view(jnp.int16).astype(jnp.float32) / 2**15, 12),
    "of halves": (
        lambda h: lax.bitcast_convert_type(
            jnp.stack([h, h], -1).astype(jnp.bfloat16), jnp.float32
        ),
        6,
    ),
    "as they are": (
        lambda h: lax.bitcast_convert_type(
            lax.bitcast_convert_type(h, jnp.int32) & -4, jnp.float32
        ),
        6,
    ),
}


@pytest.mark.parametrize("how", BITS)
def test_bits_read_as_numbers_of_another_width(how: str) -> None:
    middle, width = BITS[how]
    params = {"a": normal(3, 6, seed=1), "b": normal(width, 2, seed=2)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return middle(x @ p["a"]) @ p["b"]

    graph = cj.trace(apply, params, X)
    assert [g.size for g in graph.free] == [6]
    keep = {graph.free[0].name: np.arange(6) % 3 != 1}
    fn, small = cj.cut(apply, params, graph, keep)
    close(fn(small, X), apply(cj.mask(params, graph, keep), X))
    assert graph.cost().flops == 2 * 4 * (3 * 6 + width * 2)
