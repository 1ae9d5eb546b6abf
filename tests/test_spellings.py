"""The same function, written in several ways, is refitted to the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from nets.turns import by_turns
from test_compensate import normal, quick as quick

import cutjax as cj
from cutjax.recover import apart, contracted, follow, program, stops

QUIET: Any = {"progress": False}
SIZES = {"e": (6, 10), "o": (10,), "a": (10, 12), "p": (12,), "b": (12, 9), "q": (9,)}
SIZES |= {"c": (9, 12), "r": (12,), "d": (12, 3), "s": (3,)}


def net(dense: Callable[[Any, Any, Any], Any], p: Any, x: Any) -> Any:
    """Layers with biases, and a block whose last one makes up for its skip."""
    h = dense(p["a"], p["p"], jnp.tanh(dense(p["e"], p["o"], x)))
    h = h + dense(p["c"], p["r"], jnp.tanh(dense(p["b"], p["q"], h)))
    return dense(p["d"], p["s"], h)


def plainly(w: Any, b: Any, x: Any) -> Any:
    return x @ w + b


def each(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: jax.vmap(partial(fn, p))(x)


def as_equinox(w: Any, b: Any, x: Any) -> Any:
    return w @ x + b


def as_haiku(w: Any, b: Any, x: Any) -> Any:
    y = x @ w
    return y + jnp.broadcast_to(b, y.shape)


def as_convolution(w: Any, b: Any, x: Any) -> Any:
    """One of equinox, over an axis of length one."""
    y = jax.lax.conv_general_dilated(x[None, :, None], w[..., None], (1,), "VALID")
    return (y[0] + b[:, None])[:, 0]


def as_sums(w: Any, b: Any, x: Any) -> Any:
    return (x[..., None] * w).sum(-2) + b


SPELLINGS = {
    "vmap": (each(partial(net, plainly)), False),
    "equinox": (each(partial(net, as_equinox)), True),
    "haiku": (partial(net, as_haiku), False),
    "sums": (partial(net, as_sums), False),
    "a sum each": (each(partial(net, as_sums)), False),
    "convolution": (each(partial(net, as_convolution)), True),
}


def transposed(p: Any) -> Any:
    return {name: leaf.T for name, leaf in p.items()}


def outputs(apply: Any, p: Any, x: Any) -> Any:
    graph = cj.trace(apply, p, x)
    name = {group.size: group.name for group in graph.free}
    keep = {name[n]: np.arange(n) % 3 > 0 for n in (9, 10, 12)}
    got, _ = cj.compensate(apply, p, graph, keep, [x[:60], x[60:]], **QUIET)
    small, _ = cj.cut(apply, p, graph, keep)
    return small(got, x)


def check_spelling(name: str) -> None:
    p = {n: normal(i, *s) * 0.5 for i, (n, s) in enumerate(SIZES.items())}
    x = np.tanh(normal(9, 120, 6))
    apply, turned = SPELLINGS[name]
    plain = outputs(partial(net, plainly), p, x)
    other = outputs(apply, transposed(p) if turned else p, x)
    np.testing.assert_allclose(other, plain, atol=1e-4)


@pytest.mark.parametrize("name", by_turns(SPELLINGS, 2))
def test_a_function_is_refitted_the_same_however_it_is_written(name):
    check_spelling(name)


@pytest.mark.parametrize("name", ["equinox", "convolution"])
def test_saboteur_that_follows_no_move_is_found_out(name, monkeypatch):
    monkeypatch.setattr(follow, "_moves", lambda eqn: False)
    with pytest.raises(AssertionError):
        check_spelling(name)


def test_saboteur_that_forgets_skips_after_a_move_is_found_out(monkeypatch):
    def blind(prog, index):
        reach = follow.reach_of(prog, index)
        return reach._replace(other=None) if reach.moves else reach

    monkeypatch.setattr(stops, "reach_of", blind)
    with pytest.raises(AssertionError):
        check_spelling("equinox")


def gates(joined: bool, p: Any, x: Any) -> Any:
    """Two layers that read the same, multiplied at once or one after the other."""
    h = jnp.tanh(x @ p["in"])
    if joined:
        y = h @ jnp.concatenate([p["a"], p["b"]], 1)
        y = y + jnp.concatenate([p["p"], p["q"]]).reshape(1, -1)
        one, two = jnp.split(y, [p["a"].shape[1]], 1)
    else:
        one, two = h @ p["a"] + p["p"], h @ p["b"] + p["q"]
    return {"one": one, "two": two}


def check_gates() -> None:
    sizes = {"in": (5, 8), "a": (8, 3), "b": (8, 4), "p": (3,), "q": (4,)}
    p = {name: normal(i, *size) for i, (name, size) in enumerate(sizes.items())}
    x, keep = 0.5 + normal(7, 60, 5), {"in:1": np.arange(8) % 3 > 0}
    both = []
    for joined in (False, True):
        apply = partial(gates, joined)
        graph = cj.trace(apply, p, x)
        both.append(cj.compensate(apply, p, graph, keep, [x], **QUIET)[0])
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *both)


def test_biases_that_are_put_together_are_fitted_each():
    check_gates()


def test_saboteur_that_takes_only_kernels_apart_is_found_out(monkeypatch):
    monkeypatch.setattr(apart, "ADD", None)
    with pytest.raises(AssertionError):
        check_gates()


def test_saboteur_that_contracts_no_sum_is_found_out(monkeypatch):
    monkeypatch.setattr(program, "contracted", lambda jaxpr, number: jaxpr)
    with pytest.raises(AssertionError):
        check_spelling("sums")


SUMS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "vector": (lambda w, x: (x * w[0]).sum(-1), 1),
    "kept": (lambda w, x: (x * w[0]).sum(-1, keepdims=True), 1),
    "heads": (lambda w, x: (x[..., None, :] * w).sum(-1), 1),
    "before": (lambda w, x: (w * x[..., None, :]).sum(-1).T, 1),
    "in between": (lambda w, x: (x[:, None] * w[:, None]).sum(-1), 1),
    "both": (lambda w, x: (x[:, :4] * w).sum((1, 2)), 1),
    "diagonal": (lambda w, x: (x[:, :4] * w).sum(-1), 0),
    "used again": (lambda w, x: (y := x * w[0]).sum(-1) + y[..., 0], 0),
    "data": (lambda w, x: (x * x).sum(-1) + w[0, 0], 0),
}


@pytest.mark.parametrize("name", SUMS)
def test_contracting_sums_changes_no_result(name):
    apply, products = SUMS[name]
    w, x = normal(0, 4, 6), normal(1, 2, 5, 6)
    changed = contracted.contracted(jax.make_jaxpr(apply)(w, x), 1)
    got = jax.extend.core.jaxpr_as_fun(changed)(w, x)
    np.testing.assert_allclose(got[0], apply(w, x), atol=1e-5)
    made = [eqn.primitive.name for eqn in changed.eqns]
    assert made.count("dot_general") == products


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_number_that_shifts_all_channels_stays_as_it_is(shape):
    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + p["s"]

    p = {"a": normal(0, 4, 8), "b": normal(1, 8, 3), "s": normal(2, *shape)}
    x = normal(3, 50, 4)
    graph = cj.trace(apply, p, x)
    got, fits = cj.compensate(apply, p, graph, {"a:1": np.arange(8) < 5}, [x], **QUIET)
    assert fits[-1].after < fits[-1].before
    np.testing.assert_array_equal(got["s"], p["s"])
