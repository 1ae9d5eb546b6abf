"""Scores that say little are given with a warning, others without one."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import DataError


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


P = {"a": normal(0, 5, 8), "b": normal(1, 8, 12), "c": normal(2, 12, 3)}
X = normal(3, 16, 5)


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def positions(p: Any, x: Any) -> Any:
    return net(p, jnp.stack([x, 2 * x, -x], 1)).mean(1)


def square(out: Any, y: Any) -> Any:
    return jnp.mean((out - y) ** 2)


def said(apply: Any, criterion: Any, n: int, y: Any = 0.0, loss: Any = square) -> str:
    """All warnings of one call, of `n` examples in two batches."""
    graph = cj.trace(apply, P, X[:2])
    y = jnp.broadcast_to(y, (n, 3))
    halves = zip(*(np.split(v, 2) for v in (X[:n], y)), strict=True)
    data = [(x, {"output": z}) for x, z in halves]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        scored = cj.saliency(
            apply, P, graph, {"output": loss}, data, criterion=criterion, progress=False
        )
    assert scored
    assert len(found) <= 1
    return "".join(str(w.message) for w in found)


@pytest.mark.parametrize(
    "case",
    [
        (net, 6, "group 'b:1' has 12 channels but 6 rows of data (and 1 more groups"),
        (net, 10, "group 'b:1' has 12 channels but 10 rows of data; "),
        (net, 12, ""),
        (positions, 4, ""),
        (positions, 2, "group 'b:1' has 12 channels but 6 rows"),
    ],
)
@pytest.mark.parametrize("criterion", ["joint", "reconstruction"])
def test_moments_of_fewer_rows_than_channels(case, criterion):
    apply, n, want = case
    text = said(apply, criterion, n)
    assert want in text and bool(want) == bool(text)
    assert not want or f"; {criterion} cannot tell" in text


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "l1", "wanda"])
def test_other_criteria_may_do_with_few_rows(criterion):
    assert said(net, criterion, 2) == ""


def own(out: Any, y: Any) -> Any:
    """A loss to the network's own answers."""
    return square(out, jax.lax.stop_gradient(out))


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_a_loss_without_a_gradient(criterion):
    text = said(net, criterion, 16, loss=own)
    assert f"all scores of {criterion!r} are 0" in text and "task 'output'" in text


def test_a_loss_without_a_curvature():
    text = said(net, "joint", 16, loss=lambda out, y: 0.0 * jnp.sum(out))
    assert "no curvature on this data: all scores of 'joint' are 0" in text
    assert said(net, "joint", 16, loss=own) == ""


def test_a_warning_is_at_the_line_of_the_caller():
    graph, data = cj.trace(net, P, X), [(X[:4], jnp.zeros((4, 3)))]
    with pytest.warns(UserWarning, match="rows of data") as found:
        here = sys._getframe().f_lineno + 1
        cj.saliency(net, P, graph, {"output": square}, data, progress=False)
    assert [(w.filename, w.lineno) for w in found] == [(__file__, here)]


@pytest.mark.parametrize("criterion", ["random", "l1", "wanda", "reconstruction"])
def test_what_needs_no_gradient_is_not_doubted(criterion):
    assert said(net, criterion, 16, loss=own) == ""


def masked(out: Any, y: Any) -> Any:
    known = y > 0
    return jnp.sum(known * (out - y) ** 2) / known.sum()


def missing(out: Any, y: Any) -> Any:
    return jnp.nanmean((out - jnp.where(y > 0, y, jnp.nan)) ** 2)


@pytest.mark.parametrize("loss", [masked, missing])
def test_a_mean_over_labelled_ones_is_told_how_to_divide(loss):
    y = np.ones((16, 3)) * (np.arange(16) % 4 == 0)[:, None]
    assert all(np.isfinite(loss(net(P, X)[i : i + 8], y[i : i + 8])) for i in (0, 8))
    with pytest.raises(DataError, match=r"divide by jnp.maximum\(m.sum\(\), 1\)"):
        said(net, "taylor", 16, y, loss)
