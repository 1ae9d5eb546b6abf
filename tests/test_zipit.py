"""ZipIt! finds planted copies across and within networks, as a slow greedy does."""

from __future__ import annotations

import doctest
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import DataError, KeepError
from cutjax.merge.clusters import Clusters
from cutjax.merge.correlation import correlations
from cutjax.merge.permute import permute
from cutjax.merge.sharing import OWN, check
from cutjax.merge.zipit import zipit

GROUP = "a:1"
ZIPIT: Callable[..., Any] = zipit


def net(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


@functools.cache
def graph_of(n: int) -> cj.Graph:
    return cj.trace(net, {"a": np.ones((3, n)), "b": np.ones((n, 2))}, np.ones((1, 3)))


def names(networks: int) -> list[str]:
    return list("abcdef"[:networks])


def correlated(seed: int, m: int) -> np.ndarray:
    """Of random channels of which some do alike."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, m // 2 + 1)) @ rng.standard_normal((m // 2 + 1, m))
    return np.corrcoef(x + 0.3 * rng.standard_normal(x.shape), rowvar=False)


def tied(seed: int, m: int) -> np.ndarray:
    """Of very few values, and negative ones."""
    c = np.random.default_rng(seed).integers(-2, 3, (m, m)) / 2
    return np.triu(c, 1) + np.triu(c, 1).T + np.eye(m)


def slots_of(zip_fn, c: np.ndarray, networks: int, **options) -> np.ndarray:
    """Where channels go: [networks, n]."""
    graph, who = graph_of(len(c) // networks), names(networks)
    sharing, _ = zip_fn(graph, {GROUP: c.copy()}, who, **options)
    check(graph, who, sharing)
    return np.stack([sharing[GROUP][t] for t in who])


# Planted. ---------------------------------------------------------------------------


def check_finds_a_copy_in_another_order(zip_fn, seed: int, networks: int):
    rng, n = np.random.default_rng(seed), 12
    x = rng.standard_normal((200, n))
    orders = [rng.permutation(n) for _ in range(networks)]
    c = np.corrcoef(np.concatenate([x[:, o] for o in orders], 1), rowvar=False)
    slots = slots_of(zip_fn, c, networks)
    # The first network keeps its places; a channel goes where its original went.
    assert np.array_equal(slots[0], np.arange(n))
    for order, found in zip(orders, slots, strict=True):
        assert np.array_equal(orders[0][found], order)


@pytest.mark.parametrize("networks", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_in_another_order_is_zipped_across(seed, networks):
    check_finds_a_copy_in_another_order(zipit, seed, networks)


def test_saboteur_nothing_is_moved():
    def still(graph, correlations, names, **options):
        alike = {t: np.arange(graph[GROUP].size) for t in names}
        return {GROUP: alike}, None

    with pytest.raises(AssertionError):
        check_finds_a_copy_in_another_order(still, 0, 2)


def check_finds_twins(zip_fn, seed: int):
    """Each network has every channel twice; the networks have nothing in common."""
    rng, n = np.random.default_rng(seed), 10
    x = rng.standard_normal((500, n))
    twice = np.concatenate([np.tile(x[:, :5], 2), np.tile(x[:, 5:], 2)], 1)
    order = np.concatenate([rng.permutation(n), n + rng.permutation(n)])
    c = np.corrcoef(twice[:, order], rowvar=False)
    slots = slots_of(zip_fn, c, 2).ravel()
    original = order % 5 + 5 * (order // 10)
    together = slots[:, None] == slots[None]
    assert np.array_equal(together, original[:, None] == original[None])


@pytest.mark.parametrize("seed", range(3))
def test_twins_are_zipped_within(seed):
    check_finds_twins(zipit, seed)


def test_saboteur_across_only():
    with pytest.raises(AssertionError):
        check_finds_twins(functools.partial(ZIPIT, within=False), 0)


def test_a_network_alone_loses_its_twins():
    c = np.kron(np.ones((2, 2)), np.eye(4))
    assert slots_of(zipit, c, 1, width=0.5).tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]


def test_correlations_of_networks_are_zipped():
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((3, 8)), "b": rng.standard_normal((8, 2))}
    params, graph = {k: np.float32(v) for k, v in params.items()}, graph_of(8)
    order = rng.permutation(8)
    nets = {"one": params, "two": permute(params, graph, {GROUP: order})}
    x = rng.standard_normal((100, 3)).astype(np.float32)
    found = correlations(net, graph, nets, [x], progress=False)
    sharing, info = zipit(graph, found, list(nets))
    assert np.array_equal(sharing[GROUP]["two"], order)
    np.testing.assert_allclose(info.correlations[GROUP], 1, atol=1e-4)
    assert info.within[GROUP] == {"one": 0, "two": 0}


# Against a slow greedy that knows clusters as trees. --------------------------------


class Tree:
    def __init__(self, channels, born=0, parts=()):
        self.channels, self.born, self.parts = sorted(channels), born, parts

    def owners(self, n):
        return {c // n for c in self.channels}


def alike(c, a, b, repeat):
    """Correlation of two trees, from the parts of the younger one."""
    if not a.born and not b.born:
        return c[a.channels[0], b.channels[0]]
    young, other = (a, b) if a.born > b.born else (b, a)
    sizes = [len(p.channels) for p in young.parts]
    each = [alike(c, p, other, repeat) for p in young.parts]
    mean = (sizes[0] * each[0] + sizes[1] * each[1]) / sum(sizes)
    return mean * repeat if mean > 0 else mean


def slow(c, n, width, beta, repeat):
    """Sets of channels that are merged."""
    m, networks = len(c), len(c) // n
    budget = np.inf if beta >= 1 else int(beta * (m - width) / networks + 1e-9)
    trees, lost, full = [Tree([i]) for i in range(m)], dict.fromkeys(range(m), 0), False
    while len(trees) > width:
        large = [len(t.channels) > 1 for t in trees]
        full |= networks > 2 and budget < np.inf and sum(large) == width
        best = None
        for i, a in enumerate(trees):
            for j, b in enumerate(trees[:i]):
                common = a.owners(n) & b.owners(n)
                if any(lost[t] >= budget for t in common):
                    continue
                if full and large[i] == large[j]:
                    continue
                value = alike(c, a, b, repeat)
                key = (-value, b.channels[0], a.channels[0])
                best = min(best, (key, j, i)) if best else (key, j, i)
        _, j, i = best
        first, second = trees[j], trees[i]
        for t in first.owners(n) & second.owners(n):
            lost[t] += 1
        both = Tree(
            first.channels + second.channels, m - len(trees) + 1, (first, second)
        )
        trees = sorted(
            [t for k, t in enumerate(trees) if k not in (i, j)] + [both],
            key=lambda t: t.channels[0],
        )
    return [t.channels for t in trees]


def check_equals_the_slow_one(zip_fn, made, seed, networks, width, beta, repeat):
    n = 6
    c = made(seed, networks * n)
    options = {"width": {GROUP: width}, "within": beta, "repeat": repeat}
    slots = slots_of(zip_fn, c, networks, **options).ravel()
    found = {tuple(np.flatnonzero(slots == s)) for s in np.unique(slots)}
    assert found == {tuple(t) for t in slow(c, n, width, beta, repeat)}


@pytest.mark.parametrize("made", [correlated, tied], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "networks, width, beta, repeat",
    [
        (1, 3, 1.0, 1.0),
        (2, 6, 1.0, 1.0),
        (2, 4, 1.0, 0.5),
        (2, 6, 0.4, 1.0),
        (2, 6, 0.0, 0.5),
        (3, 6, 1.0, 0.3),
        (3, 6, 0.0, 1.0),
        (3, 5, 0.6, 0.8),
        (4, 6, 0.2, 1.0),
    ],
)
def test_it_equals_a_slow_greedy(made, networks, width, beta, repeat):
    for seed in range(4):
        check_equals_the_slow_one(zipit, made, seed, networks, width, beta, repeat)


def test_saboteur_a_cluster_is_compared_by_its_first_channel(monkeypatch):
    join = Clusters.join

    def broken(self, i, j, repeat):
        self.similarity[j] = self.similarity[i]
        join(self, i, j, repeat)

    monkeypatch.setattr(Clusters, "join", broken)
    with pytest.raises(AssertionError):
        for seed in range(4):
            check_equals_the_slow_one(zipit, correlated, seed, 2, 4, 1.0, 1.0)


def test_saboteur_chains_are_not_damped():
    def undamped(*args, repeat, **options):
        return ZIPIT(*args, **options)

    with pytest.raises(AssertionError):
        for seed in range(4):
            check_equals_the_slow_one(undamped, correlated, seed, 2, 4, 1.0, 0.5)


# Widths and budgets. ----------------------------------------------------------------


def check_widths_are_met(zip_fn, seed: int, networks: int, width: int, beta: float):
    n = 9
    c = correlated(seed, networks * n)
    slots = slots_of(zip_fn, c, networks, width={GROUP: width}, within=beta)
    assert len(np.unique(slots)) == width and slots.min() >= 0
    merges = networks * n - width
    for own in slots:
        lost = n - len(np.unique(own))
        assert beta == 1 or lost <= beta * merges / networks


CASES = [(1, 4, 1.0), (2, 9, 0.0), (2, 5, 1.0), (3, 9, 0.0), (3, 9, 0.3), (4, 9, 0.0)]


@pytest.mark.parametrize("networks, width, beta", CASES)
def test_widths_and_budgets_are_met(networks, width, beta):
    for seed in range(10):
        check_widths_are_met(zipit, seed, networks, width, beta)


def test_saboteurs_of_widths():
    def wide(*args, width, **options):
        return ZIPIT(*args, **options)

    def spent(*args, within, **options):
        return ZIPIT(*args, **options)

    with pytest.raises(AssertionError):
        check_widths_are_met(wide, 0, 2, 5, 1.0)
    with pytest.raises(AssertionError):
        for seed in range(10):
            check_widths_are_met(spent, seed, 2, 9, 0.0)


def test_a_share_is_a_width():
    c = correlated(0, 20)
    by_share = slots_of(zipit, c, 2, width=0.5)
    assert np.array_equal(by_share, slots_of(zipit, c, 2, width={GROUP: 5}))


def test_channels_that_do_not_vary_find_a_place():
    c = correlated(0, 16)
    c[[0, 9, 10]] = 0
    c[:, [0, 9, 10]] = 0
    assert len(np.unique(slots_of(zipit, c, 2))) == 8


# Partial zipping and errors. --------------------------------------------------------


def two_layers() -> cj.Graph:
    def apply(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    sizes = {"a": (3, 4), "b": (4, 5), "c": (5, 2)}
    return cj.trace(apply, {k: np.ones(s) for k, s in sizes.items()}, np.ones((1, 3)))


def test_what_is_not_zipped_stays():
    graph, who = two_layers(), ["one", "two"]
    c = {"a:1": correlated(0, 8), "b:1": correlated(1, 10)}
    for some, given in ((["a:1"], c), (None, {"a:1": c["a:1"]})):
        sharing, info = zipit(graph, given, who, shared=some)
        assert set(sharing) == {"a:1", "b:1"} and set(info.within) == {"a:1"}
        for t in who:
            assert (sharing["a:1"][t] >= 0).all() and (sharing["b:1"][t] == OWN).all()


BAD = {
    "no correlations of 'b:1'": {"shared": ["b:1"]},
    "no group 'z'": {"shared": ["z"]},
    "pinned": {"shared": ["c:1"]},
    "width of 'a:1' is 5, not 1": {"width": {"a:1": 5}},
    "width of 'b:1', not zipped": {"width": {"b:1": 2}},
    "no share": {"width": 1.5},
    "4 is the least": {"width": {"a:1": 3}, "within": False},
    "within in 0 ... 1": {"within": 2.0},
    "name one at least": {"names": []},
}


@pytest.mark.parametrize("message", BAD)
def test_errors(message):
    options = {"names": ["one", "two"], **BAD[message]}
    with pytest.raises(KeepError, match=message):
        zipit(two_layers(), {"a:1": correlated(0, 8)}, **options)  # type: ignore[arg-type]


def test_bad_correlations_are_errors():
    with pytest.raises(DataError, match=r"\[6, 6\], not \[8, 8\]"):
        zipit(two_layers(), {"a:1": np.eye(6)}, ["one", "two"])
    with pytest.raises(DataError, match="not finite"):
        zipit(two_layers(), {"a:1": np.eye(8) * np.nan}, ["one", "two"])


def test_doctests():
    done = doctest.testmod(sys.modules[zipit.__module__])
    assert done.attempted and not done.failed
