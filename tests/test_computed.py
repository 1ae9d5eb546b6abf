"""Kernels that are computed from parameters are refitted, or it is said that not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compensate import normal, quick as quick

import cutjax as cj
from cutjax.recover import computed

QUIET: Any = {"progress": False}
SIZES = {"a": (5, 10), "w": (10, 7), "q": (7,), "c": (7, 3)}
SIZES |= {"u": (10, 2), "v": (2, 7), "s": (7,), "m": (10, 7)}
MASK = np.tril(np.ones((10, 7), np.float32))

Kernel = Callable[[Any], Any]


def net(kernel: Kernel, p: Any, x: Any) -> Any:
    """Two layers under one of a kernel that is made by a function."""
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ kernel(p) + p["q"]) @ p["c"]


def parameters() -> dict[str, Any]:
    p = {name: normal(i, *size) / 2 for i, (name, size) in enumerate(SIZES.items())}
    return p | {"s": 1 + p["s"] ** 2}


def rounded(w: Any) -> Any:
    step = jnp.abs(w).max() / 31
    return w + jax.lax.stop_gradient(jnp.round(w / step) * step - w)


UNDONE: dict[str, Kernel] = {
    "times": lambda p: p["w"] * 0.7,
    "negative": lambda p: -p["w"],
    "over": lambda p: p["w"] / p["s"],
    "from": lambda p: 1 - p["w"],
    "moved": lambda p: ((p["w"] * p["s"]).T * 2).T,
    "reshaped": lambda p: (2 * (p["w"] * 3).reshape(10, 1, 7)).squeeze(1),
    "low rank": lambda p: p["w"] + 0.5 * p["u"] @ p["v"],
    "before": lambda p: p["u"] @ p["v"] - p["w"],
    "frozen": lambda p: jax.lax.stop_gradient(p["w"]) + p["u"] @ p["v"],
}


def fitted(apply: Any, p: Any) -> tuple[Any, list[Any], list[str]]:
    """The outputs after compensation, the fits, and what was warned of."""
    x = np.tanh(normal(20, 90, 5))
    graph = cj.trace(apply, p, x)
    name = {group.size: group.name for group in graph.free}
    keep = {name[n]: np.arange(n) % 3 > 0 for n in (10, 7) if n in name}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got, fits = cj.compensate(apply, p, graph, keep, [x[:45], x[45:]], **QUIET)
    small, _ = cj.cut(apply, p, graph, keep)
    texts = [str(one.message) for one in said if one.category is UserWarning]
    return np.asarray(small(got, x)), fits, texts


def check_undone(name: str) -> None:
    """It makes what a network makes whose parameter is that kernel."""
    p, kernel = parameters(), UNDONE[name]
    got, fits, said = fitted(partial(net, kernel), p)
    plain = partial(net, lambda p: p["w"])
    want, *_ = fitted(plain, p | {"w": np.asarray(kernel(p))})
    assert [fit.path for fit in fits] == ["a", "w", "c"] and not said
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("name", UNDONE)
def test_a_kernel_that_is_scaled_or_shifted_is_refitted(name):
    check_undone(name)


@pytest.mark.parametrize("name", ["times", "over", "low rank"])
def test_saboteur_that_takes_a_kernel_for_its_parameter_is_found_out(name, monkeypatch):
    monkeypatch.setattr(computed.Affine, "undone", lambda self, kernel: kernel)
    with pytest.raises(AssertionError):
        check_undone(name)


def test_what_is_rounded_straight_through_is_refitted():
    p = parameters()
    got, fits, said = fitted(partial(net, lambda p: rounded(p["w"])), p)
    want, *_ = fitted(partial(net, lambda p: p["w"]), p)
    assert [fit.path for fit in fits] == ["a", "w", "c"] and not said
    assert np.abs(got - want).mean() < 0.1 * np.abs(want).mean()


def twice(kernel: Kernel, p: Any, x: Any) -> Any:
    """The same kernel read twice."""
    one, two = (jnp.tanh(jnp.tanh(y @ p["a"]) @ kernel(p)) for y in (x, x[:, ::-1]))
    return (one * two) @ p["c"]


def again(kernel: Kernel, p: Any, x: Any) -> Any:
    """A recurrence, whose kernel is made outside or inside of the loop."""
    w = kernel(p)

    def step(h: Any, x: Any) -> tuple[Any, None]:
        return jnp.tanh(x @ p["a"] + h @ w), None

    steps = jnp.stack([x, x[:, ::-1], -x])
    return jax.lax.scan(step, jnp.zeros((len(x), 10)), steps)[0] @ p["m"]


@pytest.mark.parametrize("uses", [twice, again])
def test_a_computed_kernel_is_fitted_to_all_its_uses(uses):
    p = parameters()
    if uses is again:
        p["w"] = normal(30, 10, 10) / 3
    got, fits, said = fitted(partial(uses, lambda p: p["w"] * 0.7), p)
    want, others, _ = fitted(partial(uses, lambda p: p["w"]), p | {"w": p["w"] * 0.7})
    assert [fit.path for fit in fits] == [fit.path for fit in others]
    assert "w" in {fit.path for fit in fits} and not said
    np.testing.assert_allclose(got, want, atol=1e-4)


def normed(p: Any) -> Any:
    return p["w"] / jnp.sqrt((p["w"] ** 2).sum(0)) * p["s"]


KEPT: dict[str, tuple[Kernel, tuple[str, ...]]] = {
    "normed": (normed, ("w", "s")),
    "standard": (lambda p: p["w"] - p["w"].mean(0), ("w",)),
    "product": (lambda p: p["w"] * p["m"], ("w", "m")),
    "masked": (lambda p: p["w"] * MASK, ("w",)),
    "squared": (lambda p: p["w"] * p["w"], ("w",)),
    "itself": (lambda p: p["w"] + 0.1 * p["w"], ("w",)),
    "low rank alone": (lambda p: p["u"] @ p["v"], ("u", "v")),
    "shared": (lambda p: p["w"] * p["s"] + 0 * p["w"].sum(), ("w", "s")),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_kernel_that_stays_as_cut_is_named_once(name):
    kernel, names = KEPT[name]
    _, fits, said = fitted(partial(net, kernel), parameters())
    assert "w" not in [fit.path for fit in fits]
    (text,) = [t for t in said if "not undone" in t]
    assert all(f"'{n}'" in text for n in names) and "'a'" not in text


def test_nothing_is_said_of_constants_and_of_what_is_whole():
    constant = normal(40, 10, 7)
    _, _, said = fitted(partial(net, lambda p: constant), parameters())
    assert not said

    def wide(p: Any, x: Any) -> Any:
        return jnp.tanh(jnp.tanh(x @ normed({"w": p["a"], "s": p["m"][:, 0]})) @ p["w"])

    _, fits, said = fitted(lambda p, x: wide(p, x) @ p["c"], parameters())
    assert "w" in [fit.path for fit in fits] and not said


def members(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["a"])
    return jax.vmap(lambda w, c: jnp.tanh(h @ w) @ c)(p["w"], p["c"]).mean(0)


@pytest.mark.parametrize(("group", "times"), [("w:0", 1), ("w:2", 0), ("a:1", 0)])
def test_members_of_an_ensemble_that_go_are_spoken_of(group, times):
    sizes = {"a": (5, 10), "w": (4, 10, 7), "c": (4, 7, 3)}
    p = {name: normal(i, *size) / 2 for i, (name, size) in enumerate(sizes.items())}
    x = np.tanh(normal(20, 90, 5))
    graph = cj.trace(members, p, x)
    (size,) = [g.size for g in graph.free if g.name == group]
    keep = {group: np.arange(size) > 1}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cj.compensate(members, p, graph, keep, [x], **QUIET)
    assert sum(f"members of '{group}'" in str(one.message) for one in said) == times
