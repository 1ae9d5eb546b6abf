"""What of a batch a function is given; several inputs that are not held together."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import DataError
from cutjax.inputs import inputs_of


def apply(p: Any, x: Any, scale: Any = 1.0) -> Any:
    """A function that says nothing if its second input is forgotten."""
    return jax.nn.relu(x @ p["a"]) @ p["b"] * scale


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


P = {"a": normal(0, 3, 6), "b": normal(1, 6, 2)}
X, SCALE = normal(2, 40, 3), 1 + normal(3, 40, 1) ** 2
GRAPH = cj.trace(apply, P, X, SCALE)
KEEP = {"a:1": np.arange(6) < 4}


def compensated(data: Any) -> Any:
    return cj.compensate(apply, P, GRAPH, KEEP, data, progress=False)


def aligned(data: Any) -> Any:
    return cj.merge.align(GRAPH, P, P, apply=apply, batches=data, progress=False)


def merged(data: Any) -> Any:
    nets = dict.fromkeys("ab", cj.merge.Network(apply, P, GRAPH))
    return cj.merge.least_squares(nets, {}, data, progress=False)


@pytest.mark.parametrize("work", [compensated, aligned, merged])
def test_inputs_side_by_side_are_refused(work):
    assert work([((X, SCALE),)] * 2)
    with pytest.raises(DataError, match=r"hold them together, as \(\(a, b\), \.\.\.\)"):
        work([(X, SCALE)] * 2)


@pytest.mark.parametrize(
    "batch",
    [(X, X[:, 0]), (X, {"age": X}), (X, "label"), X, (X,), ((X, SCALE), X)],
    ids=["labels", "targets", "text", "bare", "alone", "held"],
)
def test_what_follows_the_input_is_not_looked_at(batch):
    found = inputs_of(batch, GRAPH.inputs)
    assert found[0] is X and len(found) == (2 if isinstance(batch[0], tuple) else 1)
