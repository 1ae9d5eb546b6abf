"""Kernels that are put together of several parameters, as merged networks have them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compensate import error, normal, off, outputs, quick as quick, ridge

import cutjax as cj
from cutjax import merge
from cutjax.mirror import named_leaves
from cutjax.recover.program import program
from cutjax.recover.stops import stops_of

module = importlib.import_module("cutjax.recover.program")
QUIET: Any = {"progress": False}
NUMBERS = ("NHWC", "HWIO", "NHWC")

STAYS = pytest.mark.filterwarnings("ignore:.*stay as cut")


def conv(x: Any, w: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)


def both(p: Any, x: Any) -> jax.Array:
    return jnp.tanh(jnp.concatenate([x @ p["in"], x @ p["side"]], -1))


def read(p: Any, x: Any) -> jax.Array:
    """Shared channels in front of others, as a merged network reads them."""
    return both(p, x) @ jnp.concatenate([p["a"], p["b"]]) + p["bias"]


def stacked(p: Any, x: Any) -> jax.Array:
    """One kernel for each of two layers side by side."""
    h = jnp.tanh(x @ p["in"])
    return jnp.einsum("...i,lij->...lj", h, jnp.stack([p["w"], p["v"]]))


def convolved(p: Any, x: Any) -> jax.Array:
    """Convolutions side by side, of which nothing is taken apart."""
    h = conv(x[:, None, None], p["in"])
    return conv(jnp.tanh(h), jnp.concatenate([p["w"], p["v"]], 3))


def padded(p: Any, x: Any) -> jax.Array:
    """Rows that no parameter reads, and columns that none makes."""
    h = both(p, x)
    kernel = jnp.concatenate([p["a"], p["b"]])
    kernel = jax.lax.pad(kernel, 0.0, [(0, 3, 0), (1, 0, 0)])
    return jnp.concatenate([h, x[..., :3]], -1) @ kernel


SIZES: dict[str, tuple[int, ...]] = {
    "in": (5, 8),
    "side": (5, 8),
    "bias": (4,),
    "a": (8, 4),
    "b": (8, 4),
}
CASES: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "read": (read, SIZES),
    "padded": (padded, SIZES),
    "stacked": (stacked, {"in": (5, 8), "w": (8, 3), "v": (8, 3)}),
    "convolved": (
        convolved,
        {"in": (1, 1, 5, 8), "w": (3, 3, 8, 3), "v": (3, 3, 8, 2)},
    ),
}


def planted(name: str) -> tuple[Callable[..., Any], Any, dict[str, np.ndarray]]:
    """A net of which a channel is a copy of what stays, with another sign."""
    apply, sizes = CASES[name]
    p = {key: normal(i, *size) for i, (key, size) in enumerate(sizes.items())}
    other = p.get("side", p["in"])
    p["in"][..., 2], p["in"][..., 5] = -other[..., 6], other[..., 1]
    size = sizes["in"][-1]
    return apply, p, {f"in:{len(sizes['in']) - 1}": off(size, 2, 5)}


def check_planted(name: str) -> None:
    apply, p, keep = planted(name)
    data = [normal(10 + i, 60, 5) for i in range(3)]
    graph = cj.trace(apply, p, data[0])
    got, fits = cj.compensate(apply, p, graph, keep, data, damping=1e-8, **QUIET)
    small, as_cut = cj.cut(apply, p, graph, keep)
    x = normal(99, 40, 5)
    assert np.abs(small(as_cut, x) - apply(p, x)).max() > 0.5
    np.testing.assert_allclose(small(got, x), apply(p, x), atol=1e-3)
    assert any(" + " in fit.path for fit in fits)


@pytest.mark.parametrize("name", CASES)
def test_channels_that_another_one_rebuilds_are_not_missed(name):
    check_planted(name)


@STAYS
@pytest.mark.parametrize("name", CASES)
def test_saboteur_kernels_of_several_parameters_that_stay_as_cut(name, monkeypatch):
    monkeypatch.setattr(module, "JOINS", frozenset())
    with pytest.raises(AssertionError):
        check_planted(name)


def test_a_kernel_of_two_is_fitted_by_least_squares():
    _, sizes = CASES["read"]
    p = {key: normal(i, *size) for i, (key, size) in enumerate(sizes.items())}
    x, keep = normal(9, 60, 5), {"in:1": off(8, 2), "side:1": off(8, 1, 4)}
    graph = cj.trace(read, p, x)
    got, fits = cj.compensate(read, p, graph, keep, [x], damping=1e-2, **QUIET)
    h = np.asarray(both(p, x), np.float64)
    k = np.concatenate([keep["in:1"], keep["side:1"]])
    y = h @ np.concatenate([p["a"], p["b"]])
    as_cut = np.concatenate([p["a"], p["b"]])[k]
    about = h[:, k] - h[:, k].mean(0), y - y.mean(0)
    want = ridge(*about, as_cut, 1e-2)
    np.testing.assert_allclose(np.concatenate([got["a"], got["b"]]), want, atol=1e-3)
    shift = p["bias"] + y.mean(0) - h[:, k].mean(0) @ want
    np.testing.assert_allclose(got["bias"], shift, atol=1e-3)
    assert [fit.path for fit in fits] == ["in", "side", "a + b"]


def twice(p: Any, x: Any) -> jax.Array:
    """One kernel of two, read two times."""
    kernel = jnp.concatenate([p["a"], p["b"]])
    once = jnp.tanh(both(p, x) @ kernel)
    again = jnp.tanh(jnp.concatenate([once @ p["in"], once @ p["side"]], -1))
    return again @ kernel


def test_a_kernel_of_two_that_is_read_twice_is_fitted_to_both():
    sizes = {"in": (5, 8), "side": (5, 8), "a": (8, 5), "b": (8, 5)}
    p = {key: normal(i, *size) / 2 for i, (key, size) in enumerate(sizes.items())}
    p["in"][:, 2] = -p["side"][:, 6]
    x, keep = normal(9, 80, 5), {"in:1": off(8, 2)}
    graph = cj.trace(twice, p, x)
    got, fits = cj.compensate(twice, p, graph, keep, [x], damping=1e-8, **QUIET)
    small, as_cut = cj.cut(twice, p, graph, keep)
    assert np.abs(small(as_cut, x) - twice(p, x)).max() > 0.1
    np.testing.assert_allclose(small(got, x), twice(p, x), atol=1e-3)
    assert "a + b" in [fit.path for fit in fits]


def elsewhere(p: Any, x: Any) -> dict[str, jax.Array]:
    """A kernel that is a part of another one, too."""
    h = both(p, x)
    return {"alone": h[:, :8] @ p["a"], "both": h @ jnp.concatenate([p["a"], p["b"]])}


@STAYS
def test_what_is_a_part_of_another_kernel_is_fitted_alone():
    _, sizes = CASES["read"]
    p = {key: normal(i, *size) for i, (key, size) in enumerate(sizes.items())}
    x, keep = normal(9, 60, 5), {"in:1": off(8, 2)}
    graph = cj.trace(elsewhere, p, x)
    prog = program(elsewhere, graph, keep, (x,))
    found = stops_of(prog, named_leaves(cj.cut_params(p, graph, keep)))
    tied = {stop.path: stop.tied is not None for stop in found}
    assert tied == {"in": False, "side": False, "a": True}
    got, _ = cj.compensate(elsewhere, p, graph, keep, [x], **QUIET)
    np.testing.assert_array_equal(got["b"], p["b"])


def overlapping(p: Any, x: Any) -> list[jax.Array]:
    """Two kernels that have a part in common."""
    h = both(p, x)
    return [h @ jnp.concatenate([p["a"], p[name]]) for name in ("b", "c")]


@STAYS
def test_of_kernels_that_share_a_part_one_is_fitted_and_nothing_gets_worse():
    sizes = {**CASES["read"][1], "c": (8, 4)}
    p = {key: normal(i, *size) for i, (key, size) in enumerate(sizes.items())}
    x, keep = normal(9, 60, 5), {"in:1": off(8, 2)}
    graph = cj.trace(overlapping, p, x)
    prog = program(overlapping, graph, keep, (x,))
    found = stops_of(prog, named_leaves(cj.cut_params(p, graph, keep)))
    tied = {stop.path: stop.tied is not None for stop in found}
    assert tied == {"in": False, "side": False, "a + c": True}
    got, _ = cj.compensate(overlapping, p, graph, keep, [x], **QUIET)
    small, as_cut = cj.cut(overlapping, p, graph, keep)
    want = outputs(overlapping, p, x)
    assert error(outputs(small, got, x), want) <= error(outputs(small, as_cut, x), want)


def recurrent(p: Any, x: Any) -> jax.Array:
    """Input and state are read at once, in every step."""

    def step(h, x):
        kernel = jnp.concatenate([p["in"], p["again"]])
        return jnp.tanh(jnp.concatenate([x, h], -1) @ kernel + p["bias"]), None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), 8)), x.swapaxes(0, 1))
    return h @ p["out"]


def test_a_kernel_of_two_in_a_recurrence_is_fitted_over_all_steps():
    sizes = {"in": (3, 8), "again": (8, 8), "bias": (8,), "out": (8, 2)}
    p = {name: normal(i, *s) / 2 for i, (name, s) in enumerate(sizes.items())}
    for name in ("in", "again", "bias"):
        p[name][..., 5] = p[name][..., 2]
    data = [normal(10 + i, 40, 20, 3) for i in range(3)]
    graph = cj.trace(recurrent, p, data[0])
    keep = {"in:1": off(8, 5)}
    got, fits = cj.compensate(recurrent, p, graph, keep, data, damping=1e-6, **QUIET)
    small, as_cut = cj.cut(recurrent, p, graph, keep)
    x = normal(99, 9, 20, 3)
    assert np.abs(small(as_cut, x) - recurrent(p, x)).max() > 0.1
    np.testing.assert_allclose(small(got, x), recurrent(p, x), atol=1e-3)
    assert "again + in" in [fit.path for fit in fits]


@STAYS
@pytest.mark.parametrize("kernel", ["twice", "whole", "negated"])
def test_what_lies_twice_in_a_kernel_or_is_no_float_or_another_stays(kernel):
    def apply(p, x):
        a = p["a"].astype(jnp.float32)
        other = {"twice": a[:, ::-1], "whole": p["b"], "negated": -p["b"]}[kernel]
        return both(p, x) @ jnp.concatenate([a, other])

    _, sizes = CASES["read"]
    p = {key: normal(i, *size) for i, (key, size) in enumerate(sizes.items())}
    if kernel == "whole":
        p["a"] = (10 * p["a"]).astype(np.int8)
    x, keep = normal(9, 60, 5), {"in:1": off(8, 2)}
    graph = cj.trace(apply, p, x)
    got, fits = cj.compensate(apply, p, graph, keep, [x], **QUIET)
    assert not {"a", "b"} & {part for fit in fits for part in fit.path.split(" + ")}
    _, as_cut = cj.cut(apply, p, graph, keep)
    np.testing.assert_array_equal(got["a"], as_cut["a"])


# Merged networks that are shared in part. --------------------------------------------


def perceptron(p: Any, x: Any) -> jax.Array:
    h = jax.nn.relu(x @ p["a"] + p["a_bias"])
    h = jax.nn.relu(h @ p["b"] + p["b_bias"])
    return h @ p["c"] + p["c_bias"]


def convolutions(p: Any, x: Any) -> jax.Array:
    h = jax.nn.relu(conv(x.reshape(len(x), 3, 2, 1), p["a"]) + p["a_bias"])
    h = jax.nn.relu(conv(h, p["b"]) + p["b_bias"])
    return h.mean((1, 2)) @ p["c"] + p["c_bias"]


def network(apply: Any, seed: int) -> Any:
    window = (3, 3) if apply is convolutions else ()
    first = 1 if window else 6
    sizes = {"a": (*window, first, 12), "b": (*window, 12, 16), "c": (16, 3)}
    p = {}
    for i, (name, size) in enumerate(sizes.items()):
        p[name] = normal(10 * seed + i, *size, scale=np.prod(size[:-1]) ** -0.5)
        p[f"{name}_bias"] = normal(10 * seed + 5 + i, size[-1], scale=0.3)
    # A channel of each is a copy of one that stays.
    for name, then in (("a", "b"), ("b", "c")):
        for gone, stays in ((0, 1), (9, 10)):
            p[name][..., gone] = p[name][..., stays]
            p[f"{name}_bias"][gone] = p[f"{name}_bias"][stays]
            p[then][..., gone, :] *= 2
    return p


def merged(apply: Any, share: float) -> tuple[Any, Any, Any]:
    """Two networks merged, and data; the first of their channels are shared."""
    x = normal(99, 400, 6)
    p = {f"net{i}": network(apply, i) for i in range(2)}
    graph = cj.trace(apply, p["net0"], x)
    nets = {name: merge.Network(apply, own, graph) for name, own in p.items()}
    sharing = {}
    for group in graph.free:
        slots = np.arange(group.size)
        slots[int(share * group.size) :] = merge.OWN
        sharing[group.name] = dict.fromkeys(p, slots)
    net = merge.average(nets, sharing, x)
    return net, cj.trace(net.apply, net.params, x), x


def errors(case: Any, keep: Any) -> tuple[float, float]:
    """Of a merged net as cut, and refitted: squared, over the variance."""
    net, graph, x = case
    small, as_cut = cj.cut(net.apply, net.params, graph, keep)
    got, _ = cj.compensate(net.apply, net.params, graph, keep, np.split(x, 4), **QUIET)
    want = outputs(net.apply, net.params, x)

    def wrong(p: Any) -> float:
        found = outputs(small, p, x)
        ratios = [((found[k] - v) ** 2).mean() / v.var() for k, v in want.items()]
        return float(np.mean(ratios))

    return wrong(as_cut), wrong(got)


def thirds(graph: Any) -> dict[str, np.ndarray]:
    return {g.name: off(g.size, *range(0, g.size, 3)) for g in graph.free}


def copies(graph: Any) -> dict[str, np.ndarray]:
    """Of the channels that a half shared network has twice, one stays."""
    gone = {6: {True: 0, False: 3}, 8: {True: 0, False: 1}}
    return {g.name: off(g.size, gone[g.size]["shared" in g.name]) for g in graph.free}


NETWORKS = pytest.mark.parametrize("apply", [perceptron, convolutions])


@NETWORKS
def test_networks_shared_in_part_are_refitted_as_those_shared_whole(apply):
    for share in (1, 0.5):
        case = merged(apply, share)
        before, after = errors(case, thirds(case[1]))
        assert after < before / 10


def check_copies(apply: Any) -> None:
    case = merged(apply, 0.5)
    before, after = errors(case, copies(case[1]))
    assert before > 1e-2
    assert after < 1e-6


@NETWORKS
def test_copies_are_not_missed_where_networks_are_shared_in_part(apply):
    check_copies(apply)


@STAYS
def test_saboteur_networks_whose_own_kernels_stay_as_cut(monkeypatch):
    monkeypatch.setattr(module, "JOINS", frozenset())
    with pytest.raises(AssertionError):
        check_copies(perceptron)
