"""Queries and keys: what a lost width costs is made up for where keys are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compensate import normal, quick as quick

import cutjax as cj
from cutjax._compat import bind
from cutjax.recover import stops
from cutjax.recover.products import inner_of, wanted
from cutjax.recover.program import program, read

HEADS, WIDTH, MODEL = 2, 6, 12
DATA = normal(3, 16, 10, MODEL)
Net = Callable[[Any, jax.Array], dict[str, jax.Array]]


def answers(p: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> dict[str, jax.Array]:
    weights = jax.nn.softmax(jnp.einsum("bqhw,bkhw->bhqk", q, k))
    y = jnp.einsum("bhqk,bkhv->bqhv", weights, v)
    return {"task": jnp.einsum("bqhv,hvm->bqm", y, p["out"])}


def separate(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    q, k, v = (
        jnp.einsum("btd,dhw->bthw", x, p[n]) + p[n + "_bias"] for n in ("q", "k", "v")
    )
    return answers(p, q / WIDTH**0.5, k, v)


def fused(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    parts = jnp.split(x @ p["qkv"], 3, axis=-1)
    q, k, v = (y.reshape(*y.shape[:-1], HEADS, WIDTH) for y in parts)
    return answers(p, q / WIDTH**0.5, k, v)


def rotated(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Positions turn queries and keys: no matrix of channels goes through that."""
    turn = jnp.cos(jnp.arange(x.shape[1])[:, None, None] + jnp.arange(WIDTH))
    q, k, v = (jnp.einsum("btd,dhw->bthw", x, p[n]) for n in ("q", "k", "v"))
    return answers(p, q * turn, k * turn, v)


def shared(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Keys are the queries: what changes one changes both."""
    q, v = (jnp.einsum("btd,dhw->bthw", x, p[n]) for n in ("q", "v"))
    return answers(p, q, q, v)


def by_hand(seed: int = 0) -> dict[str, Any]:
    """Parameters whose last two query widths are made of the others."""
    p = {n: normal(seed + i, MODEL, HEADS, WIDTH) for i, n in enumerate("qkv")}
    mix = normal(seed + 5, HEADS, WIDTH - 2, 2) / 2
    p["q"][..., -2:] = np.einsum("dhw,hwv->dhv", p["q"][..., :-2], mix)
    p |= {f"{n}_bias": normal(seed + 7, HEADS, WIDTH) / 2 for n in ("k", "v")}
    p["q_bias"] = np.zeros((HEADS, WIDTH), np.float32)
    p["out"] = normal(seed + 9, HEADS, WIDTH, 3)
    return p


def of(name: str) -> tuple[Net, dict[str, Any], jax.Array]:
    p = by_hand()
    if name == "fused":
        kernel = np.concatenate([p[n].reshape(MODEL, -1) for n in "qkv"], -1)
        return fused, {"qkv": kernel, "out": p["out"]}, jnp.asarray(DATA)
    return separate, p, jnp.asarray(DATA)


def keep_of(graph: cj.Graph) -> dict[str, np.ndarray]:
    """All but the last two widths of the queries."""
    (group,) = [g for g in graph.free if g.name in ("q:2", "qkv:1.1")]
    return {group.name: np.arange(WIDTH) < WIDTH - 2}


def apart(net: Net, p: Any, keep: Any, x: jax.Array) -> float:
    """How far answers are off after compensation, as a share of their size."""
    graph = cj.trace(net, p, x)
    small, _ = cj.compensate(net, p, graph, keep, [x], damping=1e-9, progress=False)
    got, want = cj.shrink(net, graph, keep)(small, x)["task"], net(p, x)["task"]
    return float(jnp.abs(got - want).max() / jnp.abs(want).max())


@pytest.mark.parametrize("name", ["separate", "fused"])
def test_queries_that_others_make_up_for_cost_nothing(name, monkeypatch):
    net, p, x = of(name)
    keep = keep_of(cj.trace(net, p, x))
    assert apart(net, p, keep, x) < 1e-3
    # Saboteur: keys that only lose their widths.
    monkeypatch.setattr(stops, "inner_of", lambda *_: None)
    assert apart(net, p, keep, x) > 0.05


def test_heads_go_too():
    net, p, x = of("separate")
    graph = cj.trace(net, p, x)
    # Nothing is read of the second head, so it may go for nothing.
    p["out"] = p["out"] * np.array([1, 0], np.float32)[:, None, None]
    keep = keep_of(graph) | {"q:1": np.array([True, False])}
    assert apart(net, p, keep, x) < 1e-3


def values_at(prog: Any, stop: int, p: Any, x: jax.Array) -> dict[Any, Any]:
    """Of the parent, up to a reader."""
    jaxpr = prog.frame.jaxpr
    env = dict(zip(jaxpr.invars, [*jax.tree.leaves(p), x], strict=True))
    for eqn in jaxpr.eqns[: stop + 1]:
        outs = bind(eqn, [read(env, a) for a in eqn.invars], eqn.params)
        env.update(zip(eqn.outvars, outs, strict=True))
    return env


def test_what_is_wanted_is_the_least_squares_answer():
    p, x = by_hand(), jnp.asarray(DATA)
    p["q"] = normal(30, MODEL, HEADS, WIDTH)  # nothing can be rebuilt exactly
    graph = cj.trace(separate, p, x)
    keep = keep_of(graph)
    prog = program(separate, graph, keep, (x,))
    readers = [i for i in sorted(prog.frame.sites) if inner_of(prog, i)]
    (stop,) = readers
    env = values_at(prog, stop, p, x)
    got = np.asarray(wanted(prog, inner_of(prog, stop), env, stop)) + p["k_bias"]
    q = np.einsum("btd,dhw->hbtw", x, p["q"]).reshape(HEADS, -1, WIDTH)
    k = np.einsum("btd,dhw->hbtw", x, p["k"]) + p["k_bias"][:, None, None]
    for head in range(HEADS):
        scores = q[head] @ k[head].reshape(-1, WIDTH).T
        best, *_ = np.linalg.lstsq(q[head][:, : WIDTH - 2], scores, rcond=None)
        found = got[:, :, head, : WIDTH - 2].reshape(-1, WIDTH - 2)
        np.testing.assert_allclose(found, best.T, atol=2e-2)


def test_keys_that_are_queries_stay_as_they_are():
    p, x = by_hand(), jnp.asarray(DATA)
    p = {n: p[n] for n in ("q", "v", "out")}
    prog = program(shared, graph := cj.trace(shared, p, x), keep_of(graph), (x,))
    (stop,) = [i for i in prog.frame.sites if inner_of(prog, i)]
    env = values_at(prog, stop, p, x)
    (out,) = prog.frame.jaxpr.eqns[stop].outvars
    np.testing.assert_array_equal(
        wanted(prog, inner_of(prog, stop), env, stop), env[out]
    )


def test_where_nothing_can_be_made_up_for_it_is_left_alone():
    p, x = by_hand(), jnp.asarray(DATA)
    for net, width in ((separate, WIDTH), (rotated, WIDTH - 2)):
        graph = cj.trace(net, p, x)
        keep = {"q:2": np.arange(WIDTH) < width}
        prog = program(net, graph, keep, (x,))
        assert not any(inner_of(prog, i) for i in prog.frame.sites)
