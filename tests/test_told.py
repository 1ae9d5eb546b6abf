"""Channels that constants tell apart: found, left in place, merged as they stand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.tools import run
from nets import NETS
from test_merge import normal

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.graph_json import graph_from_json, graph_to_json
from cutjax.merge import OWN, Network

X = normal(0, 2, 4, 3)
VECTOR = np.linspace(0.5, 2.0, 6, dtype=np.float32)


def sines(length: int, width: int) -> jax.Array:
    """Positions as of the first Transformer, made inside of the function."""
    rates = 10.0 ** (-jnp.arange(width) / width)
    return jnp.sin(jnp.arange(length)[:, None] * rates)


MADE = {
    "added": lambda h: h + sines(4, 6),
    "closed over": lambda h: h * VECTOR,
    "jitted": lambda h: jax.jit(lambda h: h + sines(4, 6))(h),
    "chosen": lambda h: jnp.where(jnp.arange(6) > 2, h, 0),
    "read": lambda h: h + (h @ VECTOR)[..., None],
    "in a loop": lambda h: jax.lax.fori_loop(0, 2, lambda i, h: h * VECTOR, h),
    "in a while": lambda h: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * VECTOR), (0, h)
    )[1],
    "in a branch": lambda h: jax.lax.cond(
        (h * 0).sum() < 1, lambda h: h * VECTOR, abs, h
    ),
    "in the weights": None,
}
ALIKE = {
    "a scalar": lambda h: 2 * h + 1,
    "ones": lambda h: h + (h @ np.full(6, 1 / 6, np.float32))[..., None],
    "of positions": lambda h: h + np.arange(4, dtype=np.float32)[:, None],
    "spread": lambda h: h * np.broadcast_to(np.arange(4.0)[:, None], (4, 6)),
    "a mask": lambda h: jnp.where(jnp.tril(jnp.ones((4, 4)))[0][:, None] > 0, h, 0),
    "normed": lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True),
    "picked": lambda h: h[:, jnp.array([1, 0, 3, 2])],
}


def net(between: Any) -> Any:
    def apply(p: Any, x: Any) -> Any:
        kernel = p["a"] * VECTOR if between is None else p["a"]
        h = jnp.tanh(x @ kernel)
        return (h if between is None else between(h)) @ p["b"]

    return apply


def params(seed: int = 0) -> Any:
    return {"a": normal(seed, 3, 6), "b": normal(seed + 1, 6, 2)}


def traced(between: Any) -> cj.Graph:
    return cj.trace(net(between), params(), X)


def is_symmetry(between: Any) -> bool:
    """By experiment: whether the function stays the same under a permutation."""
    p, order = params(), np.array([3, 5, 0, 4, 1, 2])
    moved = {"a": p["a"][:, order], "b": p["b"][order]}
    apply = net(between)
    return np.allclose(apply(moved, X), apply(p, X), atol=1e-5)


@pytest.mark.parametrize("how", MADE)
def test_a_constant_that_differs_is_found(how):
    group = traced(MADE[how])["a:1"]
    assert group.pinned is None
    assert "test_told.py" in str(group.ordered)
    assert not is_symmetry(MADE[how])


@pytest.mark.parametrize("how", ALIKE)
def test_a_constant_that_is_alike_is_none(how):
    group = traced(ALIKE[how])["a:1"]
    assert group.pinned is None
    assert group.ordered is None
    assert is_symmetry(ALIKE[how])


def test_what_cannot_be_looked_at_may_differ():
    """A constant that is traced, in a function within another one that is."""
    found = []

    def outer(vector: Any) -> Any:
        graph = cj.trace(net(lambda h: h * vector), params(), X)
        found.append(graph["a:1"].ordered)
        return vector

    jax.jit(outer)(jnp.ones(6))
    assert found[0]


@pytest.mark.parametrize("order", [[2, 1, 0], [0, 2, 0, 1, 2]])
def test_what_is_picked_from_an_axis_that_stays_whole_has_places(order):
    """Blue, green, red: colours may go, but not change places."""
    p, index = {"a": normal(0, len(order), 6), "b": normal(1, 6, 2)}, np.array(order)

    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh(x[..., index] @ p["a"]) @ p["b"]

    graph = cj.trace(apply, p, X)
    assert graph["a:0"].pinned is None
    assert "test_told.py" in str(graph["a:0"].ordered)
    assert graph["a:1"].ordered is None
    with pytest.raises(KeepError, match="a constant tells them apart"):
        cj.merge.permute(p, graph, {"a:0": np.roll(np.arange(len(order)), 1)})


def test_words_and_files_say_so():
    graph = traced(MADE["added"])
    assert "in order: a constant tells them apart" in graph.explain("a:1")
    assert graph_from_json(graph_to_json(graph)) == graph
    old = graph_to_json(graph)
    del old["groups"][0]["ordered"]
    assert graph_from_json(old).groups[0].ordered is None


def test_they_stay_in_place():
    graph, order = traced(MADE["added"]), np.arange(6)[::-1]
    with pytest.raises(KeepError, match="a constant tells them apart"):
        cj.merge.permute(params(), graph, {"a:1": order})
    p = params()
    copy = {"a": p["a"][:, order], "b": p["b"][order]}
    found, _ = cj.merge.align(graph, p, copy)
    assert np.array_equal(found["a:1"], np.arange(6))
    free, _ = cj.merge.align(traced(ALIKE["a scalar"]), p, copy)
    assert np.array_equal(free["a:1"], order)


@pytest.mark.parametrize(
    "name", ["grouped_rotary", "multi_query", "llama", "gptj", "moe_top2"]
)
def test_known_nets_align_all_else(name):
    found = NETS[name]()
    graph = cj.trace(found.apply, found.params, *found.inputs)
    orders = {g.name: np.roll(np.arange(g.size), 1) for g in graph.free}
    orders = {n: order for n, order in orders.items() if not graph[n].ordered}
    copy = cj.merge.permute(found.params, graph, orders)
    got, _ = cj.merge.align(graph, found.params, copy)
    back = cj.merge.permute(copy, graph, got)
    jax.tree.map(np.testing.assert_array_equal, back, found.params)


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_networks_merge_where_they_stand(kept):
    """Equal networks, some channels shared in place: each answers as it did."""
    apply, graph = net(MADE["added"]), traced(MADE["added"])
    one = Network(apply, params(), graph)
    slots = np.where(np.arange(6) % 3 < kept / 2, np.arange(6), OWN)
    sharing = {"a:1": dict.fromkeys("pq", slots)}
    merged = cj.merge.average(dict.fromkeys("pq", one), sharing, X)
    for out in run(merged.apply, merged.params, X).values():
        np.testing.assert_allclose(out, apply(one.params, X), atol=1e-5)


def test_nothing_else_may_meet():
    apply, graph = net(MADE["added"]), traced(MADE["added"])
    networks = {n: Network(apply, params(i), graph) for i, n in enumerate("pq")}
    moved = {"p": np.arange(6), "q": np.array([OWN, 0, 2, 3, 4, 5])}
    with pytest.raises(KeepError, match="constant tells apart"):
        cj.merge.average(networks, {"a:1": moved}, X)
    alike = np.eye(12) + np.eye(12)[[*range(11, -1, -1)]] / 2
    sharing, info = cj.merge.zipit(graph, {"a:1": alike}, "pq")
    assert all(np.array_equal(s, np.arange(6)) for s in sharing["a:1"].values())
    assert info.correlations["a:1"].tolist() == [0.0] * 6
    with pytest.raises(KeepError, match="leave it out of `shared`"):
        cj.merge.zipit(graph, {"a:1": alike}, "pq", width=0.5)


def test_pam_types_them_where_they_stand():
    apply, graph = net(MADE["added"]), traced(MADE["added"])
    networks = {n: Network(apply, params(i), graph) for i, n in enumerate("pq")}
    scores = {"p": {"a:1": np.arange(1.0, 7)}, "q": {"a:1": np.arange(6.0, 0, -1)}}
    sharing, info = cj.merge.pam(networks, scores, [X], exclusive=0.2, progress=False)
    assert sum(info.exclusive["a:1"].values()) >= 2
    for slots in sharing["a:1"].values():
        assert (slots[slots >= 0] == np.flatnonzero(slots >= 0)).all()
    cj.merge.average(networks, sharing, X)


def embedded(code: Any) -> Any:
    """Words as one-hot codes times a table; what else is made of them is free."""

    def apply(p: Any, words: Any) -> Any:
        return jnp.tanh(code(words) @ p["a"]) @ p["b"]

    return apply


CODES = {
    "jax": lambda t: jax.nn.one_hot(t, 6),
    "by hand": lambda t: (t[..., None] == jnp.arange(6)).astype(jnp.float32),
    "shifted": lambda t: jax.nn.one_hot(jnp.clip(t + 1, 0, 5), 6),
    "jitted": jax.jit(lambda t: jax.nn.one_hot(t, 6)),
    "in a loop": lambda t: jax.lax.map(lambda s: jax.nn.one_hot(s, 6), t),
    "a constant": lambda t: np.arange(6) == t[..., None],
}


@pytest.mark.parametrize("code", CODES)
def test_a_table_read_by_one_hot_codes_stays_whole(code):
    """Rows of words that calibration does not hold would go first, without a word."""
    p, words = {"a": normal(1, 6, 5), "b": normal(2, 5, 2)}, np.arange(4)[None]
    graph = cj.trace(embedded(CODES[code]), p, words)
    assert "one-hot" in (graph["a:0"].pinned or "")
    assert [g.name for g in graph.free] == ["a:1"]
    keep = {"a:1": np.arange(5) > 1}
    small, q = cj.cut(embedded(CODES[code]), p, graph, keep)
    assert q["a"].shape == (6, 3)
    assert small(q, words).shape == (1, 4, 2)


def test_what_a_network_counts_through_itself_may_be_cut():
    """An expert is chosen by numbers that the network makes: that is no input."""

    def apply(p: Any, x: Any) -> Any:
        chosen = jax.nn.one_hot((x @ p["router"]).argmax(-1), 5)
        return jnp.einsum("be,bd,edf->bf", chosen, x, p["experts"])

    p = {"router": normal(1, 3, 5), "experts": normal(2, 5, 3, 2)}
    graph = cj.trace(apply, p, normal(3, 4, 3))
    assert [g.name for g in graph.free] == ["experts:0"]
