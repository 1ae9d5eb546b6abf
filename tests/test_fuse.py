"""Fusion against counting votes; its symmetries; libraries broken in one place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cutjax import fuse
from cutjax.errors import DataError, KeepError

SIZES = {"a": 5, "b": 3, "c": 4}
TOTAL = sum(SIZES.values())
Scores = dict[str, dict[str, np.ndarray]]


def grouped(row: Any) -> dict[str, np.ndarray]:
    ends = np.cumsum(list(SIZES.values()))[:-1]
    parts = np.split(np.asarray(row, np.float32), ends)
    return dict(zip(SIZES, parts, strict=True))


def flat(scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([scores[name] for name in SIZES])


@st.composite
def scores(draw: st.DrawFn, ties: bool = False) -> Scores:
    """Two to five tasks; no two scores of one are alike, unless `ties`."""
    number = draw(st.integers(2, 5))
    out = {}
    for t in range(number):
        if ties:
            values = st.lists(st.integers(0, 4), min_size=TOTAL, max_size=TOTAL)
            row = np.array(draw(values), float)
        else:
            row = np.array(draw(st.permutations(range(1, TOTAL + 1))), float)
        out[f"t{t}"] = grouped(row * draw(st.sampled_from([0.01, 1.0, 50.0])))
    return out


FUSES: dict[str, Callable] = {
    "union": fuse.union,
    "majority": fuse.majority,
    "intersection": fuse.intersection,
    "mean": fuse.mean,
    "maximum": fuse.maximum,
    "minimum": fuse.minimum,
    "geometric": fuse.geometric,
}
each = pytest.mark.parametrize("name", FUSES)


def check_symmetric(fn: Callable, given: Scores, order: list[str]) -> None:
    want, got = flat(fn(given)), flat(fn({t: given[t] for t in order}))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def check_votes(vote: Callable, given: Scores, k: int) -> None:
    """At every threshold: a channel passes if k tasks have it among their best."""
    fused = flat(vote(given, k))
    rows = np.stack([flat(s) for s in given.values()])
    for best in range(1, TOTAL + 1):
        claims = np.stack([row >= np.sort(row)[-best] for row in rows])
        want = claims.sum(axis=0) >= k
        # The value that stands for this rank is the same for every k.
        scale = np.sort(flat(vote(given, 1)))
        reached = np.mean([np.sort(r / r.sum())[-best] for r in rows])
        np.testing.assert_array_equal(fused >= reached * (1 - 1e-4), want)
        assert scale[-1] <= 1


def check_monotone(fn: Callable, given: Scores, task: str, channel: int) -> None:
    """A channel that one task likes better loses its place to no other channel."""
    before = flat(fn(given))
    row = flat(given[task]).astype(float)
    row[channel] += 0.3 * row.max() + 1e-3
    after = flat(fn({**given, task: grouped(row)}))
    slack = 1e-6
    others = np.arange(TOTAL) != channel
    ahead = before[channel] > before[others] + slack
    assert (after[channel] >= after[others][ahead] - slack).all()


@each
@settings(max_examples=40)
@given(data=st.data())
def test_the_order_of_tasks_does_not_matter(name, data):
    given_scores = data.draw(scores(ties=True))
    order = data.draw(st.permutations(list(given_scores)))
    check_symmetric(FUSES[name], given_scores, order)


@each
@settings(max_examples=40)
@given(given_scores=scores(ties=True), seed=st.integers(0, 99))
def test_channels_have_no_numbers(name, given_scores, seed):
    """Permuting channels permutes what is fused: ties too are no matter of position."""
    order = np.random.default_rng(seed).permutation(TOTAL)
    shuffled = {t: grouped(flat(s)[order]) for t, s in given_scores.items()}
    want, got = flat(FUSES[name](given_scores))[order], flat(FUSES[name](shuffled))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@each
@settings(max_examples=60)
@given(scores(), st.integers(0, TOTAL - 1), st.data())
def test_a_better_score_never_costs_a_place(name, given_scores, channel, data):
    task = data.draw(st.sampled_from(list(given_scores)))
    check_monotone(FUSES[name], given_scores, task, channel)


@settings(max_examples=60)
@given(scores(), st.data())
def test_a_vote_counts_votes_at_any_threshold(given_scores, data):
    check_votes(fuse.vote, given_scores, data.draw(st.integers(1, len(given_scores))))


@settings(max_examples=60)
@given(scores(ties=True))
def test_intersection_below_majority_below_union(given_scores):
    low, middle, high = (
        flat(FUSES[n](given_scores)) for n in ("intersection", "majority", "union")
    )
    assert (low <= middle + 1e-7).all() and (middle <= high + 1e-7).all()


@settings(max_examples=30)
@given(scores(ties=True))
def test_names_are_those_of_votes(given_scores):
    n = len(given_scores)
    for fn, k in (
        (fuse.union, 1),
        (fuse.majority, math.ceil(n / 2)),
        (fuse.intersection, n),
    ):
        np.testing.assert_array_equal(
            flat(fn(given_scores)), flat(fuse.vote(given_scores, k))
        )


@each
@given(scores(), st.integers(-3, 3))
def test_the_scale_of_a_task_does_not_matter(name, given_scores, power):
    task = next(iter(given_scores))
    louder = {n: v * 10.0**power for n, v in given_scores[task].items()}
    want = flat(FUSES[name](given_scores))
    got = flat(FUSES[name]({**given_scores, task: louder}))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@each
@settings(max_examples=30)
@given(scores())
def test_tasks_that_agree_are_left_as_they_are(name, given_scores):
    one = next(iter(given_scores.values()))
    got = FUSES[name]({"x": one, "y": one, "z": one})
    assert {n: v.shape for n, v in got.items()} == {n: (s,) for n, s in SIZES.items()}
    np.testing.assert_allclose(flat(got), flat(one) / flat(one).sum(), rtol=1e-5)


def test_weighted_mean_by_hand():
    one = {"a": np.array([1.0, 3.0], np.float32), "b": np.array([0.0], np.float32)}
    two = {"a": np.array([0.0, 10.0], np.float32), "b": np.array([30.0], np.float32)}
    got = fuse.mean({"x": one, "y": two}, {"x": 3.0, "y": 1.0})
    np.testing.assert_allclose(got["a"], [0.75 * 0.25, 0.75 * 0.75 + 0.25 * 0.25])
    np.testing.assert_allclose(got["b"], [0.25 * 0.75])
    alone = fuse.mean({"x": one, "y": two}, {"x": 1.0, "y": 0.0})
    np.testing.assert_allclose(alone["a"], [0.25, 0.75])


def test_a_task_without_any_score_changes_nothing_but_the_scale():
    zero = grouped(np.zeros(TOTAL))
    one = grouped(np.arange(1.0, TOTAL + 1))
    got = flat(fuse.mean({"x": one, "y": zero}))
    np.testing.assert_allclose(got, flat(one) / flat(one).sum() / 2, rtol=1e-6)
    assert not np.isnan(flat(fuse.union({"x": one, "y": zero}))).any()


def test_channels_that_no_task_claims_get_the_least():
    """Two tasks whose heads are zero for each other: both keep theirs under union."""
    x = grouped([9, 8, 7, 6, 5, 0, 0, 0, 4, 3, 2, 0])
    y = grouped([0, 0, 0, 0, 0, 9, 8, 7, 4, 3, 2, 0])
    got = flat(fuse.union({"x": x, "y": y}))
    assert np.argmin(got) == TOTAL - 1
    assert got[:11].min() > got[11]


def test_errors_are_clear():
    one, two = grouped(np.arange(TOTAL)), grouped(np.ones(TOTAL))
    both = {"x": one, "y": two}
    for k in (0, 3):
        with pytest.raises(KeepError, match=f"k={k} of 2 tasks; k is between 1"):
            fuse.vote(both, k)
    for fn in FUSES.values():
        with pytest.raises(KeepError, match=r"0 tasks|tasks \[\]|no task"):
            fn({})
    with pytest.raises(KeepError, match="name different groups"):
        fuse.union({"x": one, "y": {"a": two["a"]}})
    with pytest.raises(DataError, match="NaN or infinite"):
        fuse.mean({"x": one, "y": grouped(np.full(TOTAL, np.nan))})
    for weights in ({"x": 1.0}, {"x": 0.0, "y": 0.0}, {"x": 1.0, "z": 1.0}):
        with pytest.raises(KeepError, match=r"weights .* do not fit"):
            fuse.mean(both, weights)


# Saboteurs: each law must find its breakage. ----------------------------------------


def _fixed(seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    return {f"t{t}": grouped(rng.permutation(TOTAL) + 1.0) for t in range(3)}


def test_saboteur_first_task_counts_double():
    def broken(given):
        weights = {t: 2.0 if i == 0 else 1.0 for i, t in enumerate(given)}
        return fuse.mean(given, weights)

    check_symmetric(fuse.mean, _fixed(), ["t2", "t1", "t0"])
    with pytest.raises(AssertionError):
        check_symmetric(broken, _fixed(), ["t2", "t1", "t0"])


def test_saboteur_one_vote_short():
    check_votes(fuse.vote, _fixed(), 2)
    with pytest.raises(AssertionError):
        check_votes(lambda s, k: fuse.vote(s, max(k - 1, 1)), _fixed(), 2)


def test_saboteur_votes_of_raw_scores():
    """The k-th largest score instead of rank: a task that shouts wins every vote."""

    def raw(given, k):
        rows = np.sort(np.stack([flat(s) for s in given.values()]), axis=0)
        return grouped(rows[len(given) - k])

    loud = _fixed()
    loud["t0"] = {n: v * 100 for n, v in loud["t0"].items()}
    check_votes(fuse.vote, loud, 2)
    with pytest.raises(AssertionError):
        check_votes(raw, loud, 2)


def test_saboteur_scores_upside_down():
    def broken(given):
        return {n: -v for n, v in fuse.mean(given).items()}

    with pytest.raises(AssertionError):
        for channel in range(TOTAL):
            check_monotone(broken, _fixed(), "t0", channel)
