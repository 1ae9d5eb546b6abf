"""PAM's types of channels, where planted and by definition; sharings that fit."""

from __future__ import annotations

import doctest
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import BudgetError, DataError, KeepError
from cutjax.merge import sharing
from cutjax.merge.evidence import by_information, by_scores
from cutjax.merge.informed import information
from cutjax.merge.regroup import SHARED, pam_sharing, regroup, types
from cutjax.merge.sharing import DROPPED, OWN, check, from_permutations, until

EXAMPLES, EACH = 128, 4


def labels(seed: int, tasks: int) -> np.ndarray:
    """Balanced bits, drawn apart: [tasks, N]."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(np.arange(EXAMPLES) % 2) for _ in range(tasks)])


SETS = {2: [(), (0,), (1,), (0, 1)], 3: [(), (0,), (1,), (2,), (0, 1), (0, 1, 2)]}
"""Which tasks' labels four channels each carry."""


def planted(seed: int, y: np.ndarray) -> np.ndarray:
    """Channels of any scale; those of no task follow a nuisance of their own."""
    rng = np.random.default_rng(seed)
    nuisance = rng.integers(0, 2, EXAMPLES)
    values = [
        sum((2**k * y[t] for k, t in enumerate(some)), 0 * nuisance)
        if some
        else nuisance
        for some in SETS[len(y)]
    ]
    x = np.repeat(np.stack(values, 1).astype(float), EACH, 1)
    x += 0.05 * rng.standard_normal(x.shape)
    return x * rng.uniform(0.1, 10, x.shape[1]) + rng.standard_normal(x.shape[1])


def wanted_types(tasks: int) -> np.ndarray:
    """By the definition: needed by none, by one, by several."""
    kinds = {0: lambda some: DROPPED, 1: lambda some: some[0]}
    found = [kinds.get(len(s), lambda some: SHARED)(s) for s in SETS[tasks]]
    return np.repeat(found, EACH)


# The planted case. ------------------------------------------------------------------

HOW = [
    {"alpha": 0.1},
    {"alpha": 0.15},
    {"alpha": 0.2},
    {"shared": 0.25},
    {"exclusive": 0.5},
    {"shared": {"g": 4}},
    {"exclusive": {"g": 8}},
]


def check_planted_types_are_found(regroup_fn, seed: int, tasks: int, how: dict):
    y, names = labels(seed, tasks), [f"t{t}" for t in range(tasks)]
    x, rng = planted(seed + 100, y), np.random.default_rng(seed)
    orders = {n: {"g": rng.permutation(x.shape[1])} for n in names}
    # Network t holds the channel of cluster i at orders[t][i].
    given = {"g": {n: x[:, np.argsort(o["g"])] for n, o in orders.items()}}
    levels = by_information(given, dict(zip(names, y, strict=True)), orders)
    found, info = regroup_fn(levels, names, **how)
    want = wanted_types(tasks)
    assert np.array_equal(found["g"], want), found["g"]
    assert info.shared["g"] == (want == SHARED).sum()
    assert info.dropped["g"] == EACH and not info.rescued["g"]
    assert info.exclusive["g"] == dict.fromkeys(names, EACH)


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_planted_types_are_found(seed, how):
    check_planted_types_are_found(regroup, seed, 2, how)


@pytest.mark.parametrize("how", [{"alpha": 0.2}, {"shared": 1 / 3}, {"exclusive": 0.5}])
@pytest.mark.parametrize("seed", range(3))
def test_planted_types_of_three_tasks_are_found(seed, how):
    check_planted_types_are_found(regroup, seed, 3, how)


def test_saboteurs_of_types():
    def alone(levels, names, **how):  # exclusive to the task it tells nothing of
        found, info = regroup(levels, names, **how)
        return {g: np.where(v >= 0, 1 - v, v) for g, v in found.items()}, info

    def raw(levels, names, **how):  # the order alone, no matter how much is told
        ranks = {g: v.argsort(1).argsort(1) / v.shape[1] for g, v in levels.items()}
        return regroup(ranks, names, **how)

    for broken in (alone, raw):
        with pytest.raises(AssertionError):
            check_planted_types_are_found(broken, 0, 2, {"alpha": 0.15})


# The bound. -------------------------------------------------------------------------


def entropy(x: np.ndarray, variance: float) -> float:
    out = 0.0
    for a in x:
        near = [np.exp(-((a - b) ** 2).sum() / (2 * variance)) for b in x]
        out -= np.log(np.mean(near)) / len(x)
    return out


def told(x: np.ndarray, y: np.ndarray, variance: float) -> float:
    """Information of a set of channels about labels [N, b]."""
    out = 0.0
    for label in y.T:
        out += entropy(x, variance)
        for value in set(label.tolist()):
            of = label == value
            out -= of.mean() * entropy(x[of], variance)
    return out


def check_growth_equals_a_loop(information_fn, y: np.ndarray, variance: float):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((len(y), 5)) + y.reshape(len(y), -1)[:, :1] * [
        0,
        0,
        1,
        2,
        3,
    ]
    found = information_fn(x, y, variance)
    x, y = (x - x.mean(0)) / x.std(0), y.reshape(len(y), -1)
    chosen: list[int] = []
    for channel, value in zip(found.order, found.information, strict=True):
        left = [c for c in range(x.shape[1]) if c not in chosen]
        each = {c: told(x[:, [*chosen, c]], y, variance) for c in left}
        assert value == pytest.approx(min(each.values()), abs=2e-6)
        assert each[channel] == pytest.approx(min(each.values()), abs=2e-6)
        chosen.append(int(channel))


BITS = np.random.default_rng(0).integers(0, 2, (20, 2))
LABELS = {"bits": BITS[:, 0], "classes": BITS.sum(1), "several": np.float32(BITS)}


@pytest.mark.parametrize("variance", [0.1, 1.0])
@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_growth_equals_a_loop(y, variance):
    check_growth_equals_a_loop(information, y, variance)


def test_saboteur_another_variance():
    def wide(x, y, variance):
        return information(x, y, 2 * variance)

    with pytest.raises(AssertionError):
        check_growth_equals_a_loop(wide, BITS[:, 0], 0.1)


def test_what_cannot_be_told_apart_joins_last_in_order():
    y = labels(0, 1)[0]
    x = np.random.default_rng(0).standard_normal((EXAMPLES, 60))
    x[:, :20] = y[:, None]
    found = information(x, y)
    assert found.information[-1] == pytest.approx(np.log(2))
    same = found.order[found.information == found.information[-1]]
    assert set(range(20)) <= set(same) and (np.diff(same) > 0).all()
    assert (found.levels <= np.log(2) + 1e-9).all()


def test_bad_data_are_errors():
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    with pytest.raises(DataError, match="3 labels for 4"):
        information(x, y[:3])
    with pytest.raises(DataError, match="NaN"):
        information(x * np.nan, y)
    with pytest.raises(DataError, match="same for all"):
        information(x, np.stack([y, y * 0], 1))
    with pytest.raises(DataError, match="nothing about 'two'"):
        by_information({"g": {"one": x}}, {"two": y}, {})
    with pytest.raises(DataError, match="negative"):
        by_scores({"one": {"g": np.float32([1, -1])}}, {})


# Types, thresholds and budgets. -----------------------------------------------------


def by_definition(member: np.ndarray) -> list[int]:
    """D, E_t and the rest, as sets."""
    tasks, n = member.shape
    sets = [set(np.flatnonzero(row)) for row in member]
    whole = set(range(n))
    dropped = whole.intersection(*sets)
    out = dict.fromkeys(dropped, DROPPED)
    for t in range(tasks):
        others = whole.intersection(*(s for u, s in enumerate(sets) if u != t))
        out |= dict.fromkeys(others - dropped, t)
    return [out.get(c, SHARED) for c in range(n)]


def check_types_by_definition(types_fn, tasks: int):
    member = np.array(list(itertools.product([False, True], repeat=tasks))).T
    assert types_fn(member).tolist() == by_definition(member)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_types_are_those_of_the_definition(tasks):
    check_types_by_definition(types, tasks)


def test_saboteur_irrelevant_to_any_is_dropped():
    def greedy(member):
        return np.where(member.any(0), DROPPED, SHARED)

    with pytest.raises(AssertionError):
        check_types_by_definition(greedy, 2)


def drawn(seed: int, tasks: int, n: int = 20) -> np.ndarray:
    """Levels with ties."""
    return np.random.default_rng(seed).integers(0, 12, (tasks, n)) / 12


def check_symmetric(regroup_fn, seed: int, tasks: int, how: dict):
    levels, names = drawn(seed, tasks), [f"t{t}" for t in range(tasks)]
    order = np.random.default_rng(seed).permutation(tasks)
    plain, _ = regroup_fn({"g": levels}, names, **how)
    other, _ = regroup_fn({"g": levels[order]}, [names[t] for t in order], **how)
    back = np.where(other["g"] >= 0, order[other["g"].clip(0)], other["g"])
    assert np.array_equal(back, plain["g"])


ALL = [{"alpha": 0.6}, {"alpha": 1.0}, {"shared": 0.3}, {"exclusive": 0.3}]


@pytest.mark.parametrize("how", ALL, ids=str)
def test_types_are_symmetric_in_tasks(how):
    for seed, tasks in itertools.product(range(6), (2, 3)):
        check_symmetric(regroup, seed, tasks, how)


def test_saboteur_the_first_task_goes_first():
    def biased(levels, names, **how):
        first = {g: np.concatenate([v[:1] / 2, v[1:]]) for g, v in levels.items()}
        return regroup(first, names, **how)

    with pytest.raises(AssertionError):
        for seed in range(6):
            check_symmetric(biased, seed, 2, {"alpha": 0.6})


def check_budget_is_met_closely(regroup_fn, seed: int, tasks: int, what: str):
    """At least as many as wanted, and no alpha gives fewer that are enough.

    No alpha beyond the one with most exclusive channels: those drop more and more.
    """
    levels, names = drawn(seed, tasks), [f"t{t}" for t in range(tasks)]
    every = [-1.0, *np.unique(levels)]
    kinds = [np.array(by_definition(levels <= a)) for a in every]
    number = [
        int(((k == SHARED) if what == "shared" else (k >= 0)).sum()) for k in kinds
    ]
    for want in range(levels.shape[1] + 1):
        how = {what: {"g": want}}
        if want > max(number):
            with pytest.raises(BudgetError, match=f"{max(number)} are the most"):
                regroup_fn({"g": levels}, names, **how)
            continue
        found, info = regroup_fn({"g": levels}, names, **how)
        rising = number[: np.argmax(number) + 1] if np.argmax(number) else number
        best = min(v for v in rising if v >= want)
        at = np.array(by_definition(levels <= info.alpha["g"]))
        assert ((at == SHARED) if what == "shared" else (at >= 0)).sum() == best
        assert info.rescued["g"] or np.array_equal(found["g"], at)


@pytest.mark.parametrize("what", ["shared", "exclusive"])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_budgets_are_met_as_closely_as_levels_tell(tasks, what):
    for seed in range(4):
        check_budget_is_met_closely(regroup, seed, tasks, what)


def test_saboteur_a_budget_that_is_a_channel_short():
    def short(levels, names, shared):
        less = {g: max(n - 1, 0) for g, n in shared.items()}
        return regroup(levels, names, shared=less)

    with pytest.raises(AssertionError):
        check_budget_is_met_closely(short, 0, 2, "shared")


def test_a_share_is_of_all_groups_with_one_alpha():
    levels = {"g": drawn(0, 2), "h": drawn(1, 2, 30)}
    _, info = regroup(levels, ["a", "b"], shared=0.5)
    assert sum(info.shared.values()) >= 25 and info.alpha["g"] == info.alpha["h"]
    found, info = regroup(levels, ["a", "b"], shared={"h": 10})
    assert (found["g"] == SHARED).all() and info.shared["h"] >= 10


def check_nobody_is_left_without(regroup_fn):
    levels = np.array([[0.1, 0.2, 0.3], [0.1, 0.4, 0.2], [0.1, 0.9, 0.9]])
    found, info = regroup_fn({"g": levels}, ["a", "b", "c"], alpha=0.5)
    # The best of `a` is exclusive to `c`, and so is that of `b`.
    assert found["g"].tolist() == [DROPPED, SHARED, SHARED]
    assert info.rescued["g"] == [1, 2]
    found, info = regroup_fn({"g": levels}, ["a", "b", "c"], alpha=1.0)
    assert found["g"].tolist() == [DROPPED, SHARED, 0]


def test_the_last_channel_of_a_network_is_kept():
    check_nobody_is_left_without(regroup)


def test_saboteur_a_network_is_left_without():
    def plain(levels, names, alpha):
        kinds = {g: types(v <= alpha) for g, v in levels.items()}
        return kinds, regroup(levels, names, alpha=alpha)[1]

    with pytest.raises(AssertionError):
        check_nobody_is_left_without(plain)


def test_wrong_wishes_are_errors():
    levels = {"g": drawn(0, 2)}
    for how in ({}, {"alpha": 0.1, "shared": 0.5}):
        with pytest.raises(KeepError, match="one of alpha"):
            regroup(levels, ["a", "b"], **how)
    with pytest.raises(KeepError, match="no group to regroup"):
        regroup({}, ["a", "b"], shared=0.5)
    with pytest.raises(KeepError, match="21 exclusive channels of 'g', which has 20"):
        regroup(levels, ["a", "b"], exclusive={"g": 21})
    with pytest.raises(KeepError, match="no levels of 'h'"):
        regroup(levels, ["a", "b"], shared={"h": 1})
    with pytest.raises(KeepError, match="no share"):
        regroup(levels, ["a", "b"], shared=1.5)
    with pytest.raises(DataError, match="of 3 tasks"):
        regroup(levels, ["a", "b", "c"], alpha=0.1)


def test_levels_of_scores_are_shares():
    scores = {"a": {"g": np.float32([3, 0, 1])}, "b": {"g": np.float32([1, 2, 1])}}
    found = by_scores(scores, {"b": {"g": np.array([2, 0, 1])}})
    np.testing.assert_allclose(found["g"], [[1, 0, 0.25], [0.5, 0.25, 1]])
    zero = by_scores({"a": {"g": np.float32([0, 0])}}, {})
    assert zero["g"].tolist() == [[0, 0]]


# Sharings. --------------------------------------------------------------------------


@functools.cache
def graph() -> cj.Graph:
    def apply(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    sizes = {"a": (3, 4), "b": (4, 5), "c": (5, 2)}
    return cj.trace(apply, {k: np.ones(s) for k, s in sizes.items()}, jnp.ones((1, 3)))


ORDERS = {"one": {}, "two": {"a:1": np.array([2, 0, 3, 1])}}


def check_aligned_channels_meet(sharing_fn):
    found = sharing_fn(graph(), ORDERS)
    check(graph(), ["one", "two"], found)
    for i, channel in enumerate(ORDERS["two"]["a:1"]):
        assert found["a:1"]["one"][i] == found["a:1"]["two"][channel] == i
    assert np.array_equal(found["b:1"]["two"], np.arange(5))
    assert sharing.shared_widths(found) == {"a:1": 4, "b:1": 5}


def test_aligned_channels_meet():
    check_aligned_channels_meet(from_permutations)


def test_saboteur_the_permutation_itself():
    def broken(graph, permutations):
        found = from_permutations(graph, permutations)
        found["a:1"]["two"] = permutations["two"]["a:1"]
        return found

    with pytest.raises(AssertionError):
        check_aligned_channels_meet(broken)


def check_clusters_go_where_their_type_says(pam_fn):
    kinds = {"a:1": np.array([SHARED, 0, 1, DROPPED])}
    found = pam_fn(graph(), ["one", "two"], ORDERS, kinds)
    check(graph(), ["one", "two"], found)
    assert found["a:1"]["one"].tolist() == [0, OWN, DROPPED, DROPPED]
    # Of `two`, channels 2, 0, 3 and 1 are in clusters 0, 1, 2 and 3.
    assert found["a:1"]["two"].tolist() == [DROPPED, DROPPED, 0, OWN]
    assert np.array_equal(found["b:1"]["two"], np.arange(5))
    assert sharing.own_widths(found)["a:1"] == {"one": 1, "two": 1}


def test_clusters_go_where_their_type_says():
    check_clusters_go_where_their_type_says(pam_sharing)


def test_saboteur_types_of_channels_not_of_clusters():
    def broken(graph, names, permutations, types):
        plain = {name: {} for name in names}
        return pam_sharing(graph, names, plain, types)

    with pytest.raises(AssertionError):
        check_clusters_go_where_their_type_says(broken)


def test_types_that_do_not_fit_are_errors():
    for kinds in ([0, 1, 2, SHARED], [0, 1, SHARED], [-1, 0, 0, 0]):
        with pytest.raises(KeepError, match="not types of 4 channels"):
            pam_sharing(graph(), ["one", "two"], ORDERS, {"a:1": np.array(kinds)})
    whole, part = np.array([SHARED, SHARED]), np.array([SHARED, 0])
    pam_sharing(graph(), ["one", "two"], ORDERS, {"c:1": whole})
    with pytest.raises(KeepError, match="shared as it stands; it is pinned"):
        pam_sharing(graph(), ["one", "two"], ORDERS, {"c:1": part})


def test_partial_sharing():
    found = until(graph(), ["one", "two"], from_permutations(graph(), ORDERS), ["a:1"])
    check(graph(), ["one", "two"], found)
    assert found["a:1"]["two"].tolist() == [1, 3, 0, 2]
    assert sharing.own_widths(found)["b:1"] == {"one": 5, "two": 5}
    with pytest.raises(KeepError, match="no group 'z'"):
        until(graph(), ["one"], {}, ["z"])


SLOTS = np.arange(4)
BAD = {
    "no group 'z'": {"z": {"one": SLOTS}},
    "no network 'two'": {"a:1": {"one": SLOTS, "two": SLOTS}},
    "says nothing of 'one'": {"a:1": {}},
    r"is int64\[3\], not int\[4\]": {"a:1": {"one": SLOTS[:3]}},
    r"is float64\[4\], not int": {"a:1": {"one": SLOTS * 1.0}},
    "holds 4, which is neither": {"a:1": {"one": SLOTS + 1}},
    "holds -3, which is neither": {"a:1": {"one": SLOTS - 3}},
    "shared as it stands; it is pinned": {"c:1": {"one": np.array([0, OWN])}},
}


@pytest.mark.parametrize("message", BAD)
def test_sharings_that_do_not_fit_are_errors(message):
    with pytest.raises(KeepError, match=message):
        check(graph(), ["one"], BAD[message])


def test_several_channels_may_meet():
    check(graph(), ["one"], {"a:1": {"one": np.array([0, 0, OWN, DROPPED])}})
    check(graph(), ["one"], {"c:1": {"one": np.arange(2)}})


@pytest.mark.parametrize(
    "name", ["alphas", "evidence", "informed", "regroup", "sharing"]
)
def test_doctests(name):
    done = doctest.testmod(sys.modules[f"cutjax.merge.{name}"])
    assert done.attempted and not done.failed
