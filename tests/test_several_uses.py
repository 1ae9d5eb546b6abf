"""Weights that serve in several places, and kernels put together of several."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compensate import normal, off, quick as quick, ridge

import cutjax as cj
from cutjax.errors import KeepError
from cutjax.merge.merged import answers
from cutjax.mirror import named_leaves
from cutjax.recover.apart import taken_apart
from cutjax.recover.lockstep import halts_of, passing, segment
from cutjax.recover.program import program
from cutjax.recover.stops import stops_of
from cutjax.rules import control

module = importlib.import_module("cutjax.recover.walk")
stops = importlib.import_module("cutjax.recover.stops")
QUIET: Any = {"progress": False}


def test_tied_weights_are_fitted_to_all_their_readers_at_once():
    def apply(p, x):
        once = jnp.tanh(jnp.tanh(x @ p["a"]) @ p["w"])
        return jnp.tanh(once @ p["w"]) @ p["out"]

    p = {"a": normal(0, 5, 8), "w": normal(1, 8, 8) / 2, "out": normal(2, 8, 3)}
    x = normal(3, 60, 5)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(8, 2, 5)}
    k = keep["a:1"]
    got, fits = cj.compensate(apply, p, graph, keep, [x], damping=1e-2, **QUIET)
    h = np.tanh(x.astype(np.float64) @ p["a"])
    then = np.tanh(h @ p["w"])
    makes = np.concatenate([(h @ p["w"])[:, k], (then @ p["w"])[:, k]])
    # First beside what the parent reads, then to what the child reads with that.
    reads = np.concatenate([h[:, k], then[:, k]])
    once = ridge(reads, makes, p["w"][k][:, k], 1e-2)
    reads = np.concatenate([h[:, k], np.tanh(h[:, k] @ once)])
    want = ridge(reads, makes, once, 1e-2)
    np.testing.assert_allclose(got["w"], want, atol=1e-3)
    # What comes after them is fitted to what they make now.
    mine = np.tanh(np.tanh(h[:, k] @ want) @ want)
    out = ridge(mine, np.tanh(then @ p["w"]) @ p["out"], p["out"][k], 1e-2)
    np.testing.assert_allclose(got["out"], out, atol=1e-3)
    assert sorted(f.path for f in fits)[-2:] == ["out", "w"]


def repeated(p: Any, x: Any) -> Any:
    """A block of the same weights and biases, three times."""
    for _ in range(3):
        x = jnp.tanh(x @ p["up"] + p["c"]) @ p["down"] + p["e"]
    return x @ p["out"]


def of_constants() -> Any:
    """Parameters of which some hidden channels never move, but are not zero."""
    p = {"up": normal(0, 6, 10), "c": normal(1, 10), "down": normal(2, 10, 6) / 2}
    p |= {"e": normal(3, 6), "out": normal(4, 6, 2)}
    keep = {"up:1": off(10, 1, 4, 7)}
    p["up"][:, ~keep["up:1"]] = 0
    return p, keep, [normal(s, 40, 6) for s in range(5, 9)]


def test_a_bias_that_all_uses_have_in_common_makes_up_for_what_never_moves():
    p, keep, data = of_constants()
    graph = cj.trace(repeated, p, data[0])
    got, _ = cj.compensate(repeated, p, graph, keep, data, **QUIET)
    small, as_cut = cj.cut(repeated, p, graph, keep)
    for x in data:
        want = repeated(p, x)
        np.testing.assert_allclose(small(got, x), want, atol=2e-3)
        assert np.abs(small(as_cut, x) - want).max() > 0.1
    shift = np.tanh(p["c"][~keep["up:1"]]) @ p["down"][~keep["up:1"]]
    np.testing.assert_allclose(got["e"], p["e"] + shift, atol=2e-3)


def levels(p: Any, x: Any) -> Any:
    """A head of one kernel over several levels, each with a bias of its own."""
    found = []
    for i in "012":
        x = jnp.tanh(x @ p["next"])
        h = jnp.tanh(x @ p["up"] + p["c"]) @ p["down"]
        found.append(h - p["mean"] if i == "0" else h + p[i])
    return jnp.concatenate(found, -1)


def test_biases_of_their_own_make_up_for_what_never_moves():
    p, keep, data = of_constants()
    p |= {"next": normal(9, 6, 6), "1": normal(10, 6), "2": normal(11, 6)}
    p["mean"] = p.pop("e")
    graph = cj.trace(levels, p, data[0])
    got, _ = cj.compensate(levels, p, graph, keep, data, **QUIET)
    small, _ = cj.cut(levels, p, graph, keep)
    for x in data:
        np.testing.assert_allclose(small(got, x), levels(p, x), atol=2e-3)
    shift = np.tanh(p["c"][~keep["up:1"]]) @ p["down"][~keep["up:1"]]
    for name, sign in (("mean", -1), ("1", 1), ("2", 1)):
        np.testing.assert_allclose(got[name], p[name] + sign * shift, atol=2e-3)


def test_one_kernel_and_several_biases_equal_an_independent_solver():
    def apply(p: Any, x: Any) -> Any:
        h, g = jnp.tanh(x @ p["a"]), jnp.tanh(1 + x @ p["a"])
        return jnp.concatenate([h @ p["w"] + p["e"], g @ p["w"] + p["f"]], -1)

    p = {"a": normal(0, 5, 8), "w": normal(1, 8, 4), "e": normal(2, 4)}
    p["f"] = normal(3, 4)
    x = normal(4, 60, 5)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(8, 2, 5)}
    got, _ = cj.compensate(apply, p, graph, keep, [x], damping=1e-6, **QUIET)
    h = np.tanh(x.astype(np.float64) @ p["a"])
    both = [h, np.tanh(1 + x.astype(np.float64) @ p["a"])]
    # A column of ones for each half, beside the same weights.
    ones = np.repeat(np.eye(2), 60, 0)
    reads = np.concatenate([np.concatenate(both)[:, keep["a:1"]], ones], 1)
    makes = np.concatenate([v @ p["w"] + p[b] for v, b in zip(both, "ef", strict=True)])
    want = np.linalg.lstsq(reads, makes, rcond=None)[0]
    np.testing.assert_allclose(got["w"], want[:6], atol=1e-3)
    np.testing.assert_allclose([got["e"], got["f"]], want[6:], atol=1e-3)


def test_saboteur_uses_without_an_intercept(monkeypatch):
    none = lambda stops: [s._replace(bias=None) for s in stops]  # noqa: E731
    monkeypatch.setattr(stops, "_own_bias", lambda prog, loops, found: none(found))
    with pytest.raises(AssertionError):
        test_a_bias_that_all_uses_have_in_common_makes_up_for_what_never_moves()
    with pytest.raises(AssertionError):
        test_biases_of_their_own_make_up_for_what_never_moves()


def test_weights_that_write_and_read_stay_as_cut_and_it_is_said():
    """The reader of an autoencoder's code is its own writer, turned."""

    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["a"].T

    p, x = {"a": normal(0, 5, 8)}, normal(3, 60, 5)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(8, 2, 5)}
    with pytest.warns(UserWarning, match="kernels of 'a' stay as cut: the same"):
        got, fits = cj.compensate(apply, p, graph, keep, [x], **QUIET)
    assert fits == []
    np.testing.assert_array_equal(got["a"], p["a"][:, keep["a:1"]])


def recurrent(p: Any, x: Any) -> jax.Array:
    """A plain recurrence over six steps."""

    def step(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["again"] + p["bias"])
        return h, h.sum()

    start = jnp.zeros((len(x), len(p["bias"])))
    h, _ = jax.lax.scan(step, start, x.swapaxes(0, 1))
    return h @ p["out"]


def check_recurrent() -> None:
    """A state that goes the way of another one is made up for, in every step."""
    sizes = {"in": (3, 8), "again": (8, 8), "bias": (8,), "out": (8, 2)}
    p = {name: normal(i, *s) / 2 for i, (name, s) in enumerate(sizes.items())}
    for name in ("in", "again", "bias"):
        p[name][..., 5] = p[name][..., 2]
    data = [normal(10 + i, 40, 6, 3) for i in range(3)]
    graph = cj.trace(recurrent, p, data[0])
    keep = {"in:1": off(8, 5)}
    got, fits = cj.compensate(recurrent, p, graph, keep, data, damping=1e-6, **QUIET)
    small, as_cut = cj.cut(recurrent, p, graph, keep)
    x = normal(99, 9, 6, 3)
    want = recurrent(p, x)
    np.testing.assert_allclose(small(got, x), want, atol=1e-4)
    assert np.abs(small(as_cut, x) - want).max() > 0.1
    assert "again" in [fit.path for fit in fits]


def test_a_recurrence_is_fitted_over_all_its_steps():
    check_recurrent()


def test_saboteur_a_recurrence_that_is_not_looked_into(monkeypatch):
    monkeypatch.setattr(module, "with_loops", lambda prog, keep: (prog, {}))
    with pytest.raises(AssertionError):
        check_recurrent()


def test_a_loop_is_fitted_as_its_steps_one_after_another_are(monkeypatch):
    """The saboteur of both: the loop unrolled, each step then a reader of its own."""
    sizes = {"in": (3, 8), "again": (8, 8), "bias": (8,), "out": (8, 2)}
    p = {name: normal(i, *s) / 2 for i, (name, s) in enumerate(sizes.items())}
    data = [normal(10 + i, 40, 6, 3) for i in range(3)]
    graph, keep = cj.trace(recurrent, p, data[0]), {"in:1": off(8, 2, 5)}
    options: Any = {"damping": 1e-2, **QUIET}
    # One reader per step has no bias of its own; in a loop it has.
    monkeypatch.setattr(stops, "_own_bias", lambda prog, loops, found: found and [
        s._replace(bias=None) if s.path == "again" else s for s in found
    ])  # fmt: skip
    got, _ = cj.compensate(recurrent, p, graph, keep, data, **options)
    unrolled = partial(program, unroll=True)
    monkeypatch.setattr(module, "program", lambda *args, **_: unrolled(*args))
    want, _ = cj.compensate(recurrent, p, graph, keep, data, **options)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), got, want)
    assert np.abs(got["again"] - p["again"][keep["in:1"]][:, keep["in:1"]]).max() > 0.01


def test_kernels_that_are_put_together_are_fitted_each():
    def apply(p, x):
        return jnp.tanh(x @ p["in"]) @ jnp.concatenate([p["a"], p["b"]], 1)

    sizes = {"in": (5, 8), "a": (8, 3), "b": (8, 4)}
    p = {name: normal(i, *size) for i, (name, size) in enumerate(sizes.items())}
    x = normal(5, 60, 5)
    keep = {"in:1": off(8, 2, 5)}
    k, options = keep["in:1"], {"damping": 1e-2, **QUIET}
    got, fits = cj.compensate(apply, p, cj.trace(apply, p, x), keep, [x], **options)
    h = np.tanh(x.astype(np.float64) @ p["in"])
    for name in ("a", "b"):
        want = ridge(h[:, k], h @ p[name], p[name][k], 1e-2)
        np.testing.assert_allclose(got[name], want, atol=1e-4)
    assert [fit.path for fit in fits] == ["in", "a", "b"]


def joined(p: Any) -> Any:
    return jnp.concatenate([p["a"], p["b"]], 2)


def joined_twice(p: Any, x: Any) -> Any:
    shift = jnp.concatenate([p["a"][0, 0], p["b"][0, 0]])
    y = (x @ joined(p) + shift.reshape(1, 1, -1)) + x @ joined(p)
    return jnp.split(y, [5], 2)


KERNELS = {"a": normal(0, 3, 4, 5), "b": normal(1, 3, 4, 5), "c": normal(2, 3, 4, 2)}
JOINED: dict[str, tuple[Any, int]] = {
    "last": (lambda p, x: x @ jnp.concatenate([p["a"], p["c"]], 2), 2),
    "first": (lambda p, x: jnp.concatenate([p["a"], p["b"]], 2).mT @ x.mT, 2),
    "read": (lambda p, x: jnp.tile(x, 2) @ jnp.concatenate([p["a"], p["b"]], 1), 1),
    "batch": (
        lambda p, x: jnp.tile(x, (2, 1, 1)) @ jnp.concatenate([*p.values()][:2]),
        1,
    ),
    "split": (lambda p, x: (y := joined_twice(p, x)[1]) * y + jnp.cos(y), 4),
    "half": (lambda p, x: x.astype("bfloat16") @ joined(p).astype("bfloat16"), 2),
    "seen": (lambda p, x: (y := jnp.concatenate([p["a"], p["c"]], 2)).sum() + x @ y, 2),
}


@pytest.mark.parametrize("name", JOINED)
def test_taking_kernels_apart_changes_no_result(name):
    apply, products = JOINED[name]
    x = normal(3, 3, 7, 4)
    jaxpr = jax.make_jaxpr(apply)(KERNELS, x)
    apart = taken_apart(jaxpr, len(KERNELS))
    got = jax.extend.core.jaxpr_as_fun(apart)(*KERNELS.values(), x)
    np.testing.assert_allclose(got[0], apply(KERNELS, x), atol=1e-5, rtol=1e-5)
    assert got[0].dtype == apply(KERNELS, x).dtype
    made = [eqn.primitive.name for eqn in apart.eqns]
    assert made.count("dot_general") == products


def tied_head() -> tuple[Any, Any]:
    """An embedding, a linear block on a skip, the embedding as head; and tokens."""
    p = {"table": normal(0, 11, 6), "mix": normal(1, 6, 6), "bias": normal(2, 11)}
    # What is cut is nearly a sum of what stays.
    p["table"][:, 1] = p["table"] @ np.float32([1, 0.1, -0.5, 1, 0.5, 0])
    return p, np.random.default_rng(2).integers(0, 11, (40, 5))


def hidden(p: Any, tokens: Any) -> jax.Array:
    x = jnp.take(p["table"], tokens, axis=0)  # A call, as in `flax.linen.Embed`.
    return x + x @ p["mix"]


def test_a_head_that_is_also_the_embedding_is_fitted_as_both():
    def apply(p, tokens):
        return hidden(p, tokens) @ p["table"].T + p["bias"]

    p, tokens = tied_head()
    graph = cj.trace(apply, p, tokens)
    (k,) = (keep := {"table:1": off(6, 1)}).values()
    got, fits = cj.compensate(apply, p, graph, keep, [tokens], damping=1e-2, **QUIET)
    e, mix = p["table"].astype(np.float64)[tokens.ravel()], p["mix"][k][:, k]
    made = (e @ p["mix"])[:, k]
    # The head, as it stands while the embedding is as cut.
    h = e[:, k] @ (np.eye(5) + ridge(e[:, k], made, mix, 1e-2))
    y = (e + e @ p["mix"]) @ p["table"].T
    about = h - h.mean(0), y - y.mean(0)
    table = ridge(*about, p["table"][:, k].T, 1e-2).T
    np.testing.assert_allclose(got["table"], table, atol=1e-3)
    shift = p["bias"] + y.mean(0) - h.mean(0) @ table.T
    np.testing.assert_allclose(got["bias"], shift, atol=1e-3)
    # What reads the embedding is fitted to what is looked up now.
    looked = table[tokens.ravel()]
    want = ridge(looked, made + e[:, k] - looked, mix, 1e-2)
    np.testing.assert_allclose(got["mix"], want, atol=1e-3)
    assert [f.path for f in fits] == ["table", "mix"]


def test_an_embedding_that_is_worth_more_than_the_head_stays_as_cut():
    def apply(p, tokens):
        head = hidden(p, tokens) @ p["table"].T
        return {"head": head, "seen": jnp.sin(30 * p["table"][tokens]).sum(-1)}

    p, tokens = tied_head()
    graph = cj.trace(apply, p, tokens)
    keep = {"table:1": off(6, 1)}
    got, fits = cj.compensate(apply, p, graph, keep, [tokens], **QUIET)
    np.testing.assert_array_equal(got["table"], p["table"][:, keep["table:1"]])
    assert [f.path for f in fits] == ["mix"]
    # The saboteur: where nothing else is made of it, the head's fit is taken.
    options = {"tasks": "head", **QUIET}
    _, fits = cj.compensate(apply, p, graph, keep, [tokens], **options)
    assert [f.path for f in fits] == ["table", "mix"]


def test_an_embedding_that_keeps_its_width_stays_as_it_is():
    def apply(p, tokens):
        x = p["table"][tokens]
        return (x + jnp.tanh(x @ p["up"]) @ p["down"]) @ p["table"].T

    p = {"table": normal(0, 11, 6), "up": normal(1, 6, 9), "down": normal(2, 9, 6)}
    tokens = np.random.default_rng(2).integers(0, 11, (16, 5))
    graph = cj.trace(apply, p, tokens)
    keep = {"up:1": off(9, 3, 4)}
    got, fits = cj.compensate(apply, p, graph, keep, [tokens], **QUIET)
    np.testing.assert_array_equal(got["table"], p["table"])
    assert [f.path for f in fits] == ["up", "down"]


def test_what_waits_between_readers_is_data_and_no_wide_result():
    """Tables turned over, and logits of all batches, would be most of all memory."""

    def apply(p, tokens):
        h = p["table"][tokens] @ p["mix"]
        return jnp.tanh(h @ p["up"]) @ p["down"] @ p["table"].T

    sizes = {"table": (60, 6), "mix": (6, 6), "up": (6, 12), "down": (12, 6)}
    p = {name: normal(i, *size) for i, (name, size) in enumerate(sizes.items())}
    tokens = np.arange(10).reshape(2, 5)
    graph, keep = cj.trace(apply, p, tokens), {"table:1": off(6, 2), "up:1": off(12, 3)}
    prog = program(apply, graph, keep, (tokens,))
    small, child = cj.cut(apply, p, graph, keep)
    found = stops_of(prog, named_leaves(child))
    halts = halts_of(found)
    pair = module.Pair(jax.tree.leaves(p), jax.tree.leaves(child))
    alive = module._start(prog, (tokens,))
    held = []
    for number in range(len(found)):
        made, _ = segment(prog, halts, number)(pair, alive)
        alive = {**passing(prog, halts, number)(alive), **made}
        held.append(sorted(np.shape(v) for pair in alive.values() for v in pair[:1]))
    row = (2, 5)
    assert [stop.path for stop in found] == ["mix", "up", "down", "table"]
    assert held == [[(*row, 6)] * 2, [(*row, 6), (*row, 12)], [(*row, 6), (*row, 12)],
                    [(*row, 6)]]  # fmt: skip
    _, (out,) = segment(prog, halts, len(halts))(pair, alive)
    np.testing.assert_allclose(out.parent, apply(p, tokens), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.child, small(child, tokens), rtol=1e-4)


def shared_in_a_loop(slots: np.ndarray) -> tuple[Any, Any]:
    """What two copies of a recurrence answer, merged, and what each answered."""
    sizes = {"in": (3, 8), "again": (8, 8), "bias": (8,), "out": (8, 2)}
    p = {name: normal(i, *size) for i, (name, size) in enumerate(sizes.items())}
    x = normal(10, 4, 6, 3)

    def apply(p: Any, x: Any) -> tuple[Any, Any]:
        """Several results of one loop: of the steps, and of the last."""

        def step(h: Any, now: Any) -> tuple[Any, Any]:
            h = jnp.tanh(now @ p["in"] + h @ p["again"] + p["bias"])
            return h, h @ p["out"]

        h, each = jax.lax.scan(step, jnp.zeros((len(x), 8)), x.swapaxes(0, 1))
        return h @ p["out"], each

    graph = cj.trace(apply, p, x)
    nets = {name: cj.merge.Network(apply, p, graph) for name in ("a", "b")}
    assert [*cj.merge.whole_groups(nets["a"], x)] == ["in:1"]
    sharing = {"in:1": dict.fromkeys(nets, slots)}
    merged = cj.merge.average(nets, sharing, x)
    return merged.apply(merged.params, x), apply(p, x)


@pytest.mark.parametrize("slots", [np.arange(8), np.full(8, cj.merge.OWN)])
def test_a_loop_that_stays_one_answers_as_before(slots, monkeypatch):
    monkeypatch.setattr(control, "MOST_STEPS", 1)
    got, want = shared_in_a_loop(slots)
    wanted = answers("a", want) | answers("b", want)
    assert got.keys() == wanted.keys()
    near = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(near, dict(got), wanted)


def test_what_a_loop_reads_is_not_shared_in_part(monkeypatch):
    """A network's own channels would not see the shared ones within the loop."""
    monkeypatch.setattr(control, "MOST_STEPS", 1)
    with pytest.raises(KeepError, match=r"'in:1' cannot .* within a loop or branch"):
        shared_in_a_loop(np.where(np.arange(8) < 4, np.arange(8), cj.merge.OWN))
