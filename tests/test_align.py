"""A planted permutation is found, by weights and by activations; permuting changes
nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import close, graph_of
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax.dims import Axis, Concat, Fixed, Leaf, Product, incidence
from cutjax.errors import DataError, KeepError, MismatchError
from cutjax.merge import assign, terms
from cutjax.merge.align import align, align_all
from cutjax.merge.ascend import ascend, started
from cutjax.merge.blocks import blocks
from cutjax.merge.correlation import correlations
from cutjax.merge.moments import both, double, of_batch
from cutjax.merge.permute import compose, inverse, permute, places
from cutjax.merge.scaled import normalised
from cutjax.merge.structure import free_names
from cutjax.merge.weights import Weights
from cutjax.mirror import named_leaves


class Planted(NamedTuple):
    """A net on the host, and a copy of it with its channels in another order."""

    apply: Callable[..., Any]
    graph: cj.Graph
    params: Any
    order: dict[str, np.ndarray]
    copy: Any


@functools.cache
def traced(name: str) -> cj.Graph:
    return graph_of(cj, NETS[name]())  # shared with the laws


def drawn(graph: cj.Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    free = [g for g in graph.free if not g.ordered]
    return {g.name: np.roll(rng.permutation(g.size), 1) for g in free}


@functools.cache
def planted(name: str, seed: int = 0) -> Planted:
    net, graph = NETS[name](), traced(name)
    params = jax.tree.map(np.asarray, net.params)
    order = drawn(graph, seed)
    return Planted(net.apply, graph, params, order, permute(params, graph, order))


def equal(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


# Permuting. -------------------------------------------------------------------------

VARIED = (
    *("mlp", "tied_weights", "mixer", "vit_fused", "lstm", "option_a", "gram", "film"),
    "group_shuffle",
)


def check_function(name: str, permuted: Callable[..., Any]) -> None:
    net, graph = NETS[name](), traced(name)
    params = permuted(net.params, graph, drawn(graph))
    apply = jax.jit(net.apply)
    close(apply(params, *net.inputs), apply(net.params, *net.inputs), 2e-5)


@pytest.mark.parametrize("name", VARIED)
def test_permuting_changes_no_output(name):
    check_function(name, permute)


def by_members(params: Any, graph: cj.Graph, order: Any) -> Any:
    """A second permute, member by member: that of the law in test_laws.py."""
    named = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()}
    for name, moved in order.items():
        for member in graph[name].members:
            at, channel = incidence(member.layout, name)
            where = at[np.argsort(channel, kind="stable")].reshape(moved.size, -1)
            source = np.arange(named[member.path].shape[member.axis])
            source[where] = where[moved]
            named[member.path] = np.take(named[member.path], source, member.axis)
    return jax.tree.unflatten(graph.treedef, list(named.values()))


@pytest.mark.parametrize("name", by_turns([n for n in NETS if n != "gram"], 8))
def test_permuting_moves_every_member(name):
    """test_laws.py runs all nets whose members were moved like this."""
    _, graph, params, order, copy = planted(name)
    assert equal(by_members(params, graph, order), copy)


def forgetful(params: Any, graph: cj.Graph, order: Any) -> Any:
    """A permute that forgets the last member of every group."""
    whole = permute(params, graph, order)
    last = {group.members[-1].path for group in graph.free}
    leaves, tree = jax.tree.flatten(params)
    paths = named_leaves(params)
    kept = [
        old if path in last else new
        for path, old, new in zip(paths, leaves, jax.tree.leaves(whole), strict=True)
    ]
    return jax.tree.unflatten(tree, kept)


@pytest.mark.parametrize("name", ["mlp", "option_a", "gram"])
def test_saboteur_a_member_is_forgotten(name):
    with pytest.raises(AssertionError):
        check_function(name, forgetful)


def test_permutations_compose_and_have_inverses():
    _, graph, params, a, copy = planted("mlp")
    b = drawn(graph, 1)
    twice = permute(copy, graph, b)
    assert equal(permute(params, graph, compose(a, b)), twice)
    assert equal(permute(copy, graph, inverse(a)), params)
    part = {"first/kernel:1": a["first/kernel:1"]}
    assert equal(
        permute(params, graph, compose(part, b)),
        permute(permute(params, graph, part), graph, b),
    )


def test_what_mirrors_parameters_is_permuted_alike():
    _, graph, params, order, copy = planted("mlp")
    momenta = {"mu": params, "count": np.int32(3)}
    moved = permute(momenta, graph, order)
    assert equal(moved["mu"], copy) and moved["count"] == 3
    assert isinstance(jax.tree.leaves(moved)[0], np.ndarray | np.generic)
    same = permute(params, graph, {})
    assert all(map(lambda x, y: x is y, jax.tree.leaves(same), jax.tree.leaves(params)))


def test_wrong_permutations_are_errors():
    _, graph, params, _, _ = planted("mlp")
    pinned = next(g for g in graph.groups if g.pinned and g.size > 1)
    swap = np.arange(pinned.size)[::-1]
    with pytest.raises(KeepError, match="no group 'wrong'"):
        permute(params, graph, {"wrong": np.arange(3)})
    with pytest.raises(KeepError, match="is pinned"):
        permute(params, graph, {pinned.name: swap})
    assert permute(params, graph, {pinned.name: swap[::-1]}) is not None
    for bad, said in (
        (np.zeros(7, int), "does not hold each of 0 ... 6 once"),
        (np.arange(6), r"int64\[6\], not int\[7\]"),
    ):
        with pytest.raises(KeepError, match=said):
            permute(params, graph, {"first/kernel:1": bad})
    with pytest.raises(MismatchError, match="the first difference"):
        permute({"else": np.ones(3)}, graph, {})


def test_blocks_hold_an_array_whole():
    heads = Product((Fixed(2), Leaf("h", 2), Concat((Leaf("w", 3), Fixed(1)))))
    axes = (Concat((heads, Leaf("g", 4))), Product((Leaf("w", 3), Leaf("w", 3))))
    array = np.random.default_rng(0).normal(size=(20, 9))
    free = frozenset("hwg")
    parts = [(b.labels, b.of(array)) for b in blocks(axes, free)]
    assert sum(part.size for _, part in parts) == array.size
    assert np.isclose(sum((part**2).sum() for _, part in parts), (array**2).sum())
    order = {"h": np.array([1, 0]), "w": np.array([2, 0, 1]), "g": np.arange(4)[::-1]}
    at = [places(axis, order) for axis in axes]
    moved = array[np.ix_(*at)]
    for (labels, part), block in zip(parts, blocks(axes, free), strict=True):
        for i, label in enumerate(labels):
            part = np.take(part, order[label], i) if label else part
        assert np.array_equal(block.of(moved), part)


# A planted permutation. -------------------------------------------------------------


def check_found(found: Callable[..., Any], name: str, seed: int = 0) -> None:
    p = planted(name, seed)
    order, info = found(p.graph, p.params, p.copy)
    assert equal(permute(p.copy, p.graph, order), p.params)
    for name in p.order:
        assert info.after[name] == pytest.approx(1, abs=1e-5)
        assert info.before[name] <= info.after[name] + 1e-6


@pytest.mark.parametrize("name", by_turns(NETS, 4))
def test_weights_find_a_planted_permutation(name):
    check_found(align, name)


def unmoved(graph: cj.Graph, a: Any, b: Any) -> Any:
    _, info = align(graph, a, b)
    return {g.name: np.arange(g.size) for g in graph.free}, info


@pytest.mark.parametrize("name", ["mlp", "preact_resnet", "vit_fused", "gram"])
def test_saboteur_nothing_is_aligned(name):
    with pytest.raises(AssertionError):
        check_found(unmoved, name)


def independent(name: str, seed: int) -> Any:
    """Parameters of a net drawn anew."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> np.ndarray:
        return (rng.normal(size=leaf.shape) * np.std(leaf)).astype(np.float32)

    return jax.tree.map(draw, planted(name).params)


@pytest.mark.parametrize("name", ["mlp", "preact_resnet", "vit_fused", "gru"])
def test_coordinate_ascent_never_descends_and_beats_chance(name):
    p = planted(name)
    other, free = independent(name, 3), free_names(p.graph)
    a, b = (normalised(named_leaves(x)) for x in (p.params, other))
    goal = Weights(p.graph, a, b, free, free)
    assert isinstance(goal, terms.Objective)

    def value(orders: Any) -> float:
        return sum(term.value(orders) for term in goal.terms)

    start = started(goal, {})
    found = ascend(goal, start)
    chance = [value(drawn(p.graph, seed)) for seed in range(50)]
    assert value(found.orders) >= value(start) - 1e-4
    assert value(found.orders) > max(chance)
    again = ascend(goal, found.orders)
    assert again.sweeps == 1 and all(
        np.array_equal(again.orders[g], found.orders[g]) for g in free
    )


def test_groups_that_are_told_apart_can_stay():
    p = planted("mlp")
    order, info = align(p.graph, p.params, p.copy, fixed="middle/kernel:1")
    assert np.array_equal(order["middle/kernel:1"], np.arange(6))
    want = inverse(p.order)["first/kernel:1"]
    assert np.array_equal(order["first/kernel:1"], want)
    assert set(info.after) == {"first/kernel:1"}
    with pytest.raises(KeepError, match="no group 'wrong'"):
        align(p.graph, p.params, p.copy, fixed=["wrong"])


def other_classes(classes: int) -> tuple[Planted, Any]:
    """A copy of a plain net with a head of other classes."""
    p = planted("mlp")
    head = np.ones((6, classes), np.float32)
    return p, {**p.copy, "last": {"kernel": head, "bias": head[0]}}


def test_heads_may_tell_other_classes_apart():
    p, copy = other_classes(5)
    order, _ = align(p.graph, p.params, copy)
    assert all(np.array_equal(order[g], o) for g, o in inverse(p.order).items())
    moved = permute(copy, p.graph, order)
    assert np.array_equal(moved["first"]["kernel"], p.params["first"]["kernel"])
    assert moved["last"]["kernel"].shape == (6, 5)
    data = batches("mlp")
    heard, _ = align(p.graph, p.params, copy, apply=p.apply, batches=data)
    check_varying(p, heard)


def test_other_architectures_name_the_first_difference():
    p = planted("mlp")
    wide = {**p.copy, "middle": {**p.copy["middle"], "kernel": np.ones((7, 9))}}
    for params, said in (
        (wide, r"'middle/kernel' is \[7, 9\], not \[7, 6\]"),
        ({"first": p.copy["first"]}, r"'last/bias' \[3\] is missing"),
        ({**p.copy, "more": np.ones(2)}, r"'more' \[2\] is not in the graph"),
    ):
        with pytest.raises(MismatchError, match=f"'b'.*first difference: {said}"):
            align(p.graph, p.params, params)
    with pytest.raises(KeepError, match="no method 'greedy'"):
        align(p.graph, p.params, p.copy, method="greedy")
    with pytest.raises(DataError, match="both"):
        align(p.graph, p.params, p.copy, apply=p.apply)


# By activations. --------------------------------------------------------------------


def batches(name: str, number: int = 2, examples: int = 12) -> list[Any]:
    rng = np.random.default_rng(5)

    def draw(like: Any) -> np.ndarray:
        shape = (examples, *like.shape[1:])
        if np.issubdtype(like.dtype, np.integer):
            return rng.integers(0, int(like.max()) + 1, shape).astype(like.dtype)
        return rng.normal(size=shape).astype(like.dtype)

    inputs = NETS[name]().inputs
    return [(tuple(map(draw, map(np.asarray, inputs))),) for _ in range(number)]


def check_varying(p: Planted, order: Any) -> None:
    """Channels that vary are found; nothing tells the others apart."""
    nets, data = {"a": p.params}, batches(p_name(p))
    found = correlations(p.apply, p.graph, nets, data, progress=False)
    assert found
    for group, want in inverse(p.order).items():
        varies = np.ones(want.size, bool)
        if group in found:
            varies = np.diag(found[group]) > 0
        assert varies.any()
        assert np.array_equal(order[group][varies], want[varies]), group


def p_name(p: Planted) -> str:
    return next(name for name in NETS if traced(name) is p.graph)


@pytest.mark.parametrize("name", ["mlp", "primes", "preact_resnet", "vit_fused"])
def test_activations_find_a_planted_permutation(name):
    p = planted(name)
    how = {"apply": p.apply, "batches": batches(name), "progress": False}
    order, info = align(p.graph, p.params, p.copy, **how)
    check_varying(p, order)
    assert all(info.before[g] <= info.after[g] + 1e-6 for g in p.order)
    with pytest.raises(AssertionError):
        check_varying(p, {g: np.arange(o.size) for g, o in order.items()})


def still() -> tuple[Any, cj.Graph, Any, list[Any]]:
    """A network of which half of the channels never move: their biases are low."""

    def apply(p: Any, x: Any) -> Any:
        for name in "abc":
            x = jax.nn.relu(x @ p[name] + p[name + "_bias"])
        return x @ p["d"]

    rng, sizes = np.random.default_rng(4), (5, 8, 10, 12, 3)
    p = {}
    for name, *shape in zip("abcd", sizes, sizes[1:], strict=False):
        p[name] = rng.normal(size=shape).astype(np.float32)
        low = np.where(rng.permutation(shape[1]) < shape[1] // 2, -100.0, 0.1)
        p[name + "_bias"] = low.astype(np.float32)
    del p["d_bias"]
    data = [rng.normal(size=(64, 5)).astype(np.float32)]
    return apply, cj.trace(apply, p, data[0]), p, data


@pytest.mark.parametrize("method", ["hungarian", "sinkhorn"])
@pytest.mark.parametrize("together", [False, True])
def test_channels_that_never_move_are_told_apart_by_weights(together, method):
    apply, graph, p, data = still()
    orders = {name: drawn(graph, seed) for seed, name in enumerate("bc")}
    nets = {"a": p} | {name: permute(p, graph, order) for name, order in orders.items()}
    how = {"apply": apply, "batches": data, "progress": False, "method": method}
    found, infos = align_all(graph, nets, together=together, **how)
    for name in nets:
        assert equal(permute(nets[name], graph, found[name]), p)
    after = infos["c"].after
    assert all(v == pytest.approx(0.5, abs=1e-4) for v in after.values()), after


def test_groups_read_in_loops_only_are_matched_by_weights():
    p = planted("scanned")
    data = batches("scanned")
    found = correlations(p.apply, p.graph, {"a": p.params}, data, progress=False)
    assert set(found) < set(p.order)
    order, _ = align(p.graph, p.params, p.copy, apply=p.apply, batches=data)
    check_varying(p, order)


def layer(w: Any, x: Any) -> Any:
    return jax.nn.relu(x @ w["a"]) @ w["b"]


def layers(seed: int = 0) -> tuple[cj.Graph, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    nets = {
        name: {
            "a": rng.normal(size=(4, 5)).astype(np.float32),
            "b": rng.normal(size=(5, 2)).astype(np.float32),
        }
        for name in ("one", "two")
    }
    return cj.trace(layer, nets["one"], np.ones((1, 4), np.float32)), nets


def test_correlations_are_those_of_all_data_at_once():
    graph, nets = layers()
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(90, 4)) + 3).astype(np.float32)
    hidden = np.concatenate([np.maximum(x @ n["a"], 0) for n in nets.values()], 1)
    with np.errstate(invalid="ignore"):
        want = np.nan_to_num(np.corrcoef(hidden.T.astype(np.float64)))
    for parts in ([x], np.split(x, 3), [x[:7], x[7:8], x[8:]]):
        (got,) = correlations(layer, graph, nets, parts, progress=False).values()
        np.testing.assert_allclose(got, want, atol=2e-5)
    tuples = [((part,), "target") for part in np.split(x, 3)]
    (got,) = correlations(layer, graph, nets, tuples, progress=False).values()
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_small_changes_of_large_values_are_seen():
    rng = np.random.default_rng(0)
    rows = (1e3 + rng.normal(size=(400, 3))).astype(np.float32)
    parts = [double(of_batch([jnp.asarray(part)])) for part in np.split(rows, 8)]
    whole = functools.reduce(both, parts)
    wide = rows.astype(np.float64)
    want = np.cov(wide.T, bias=True) * len(rows)
    np.testing.assert_allclose(whole.square, want, rtol=1e-3, atol=0.2)
    careless = jnp.asarray(rows).T @ rows - 400 * np.outer(rows.mean(0), rows.mean(0))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(careless, want, rtol=1e-3, atol=0.2)


def test_batches_of_one_size_compile_once():
    graph, nets = layers()
    calls = []

    def counted(w: Any, x: Any) -> Any:
        calls.append(x.shape)
        return layer(w, x)

    x = np.ones((8, 4), np.float32)
    for number in (1, 5):
        assert correlations(counted, graph, nets, [x] * number, progress=False)
        assert len(calls) == 1  # two networks of one function, and once for good


def test_constant_channels_correlate_with_nothing():
    graph, nets = layers()
    nets["one"]["a"][:, 2] = 0
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    (got,) = correlations(layer, graph, nets, [x], progress=False).values()
    assert np.isfinite(got).all()
    assert not got[2].any() and not got[:, 2].any()
    order, _ = align(graph, nets["one"], nets["two"], apply=layer, batches=[x])
    assert sorted(order["a:1"].tolist()) == [0, 1, 2, 3, 4]


def test_bad_data_is_an_error():
    graph, nets = layers()
    with pytest.raises(DataError, match="the data is empty"):
        correlations(layer, graph, nets, [], progress=False)
    nets["two"]["a"][0, 0] = np.nan
    x = np.ones((8, 4), np.float32)
    with pytest.raises(DataError, match=r"'a:1' in network 'two' are NaN"):
        correlations(layer, graph, nets, [x], progress=False)
    with pytest.raises(DataError, match="'a' of network 'b' is NaN"):
        align(graph, nets["one"], nets["two"], progress=False)
    for t in (0.0, -1.0, np.nan):
        with pytest.raises(KeepError, match=f"temperature={t}: give a number above 0"):
            align(graph, nets["one"], nets["one"], method="sinkhorn", temperature=t)


# Assignments. -----------------------------------------------------------------------


def test_assignments_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(2):
        s = rng.normal(size=(5, 5))
        every = [*itertools.permutations(range(5))]
        best = max(every, key=lambda o: s[np.arange(5), o].sum())
        assert assign.hungarian(s).order.tolist() == [*best]
        cold = assign.sinkhorn(s, temperature=0.01)
        assert cold.order.tolist() == [*best]


def test_soft_assignments_are_doubly_stochastic_and_harden_when_cold():
    s = np.random.default_rng(0).normal(size=(6, 6))
    warmth = []
    for temperature in (10.0, 1.0, 0.1, 0.01):
        soft = assign.sinkhorn(s, temperature).soft
        assert soft is not None
        np.testing.assert_allclose(soft.sum(0), 1, atol=1e-3)
        np.testing.assert_allclose(soft.sum(1), 1, atol=1e-3)
        warmth.append(-(soft * np.log(soft + 1e-30)).sum())
    assert warmth == sorted(warmth, reverse=True)


def test_what_is_within_is_matched_at_best():
    pairs = np.random.default_rng(0).normal(size=(2, 3, 2, 3))
    got = assign.best_within(pairs)
    for i, j in np.ndindex(2, 2):
        orders = itertools.permutations(range(3))
        want = max(pairs[i, range(3), j, order].sum() for order in orders)
        assert got[i, j] == pytest.approx(want)


def test_sinkhorn_finds_a_planted_permutation_too():
    p = planted("vit_fused")
    order, info = align(p.graph, p.params, p.copy, method="sinkhorn")
    assert equal(permute(p.copy, p.graph, order), p.params)
    assert set(info.soft) == set(p.order)
    for group, soft in info.soft.items():
        assert soft.shape == (p.graph[group].size,) * 2


# Several networks. ------------------------------------------------------------------


def noisy(name: str, number: int, noise: float) -> dict[str, Any]:
    """Copies of a net, each with noise and in an order of its own."""
    p, out = planted(name), {}
    for seed in range(number):
        fresh = independent(name, seed)
        near = jax.tree.map(lambda a, b: a + noise * b, p.params, fresh)
        out[f"n{seed}"] = permute(near, p.graph, drawn(p.graph, seed))
    return out


@pytest.mark.parametrize("together", [False, True])
def test_several_networks_are_brought_into_the_order_of_one(together):
    p = planted("preact_resnet")
    networks = noisy("preact_resnet", 4, 0.1)
    found, infos = align_all(p.graph, networks, reference="n2", together=together)
    target = drawn(p.graph, 2)
    for seed, (name, order) in enumerate(found.items()):
        want = compose(inverse(drawn(p.graph, seed)), target)
        assert all(np.array_equal(order[g], want[g]) for g in want), name
        assert name == "n2" or min(infos[name].after.values()) > 0.9
    with pytest.raises(KeepError, match="no network 'n9'"):
        align_all(p.graph, networks, reference="n9")


def likeness(graph: cj.Graph, networks: Any, found: Any) -> float:
    """The sum over all pairs of networks of the products of their weights."""
    moved = [
        normalised(named_leaves(permute(networks[name], graph, order)))
        for name, order in found.items()
    ]
    paths = [path for path, axes in graph.axes.items() if _holds(axes, graph)]
    pairs = itertools.combinations(moved, 2)
    return sum(float(np.vdot(a[p], b[p])) for a, b in pairs for p in paths)


def _holds(axes: tuple[Axis, ...], graph: cj.Graph) -> bool:
    return any(set(block.labels) != {None} for block in blocks(axes, free_names(graph)))


def test_together_all_pairs_agree_better_than_with_a_reference():
    p = planted("mlp_tasks")
    rises = []
    for seed in range(0, 12, 4):
        networks = {f"n{i}": independent("mlp_tasks", seed + i) for i in range(4)}
        apart, _ = align_all(p.graph, networks)
        joint, _ = align_all(p.graph, networks, together=True)
        assert all((o == np.arange(o.size)).all() for o in joint["n0"].values())
        values = [likeness(p.graph, networks, found) for found in (apart, joint)]
        rises.append(values[1] - values[0])
    assert min(rises) > -1e-3 and max(rises) > 1


def test_several_networks_are_aligned_by_activations_in_one_pass():
    p = planted("mlp")
    networks = {"a": p.params, "b": p.copy, "c": planted("mlp", 1).copy}
    for together in (False, True):
        once = iter(batches("mlp"))
        found, _ = align_all(
            p.graph, networks, apply=p.apply, batches=once, together=together
        )
        check_varying(p, found["b"])
        check_varying(planted("mlp", 1), found["c"])
