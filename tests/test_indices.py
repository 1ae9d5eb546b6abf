"""Gather, scatter and slices at constant indices pick channels that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.resize import Kept
from cutjax.rules import indexing, picks
from cutjax.rules.base import Value
from cutjax.rules.constants import folded
from cutjax.unify import Solver, leaf_vars
from cutjax.walk import Walker

Middle = Callable[[jax.Array], jax.Array]
N = 12
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), "float32")
SWAP = np.r_[8:12, 0:8]
SHUFFLE = np.arange(N).reshape(3, 4).T.ravel()
SINGLE = np.random.default_rng(5).permutation(N)


def sizes(n: int) -> Any:
    return jnp.arange(1.0, n + 1)


def step(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return carry[:, SWAP] + x, carry.at[:, :4].add(1.0)[:, SWAP]


def sharded(h: jax.Array) -> jax.Array:
    mesh = jax.make_mesh((1,), ("m",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.sharding.PartitionSpec("m")
    shard = lambda h: jnp.sin(h[:, SWAP])  # noqa: E731
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=specs)(h)


def of_data(h: jax.Array) -> jax.Array:
    return (h**2).sum().astype(int) % N


def jitted(h: jax.Array, index: Any) -> jax.Array:
    return jax.jit(lambda a, i: a[:, i])(h, index)


def energy(h: jax.Array) -> jax.Array:
    return (jnp.sin(h[:, SWAP]) * h[:, SWAP] * sizes(N)).sum()


PICKED: dict[str, tuple[Middle, list[int]]] = {
    "permutation": (lambda h: h[:, SWAP], [4, 8]),
    "three runs": (lambda h: h[:, np.r_[2:4, 6:12, 0:2]], [2, 2, 2, 6]),
    "whole": (lambda h: h[:, np.arange(N)], [12]),
    "part": (lambda h: h[..., jnp.array([3, 4, 5, 6])], [3, 4, 5]),
    "one": (lambda h: h * h[:, jnp.array([2])], [2, 9]),
    "take": (lambda h: jnp.take(h, SWAP, axis=-1), [4, 8]),
    "take clipped": (lambda h: jnp.take(h, SWAP, axis=1, mode="clip"), [4, 8]),
    "along": (lambda h: jnp.take_along_axis(h, SWAP[None], axis=1), [4, 8]),
    "along all": (
        lambda h: jnp.take_along_axis(h, np.tile(SWAP, (3, 1)), axis=1),
        [4, 8],
    ),
    "negative": (lambda h: h[:, np.r_[-4:0, 0:8]], [4, 8]),
    "booleans": (lambda h: h[:, np.arange(N) < 5], [5, 7]),
    "computed": (lambda h: h[:, (jnp.arange(N) + 8) % N], [4, 8]),
    "inverse": (lambda h: h[:, SWAP][:, jnp.argsort(jnp.array(SWAP))], [4, 8]),
    "stacked": (
        lambda h: h[:, jnp.stack([jnp.arange(4), jnp.arange(4) + 6]).ravel()],
        [2, 2, 4, 4],
    ),
    "tiled": (lambda h: h[:, np.tile(np.arange(6), 2)], [6, 6]),
    "overlapping": (lambda h: h[:, np.r_[0:6, 3:9]], [3, 3, 3, 3]),
    "rows and columns": (lambda h: h[np.array([2, 0])[:, None], SWAP[None]], [4, 8]),
    "at one row": (lambda h: h + h[1, SWAP], [4]),
    "shuffle": (lambda h: h[:, SHUFFLE], [3, 4]),
    "traced shuffle": (
        lambda h: h[:, jnp.arange(N).reshape(4, 3).T.ravel()],
        [3, 4],
    ),
    "shuffled part": (lambda h: h[:, 4:][:, SHUFFLE[SHUFFLE < 8]], [2, 4, 4]),
    "repeated": (lambda h: h[:, np.repeat(np.arange(6), 2)], [6, 6]),
    "every third": (lambda h: h[:, jnp.arange(1, N, 3)], [4]),
    "vmap": (jax.vmap(lambda r: r[SWAP]), [4, 8]),
    "vmapped slice": (
        jax.vmap(lambda r: jax.lax.dynamic_slice(r, (2,), (5,))),
        [2, 5, 5],
    ),
    "jit": (lambda h: jitted(h, SWAP), [4, 8]),
    "shard_map": (sharded, [4, 8]),
    "remat": (jax.checkpoint(lambda h: jnp.sin(h[:, SWAP])), [4, 8]),
    "grad": (jax.grad(energy), [4, 8]),
    "grad of one form": (jax.grad(lambda h: jnp.sin(h[:, SHUFFLE]).sum()), [3, 4]),
    "scan": (
        lambda h: jax.lax.scan(step, h, jnp.ones((2, 3, N)))[1].sum(0),
        [4],
    ),
    "cond": (lambda h: jax.lax.cond(True, jitted, lambda a, i: a, h, SWAP), [4]),
    "slice of known start": (
        lambda h: jax.lax.dynamic_slice_in_dim(h, jnp.int32(3), 4, axis=1),
        [3, 4, 5],
    ),
    "clamped slice": (lambda h: jax.lax.dynamic_slice(h, (0, 11), (3, 4)), [4, 8]),
}
WRITTEN: dict[str, tuple[Middle, list[int]]] = {
    "add": (lambda h: h.at[:, :3].add(jnp.cos(h[:, 3:6])), [3, 6]),
    "add one": (lambda h: h.at[:, 2:9].add(1.0), [2, 3, 7]),
    "set": (lambda h: h.at[..., :2].set(h[..., 10:]), [2, 8]),
    "set zero": (lambda h: h.at[:, 7:].set(0.0), [5, 7]),
    "multiply": (lambda h: h.at[:, 4:].multiply(sizes(8)), [4, 8]),
    "one": (lambda h: h.at[:, 0].multiply(2), [11]),
    "one, one by one": (lambda h: h.at[1, 5].set(3.0), [5, 6]),
    "most": (lambda h: h.at[:, :5].max(0.1).at[:, 5:].min(0.2), [5, 7]),
    "temporal shift": (
        lambda h: (
            jnp.zeros_like(h)
            .at[1:, :4]
            .set(h[:-1, :4])
            .at[:-1, 4:8]
            .set(h[1:, 4:8])
            .at[:, 8:]
            .set(h[:, 8:])
        ),
        [4, 4, 4],
    ),
    "permuted": (lambda h: jnp.zeros_like(h).at[:, SWAP].set(h), [4, 8]),
    "permuted and added": (lambda h: h.at[:, SWAP].add(h), [4]),
    "shuffled": (lambda h: jnp.zeros_like(h).at[:, SHUFFLE].set(h), [3, 4]),
    "copies added": (
        lambda h: jnp.zeros((3, 6)).at[:, np.tile(np.arange(6), 2)].add(h),
        [6],
    ),
    "every other": (lambda h: h.at[:, ::2].set(-h[:, 1::2]), [6]),
    "vmap": (jax.vmap(lambda r: r.at[:3].add(2.0)), [3, 9]),
    "vmap over both": (jax.vmap(lambda r: r.at[SWAP].add(r[:N])), [4]),
    "grad": (jax.grad(lambda h: jnp.sin(h.at[:, 3:].multiply(h[:, :9])).sum()), [3]),
    "updated slice": (
        lambda h: jax.lax.dynamic_update_slice(h, h[:, :3] * 2, (0, 3)),
        [3, 6],
    ),
}
FORMS = {
    **{f"pick: {name}": form for name, form in PICKED.items()},
    **{f"write: {name}": form for name, form in WRITTEN.items()},
}


def model(middle: Middle) -> Any:
    return lambda p, x: middle(jnp.tanh(x @ p["z"]) @ p["a"]) @ p["b"]


def params(middle: Middle) -> Any:
    rng = np.random.default_rng(1)
    (out,) = jax.eval_shape(middle, jax.ShapeDtypeStruct((3, N), "float32")).shape[1:]
    shapes = {"z": (4, 5), "a": (5, N), "b": (out, 2)}
    return {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in shapes.items()}


def some(graph: cj.Graph, seed: int) -> dict[str, np.ndarray]:
    """A random keep; of each group something goes and something stays."""
    rng, keep = np.random.default_rng(seed), {}
    for group in graph.free:
        keep[group.name] = rng.random(group.size) < 0.6
        keep[group.name][rng.permutation(group.size)[:2]] = [True, False]
    return keep


class Cut(NamedTuple):
    graph: cj.Graph
    small: Any
    got: Any
    want: Any


def cut(middle: Middle, seed: int = 1) -> Cut:
    apply, full = model(middle), params(middle)
    graph = cj.trace(apply, full, X)
    keep = some(graph, seed)
    small_apply, small = cj.cut(apply, full, graph, keep)
    got = jax.jit(small_apply)(small, X)
    return Cut(graph, small, got, apply(cj.mask(full, graph, keep), X))


@pytest.mark.parametrize("name", FORMS)
def test_groups_and_equality(name: str) -> None:
    middle, expected = FORMS[name]
    for seed in range(2):
        found = cut(middle, seed)
        free = sorted(g.size for g in found.graph.free if g.name != "z:1")
        assert free == expected
        assert found.small["a"].shape[1] < N
        np.testing.assert_allclose(found.got, found.want, rtol=1e-4, atol=1e-5)


PINNED: dict[str, tuple[Middle, str]] = {
    "data": (lambda h: h[:, (jnp.arange(N) + of_data(h)) % N], indexing.INDEXED),
    "sliced by data": (
        lambda h: jax.lax.dynamic_slice_in_dim(h, of_data(h), 4, 1),
        indexing.INDEXED,
    ),
    "updated by data": (lambda h: h.at[:, of_data(h)].set(0.0), indexing.INDEXED),
    "counted in a loop": (
        lambda h: jax.lax.fori_loop(0, 3, lambda i, c: c.at[:, i].mul(2.0), h),
        indexing.INDEXED,
    ),
    "one by one": (lambda h: h[:, SINGLE], picks.ONE_BY_ONE),
    "reversed": (lambda h: h[:, np.arange(N)[::-1]], picks.ONE_BY_ONE),
    "some, one by one": (lambda h: h[..., np.array([9, 0, 5])], picks.ONE_BY_ONE),
    "sliding": (
        lambda h: h[:, (np.arange(9)[:, None] + np.arange(4)).ravel()],
        picks.ONE_BY_ONE,
    ),
    "written one by one": (lambda h: h.at[:, SINGLE].add(1.0), picks.ONE_BY_ONE),
    "a diagonal": (
        lambda h: jnp.stack([h] * N)[np.arange(N), 0, np.arange(N)][None],
        indexing.SEVERAL,
    ),
    "a table of channels": (
        lambda h: h[:, np.array([[0, 1], [3, 4]])].reshape(3, 4),
        indexing.SEVERAL,
    ),
    "outside": (lambda h: h.at[:, np.arange(8, 16)].set(0.0), indexing.OUTSIDE),
    "random": (
        lambda h: h[:, jax.random.permutation(jax.random.key(0), N)],
        indexing.NOT_FOLLOWED,
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_stays_whole_says_why(name: str) -> None:
    middle, reason = PINNED[name]
    group = cj.trace(model(middle), params(middle), X)["a:1"]
    assert group.pinned is not None and group.pinned.startswith(reason)
    assert "test_indices.py" in group.pinned


def test_embeddings_keep_their_rows() -> None:
    table, x = {"t": jnp.ones((7, 6)), "b": jnp.ones((6, 2))}, jnp.array([3, 1, 3])
    apply = lambda p, x: p["t"][x] @ p["b"]  # noqa: E731
    graph = cj.trace(apply, table, x)
    assert [g.name for g in graph.free] == ["t:1"]
    pinned = [g.pinned for g in graph.groups if g.name == "t:0"]
    assert pinned[0] is not None and pinned[0].startswith(indexing.INDEXED)


def test_one_constant_ties_no_two_arrays() -> None:
    """The constant is an index of two arrays, and a number in a third place."""
    index = jnp.array(SWAP)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        left, right = x @ p["l"], x @ p["r"]
        return (left[:, index] * index) @ p["a"] + right[:, index] @ p["b"]

    rng = np.random.default_rng(0)
    shapes = {"l": (4, N), "r": (4, N), "a": (N, 2), "b": (N, 2)}
    full = {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in shapes.items()}
    graph = cj.trace(apply, full, X)
    assert sorted(g.size for g in graph.free) == [4, 4, 8, 8]
    keep = some(graph, 3)
    small_apply, small = cj.cut(apply, full, graph, keep)
    want = apply(cj.mask(full, graph, keep), X)
    np.testing.assert_allclose(small_apply(small, X), want, rtol=1e-4, atol=1e-4)


def test_a_permuted_weight() -> None:
    def apply(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ p["a"][:, SWAP]) @ p["b"]

    full = {"a": jnp.ones((4, N)), "b": jnp.arange(2.0 * N).reshape(N, 2)}
    graph = cj.trace(apply, full, X)
    keep = some(graph, 0)
    assert sorted(g.size for g in graph.free) == [4, 8]
    small_apply, small = cj.cut(apply, full, graph, keep)
    want = apply(cj.mask(full, graph, keep), X)
    np.testing.assert_allclose(small_apply(small, X), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pick: permutation", "write: add", "pick: shuffle"])
def test_the_small_function_differentiates_and_vmaps(name: str) -> None:
    middle = FORMS[name][0]
    apply, full = model(middle), params(middle)
    graph = cj.trace(apply, full, X)
    keep = some(graph, 2)
    small_apply, small = cj.cut(apply, full, graph, keep)

    def grads(f: Any, p: Any) -> Any:
        rows = jax.vmap(lambda p, row: f(p, row[None]), in_axes=(None, 0))
        return jax.grad(lambda p: (rows(p, X) ** 2).sum())(p)

    got = jax.jit(lambda p: grads(small_apply, p))(small)
    masked = grads(apply, cj.mask(full, graph, keep))
    want = cj.cut_params(masked, graph, keep)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


# What is followed, and what the positions are. ---------------------------------------

A = np.array([[5, -7, 3], [0, 2, -1]])
B = np.array([[2, 2, -2], [3, -3, 4]])
INTEGERS: dict[str, Callable[..., Any]] = {
    "sum": lambda: jnp.array(A) + B * 3 - 1,
    "quotient": lambda: jax.lax.div(jnp.array(A), jnp.array(B)),
    "floor": lambda: jnp.array(A) // B,
    "remainder": lambda: jax.lax.rem(jnp.array(A), jnp.array(B)),
    "modulo": lambda: jnp.array(A) % B,
    "compared": lambda: jnp.where((jnp.array(A) >= B) & (jnp.array(B) != 2), A, -B),
    "either": lambda: (jnp.array(A) < B) | ~(jnp.array(A) == 3),
    "bits": lambda: jnp.array(A) ^ 5,
    "sorted": lambda: jnp.sort(jnp.array(A), axis=1),
    "order": lambda: jnp.argsort(jnp.array(A), axis=0),
    "iota": lambda: jax.lax.broadcasted_iota(jnp.int32, (2, 3), 1).T.reshape(-1)[1:],
    "joined": lambda: jnp.concatenate([jnp.array(A), jnp.array(B)], 1)[::-1, ::2],
    "stacked": lambda: jnp.stack([jnp.array(A), jnp.array(B)], 1).squeeze(),
    "clipped": lambda: jnp.clip(jnp.array(A), -2, 3),
    "tiled": lambda: jnp.tile(jnp.array(A), (1, 2)),
    "bytes": lambda: jnp.array(A).astype(jnp.uint8) + jnp.uint8(250),
    "size": lambda: jnp.abs(jnp.array(A)) * jnp.sign(jnp.array(B)),
    "remat": lambda: jax.checkpoint(lambda a: a + 1)(jnp.array(A)),
    "most": lambda: jnp.maximum(jnp.array(A), 0) - jnp.minimum(-jnp.array(B), 1),
}


def followed(fn: Callable[..., Any], *args: Any) -> np.ndarray | None:
    walker = Walker()
    jaxpr = jax.make_jaxpr(fn)(*args)
    ins = [Value(walker.solver.news(np.shape(a)), data=True) for a in args]
    frame = walker.run(jaxpr, ins)
    return folded(frame, frame.jaxpr.outvars[0])


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_followed(name: str) -> None:
    found, want = followed(INTEGERS[name]), INTEGERS[name]()
    assert found is not None and found.dtype == want.dtype
    np.testing.assert_array_equal(found, want)


def test_what_depends_on_an_input_or_is_large_is_not_followed() -> None:
    x = jnp.arange(3)
    assert followed(lambda x: x + 1, x) is None
    assert followed(lambda x: jax.jit(lambda y: jnp.arange(3) + y)(x), x) is None
    assert followed(lambda: jnp.arange(65_537) + 1) is None
    assert followed(lambda: jnp.floor(jnp.ones(3)).astype(int)) is None
    loop = lambda i: jax.lax.scan(lambda c, _: (c + 1, c), i, None, length=3)  # noqa: E731
    assert followed(lambda: loop(jnp.array(0))[1] + 0) is None


def check_positions(index: np.ndarray, size: int) -> bool:
    """Whether the axis was cut; if so, the picked axis has the masks of its places."""
    solver = Solver()
    var = solver.new(size)
    out = picks.picked(solver, var, index)
    if out is None:
        assert solver.pinned(var)
        return False
    rng, kept = np.random.default_rng(0), Kept()
    for i, leaf in enumerate(dict.fromkeys(leaf_vars(var))):
        if leaf.size > 1 and not leaf.pins:
            kept.assign(leaf, rng.random(leaf.size) < 0.6, f"g{i}")
    assert out.size == index.size
    np.testing.assert_array_equal(kept.mask(out), kept.mask(var)[index])
    return True


def test_positions_of_grids_and_blocks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(rng.integers(1, 5, size=3))
        grid = np.arange(np.prod(shape)).reshape(shape)
        order = tuple(rng.permutation(3))
        start = int(rng.integers(3))
        index = grid.transpose(order).ravel() + start
        assert check_positions(index, index.size + start + 1 + int(rng.integers(3)))
        blocks = np.split(np.arange(24), np.sort(rng.choice(24, 3, replace=False)))
        some_blocks = [blocks[i] for i in rng.integers(0, len(blocks), 3)]
        check_positions(np.concatenate(some_blocks), 24)
        check_positions(rng.integers(0, 9, 12), 9)


# Saboteurs. --------------------------------------------------------------------------


def test_saboteur_indices_that_are_not_renumbered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = picks.renumbered
    monkeypatch.setattr(
        indexing,
        "renumbered",
        lambda k, i, dims, _, batch: honest(k, i, dims, (), batch),
    )
    found = cut(PICKED["permutation"][0])
    assert not np.allclose(found.got, found.want, rtol=1e-2)


def test_saboteur_runs_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = picks._runs
    monkeypatch.setattr(picks, "_runs", lambda index: honest(index)[::-1])
    with pytest.raises(AssertionError):
        check_positions(SWAP, N)


def test_saboteur_a_forgotten_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_new_starts", lambda ev, ins, outs, args: args)
    found = cut(WRITTEN["updated slice"][0])
    assert not np.allclose(found.got, found.want, rtol=1e-2)
