"""Of a single batch some examples are held out to choose the damping by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compensate import normal, off, quick as quick

import cutjax as cj
from cutjax.recover import normal as least
from cutjax.recover.aside import held_of
from cutjax.recover.refit import Found

QUIET: Any = {"progress": False}


def positions(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]).mean(1) @ p["c"]


def merged_axes(p: Any, x: Any) -> Any:
    h = jnp.tanh(jnp.tanh(x.reshape(-1, 3) @ p["a"]) @ p["b"])
    return h.reshape(len(x), -1, 4).mean(1) @ p["c"]


def positions_first(p: Any, x: Any) -> Any:
    h = jnp.tanh(jnp.tanh(x.swapaxes(0, 1) @ p["a"]) @ p["b"])
    return h.mean(0) @ p["c"]


def joined(p: Any, x: Any) -> Any:
    h = jnp.tanh(jnp.tanh(jnp.concatenate([x, -x]) @ p["a"]) @ p["b"])
    return (h[: len(x)] * h[len(x) :]).mean(1) @ p["c"]


def window(p: Any, x: Any) -> Any:
    how = ((1,), "SAME", None, None, ("NWC", "WIO", "NWC"))
    h = jax.lax.conv_general_dilated(jnp.tanh(x @ p["a"]), p["w"], *how)
    return jnp.tanh(h).mean(1) @ p["c"]


def recurrent(p: Any, x: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"] + h @ p["r"]), None

    first = jnp.zeros((len(x), 4))
    return jax.lax.scan(step, first, x.swapaxes(0, 1))[0] @ p["c"]


def wide(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x.reshape(len(x), 6) @ p["d"]) @ p["e"]) @ p["c"]


WIDE = {"most_features": 10}
CASES = [
    (positions, {}),
    (wide, WIDE),
    (merged_axes, {}),
    (positions_first, {}),
    (joined, {}),
    (window, {}),
    (window, WIDE),
    (recurrent, {}),
]


def fitted(apply: Callable, batches: list[Any], **options: Any) -> Any:
    p = {"a": normal(1, 3, 8), "b": normal(2, 8, 4), "c": normal(3, 4, 2)}
    p |= {"r": normal(4, 4, 4, scale=0.3), "w": normal(5, 3, 8, 4)}
    p |= {"d": normal(6, 6, 16), "e": normal(7, 16, 4)}
    graph = cj.trace(apply, p, batches[0])
    keep = {g.name: off(g.size, 1, g.size - 1) for g in graph.free}
    return cj.compensate(apply, p, graph, keep, batches, **options, **QUIET)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_batch_is_judged_by_whole_examples_as_batches_are_by_others(case):
    apply, options = case
    x, held = normal(6, 8, 2, 3), held_of(8)
    # The last of four batches is the one held out: the same examples, so divided.
    batches = [*np.split(x[~held], 3), x[held]]
    one, fits = fitted(apply, [x], **options)
    several, want = fitted(apply, batches, **options)
    # Where nothing was lost before, any damping is as good as another.
    lost = [i for i, fit in enumerate(fits) if fit.before > 1e-6]
    dampings = [fits[i].damping for i in lost]
    assert dampings == [want[i].damping for i in lost]
    assert [f.rows for f in fits] == [f.rows for f in want]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert dampings != [1e-3] * len(lost)


@pytest.mark.parametrize("n", range(1, 40))
def test_a_quarter_of_the_examples_is_held_out_and_never_all(n):
    held = held_of(n)
    assert held.sum() == (n > 1 if n < 4 else n // 4)
    assert (held[: n - n % 4].reshape(-1, 4).sum(1) == 1).all()


def test_rows_at_equal_steps_are_not_all_of_one_side():
    for step in (4, 8, 12):
        held = [held_of(512)[at::step].mean() for at in range(step)]
        assert 0.05 < min(held) and max(held) < 0.5


def test_moments_of_some_rows_are_those_of_them_alone():
    moments = jax.jit(least.moments)
    b, y, of = normal(1, 2, 20, 3), normal(2, 2, 20, 4), np.arange(20) % 3 == 1
    some, alone = moments(b, y, of), moments(b[:, of], y[:, of])
    for a, c in zip(some, alone, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-5)
    none = moments(b, y, 0 * of > 0)
    assert Found(alone, none).on_host().aside is None
    for a, c in zip(Found(none, alone).on_host().fitting, alone, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_where_no_axis_holds_examples_the_damping_is_a_middling_one():
    _, fits = fitted(lambda p, x: positions(p, x[None, None]), [normal(6, 3)])
    assert {f.damping for f in fits} == {1e-3}
