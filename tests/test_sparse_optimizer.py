"""Masked optimisers: what is masked is zero, in everything, whatever is wrapped."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax import sparse
from cutjax.errors import DataError, MismatchError
from cutjax.sparse import grow

X = jax.random.normal(jax.random.key(7), (32, 6))
Y = jnp.sin(X @ jnp.arange(6.0)[:, None])


def start(dtype: Any = jnp.float32) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "a": {"kernel": jax.random.normal(keys[0], (6, 16)), "bias": jnp.ones(16) / 4},
        "b": jax.random.normal(keys[1], (16, 1)),
    }
    return jax.tree.map(lambda v: v.astype(dtype), params)


def loss(params: Any) -> jax.Array:
    h = jnp.tanh(
        X.astype(params["b"].dtype) @ params["a"]["kernel"] + params["a"]["bias"]
    )
    return jnp.mean((h @ params["b"] - Y) ** 2).astype(jnp.float32)


def weights(params: Any) -> Any:
    return {"a": {"kernel": params["a"]["kernel"], "bias": None}, "b": params["b"]}


def some_masks(density: float = 0.5) -> Any:
    return sparse.topk(jax.tree.map(jnp.abs, weights(start())), density)


INNER: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.3),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "noisy": lambda: optax.chain(optax.add_noise(0.1, 0.5, 0), optax.trace(0.9)),
    "lion": lambda: optax.lion(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2)),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
    "narrow": lambda: optax.adam(1e-2, mu_dtype=jnp.bfloat16),
    "partly": lambda: optax.multi_transform(
        {"x": optax.adam(1e-2), "y": optax.sgd(0.1, momentum=0.5)},
        {"a": {"kernel": "x", "bias": "y"}, "b": "y"},
    ),
}


def train(tx: Any, params: Any, steps: int = 5) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def check_zero(tree: Any, masks: Any) -> int:
    """Every array in `tree` of the shape of a mask is zero where it is; how many."""
    found = 0
    for mask in jax.tree.leaves(masks):
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf) == mask.shape and leaf.dtype != bool:
                gone = np.asarray(leaf, np.float32)[~np.asarray(mask)]
                assert (gone == 0).all(), f"{np.abs(gone).max()} where masked"
                found += 1
    return found


def check_masked(wrap: Any, inner: str, dtype: Any = jnp.float32) -> None:
    masks, params = some_masks(), start(dtype)
    after, state = train(wrap(INNER[inner](), masks), params)
    assert check_zero(after, masks) == 2
    _ = check_zero(state, masks)
    kept = np.asarray(masks["b"])
    moved = np.asarray(after["b"] - params["b"], np.float32)[kept]
    assert (moved != 0).all(), "what is not masked must train"
    assert jax.tree.map(lambda v: v.dtype, after) == jax.tree.map(
        lambda v: v.dtype, params
    )


@pytest.mark.parametrize("inner", INNER)
def test_masked_is_zero_in_parameters_and_state(inner):
    check_masked(sparse.masked, inner)


@pytest.mark.parametrize("inner", ["sgd", "adamw"])
def test_masked_in_bfloat16(inner):
    check_masked(sparse.masked, inner, jnp.bfloat16)


def test_momenta_were_looked_at():
    masks = some_masks()
    _, state = train(sparse.masked(optax.adamw(1e-2), masks), start())
    assert check_zero(state, masks) == 4


def gradients_only(inner: Any, masks: Any) -> Any:
    """The usual mistake: weight decay still moves what is masked."""
    return optax.chain(
        optax.stateless(lambda u, p: sparse.apply_masks(u, masks)), inner
    )


def test_saboteur_masking_gradients_only():
    with pytest.raises(AssertionError, match="where masked"):
        check_masked(gradients_only, "adamw")


def parameters_only(inner: Any, masks: Any) -> Any:
    """Momenta collect what is masked, and break out when masks change."""

    def update(u: Any, s: Any, p: Any) -> Any:
        u, s = inner.update(u, s, p)
        return jax.tree.map(lambda n, q: n - q, sparse.apply_masks(
            optax.apply_updates(p, u), masks), p), s  # fmt: skip

    return optax.GradientTransformation(inner.init, update)


def test_saboteur_masking_parameters_only():
    with pytest.raises(AssertionError, match="where masked"):
        check_masked(parameters_only, "adamw")


@pytest.mark.parametrize("inner", ["sgd", "adamw", "momentum"])
def test_what_stays_trains_as_the_masked_function_would(inner):
    """The oracle: the same optimiser on loss(mask * params), without weight decay's
    effect on what is masked, which the function does not see."""
    masks, tx = some_masks(), INNER[inner]()
    params = sparse.apply_masks(start(), masks)
    ours, _ = train(sparse.masked(INNER[inner](), masks), params)
    state = tx.init(params)
    for _ in range(5):
        grads = jax.grad(lambda p: loss(sparse.apply_masks(p, masks)))(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    alike = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(alike, ours, params)


@pytest.mark.parametrize("wrap", ["chain", "multi_transform", "masked", "multi_steps"])
def test_it_composes_as_any_optimiser(wrap):
    masks = (
        {"b": some_masks()["b"]}
        if wrap in ("multi_transform", "masked")
        else some_masks()
    )
    tx: Any = sparse.masked(optax.adamw(1e-2), masks)
    params = sparse.apply_masks(start(), masks)
    if wrap == "chain":
        tx = optax.chain(optax.clip(1.0), tx, optax.scale(0.5))
    elif wrap == "multi_transform":
        labels = {"a": {"kernel": "x", "bias": "x"}, "b": "y"}
        tx = optax.multi_transform({"x": optax.sgd(0.1), "y": tx}, labels)
    elif wrap == "masked":
        which = {"a": {"kernel": False, "bias": False}, "b": True}
        tx = optax.masked(tx, which)
    else:
        tx = optax.MultiSteps(tx, 2)
    after, state = train(tx, params)
    _ = check_zero(after, masks)
    found = sparse.masks_of(state)
    jax.tree.map(np.testing.assert_array_equal, found, masks)


def test_errors_of_masked_optimisers():
    params = start()
    tx = sparse.masked(optax.sgd(0.1), {"b": np.ones((2, 1), bool)})
    with pytest.raises(MismatchError, match="'b'"):
        _ = tx.init(params)
    tx = sparse.masked(optax.sgd(0.1), some_masks())
    with pytest.raises(MismatchError, match=r"tx\.update\(grads, state, params\)"):
        _ = tx.update(params, tx.init(params))
    with pytest.raises(MismatchError, match="0 masked optimisers"):
        _ = sparse.masks_of(optax.sgd(0.1).init(params))
    rule = sparse.disparse(10)
    tx = sparse.scheduled(optax.sgd(0.1), rule, some_masks())
    with pytest.raises(DataError, match="task_grads="):
        _ = tx.update(params, tx.init(params), params)


# Masks that change. -----------------------------------------------------------------


def history(tx: Any, params: Any, steps: int, **extra: Any) -> list[tuple[Any, Any]]:
    """(parameters, state) before the first and after every step."""

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    out = [(params, tx.init(params))]
    for _ in range(steps):
        out.append(step(*out[-1]))
    return out


def count(masks: Any) -> list[int]:
    return [int(m.sum()) for m in jax.tree.leaves(masks)]


def test_gradual_pruning_follows_the_cubic():
    rule = sparse.gradual(0.1, start=2, stop=22)
    tx = sparse.scheduled(
        optax.adam(1e-2), rule, grow.dense(weights(start())), every=5, start=2, stop=22
    )
    seen = history(tx, start(), 26)
    for t in range(26):
        asked = max(s for s in (2, 7, 12, 17, 22, -1) if s <= t)
        left = 0.1 + 0.9 * (1 - (asked - 2) / 20) ** 3 if asked >= 0 else 1.0
        total = sum(count(seen[t + 1][1].masks))
        assert total == np.floor(left * 112 + 0.5), t
        _ = check_zero(seen[t + 1], seen[t + 1][1].masks)
        before, after = seen[t][1].masks, seen[t + 1][1].masks
        jax.tree.map(
            lambda a, b: np.testing.assert_array_less(b * 1, a + 1), before, after
        )
    assert sum(count(seen[-1][1].masks)) == 11


def test_gradual_pruning_drops_the_smallest():
    tx = sparse.scheduled(
        optax.sgd(0.0),
        sparse.gradual(0.3, stop=1),
        grow.dense(weights(start())),
        every=1,
    )
    masks = history(tx, start(), 2)[-1][1].masks
    want = sparse.topk(jax.tree.map(jnp.abs, weights(start())), 0.3)
    jax.tree.map(np.testing.assert_array_equal, masks, want)


def check_exchange(rule: Any, steps: int = 6) -> list[Any]:
    """Constant density per leaf; what is new starts from zero, its momenta too."""
    masks = sparse.topk(
        jax.tree.map(jnp.abs, weights(start())), 0.4, counts=sparse.uniform
    )
    tx = sparse.scheduled(optax.sgd(0.1, momentum=0.9), rule, masks, every=1)
    seen = history(tx, sparse.apply_masks(start(), masks), steps)
    changed = 0
    for (p, s), (q, t) in itertools.pairwise(seen):
        assert count(s.masks) == count(t.masks) == count(masks)
        _ = check_zero((q, t), t.masks)
        slopes = jax.grad(loss)(p)
        for name in ("b",):
            new = np.asarray(t.masks[name] & ~s.masks[name])
            changed += new.sum()
            # A first step of sgd from zero, with nothing in the momentum.
            step = -0.1 * np.asarray(slopes[name])
            np.testing.assert_allclose(np.asarray(q[name])[new], step[new], rtol=1e-5)
    assert changed > 0, "nothing was exchanged"
    return seen


@pytest.mark.parametrize("rule", [sparse.rigl, sparse.random_growth])
def test_exchange_keeps_the_density_and_starts_from_zero(rule):
    _ = check_exchange(rule(100, share=0.5))


def test_saboteur_momenta_that_survive_a_drop(monkeypatch):
    from cutjax.sparse import optimizer

    monkeypatch.setattr(optimizer, "mask_state", lambda state, params, masks: state)
    with pytest.raises(AssertionError):
        _ = check_exchange(sparse.rigl(100, share=0.5))


def test_rigl_by_hand():
    """Drop and grow against a loop in numpy."""
    masks = {"w": np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)}
    params = {"w": jnp.array([[4.0, -0.1, 0.2, 3.0], [0, 0, 0, 0]])}
    grads = {"w": jnp.array([[0.1, 0.0, 0.3, 0.1], [0.2, -9.0, 0.05, 0.25]])}
    rule = sparse.rigl(10, share=0.5)
    # Two of four go: -0.1 and 0.2; best of the free: -9 and the 0.3 just dropped.
    got = rule(0, None, params, grads, masks)["w"]
    assert np.asarray(got).astype(int).tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    # Half way through the cosine one of four goes.
    got = rule(5, None, params, grads, masks)["w"]
    assert np.asarray(got).astype(int).tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    same = rule(10, None, params, grads, masks)["w"]
    np.testing.assert_array_equal(same, masks["w"])


def test_the_share_exchanged_is_annealed():
    number = jnp.asarray(1000)
    for step in (0, 25, 50, 99, 100, 500):
        want = 0.15 * (1 + np.cos(np.pi * min(step / 100, 1))) * 1000
        assert abs(int(grow.annealed(step, 100, 0.3, number)) - want) <= 1


def test_nan_gradients_do_not_change_the_density():
    masks = {"w": jnp.arange(20).reshape(4, 5) % 3 == 0}
    params = {"w": jnp.where(masks["w"], 1.0, 0.0)}
    nan = {"w": jnp.full((4, 5), jnp.nan)}
    assert count(sparse.rigl(10)(0, None, params, nan, masks)) == count(masks)


def test_random_growth_depends_on_the_seed_only():
    def final(seed: int) -> Any:
        masks = some_masks()
        rule = sparse.random_growth(50, share=0.5)
        tx = sparse.scheduled(optax.sgd(0.1), rule, masks, every=1, seed=seed)
        return np.asarray(history(tx, start(), 4)[-1][1].masks["a"]["kernel"])

    assert (final(0) == final(0)).all()
    assert (final(0) != final(1)).any()


def by_turns(slopes: list[np.ndarray], free: np.ndarray, number: int) -> set[int]:
    """The union of first choices, one choice deeper at a time: the oracle."""
    orders = [
        [i for i in np.argsort(-s, kind="stable") if free[i] and s[i] > 0]
        for s in slopes
    ]
    chosen: list[int] = []
    for depth in range(len(free)):
        new = {o[depth] for o in orders if depth < len(o)} - set(chosen)
        chosen += sorted(new)
    return set(chosen[:number])


@pytest.mark.parametrize("seed", range(5))
def test_disparse_grows_the_union_of_first_choices(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((6, 5)) < 0.4
    params = {"w": jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0))}
    grads = {t: {"w": jnp.asarray(rng.normal(size=mask.shape))} for t in "xyz"}
    rule = sparse.disparse(10, share=0.5)
    got = np.asarray(rule(0, None, params, None, {"w": mask}, task_grads=grads)["w"])
    assert got.sum() == mask.sum()
    drop = int(0.5 * mask.sum())
    size = np.where(mask, np.abs(np.asarray(params["w"])), np.inf).ravel()
    stays = mask.ravel().copy()
    stays[np.argsort(size, kind="stable")[:drop]] = False
    slopes = [np.abs(np.asarray(g["w"])).ravel() for g in grads.values()]
    want = by_turns(slopes, ~stays, drop) | set(np.flatnonzero(stays))
    assert set(np.flatnonzero(got)) == want


def test_disparse_ignores_tasks_without_a_gradient():
    """In another's head a task has zeros, or nothing; it must not vote by index."""
    mask = np.array([[1, 1, 0, 0, 0, 0]], bool)
    params = {"w": jnp.array([[5.0, 0.1, 0, 0, 0, 0]])}
    mine = {"w": jnp.array([[0.0, 0.0, 0.1, 0.2, 0.3, 0.4]])}
    rule = sparse.disparse(10, share=0.5)
    for other in ({"w": jnp.zeros((1, 6))}, {"w": None}):
        grads = {"mine": mine, "other": other}
        got = rule(0, None, params, None, {"w": mask}, task_grads=grads)["w"]
        assert np.flatnonzero(np.asarray(got)).tolist() == [0, 5]


def test_task_gradients_are_needed_when_due_only():
    masks = some_masks()
    tx = sparse.scheduled(
        optax.adam(1e-2), sparse.disparse(100, share=0.5), masks, every=3, start=1
    )

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(loss)(params)
        each = jax.lax.cond(
            state.due, lambda: {"x": grads, "y": jax.tree.map(lambda g: g * g, grads)},
            lambda: {t: jax.tree.map(jnp.zeros_like, grads) for t in "xy"},
        )  # fmt: skip
        updates, state = tx.update(grads, state, params, task_grads=each)
        return optax.apply_updates(params, updates), state

    seen = [(start(), tx.init(start()))]
    for _ in range(8):
        seen.append(step(*seen[-1]))
    changed = []
    for (_, s), (p, t) in itertools.pairwise(seen):
        _ = check_zero(p, t.masks)
        changed.append(bool((s.masks["a"]["kernel"] != t.masks["a"]["kernel"]).any()))
        assert not changed[-1] or bool(s.due)
    assert [bool(s.due) for _, s in seen[:8]] == [i % 3 == 1 for i in range(8)]
    assert changed[1], "the first change exchanges something"
