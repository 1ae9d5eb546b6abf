"""Sums that a cut and a mask leave different get a note; sums of constants pin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.zeros import NOT_ZERO

Middle = Callable[[jax.Array], jax.Array]
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), "float32")
W = jnp.arange(1.0, 9)
TABLE = jnp.asarray([1.0, 2, 3, 4, 5, 6, 7, 9])


def weighted(f: Middle) -> Middle:
    """The channels times a plain sum of what `f` makes of them."""
    return lambda h: h * f(h).sum(-1, keepdims=True)


def attention(f: Middle) -> Middle:
    def apply(h: jax.Array) -> jax.Array:
        near = jnp.einsum("bqc,bkc->bqk", f(h), f(h)) / 8**0.5
        return jnp.einsum("bqk,bkc->bqc", near, h)

    return apply


def carried(f: Middle) -> Middle:
    """A sum over the state of a loop."""

    def apply(h: jax.Array) -> jax.Array:
        step = lambda state, x: (f(state) + jnp.tanh(x), state.sum(-1))  # noqa: E731
        sums = jax.lax.scan(step, jnp.zeros((2, 8)), h.swapaxes(0, 1))[1]
        return h * sums.T[..., None]

    return apply


def turned(h: jax.Array) -> jax.Array:
    turn = lambda c: (c[0] + 1, jnp.tanh(c[1]))  # noqa: E731
    return jax.lax.while_loop(lambda c: c[0] < 3, turn, (0, h))[1]


ZERO = {
    **{
        f.__name__: weighted(f)
        for f in (jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.elu, jnp.sin, jnp.sqrt)
    },
    "leaky": weighted(lambda h: jax.nn.leaky_relu(h, 0.1)),
    "clip": weighted(lambda h: jnp.clip(h, -1, 2)),
    "power": weighted(lambda h: jnp.abs(h) ** 1.5),
    "square": weighted(jnp.square),
    "where": weighted(lambda h: jnp.where(h > 1, h, 0.0)),
    "gate": weighted(lambda h: jax.nn.sigmoid(h) * h),
    "norm": lambda h: h / (1 + jnp.linalg.norm(h, axis=-1, keepdims=True)),
    "attention": attention(lambda h: h),
    "relu attention": attention(jax.nn.relu),
    "loop": carried(jnp.tanh),
    "while": lambda h: h * turned(h).sum(-1, keepdims=True),
    "branches": weighted(lambda h: jax.lax.cond(True, jnp.tanh, jnp.sin, h)),
    "window": lambda h: h * np.hanning(8).astype("float32"),
    "ones": lambda h: h * (jnp.ones(8) / 8.5),
    "custom rule": weighted(lambda h: jax.nn.relu6(h)),
}
NOT = {
    "sigmoid": weighted(jax.nn.sigmoid),
    "exp": weighted(jnp.exp),
    "shifted": weighted(lambda h: h + 1),
    "shifted by position": weighted(lambda h: h + jnp.arange(1.0, 6)[:, None]),
    "raised": weighted(lambda h: jnp.maximum(h, 0.5)),
    "counted": weighted(lambda h: (h >= 0).astype(jnp.float32)),
    "chosen": weighted(lambda h: jnp.where(h > 1, h, 1.0)),
    "elu + 1 attention": attention(lambda h: jax.nn.elu(h) + 1),
    "loop with a start": carried(lambda state: state * 0.5 + 1),
    "branches": weighted(lambda h: jax.lax.cond(False, jnp.tanh, jnp.cos, h)),
}
TOLD_APART = {
    "positions": lambda h: h * ((h * W).sum(-1) / W.sum())[..., None],
    "window": lambda h: (lambda w: h * w / w.sum())(jnp.hanning(8)),
    "array": lambda h: h * TABLE / TABLE.sum(),
}
MEAN = {
    "mean": lambda h: h - h.mean(-1, keepdims=True),
    "standard deviation": lambda h: h / h.std(-1, keepdims=True),
    "inner product": lambda h: h * (jnp.einsum("bnc,bnc->bn", h, h) / 8)[..., None],
    "vmapped": lambda h: h * jax.vmap(jax.vmap(lambda v: v @ v / v.size))(h)[..., None],
    "ones": lambda h: h * ((h**2) @ jnp.ones((8, 1)) / 8),
}


def model(middle: Middle) -> Any:
    return lambda p, x: middle(x @ p["a"]) @ p["b"]


def params(width: int = 8) -> Any:
    rng = np.random.default_rng(1)
    shapes = {"a": (6, width), "b": (width, 2)}
    return {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in shapes.items()}


def cut_and_masked(middle: Middle) -> tuple[cj.Group, Any, Any]:
    graph = cj.trace(model(middle), params(), X)
    group = graph["a:1"]
    keep = {"a:1": np.arange(8) % 3 != 1}
    small_apply, small = cj.cut(model(middle), params(), graph, keep)
    masked = cj.mask(params(), graph, keep)
    return group, jax.jit(small_apply)(small, X), model(middle)(masked, X)


@pytest.mark.parametrize("name", ZERO)
def test_what_is_zero_at_zero_needs_no_note(name: str) -> None:
    group, cut, masked = cut_and_masked(ZERO[name])
    assert group.pinned is None and not group.notes
    np.testing.assert_allclose(cut, masked, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("name", NOT)
def test_what_is_not_zero_at_zero_gets_a_note(name: str) -> None:
    group, cut, masked = cut_and_masked(NOT[name])
    assert group.pinned is None
    assert any(n.startswith(NOT_ZERO) and "test_zeros.py" in n for n in group.notes)
    assert not np.allclose(cut, masked, rtol=1e-2), "a note without a reason"


@pytest.mark.parametrize("name", TOLD_APART)
def test_sums_of_constants_told_apart_pin(name: str) -> None:
    group = cj.trace(model(TOLD_APART[name]), params(), X)["a:1"]
    assert group.pinned is not None and "constants that differ" in group.pinned
    assert "test_zeros.py" in group.pinned


@pytest.mark.parametrize("name", MEAN)
def test_any_spelling_of_a_mean_counts_what_is_kept(name: str) -> None:
    group, cut, _ = cut_and_masked(MEAN[name])
    assert any("a mean runs over" in note for note in group.notes)
    kept = np.arange(8) % 3 != 1
    small = {"a": params()["a"][:, kept], "b": params()["b"][kept]}
    five = {
        "ones": lambda h: h * ((h**2) @ jnp.ones((5, 1)) / 5),
        "inner product": lambda h: h * (jnp.einsum("bnc,bnc->bn", h, h) / 5)[..., None],
    }
    narrow = model(five.get(name, MEAN[name]))
    np.testing.assert_allclose(cut, narrow(small, X), rtol=2e-4, atol=1e-4)


def test_a_product_divided_by_its_positions_is_no_mean() -> None:
    """8 positions, 8 channels: a matrix product over 8 is divided by the positions."""
    x = jnp.concatenate([X, X[:, :3]], 1)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        h = x @ p["a"]
        return (h @ h.swapaxes(1, 2) / h.shape[1]) @ h @ p["b"]

    graph = cj.trace(apply, params(), x)
    assert not graph["a:1"].notes
    keep = {"a:1": np.arange(8) < 5}
    small_apply, small = cj.cut(apply, params(), graph, keep)
    masked = apply(cj.mask(params(), graph, keep), x)
    np.testing.assert_allclose(small_apply(small, x), masked, rtol=2e-4, atol=1e-4)


def test_what_no_equation_uses_stays() -> None:
    """Whole parameters, and the rows of a table beyond those that are read."""
    shapes = {"table": (9, 6), "a": (6, 8), "b": (8, 2), "spare": (3, 3)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}

    def apply(p: Any, x: jax.Array, rows: Any) -> jax.Array:
        return (x + p["table"][rows]) @ p["a"] @ p["b"]

    for rows in (slice(5), np.arange(5)):
        graph = cj.trace(lambda p, x, r=rows: apply(p, x, r), params, X)
        assert [group.name for group in graph.free] == ["a:1"]
        for name in ("spare:0", "spare:1", "table:0.1"):
            assert str(graph[name].pinned).startswith("not used here"), name

    def both(p: Any, x: jax.Array) -> Any:
        """A new state comes with the answer: what it uses can be cut along."""
        return apply(p, x, slice(5)), {"head": {"spare": p["spare"] * 2}}

    tree = {**params, "head": {"spare": params["spare"]}}
    graph = cj.trace(lambda p, x: both({**p, "spare": p["head"]["spare"]}, x), tree, X)
    assert {g.name for g in graph.free} == {"a:1", "head/spare:0", "head/spare:1"}
