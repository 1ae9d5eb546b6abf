"""Task vectors against plain numpy; scales against planted optima."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax.data.digits import digits_scenes
from cutjax.errors import BudgetError, DataError, MismatchError
from cutjax.merge.cabs import cabs, cabs_masks
from cutjax.merge.scales import best_scale
from cutjax.merge.ties import ties, ties_vector
from cutjax.merge.vectors import arithmetic, vectors
from cutjax.mirror import named_leaves
from cutjax.sparse import apply_masks

NAMES = ("z", "a", "m")
SHAPES = {"k": (8, 5), "conv": (3, 3, 1, 7), "bias": (8,), "one": ()}


def drawn(seed: int, coarse: bool = False, dtype: Any = jnp.float32) -> Any:
    """Weights, a counter and a random key; coarse ones hold zeros and many ties."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        values = rng.normal(size=shape)
        return jnp.asarray(np.round(values * 1.5) if coarse else values, dtype)

    leaves = {name: draw(shape) for name, shape in SHAPES.items()}
    return {"net": leaves, "count": jnp.int32(seed), "key": jax.random.key(seed)}


def changes(coarse: bool = False, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Vectors, not in alphabetical order."""
    return {
        name: {**drawn(7 + i, coarse), "count": None, "key": None}
        for i, name in enumerate(names)
    }


def weights(tree: Any) -> dict[str, np.ndarray]:
    """Floating leaves as float64, by path."""
    return {
        path: np.asarray(leaf, np.float64)
        for path, leaf in named_leaves(tree).items()
        if path.startswith("net/")
    }


def close(found: Any, want: dict[str, np.ndarray], atol: float = 1e-5) -> None:
    got = weights(found)
    assert set(got) == set(want)
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, rtol=0, atol=atol, err_msg=path)


def same(a: Any, b: Any) -> None:
    for path, value in weights(a).items():
        np.testing.assert_array_equal(value, weights(b)[path], err_msg=path)


# Differences and sums. --------------------------------------------------------------


def check_arithmetic(merge: Callable[..., Any]) -> None:
    parent, given = drawn(0), changes()
    base = weights(parent)
    for scale in (0.3, {"z": 0.5, "a": -1.0, "m": 2.0}):
        by_name = scale if isinstance(scale, dict) else dict.fromkeys(NAMES, scale)
        want = {
            path: base[path] + sum(by_name[n] * weights(given[n])[path] for n in NAMES)
            for path in base
        }
        close(merge(parent, given, scale), want)


def test_arithmetic_is_a_sum():
    check_arithmetic(arithmetic)
    check_arithmetic(jax.jit(arithmetic))


def test_saboteur_a_mean_in_place_of_the_sum():
    def broken(parent: Any, given: Any, scale: Any) -> Any:
        less = jax.tree.map(lambda s: s / len(given), scale)
        return arithmetic(parent, given, less)

    with pytest.raises(AssertionError):
        check_arithmetic(broken)


def check_alone(difference: Callable[..., Any], dtype: Any, atol: float) -> None:
    """One vector at scale 1 is the tuned network."""
    parent, tuned = drawn(0, dtype=dtype), drawn(1, dtype=dtype)
    found = arithmetic(parent, difference(parent, {"it": tuned}), 1.0)
    close(found, weights(tuned), atol)
    assert jax.tree.structure(found) == jax.tree.structure(parent)
    for path, leaf in named_leaves(found).items():
        assert leaf.dtype == named_leaves(parent)[path].dtype
    assert found["count"] == 0 and found["key"] is parent["key"]


def test_one_vector_gives_back_the_tuned_network():
    check_alone(vectors, jnp.float32, 1e-6)
    check_alone(vectors, jnp.bfloat16, 0.0)


def test_saboteur_differences_in_bfloat16():
    def broken(parent: Any, tuned: Any) -> Any:
        found = vectors(parent, tuned)
        return jax.tree.map(lambda v: v.astype(jnp.bfloat16), found)

    with pytest.raises(AssertionError):
        check_alone(broken, jnp.bfloat16, 0.0)


def test_vectors_are_float32_and_none_for_what_is_no_weight():
    parent = drawn(0, dtype=jnp.bfloat16)
    found = vectors(parent, {"it": drawn(1, dtype=jnp.bfloat16)})["it"]
    assert found["count"] is None and found["key"] is None
    assert {v.dtype for v in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    want = weights(drawn(1, dtype=jnp.bfloat16))
    base = weights(parent)
    close(found, {path: want[path] - base[path] for path in base}, 1e-6)


def test_small_changes_add_up_in_bfloat16():
    """Each change alone is lost in bfloat16; together they are not."""
    parent = {"w": jnp.ones(3, jnp.bfloat16)}
    given = {str(i): {"w": jnp.full(3, 1 / 512)} for i in range(8)}
    found = arithmetic(parent, given, 1.0)["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 1 + 8 / 512)


# TIES. ------------------------------------------------------------------------------


def by_entry(given: dict[str, Any], density: float) -> dict[str, np.ndarray]:
    """TIES entry by entry over lists: the oracle."""
    paths = list(weights(next(iter(given.values()))))
    rows = []
    for vector in given.values():
        found = weights(vector)
        flat = [float(v) for path in paths for v in found[path].ravel()]
        k = math.floor(density * len(flat) + 0.5)
        stay = set(sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))[:k])
        rows.append([v if i in stay else 0.0 for i, v in enumerate(flat)])
    merged = []
    for column in zip(*rows, strict=True):
        up = [v for v in column if v > 0]
        down = [v for v in column if v < 0]
        win = up if sum(column) > 0 else down if sum(column) < 0 else []
        merged.append(sum(win) / len(win) if win else 0.0)
    out, at = {}, 0
    for path in paths:
        shape = weights(next(iter(given.values())))[path].shape
        size = math.prod(shape)
        out[path] = np.array(merged[at : at + size]).reshape(shape)
        at += size
    return out


def check_ties(merge: Callable[..., Any], *densities: float) -> None:
    parent = drawn(0)
    for coarse, density in itertools.product((False, True), densities):
        given = changes(coarse)
        want = by_entry(given, density)
        base = weights(parent)
        found = merge(parent, given, 0.7, density)
        close(found, {path: base[path] + 0.7 * want[path] for path in base})


def test_ties_is_the_definition():
    check_ties(ties, 0.0, 0.2, 0.5, 1.0)
    check_ties(jax.jit(ties, static_argnums=3), 0.2)


def test_coarse_vectors_have_sums_of_zero_and_conflicts():
    """What the oracle is compared on holds the cases that matter."""
    rows = [np.concatenate([v.ravel() for v in weights(c).values()])
            for c in changes(coarse=True).values()]  # fmt: skip
    stack = np.stack(rows)
    clash = (stack > 0).any(0) & (stack < 0).any(0)
    assert (clash & (stack.sum(0) == 0)).any() and (clash & (stack.sum(0) != 0)).any()


def broken_ties(
    per_leaf: bool = False, mean_of_all: bool = False
) -> Callable[..., Any]:
    def merge(parent: Any, given: Any, scale: Any, density: float) -> Any:
        if per_leaf:
            paths = named_leaves(next(iter(given.values())))
            flat = {n: named_leaves(v) for n, v in given.items()}
            out = {
                p: ties_vector({n: {p: v[p]} for n, v in flat.items()}, density)[p]
                for p in paths
            }
        else:
            found = {n: by_entry({n: v}, density) for n, v in given.items()}
            paths = next(iter(found.values()))
            out = {p: np.mean([found[n][p] for n in found], 0) for p in paths}
            if not mean_of_all:  # the sign by a count of votes
                votes = {p: sum(np.sign(found[n][p]) for n in found) for p in paths}
                out = {p: np.where(votes[p] * out[p] > 0, out[p], 0) for p in paths}
        made = {p: weights(parent)[p] + scale * np.asarray(out[p]) for p in out}
        return {"net": {p.removeprefix("net/"): v for p, v in made.items()}}

    return merge


@pytest.mark.parametrize(
    "how", [{"per_leaf": True}, {"mean_of_all": True}, {}], ids=str
)
def test_saboteurs_of_ties(how):
    with pytest.raises(AssertionError):
        check_ties(broken_ties(**how), 0.2, 0.5)


def check_symmetric(merge: Callable[..., Any]) -> None:
    """Bit for bit, in every order; also where only rounding gives a sum its sign."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 400)).astype(np.float32)
    rows = {"a": a, "b": b, "c": -(a + b), "d": np.float32(1e-9) * a}
    given = {name: {"net": {"w": jnp.asarray(row)}} for name, row in rows.items()}
    parent = {"net": {"w": jnp.zeros(400)}}
    first = merge(parent, given, 1.0, 1.0)
    for names in itertools.permutations(given):
        same(merge(parent, {name: given[name] for name in names}, 1.0, 1.0), first)


def test_ties_does_not_know_an_order():
    check_symmetric(ties)


def test_saboteur_a_sum_in_the_order_of_the_tasks():
    def broken(parent: Any, given: Any, scale: Any, density: float) -> Any:
        stack = np.stack([np.asarray(v["net"]["w"]) for v in given.values()])
        total = np.zeros(stack.shape[1], np.float32)
        for row in stack:
            total = total + row
        agree = np.sign(stack) == np.sign(total)
        mean = np.where(agree, stack, 0).sum(0) / np.maximum(agree.sum(0), 1)
        return {"net": {"w": mean}}

    with pytest.raises(AssertionError):
        check_symmetric(broken)


# CABS. ------------------------------------------------------------------------------


def in_rows(leaf: np.ndarray, axis: int = -2) -> np.ndarray:
    """Flat, the input axis fastest."""
    if leaf.ndim < 2:
        return leaf.ravel()
    return np.moveaxis(leaf, axis, -1).ravel()


def blocks(leaf: np.ndarray, m: int, axis: int = -2) -> list[np.ndarray]:
    flat = in_rows(leaf, axis)
    return [flat[i : i + m] for i in range(0, len(flat), m)]


def fair(r: int, n: int, m: int, count: int) -> int:
    """How many of a block of r each of so many vectors has."""
    return n if r == m else min(math.ceil(n * r / m), r // count)


def check_counts(make: Callable[..., Any], n: int, m: int) -> None:
    """n of each whole block, a fair number of a short one, and nothing twice."""
    given = changes()
    masks = {name: weights(mask) for name, mask in make(given, n, m).items()}
    assert list(masks) == list(given)
    for path in masks["z"]:
        total = np.sum([masks[name][path] for name in given], axis=0)
        assert np.max(total) <= 1, f"{path}: two vectors in one place"
        for name in given:
            for block in blocks(masks[name][path], m):
                want = fair(len(block), n, m, len(given))
                assert block.sum() == want, (path, name)


def check_brute(make: Callable[..., Any], n: int, m: int, axis: int = -2) -> None:
    """Block by block, over sets of free places."""
    for coarse in (False, True):
        given = changes(coarse)
        masks = {name: weights(v) for name, v in make(given, n, m).items()}
        values = {name: weights(v) for name, v in given.items()}
        for path in values["z"]:
            rows = {name: blocks(values[name][path], m, axis) for name in given}
            kept = {name: blocks(masks[name][path], m, axis) for name in given}
            for b, block in enumerate(rows["z"]):
                free = set(range(len(block)))
                k = fair(len(block), n, m, len(given))
                for name in given:
                    best = sorted((-abs(rows[name][b][i]), i) for i in free)[:k]
                    want = {i for _, i in best}
                    assert set(np.flatnonzero(kept[name][b])) == want, (path, name)
                    free -= want


@pytest.mark.parametrize(("n", "m"), [(1, 3), (1, 4), (2, 8)])
def test_cabs_has_exact_counts_and_no_overlap(n, m):
    check_counts(cabs_masks, n, m)
    check_brute(cabs_masks, n, m)


def test_cabs_under_jit_and_along_another_axis():
    run = jax.jit(lambda v: cabs_masks(v, 1, 4, order=NAMES))

    def jitted(given: Any, n: int, m: int) -> Any:
        found = run(given)
        return {name: found[name] for name in NAMES}

    check_brute(jitted, 1, 4)
    check_brute(lambda v, n, m: cabs_masks(v, n, m, axis=-1), 1, 4, axis=-1)


def test_saboteur_the_order_in_which_jit_hands_on_a_dict():
    def broken(given: Any, n: int, m: int) -> Any:
        return cabs_masks(jax.tree.map(lambda v: v, given), n, m)

    with pytest.raises(AssertionError):
        check_brute(broken, 1, 4)


def test_saboteurs_of_cabs():
    def overlap(given: Any, n: int, m: int) -> Any:
        return dict.fromkeys(given, cabs_masks(given, n, m)["z"])

    def last_first(given: Any, n: int, m: int) -> Any:
        found = cabs_masks(given, n, m, order=list(given)[::-1])
        return {name: found[name] for name in given}

    def unbalanced(given: Any, n: int, m: int) -> Any:
        masks = cabs_masks(given, n, m)
        for mask in masks.values():
            mask["net"]["k"] = jnp.roll(mask["net"]["k"], 1, axis=0)
        return masks

    for broken in (overlap, unbalanced):
        with pytest.raises(AssertionError):
            check_counts(broken, 1, 3)
    check_counts(last_first, 1, 4)
    with pytest.raises(AssertionError):
        check_brute(last_first, 1, 4)


def check_cabs(merge: Callable[..., Any]) -> None:
    parent, given = drawn(0), changes()
    scale = {"z": 0.5, "a": -1.0, "m": 2.0}
    masks = cabs_masks(given, 1, 4)
    want = weights(parent)
    for name in NAMES:
        for path, mask in weights(masks[name]).items():
            want[path] = want[path] + scale[name] * mask * weights(given[name])[path]
    close(merge(parent, given, scale, 1, 4), want)


def test_cabs_adds_what_the_masks_leave():
    check_cabs(cabs)


def test_saboteur_rescaled_like_dropout():
    def broken(parent: Any, given: Any, scale: Any, n: int, m: int) -> Any:
        return cabs(parent, given, {k: s * m / n for k, s in scale.items()}, n, m)

    with pytest.raises(AssertionError):
        check_cabs(broken)


def test_one_vector_of_all_entries_is_arithmetic():
    parent, given = drawn(0), changes(names=("z",))
    same(cabs(parent, given, 0.5, 4, 4), arithmetic(parent, given, 0.5))


# What is refused. -------------------------------------------------------------------


def with_leaf(tree: Any, name: str, leaf: Any) -> Any:
    return {**tree, "net": {**tree["net"], name: leaf}}


def check_mismatches(difference: Callable[..., Any]) -> None:
    """The first leaf that differs is named, and the network."""
    parent, tuned = drawn(0), drawn(1)
    less = {**tuned, "net": {k: v for k, v in tuned["net"].items() if k != "k"}}
    cases = {
        r"'net/k' of 'b' is \[5, 8\], where \[8, 5\]": with_leaf(
            tuned, "k", jnp.ones((5, 8))
        ),
        r"'b' lacks 'net/k'": less,
        r"'b' has 'net/kk'.*'net/k'": with_leaf(tuned, "kk", jnp.ones(2)),
        r"'net/bias' of 'b' is int32": with_leaf(tuned, "bias", jnp.ones(8, int)),
        r"'b' lacks 'count'": {k: v for k, v in tuned.items() if k != "count"},
    }
    for match, wrong in cases.items():
        try:
            _ = difference(parent, {"a": tuned, "b": wrong})
        except MismatchError as error:
            assert re.search(match, str(error)), str(error)
        else:
            raise AssertionError(f"not refused: {match}")


def test_mismatches_name_the_leaf():
    check_mismatches(vectors)


def test_saboteur_only_common_leaves():
    def broken(parent: Any, tuned: Any) -> Any:
        return {n: {k: t[k] for k in parent if k in t} for n, t in tuned.items()}

    with pytest.raises(AssertionError):
        check_mismatches(broken)


def test_vectors_that_do_not_fit_are_refused():
    parent, given = drawn(0), changes()
    wrong = {**given, "a": with_leaf(given["a"], "bias", jnp.ones(3))}
    for call in (
        lambda: arithmetic(parent, wrong, 1.0),
        lambda: ties(parent, wrong, 1.0),
        lambda: cabs(parent, wrong, 1.0, 1, 4),
        lambda: cabs_masks(wrong, 1, 4),
    ):
        with pytest.raises(MismatchError, match=r"'net/bias' of 'a' is \[3\]"):
            _ = call()
    for call in (
        lambda: vectors(parent, {}),
        lambda: arithmetic(parent, {}, 1.0),
        lambda: ties_vector({}),
        lambda: cabs_masks({}, 1, 4),
    ):
        with pytest.raises(MismatchError, match="nothing to merge"):
            _ = call()
    with pytest.raises(MismatchError, match="one for each"):
        _ = arithmetic(parent, given, {"z": 1.0})
    with pytest.raises(MismatchError, match="give each of"):
        _ = cabs_masks(given, 1, 4, order=["z", "a"])
    with pytest.raises(MismatchError, match=r"axis=5: '.*' has 4 axes"):
        _ = cabs_masks(given, 1, 4, axis=5)
    with pytest.raises(MismatchError, match="'w' is complex"):
        _ = vectors({"w": jnp.ones(1, complex)}, {"a": {"w": jnp.ones(1, complex)}})


def check_room(make: Callable[..., Any]) -> None:
    given = changes()
    for n, m, match in ((2, 5, "n=1 or m=6"), (1, 2, "; m=3"), (0, 4, "n=0")):
        try:
            _ = make(given, n, m)
        except BudgetError as error:
            assert match in str(error)
        else:
            raise AssertionError(f"{n} of {m} for three")
    _ = make(given, 1, 3)


def test_more_than_fits_is_refused():
    check_room(cabs_masks)


def test_saboteur_who_comes_late_gets_nothing():
    def broken(given: Any, n: int, m: int) -> Any:
        return dict(list(given.items())[: m // max(n, 1)])

    with pytest.raises(AssertionError):
        check_room(broken)


def test_nan_and_densities_are_refused():
    given = changes()
    bad = {**given, "m": with_leaf(given["m"], "bias", jnp.full(8, jnp.nan))}
    for call in (lambda: ties_vector(bad), lambda: cabs_masks(bad, 1, 4)):
        with pytest.raises(DataError, match="'m' is NaN or infinite at 'net/bias'"):
            _ = call()
    with pytest.raises(BudgetError, match=r"density=20"):
        _ = ties_vector(given, 20.0)


# Scales. ----------------------------------------------------------------------------


def planted(best: dict[str, float]) -> Callable[[Any], float]:
    """Highest at `best`; the coordinates pull at each other a little."""

    def value(scale: Any) -> float:
        gap = [scale[name] - best[name] for name in best]
        return -sum(g * g for g in gap) - 0.5 * gap[0] * gap[1]

    return value


GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


def check_search(search: Callable[..., Any]) -> None:
    """It finds what was planted, and looks nowhere twice."""
    best = {"z": 0.75, "a": 0.25, "m": 1.0}
    calls: list[Any] = []

    def count(evaluate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def seen(scale: Any) -> Any:
            assert scale not in calls, f"{scale} is evaluated twice"
            calls.append(scale)
            return evaluate(scale)

        return seen

    scale, history = search(lambda s: s, GRID, count(planted(best)), names=NAMES)
    assert scale == best
    assert [trial.scale for trial in history] == calls
    assert len(calls) < len(GRID) ** 3 / 2, "as many as a full grid"
    calls.clear()
    near = count(lambda s: np.nan if s == 1.0 else -abs(s - 0.8))
    scale, history = search(lambda s: s, [*GRID, *GRID], near)
    assert scale == 0.75 and [trial.scale for trial in history] == GRID
    assert np.isnan(history[-1].value)


def test_search_finds_the_planted_scale():
    check_search(best_scale)


def test_saboteurs_of_the_search():
    def forgetful(merge: Any, grid: Any, evaluate: Any, names: Any = None) -> Any:
        scale, history = best_scale(merge, grid, evaluate, names=names)
        _ = evaluate(merge(scale))
        return scale, history

    def common(merge: Any, grid: Any, evaluate: Any, names: Any = None) -> Any:
        def alike(s: float) -> Any:
            return merge(dict.fromkeys(names, s) if names else s)

        return best_scale(alike, grid, evaluate)

    def lowest(merge: Any, grid: Any, evaluate: Any, names: Any = None) -> Any:
        return best_scale(merge, grid, lambda p: -evaluate(p), names=names)

    for broken in (forgetful, common, lowest):
        with pytest.raises(AssertionError):
            check_search(broken)


def test_nothing_to_search_is_refused():
    for grid, names in (([], None), (GRID, [])):
        with pytest.raises(DataError, match="nothing to try"):
            _ = best_scale(lambda s: s, grid, lambda s: 0.0, names=names)
    with pytest.raises(DataError, match="NaN for every scale"):
        _ = best_scale(lambda s: s, GRID, lambda s: np.nan)


def test_equal_scales_keep_the_first():
    assert best_scale(lambda s: s, GRID, lambda s: 1)[0] == 0.0
    found, history = best_scale(lambda s: s, GRID, lambda s: 1, names=["a", "b"])
    assert found == {"a": 0.0, "b": 0.0} and len(history) == 13


# Digits. ----------------------------------------------------------------------------


def mlp(params: Any, x: Any) -> dict[str, Any]:
    h = jax.nn.relu(x.reshape(len(x), -1) @ params["in"] + params["bias"])
    return {task: h @ params[task] for task in ("left", "right")}


@jax.jit
def train(params: Any, x: Any, y: dict[str, Any], share: dict[str, Any]) -> Any:
    """Eighty steps on the tasks' losses, weighed."""
    optimizer = optax.adam(3e-3)

    def loss(p: Any, rows: Any) -> Any:
        each = {
            task: optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, y[task][rows]
            ).mean()
            for task, logits in mlp(p, x[rows]).items()
        }
        return sum(share[task] * each[task] for task in each)

    def step(carry: Any, key: Any) -> Any:
        p, state = carry
        grads = jax.grad(loss)(p, jax.random.randint(key, (64,), 0, len(x)))
        updates, state = optimizer.update(grads, state, p)
        return (optax.apply_updates(p, updates), state), None

    keys = jax.random.split(jax.random.key(1), 80)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]


@jax.jit
def accuracies(params: Any, x: Any, y: dict[str, Any]) -> dict[str, Any]:
    return {t: (v.argmax(1) == y[t]).mean() for t, v in mlp(params, x).items()}


def test_digits_merged_beat_their_parent_on_both_tasks():
    sizes = {"train": 4000, "calibration": 1, "validation": 500, "test": 1000}
    data = digits_scenes(sizes=sizes)
    train_, validation, test = (
        (split.x, {task: split.y[task] for task in ("left", "right")})
        for split in (data.train, data.validation, data.test)
    )
    rng = np.random.default_rng(0)
    shapes = {"in": (240, 64), "left": (64, 10), "right": (64, 10)}
    start: dict[str, Any] = {
        name: jnp.asarray(rng.normal(size=s) * s[0] ** -0.5, jnp.float32)
        for name, s in shapes.items()
    }
    start["bias"] = jnp.zeros(64)
    parent = train(start, *train_, {"left": 1.0, "right": 1.0})
    tuned = {
        "left": train(parent, *train_, {"left": 1.0, "right": 0.0}),
        "right": train(parent, *train_, {"left": 0.0, "right": 1.0}),
    }
    found = vectors(parent, tuned)
    masks = cabs_masks(found, 1, 2)
    kept = {name: apply_masks(v, masks[name]) for name, v in found.items()}
    vector = ties_vector(found, 0.5)
    merges: dict[str, Callable[[Any], Any]] = {
        "arithmetic": lambda s: arithmetic(parent, found, s),
        "ties": lambda s: arithmetic(parent, {"ties": vector}, s),
        "cabs": lambda s: arithmetic(parent, kept, s),
    }
    before = accuracies(parent, *test)
    for name, merge in merges.items():
        scale, _ = best_scale(
            merge,
            [0.0, 0.3, 0.5, 0.7, 1.0, 1.4],
            lambda p: np.mean([*accuracies(p, *validation).values()]),
        )
        after = accuracies(merge(scale), *test)
        assert all(after[t] > before[t] + 0.02 for t in before), (name, before, after)


@pytest.mark.parametrize("name", ["vectors", "ties", "cabs", "scales"])
def test_doctests(name):
    module = importlib.import_module(f"cutjax.merge.{name}")
    assert doctest.testmod(module).failed == 0
