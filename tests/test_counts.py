"""Numbers that count channels: however a mean is spelled, and in its gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws.tools import close
from nets.base import normal

import cutjax as cj

X = normal(4, 3)
P = {"a": normal(3, 8, seed=1), "b": normal(8, 2, seed=2)}
KEEP = {"a:1": np.arange(8) % 2 == 0}


def width(h: jax.Array) -> int:
    return h.shape[-1]


def total(h: jax.Array) -> jax.Array:
    return h.sum(-1, keepdims=True)


def root(h: jax.Array) -> jax.Array:
    return jnp.linalg.norm(h, axis=-1, keepdims=True)


def centred(h: jax.Array) -> jax.Array:
    return h - h.mean(-1, keepdims=True)


def copies(h: jax.Array, n: int) -> jax.Array:
    """At n positions, each a little different."""
    return h[:, None] * (1 + jnp.arange(n, dtype=h.dtype))[:, None]


MEANS: dict[str, Any] = {
    "mean": lambda h: h - h.mean(-1, keepdims=True),
    "variance": lambda h: h * lax.rsqrt(h.var(-1, keepdims=True) + 1e-3),
    "unbiased": lambda h: h / (h.std(-1, keepdims=True, ddof=1) + 0.1),
    "unbiased by hand": lambda h: (
        h * lax.rsqrt(total(centred(h) ** 2) / (width(h) - 1) + 1e-3)
    ),
    "unbiased, weighted": lambda h: h / (total(3 * centred(h) ** 2) / (width(h) - 1)),
    "unbiased, an inner product": lambda h: (
        h * (jnp.einsum("bc,bc->b", centred(h), centred(h)) / (width(h) - 1))[:, None]
    ),
    "unbiased of all": lambda h: h / h.var(ddof=1),
    "unbiased of a complex number": lambda h: (
        h / (h * (1 + 1j)).var(-1, ddof=1)[:, None]
    ),
    "of sums over positions": lambda h: h * copies(h, 5).sum(1).mean(-1)[:, None],
    "of means over positions": lambda h: h * copies(h, 8).mean(1).mean(-1)[:, None],
    "after one over positions": lambda h: (
        h * (copies(h, 5).sum(-1).mean(1) / width(h))[:, None]
    ),
    "root by root": lambda h: h / (root(h) / jnp.sqrt(width(h)) + 0.1),
    "root by a power": lambda h: h / (root(h) * width(h) ** -0.5 + 0.1),
    "one over a root": lambda h: h * (lax.rsqrt(total(h * h)) * jnp.sqrt(width(h))),
    "square of a mean": lambda h: h - total(h) ** 2 / width(h) ** 2,
    "bounded": lambda h: h * lax.rsqrt(jnp.clip(total(h * h), 1e-6) / width(h)),
    "at least": lambda h: h - jnp.maximum(total(h), -50.0) / width(h),
    "by an array": lambda h: h - total(h) / jnp.full((4, 1), width(h), h.dtype),
    "by a sum of ones": lambda h: h - total(h) / total(jnp.ones_like(h)),
    "chosen": lambda h: h - jnp.where(X[:, :1] > 0, total(h), 2 * total(h)) / width(h),
    "replaced": lambda h: h - jnp.where(X[:, :1] > 0, total(h), 0.0) / width(h),
    "divided before": lambda h: h - total(h / width(h)),
    "side by side": lambda h: (
        lambda s: (h - s[:, :1]) * lax.rsqrt(s[:, 1:] - s[:, :1] ** 2 + 1e-3)
    )(jnp.stack([h.sum(-1), (h * h).sum(-1)], -1) / width(h)),
    "joined": lambda h: (
        h - (jnp.concatenate([total(h), total(h**2)], -1) / width(h)).sum(-1)[:, None]
    ),
    "in a loop": lambda h: h - (lax.map(jnp.sum, h) / width(h))[:, None],
    "in a branch": lambda h: (
        h - lax.cond(X[0, 0] > 0, total, lambda h: total(h) * 2, h) / width(h)
    ),
    "per example": lambda h: jax.vmap(lambda r: r - r.mean())(h),
    "remat": jax.checkpoint(lambda h: h * lax.rsqrt(h.var(-1, keepdims=True) + 1e-3)),
    "of all": lambda h: h * jnp.mean(h**2),
    "in groups": lambda h: (
        h.reshape(4, 2, -1) - h.reshape(4, 2, -1).mean((0, 2), keepdims=True)
    ).reshape(h.shape),
}


def net(middle: Any) -> Any:
    return lambda p, x: middle(jnp.tanh(x @ p["a"])) @ p["b"]


def small(fn: Any, graph: Any) -> tuple[Any, Any]:
    keep = {g.name: KEEP["a:1"][: g.size] for g in graph.free if g.size > 2}
    return cj.shrink(fn, graph, keep), cj.cut_params(P, graph, keep)


@pytest.mark.parametrize("how", MEANS)
def test_a_mean_is_that_of_the_narrower_net(how: str) -> None:
    apply = net(MEANS[how])
    fn, params = small(apply, cj.trace(apply, P, X))
    close(fn(params, X), apply(params, X))


UNKNOWN = {"square of a mean", "bounded"}
"""Whose slope stands between the division and the copies: one is refused."""


@pytest.mark.parametrize("how", sorted(MEANS.keys() - UNKNOWN))
def test_a_gradient_inside_is_that_of_the_narrower_net(how: str) -> None:
    apply = net(MEANS[how])

    def step(p: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda p: (apply(p, x) ** 2).mean())(p)
        return jax.tree.map(lambda w, g: w - 0.1 * g, p, grads)

    def force(p: Any, x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: apply(p, x).sum())(x)

    for inner in (step, force):
        fn, params = small(inner, cj.trace(apply, P, X))
        close(fn(params, X), inner(params, X), 1e-4)


def test_an_energy_is_divided_by_the_channels_that_stay() -> None:
    def energy(p: Any, x: jax.Array) -> jax.Array:
        return 0.5 * jnp.mean(jnp.tanh(x @ p["a"]) ** 2)

    force = jax.grad(energy, 1)
    graph = cj.trace(force, P, X)
    assert "a mean runs over these channels" in graph["a:1"].notes[0]
    fn, params = small(force, graph)
    close(fn(params, X), force(params, X))


NONE: dict[str, Any] = {
    "another number": lambda h: total(h) / 7.5 * h,
    "of positions": lambda h: h - h.sum(0) / 4,
    "a scale": lambda h: h / 8,
    "attention": lambda h: jax.nn.softmax(h @ h.T / jnp.sqrt(8.0)) @ h,
    "a scale copied": lambda h: h * jnp.broadcast_to(X[:, :1] / 8, h.shape),
    "a complex number": lambda h: jnp.abs(h - (total(h) + 0j) / (8 + 8j)),
    "one less than the channels": lambda h: h * (total(h) / 7),
    "one less of squares": lambda h: h * (total(h * h) / 7),
    "as many positions": lambda h: h * copies(h, 8).sum(-1).mean(1)[:, None],
    "a ratio of norms": lambda h: h * (0.5 * (root(h) / root(jnp.tanh(h)))),
    "a ratio of roots": lambda h: (
        h * (lax.rsqrt(total(h**4)) / lax.rsqrt(total(h**2)) / 3)
    ),
    "a small power": lambda h: h * (total(h * h) ** 1e-3 / 7.0),
}


@pytest.mark.parametrize("how", NONE)
def test_what_is_no_count_stays(how: str) -> None:
    """The same in the masked net, whose channels and numbers are all of full size."""
    apply = net(NONE[how])
    graph = cj.trace(apply, P, X)
    assert not any("a mean runs" in note for note in graph["a:1"].notes)
    fn, params = small(apply, graph)
    close(fn(params, X), apply(cj.mask(P, graph, KEEP), X), 1e-4)


def test_two_groups_of_one_width_are_told_apart() -> None:
    """The cotangent of a mean over one group was summed over another before."""
    params = {"a": P["a"], "c": normal(3, 8, seed=3), "b": P["b"]}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        gate = jnp.tanh(x @ p["a"]).mean(-1, keepdims=True)
        return (gate * jnp.tanh(x @ p["c"])) @ p["b"]

    graph = cj.trace(apply, params, X)
    keep = {"a:1": np.arange(8) < 3, "c:1": np.arange(8) < 6}
    cut = cj.cut_params(params, graph, keep)
    force = jax.grad(lambda p, x: jnp.sin(apply(p, x)).sum(), 1)
    close(cj.shrink(force, graph, keep)(cut, X), force(cut, X))


def test_sums_over_groups_that_shrink_apart_have_no_common_count() -> None:
    params = {"a": P["a"], "c": normal(3, 8, seed=3), "b": normal(2, 2)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        return jnp.stack([(x @ p["a"]).sum(-1), (x @ p["c"]).sum(-1)], -1) / 8 @ p["b"]

    graph = cj.trace(apply, params, X)
    alike = {name: np.arange(8) < 3 for name in ("a:1", "c:1")}
    fn, cut = cj.cut(apply, params, graph, alike)
    close(fn(cut, X), apply({**cut, "b": cut["b"] * 8 / 3}, X))
    apart = {**alike, "c:1": np.arange(8) < 6}
    with pytest.raises(cj.CutjaxError, match="as many channels of each"):
        cj.shrink(apply, graph, apart)(cj.cut_params(params, graph, apart), X)


def test_a_complex_divisor_without_an_imaginary_part_counts() -> None:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        z = lax.complex(x @ p["a"], jnp.sin(x @ p["a"]))
        return jnp.abs(z - z.mean(-1, keepdims=True)) @ p["b"]

    fn, params = small(apply, cj.trace(apply, P, X))
    close(fn(params, X), apply(params, X))
