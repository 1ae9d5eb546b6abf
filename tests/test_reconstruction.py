"""Scores of what cannot be rebuilt, against elimination by brute force."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj

RNG = np.random.default_rng(0)
P = {"a": RNG.normal(size=(4, 6)), "b": RNG.normal(size=(6, 3))}
P = {name: value.astype(np.float32) for name, value in P.items()}
X = RNG.normal(size=(200, 4)).astype(np.float32)
DATA = [(X, {"output": np.zeros((200, 3), np.float32)})]
LOSS = {"output": lambda out, y: jnp.mean((out - y) ** 2)}


def apply(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["a"]) @ p["b"]


def left_over(keep: list[int], weigh: bool) -> float:
    """Mean squared error of the best rebuilding of all from the kept channels."""
    h = np.tanh(X @ P["a"]).astype(np.float64)
    target = h @ P["b"] if weigh else h
    if not keep:
        return float(np.mean(np.sum(target**2, 1)))
    fit = np.linalg.lstsq(h[:, keep], target, rcond=None)[0]
    return float(np.mean(np.sum((target - h[:, keep] @ fit) ** 2, 1)))


def check_backward(criterion: Any) -> None:
    graph = cj.trace(apply, P, X)
    made = criterion(order="backward", damping=1e-6)
    scores = cj.saliency(apply, P, graph, LOSS, DATA, criterion=made, progress=False)
    found = scores["output"]["a:1"]
    keep, order = list(range(6)), []
    while len(keep) > 1:
        costs = {c: left_over([k for k in keep if k != c], True) for c in keep}
        gone = min(costs, key=costs.__getitem__)
        order.append((gone, costs[gone]))
        keep.remove(gone)
    # Never falling along the order of elimination; the one that is left, the most.
    along = found[[*(c for c, _ in order), *keep]]
    assert (np.diff(along) >= 0).all()
    first, least = order[0]
    np.testing.assert_allclose(found[first], least / 2, rtol=1e-2)


def test_backward_is_elimination_by_the_error_of_what_is_made():
    check_backward(cj.criteria.reconstruction)


def test_forward_takes_what_the_taken_ones_explain_least():
    graph = cj.trace(apply, P, X)
    made = cj.criteria.reconstruction(order="forward")
    scores = cj.saliency(apply, P, graph, LOSS, DATA, criterion=made, progress=False)
    h = np.tanh(X @ P["a"]).astype(np.float64)
    taken: list[int] = []
    while len(taken) < 6:
        fit = h[:, taken] @ np.linalg.lstsq(h[:, taken], h, rcond=None)[0]
        taken.append(
            int(
                np.argmax(
                    np.where(np.isin(range(6), taken), -1, np.sum((h - fit) ** 2, 0))
                )
            )
        )
    assert list(np.argsort(-scores["output"]["a:1"])) == taken


def test_saboteur_that_does_not_look_at_kernels_is_found_out():
    def blind(order: Any, damping: float) -> Any:
        return cj.criteria.reconstruction(order="forward")

    with pytest.raises(AssertionError):
        check_backward(blind)
