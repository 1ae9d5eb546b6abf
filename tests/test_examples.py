"""Functions of several inputs, or of a pytree: trained, taught and measured alike."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj
from cutjax import merge
from cutjax.data import Split, batches, take
from cutjax.data.examples import count, padded
from cutjax.errors import DataError
from cutjax.fit import fit
from cutjax.merge import Network
from cutjax.metrics import accuracy
from cutjax.recover import frozen

N = 48


def params_of(seed: int, inputs: int = 5) -> dict[str, Any]:
    """Of a net over an embedded word and some numbers."""
    keys = jax.random.split(jax.random.key(seed), 5)
    shapes = {"words": (7, 4), "in": (4 + inputs, 12), "mid": (12, 8), "out": (8, 3)}
    shapes["size"] = (8, 1)
    return {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def net(w: Any, word: Any, numbers: Any) -> dict[str, Any]:
    read = jnp.concatenate([w["words"][word], numbers], -1)
    h = jax.nn.relu(jax.nn.relu(read @ w["in"]) @ w["mid"])
    return {"kind": h @ w["out"], "size": h @ w["size"]}


def data_of(seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    word, numbers = rng.integers(7, size=N), rng.normal(size=(N, 5)).astype(np.float32)
    labels = {"kind": rng.integers(3, size=N), "size": numbers[:, 0]}
    return word, numbers, labels


WORD, NUMBERS, LABELS = data_of()
JOINED = np.concatenate([WORD[:, None].astype(np.float32), NUMBERS], 1)


def apart(w: Any, x: Any) -> dict[str, Any]:
    return net(w, x[:, 0].astype(jnp.int32), x[:, 1:])


FORMS: dict[str, tuple[Any, Any]] = {
    "tuple": (net, (WORD, NUMBERS)),
    "dict": (lambda w, x: net(w, **x), {"word": WORD, "numbers": NUMBERS}),
}


@pytest.fixture(params=FORMS)
def form(request) -> tuple[Any, Any]:
    return FORMS[request.param]


def distilled(apply: Any, x: Any, **options: Any) -> tuple[Any, Any, Any]:
    """Parent to trained child, and what is measured of it."""
    w, split = params_of(0), Split(x, LABELS)
    given = next(batches(split, N))
    inputs = given[0] if isinstance(x, tuple) else (given[0],)
    graph = cj.trace(apply, w, *inputs)
    keep = {"in:1": np.arange(12) % 3 > 0}
    small, child = cj.cut(apply, w, graph, keep)
    child, _ = cj.compensate(
        apply, w, graph, keep, list(batches(split, 12)), progress=False
    )
    if options.pop("asked", False):
        options["parent"], taught = (apply, w), split
    else:
        taught = cj.teach(apply, w, split, tasks=("kind", "size"), batch_size=20)
    child, info = cj.finetune(
        frozen(small, state=()), child, taught, tasks=("kind", "size"), epochs=2,
        batch_size=16, progress=False,
        evaluate=lambda p: accuracy(small, p, split, batch_size=20), **options,
    )  # fmt: skip
    losses = [record["loss"] for record in info.history[1:]]
    return child, losses, accuracy(small, child, split, batch_size=20)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"asked": True, "scan": 2, "ema": 0.9},
    {"balance": "gradnorm", "labels": 0.5},
    {"dtype": jnp.bfloat16},
]


@functools.cache
def joined(number: int) -> Any:
    """The same with all inputs in one array."""
    return distilled(apart, JOINED, **OPTIONS[number])


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_as_of_one_array_that_is_taken_apart(form, number):
    got, want = distilled(*form, **OPTIONS[number]), joined(number)
    rounded = "dtype" in OPTIONS[number]
    close = {"rtol": 3e-2} if rounded else {"rtol": 1e-4, "atol": 1e-5}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **close)


def test_networks_of_inputs_of_their_own_are_trained_as_one():
    """Two with other inputs share a trunk; each teaches its own half of the answers."""

    def alone(w: Any, x: Any) -> Any:
        return jax.nn.relu(jax.nn.relu(x @ w["in"]) @ w["mid"]) @ w["out"]

    rng, x, nets = np.random.default_rng(0), {}, {}
    for name, inputs in (("light", 2), ("sound", 6)):
        w = params_of(inputs, inputs)
        x[name] = rng.normal(size=(N, inputs + 4)).astype(np.float32)
        nets[name] = Network(alone, w, cj.trace(alone, w, x[name]))
    both = merge.tied(nets, {}, {n: [v] for n, v in x.items()}, progress=False)
    tasks = tuple(both.apply(both.params, x))
    wanted = {}
    for name, own in nets.items():
        said = own.apply(own.params, x[name])
        wanted[f"teacher:{name}"] = np.asarray(said)

    def wrong(p: Any) -> float:
        out = both.apply(p, x)
        gaps = [out[t] - wanted[f"teacher:{t}"] for t in tasks]
        return sum(float((gap**2).mean()) for gap in gaps)

    kinds = dict.fromkeys(tasks, "numbers")
    trained, _ = cj.finetune(
        frozen(both.apply, state=()), both.params, Split(x, wanted), tasks=tasks,
        epochs=30, batch_size=16, kinds=kinds, learning_rate=1e-2, progress=False,
    )  # fmt: skip
    assert wrong(trained) < 0.5 * wrong(both.params)


def test_augmentation_and_resuming_know_all_inputs(tmp_path):
    def moved(key: Any, x: Any) -> Any:
        return x[0], x[1] + jax.random.normal(key, x[1].shape)

    def run(folder: Any, epochs: int) -> Any:
        return fit(
            frozen(net, state=()), params_of(0),
            lambda o, y: (optax.softmax_cross_entropy_with_integer_labels(
                o["kind"], y["kind"]).mean(), {}),
            ((WORD, NUMBERS), LABELS), optimizer=optax.adam(1e-2), epochs=epochs,
            batch_size=16, augment=moved, checkpoint=folder, progress=False,
        )[0]  # fmt: skip

    whole = run(tmp_path / "a", 3)
    _ = run(tmp_path / "b", 1)
    jax.tree.map(np.testing.assert_array_equal, run(tmp_path / "b", 3), whole)
    with pytest.raises(
        ValueError, match=r"augment\(key, x\) made .* of 16 examples, .*as many"
    ):
        _ = fit(
            frozen(net, state=()), params_of(0), lambda o, y: (o["kind"].mean(), {}),
            ((WORD, NUMBERS), LABELS), optimizer=optax.adam(1e-2), epochs=1,
            batch_size=16, augment=lambda key, x: (x[0], x[1][:3]), progress=False,
        )  # fmt: skip


WRONG: list[tuple[Any, str]] = [
    (
        (WORD, NUMBERS[:40]),
        r"several numbers: 48 in x\[0\], 40 in x\[1\]",
    ),
    ({"word": WORD, "on": 1.0}, r"me: x\['on'\] is a float without rows"),
    ([[1.0, 2.0], [3.0, 4.0]], r"me: x\[0\]\[0\] is a float without rows.*np.asarray"),
    ({}, "me: x is a dict that holds no array"),
]


@pytest.mark.parametrize(("x", "reason"), WRONG, ids=lambda v: type(v).__name__)
def test_what_has_no_rows_is_named(x, reason):
    with pytest.raises(DataError, match=reason):
        _ = count(x, "me")


def test_rows_are_taken_of_every_array():
    some = take(Split({"a": WORD, "b": (NUMBERS,)}, LABELS), slice(3, 5))
    np.testing.assert_array_equal(some.x["b"][0], NUMBERS[3:5])
    assert count(padded(some.x, 4), "me") == 4
    np.testing.assert_array_equal(padded(some.x, 4)["a"], WORD[[3, 4, 3, 3]])
    keys = jax.random.split(jax.random.key(0), 2)
    assert padded((keys, WORD[:2]), 3)[0][2] == keys[0]
