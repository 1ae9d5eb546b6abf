"""What tasks ask for, labels that lack or do not fit, and masked or coarse answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_distill import numpy_divergence

from cutjax.data import Split
from cutjax.errors import DataError
from cutjax.recover.distill import task_losses, teach
from cutjax.recover.finetune import finetune, frozen
from cutjax.recover.kinds import kinds_of, spreads_of


def linear(p, x):
    return {"a": x @ p["w"]}


def pair(shape=(4, 3), n=64):
    """Inputs, a parent, and a child whose answers are all too high by one."""
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.normal(size=(n, shape[0] - 1)), np.ones((n, 1))], 1)
    w = rng.normal(size=shape).astype(np.float32)
    shifted = w + np.eye(shape[0], dtype=np.float32)[:, -1:]
    return x.astype(np.float32), {"w": w}, {"w": shifted}


def tuned(truth=None, **options):
    """The losses and the error left, relative to the answers' variance."""
    x, parent, child = pair()
    data = teach(linear, parent, Split(x, {} if truth is None else {"a": truth}),
                 tasks="a")  # fmt: skip
    options = {"tasks": "a", "epochs": 30, "learning_rate": 0.1, **options}
    after, info = finetune(frozen(linear), child, data, batch_size=32, progress=False,
                           **options)  # fmt: skip
    error = (linear(after, x)["a"] - linear(parent, x)["a"]) ** 2
    return info.history, float(error.mean() / linear(parent, x)["a"].var())


def test_several_numbers_are_learnt_as_numbers_where_that_is_said_or_shows():
    """A shift of all is nothing to a softmax, the saboteur."""
    numbers = linear(pair()[1], pair()[0])["a"]
    assert tuned(epochs=1)[1] > 0.3
    assert tuned(kinds={"a": "numbers"})[1] < 0.05
    assert tuned(kinds={"a": "labels"})[1] < 0.05
    assert tuned(numbers)[1] < 0.05
    assert tuned((numbers > 0).astype(int))[1] < 0.05


HOT = np.eye(5, dtype=int)[np.arange(9) % 5]
ONES = np.triu(np.ones((9, 5), int), -4)


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        (None, "classes"),
        (np.arange(9) % 5, "classes"),
        (HOT, "classes"),
        (0.9 * HOT + 0.02, "classes"),
        (ONES, "labels"),
        (ONES - 2 * HOT, "labels"),  # negative: none
        (np.where(HOT, np.nan, ONES), "labels"),
        (ONES / 3, "numbers"),
        (np.where(HOT, np.nan, ONES / 3), "numbers"),
        (7 * ONES, "classes"),  # a mistake, which is named where labels are learnt
    ],
)
def test_kinds_are_told_by_shapes_labels_or_words(labels, want):
    out = {"a": np.zeros((9, 5)), "b": np.zeros((9, 1))}
    y = {} if labels is None else {"a": labels}
    assert kinds_of(("a", "b"), out, y) == {"a": want, "b": "numbers"}
    said = {"a": "classes", "b": "labels"}
    assert kinds_of(("a", "b"), out, y, said) == said


def test_several_labels_are_pairs_of_chance():
    rng = np.random.default_rng(8)
    child, taught = rng.normal(size=(2, 6, 4)).astype(np.float32)
    each = task_losses("a", temperature=3.0, kinds={"a": "labels"}, labels=0.5)
    y = np.where(rng.random((6, 4)) > 0.3, rng.integers(0, 2, (6, 4)), -1)
    p, q = (1 / (1 + np.exp(-np.float64(v) / 3)) for v in (taught, child))
    soft = 9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    chance = 1 / (1 + np.exp(-np.float64(child)))
    hard = -np.where(y < 0, 0, np.log(np.where(y == 1, chance, 1 - chance))).mean()
    got = each({"a": child}, {"teacher:a": taught, "a": y})["a"]
    np.testing.assert_allclose(got, soft + 0.5 * hard, rtol=1e-4)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_what_has_no_label_costs_nothing(kind):
    rng = np.random.default_rng(9)
    child = rng.normal(size=(8, 3)).astype(np.float32)
    some = np.arange(8) % 3 > 0
    if kind == "classes":
        y = np.where(some, rng.integers(0, 3, 8), -1)
        chance = np.exp(child) / np.exp(child).sum(-1, keepdims=True)
        want = -np.log(chance[np.arange(8), y])[some].sum() / 8
    else:
        y = np.where(some[:, None], child + 2, np.nan).astype(np.float32)
        want = 4 * np.mean(some)

    def value(out):
        each = task_losses("a", labels=1.0, kinds={"a": kind})
        return each({"a": out}, {"teacher:a": child, "a": y})["a"]

    got, slope = jax.jit(jax.value_and_grad(value))(child)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert (np.abs(slope).max(-1) > 1e-4).tolist() == some.tolist()


@pytest.mark.parametrize(
    ("labels", "options", "match"),
    [
        (np.full(64, 255), {}, r"go up to 255, but 3 classes need 0 to 2.*put -1"),
        (np.full(64, 3), {}, "go up to 3, but 3 classes"),
        (np.eye(3, dtype=np.float32)[np.arange(64) % 3], {}, r"float32.*argmax\(-1\)"),
        (np.ones(64, np.float32), {}, r"classes are integers.*astype\(int\)"),
        (np.ones((64, 1), int), {}, r"\[64, 1\].*expected \[n\], labels\[..., 0\]"),
        (np.ones((64, 2)), {"kinds": {"a": "numbers"}}, r"answers numbers \[n, 3\]"),
        (np.full((64, 3), 2), {"kinds": {"a": "labels"}}, "at once need 0 to 1"),
        (None, {"kinds": {"b": "numbers"}}, "kinds: no task 'b'; known: 'a'"),
        (None, {"kinds": {"a": "number"}}, "'a' is 'number'; nearest: 'numbers'"),
        (None, {"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        (None, {"temperature": np.nan}, "temperature is nan"),
        (None, {"labels": -1.0}, "weight of their loss, is -1.0; expected 0 or more"),
    ],
)  # fmt: skip
def test_labels_kinds_and_numbers_that_do_not_fit_are_named(labels, options, match):
    weight = 0.0 if labels is None else 1.0
    with pytest.raises(DataError, match=match):
        tuned(labels, **{"labels": weight, **options})


def test_a_constant_number_is_measured_in_its_own_unit():
    """In float32 the deviation of many a 0.1 is no zero."""
    constant = np.full((256, 1), 0.1, np.float32)
    assert 0 < np.std(constant) < 1e-6
    nearly = constant + np.float32(1e-8) * (np.arange(256)[:, None] % 2)
    several = np.random.default_rng(0).normal(size=(99, 3)) * [1, 2, 3] + [0, 50, 100]
    y = {"teacher:a": constant, "teacher:b": nearly, "teacher:c": several}
    got = spreads_of(Split(constant, y), ("a", "b", "c"), {"c": "numbers"})
    want = np.sqrt(several.var(0).mean())
    assert got == {"a": 1.0, "b": 1.0, "c": pytest.approx(want)}


def test_the_parent_is_asked_about_all_of_sorted_data():
    n = 2048
    x = np.sort(np.random.default_rng(1).normal(size=(n, 1)), 0).astype(np.float32)
    x = np.where(np.arange(n)[:, None] < n / 2, x[n // 2], x)
    parent = {"w": np.ones((1, 1), np.float32)}
    _, info = finetune(
        frozen(linear), {"w": 0.9 * parent["w"]}, Split(x, {}), tasks="a", epochs=1,
        parent=(linear, parent), learning_rate=1e-9, progress=False, batch_size=n,
    )  # fmt: skip
    want = np.mean((0.1 * np.float64(x)) ** 2) / np.var(np.float64(x))
    np.testing.assert_allclose(info.history[-1]["a"], want, rtol=0.05)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_answers_in_bfloat16_are_compared_in_float32(kind):
    rng = np.random.default_rng(10)
    taught = jnp.asarray(rng.normal(size=(64, 10)) * 3, jnp.bfloat16)
    child = jnp.asarray(taught + 0.03 * rng.normal(size=(64, 10)), jnp.bfloat16)

    def value(out, taught=taught):
        return task_losses("a", kinds={"a": kind})({"a": out}, {"teacher:a": taught})[
            "a"
        ]

    got, slope = jax.value_and_grad(value)(child)
    full = np.float32(child), np.float32(taught)
    assert got.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    if kind == "classes":
        np.testing.assert_allclose(got, numpy_divergence(*full, 2), rtol=1e-3)
    want = jax.grad(value)(*map(jnp.asarray, full))
    np.testing.assert_allclose(np.float32(slope), want, rtol=0.01, atol=1e-7)


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_masked_logits_have_no_chance_and_no_slope(kind):
    rng = np.random.default_rng(11)
    child, taught = rng.normal(size=(2, 6, 5)).astype(np.float32)
    there = jnp.arange(5) < 4

    def value(child):
        child, parent = (jnp.where(there, v, -jnp.inf) for v in (child, taught))
        each = task_losses("a", temperature=3.0, kinds={"a": kind})
        return each({"a": child}, {"teacher:a": parent})["a"]

    got, slope = jax.value_and_grad(value)(jnp.asarray(child))
    assert np.isfinite(slope).all() and not slope[:, 4].any() and slope[:, :4].all()
    if kind == "classes":
        want = numpy_divergence(child[:, :4], taught[:, :4], 3)
        np.testing.assert_allclose(got, want, rtol=1e-4)
