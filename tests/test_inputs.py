"""What of a batch a function is given, and which of it is an example's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import DataError
from cutjax.inputs import equal_inputs, inputs_of
from cutjax.recipes.pagcp import task_losses_at
from cutjax.recover import recalibrate, rotate


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


def test_a_key_beside_the_input_is_refused():
    key = jax.random.key(0)
    graph = cj.trace(linear, P, key, X)
    with pytest.raises(DataError, match="hold them together"):
        inputs_of((key, X), graph.inputs)


@pytest.mark.parametrize(
    "batch",
    [(X, X[:, 0]), (X, {"age": X}), (X, "label"), X, (X,), ((X, SCALE), X)],
    ids=["labels", "targets", "text", "bare", "alone", "held"],
)
def test_what_follows_the_input_is_not_looked_at(batch):
    found = inputs_of(batch, GRAPH.inputs)
    assert found[0] is X and len(found) == (2 if isinstance(batch[0], tuple) else 1)


# Batches that are lists, of other sizes, of other shapes ------------------------------


def leaves(tree: Any) -> list[Any]:
    """Arrays of parameters, or of what holds them beside a function."""
    return [leaf for leaf in jax.tree.leaves(tree) if not callable(leaf)]


@pytest.mark.parametrize("work", [compensated, aligned, merged])
def test_a_list_is_what_a_loader_makes_of_a_tuple(work):
    want, got = (work([kind(((X, SCALE), X)) for _ in "ab"]) for kind in (tuple, list))
    jax.tree.map(np.testing.assert_array_equal, leaves(got), leaves(want))


def test_a_list_that_was_traced_is_the_input():
    assert inputs_of([X, SCALE], GRAPH.inputs) == ([X, SCALE],)
    for batch, inputs in (([X], GRAPH.inputs[:1]), ([X, X], ()), ([X] * 3, ("a", "b"))):
        with pytest.raises(DataError, match=r"a list, which may be \[x, \.\.\.\] or"):
            inputs_of(batch, inputs)
    with pytest.raises(DataError, match="a batch is a list"):
        recalibrate(lambda p, x: (x, {}), {}, [[X, X]], progress=False)


@pytest.mark.parametrize("sizes", [(2, 16, 16), (16, 16, 2), (2, 2, 16, 2, 16)])
def test_the_size_that_most_examples_come_in_is_taken(sizes):
    parts = [(X[i : i + n], SCALE[i : i + n]) for i, n in enumerate(sizes)]
    found = equal_inputs([(x,) for x in parts], GRAPH.inputs, empty="no data")
    assert [len(x) for x, _ in found] == [16, 16]
    want = compensated([(x,) for x in parts if len(x[0]) == 16])
    got = compensated([(x,) for x in parts])
    jax.tree.map(np.testing.assert_array_equal, got[0], want[0])


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (
            (X, SCALE[:, :0]),
            r"input 1 is float32\[40,0\] in batch 2, but float32\[40,1\]",
        ),
        ((X.astype(np.int32), SCALE), r"input 0 is int32\[40,3\] in batch 2"),
        ((X, SCALE, X), "batch 2 has other inputs than batch 1"),
    ],
)
def test_batches_of_other_shapes_are_refused(other, match):
    data = [((X[:3], SCALE[:3]),), ((X, SCALE),), (other,)]
    with pytest.raises(DataError, match=match):
        compensated(data)


def test_batches_of_no_examples_are_refused():
    with pytest.raises(DataError, match="is empty: batches of no examples"):
        compensated([((X[:0], SCALE[:0]),)])


# Inputs without examples ------------------------------------------------------------


def noisy(p: Any, key: Any, x: Any, t: Any) -> Any:
    """Noise that is the same for every example, and a time."""
    return jnp.tanh(x @ p["a"] + t + jax.random.normal(key, (6,))) @ p["b"]


def scored(apply: Any, batches: Any, criterion: Any = cj.taylor, **options: Any) -> Any:
    """Scores of a function whose answers should be zero."""
    graph = cj.trace(apply, P, *batches[0])
    losses = {"output": lambda out, y: ((out - y) ** 2).mean()}
    zeros = {"output": np.zeros((40, 2), np.float32)}
    data = [(x, {"output": zeros["output"][: len(x[1])]}) for x in batches]
    options |= {"criterion": criterion, "progress": False}
    return cj.saliency(apply, P, graph, losses, data, **options)["output"]["a:1"]


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, 1e-4, 1e-6)


@pytest.mark.parametrize("criterion", [cj.taylor, cj.joint])
@pytest.mark.parametrize("size", [None, 12])
def test_keys_and_numbers_are_each_examples(criterion, size):
    key, t = jax.random.key(0), jnp.float32(0.3)
    parts = [X[:16], X[16:32], X[32:]]
    held = [(key, x, t) for x in parts]
    want = scored(lambda p, _k, x, _t: noisy(p, key, x, t), held, criterion)
    got = scored(noisy, held, criterion, batch_size=size)
    close(got, want)


def test_a_batch_brings_its_own_number():
    key = jax.random.key(0)
    each = [(key, x, t) for x, t in ((X[:20], 0.3), (X[20:], 2.0))]
    close(scored(noisy, each), np.mean([scored(noisy, [b]) for b in each], 0))
    with pytest.raises(DataError, match=r"0\.3, which is each example's, is another"):
        scored(noisy, each, batch_size=16)


@pytest.mark.parametrize("size", [None, 12])
def test_keys_that_are_split_go_with_their_examples(size):
    def apply(p: Any, keys: Any, x: Any) -> Any:
        noise = jax.vmap(lambda key: jax.random.normal(key, (6,)))(keys)
        return jnp.tanh(x @ p["a"] + noise) @ p["b"]

    keys = jax.random.split(jax.random.key(0), 40)
    want = scored(apply, [(keys, X)])
    got = scored(apply, [(keys[i : i + 16], X[i : i + 16]) for i in (0, 16, 32)])
    close(got, want)
    close(scored(apply, [(keys, X)], batch_size=size), want)


def test_losses_of_keeps_take_keys_and_numbers():
    x = (jax.random.key(0), X, 0.3)
    losses = {"output": lambda out, y: ((out - y) ** 2).mean()}
    graph = cj.trace(noisy, P, *x)
    data = [(x, {"output": 0.0})]
    at = task_losses_at(noisy, P, graph, losses, data)
    close(at({})["output"], jnp.mean(noisy(P, *x) ** 2))


def edges(p: Any, x: Any, ends: Any) -> Any:
    return jax.ops.segment_sum(jax.nn.relu(x @ p["a"])[ends], ends, 40) @ p["b"]


def mixed(p: Any, x: Any, matrix: Any) -> Any:
    return matrix @ (jax.nn.relu(matrix @ x @ p["a"]) @ p["b"])


@pytest.mark.parametrize(
    ("apply", "batch", "match"),
    [
        (edges, (X, np.arange(30)), r"inputs/0 has 40, inputs/1 has 30; .*vmap\(net"),
        (edges, (X[:30], np.arange(40)), "inputs/0 has 30, inputs/1 has 40"),
        (apply, (X, jax.random.PRNGKey(0)[:1]), "has 1; .* split keys per example"),
        (mixed, (X, np.eye(40, dtype=np.float32)), "takes the batch, but no example"),
        (lambda p, x, t: x @ p["a"] @ p["b"], (X[0, 0], 1.0), "no leaf has an axis"),
    ],
)
def test_what_has_no_examples_in_front_is_refused(apply, batch, match):
    graph = cj.trace(apply, P, *(batch if np.ndim(batch[0]) else (X, 1.0)))
    losses = {"output": lambda out, y: ((out - y) ** 2).mean()}
    data = [(batch, {"output": 0.0})]
    with pytest.raises(DataError, match=match):
        cj.saliency(apply, P, graph, losses, data, progress=False)


def test_targets_of_another_length_are_refused():
    losses = {"output": lambda out, y: ((out - y) ** 2).mean()}
    data = [((X, SCALE), {"output": np.zeros((80, 2))})]
    with pytest.raises(DataError, match="inputs/0 has 40, targets/output has 80"):
        cj.saliency(apply, P, GRAPH, losses, data, progress=False)


def linear(p: Any, key: Any, x: Any) -> Any:
    return x @ p["a"] @ p["b"] + jax.random.normal(key, (2,))


def graph_net(p: Any, matrix: Any, x: Any) -> Any:
    return matrix @ (matrix @ x @ p["a"]) @ p["b"]


@pytest.mark.parametrize(
    ("apply", "first"),
    [(linear, jax.random.key(0)), (graph_net, np.eye(40, dtype=np.float32))],
)
def test_rotate_takes_what_has_no_examples(apply, first):
    graph = cj.trace(apply, P, first, X)
    found = rotate(apply, P, graph, [((first, X),)] * 2, progress=False)
    assert list(found.energy) == ["a:1"]
    np.testing.assert_allclose(found.energy["a:1"][2:], 1, 1e-5)
