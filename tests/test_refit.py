"""Refitting in places that are not plain layers, against least squares in numpy."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from nets import NETS
from nets.turns import by_turns
from test_compensate import (
    batch_of,
    error,
    im2col,
    normal,
    off,
    outputs,
    quick as quick,
    random_keep,
    ridge,
)

import cutjax as cj
from cutjax.errors import DataError, MismatchError
from cutjax.mirror import named_leaves
from cutjax.recover import normal as least
from cutjax.recover.lockstep import segment
from cutjax.recover.program import program
from cutjax.recover.rows import (
    Sample,
    kernel_blocks,
    kernel_from,
    made_rows,
    read_rows,
    steps_for,
)
from cutjax.recover.stops import stops_of

module = importlib.import_module("cutjax.recover.walk")
QUIET: Any = {"progress": False}

# Rows times kernel is what a reader makes, whatever the reader. ----------------------


def check_rows(name: str, read: Any = read_rows) -> None:
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = random_keep(graph, 5)
    prog = program(net.apply, graph, keep, net.inputs)
    small = named_leaves(cj.cut_params(net.params, graph, keep))
    stops = stops_of(prog, small)
    assert stops
    for stop in stops:
        kernel = np.asarray(small[stop.path]).reshape(-1)[stop.where]
        blocks = np.asarray(kernel_blocks(stop.reader, kernel, stop.groups))
        back = kernel_from(stop.reader, blocks, kernel, stop.groups)
        np.testing.assert_array_equal(back, kernel)
        reader, kept = stop.reader, prog.evaluator.k
        at = reader.site.at
        shape = [kept.count(d) for d in reader.ins[at].dims]
        data = normal(stop.index, *shape)
        pair = (data, kernel) if at == 0 else (kernel, data)
        (made,) = prog.evaluator.step(
            prog.frame, stop.index, reader.eqn, list(map(jnp.asarray, pair))
        )
        for share, at in ((1, None), (1, 0), (2, 1), (5, 7)):
            wanted = max(stop.rows // share, 1)
            steps = steps_for(reader, 1, wanted)
            sample = Sample() if at is None else Sample(steps, at)
            b = read(reader, jnp.asarray(data), kernel, stop.groups, sample)
            y = made_rows(reader, made, kernel, stop.groups, sample)
            np.testing.assert_allclose(b @ blocks, y, atol=2e-5)
            assert wanted <= b.shape[1] <= stop.rows
            assert share > 1 or b.shape[1] == stop.rows


KINDS = ["resnext", "grouped_transpose", "wavenet", "lora"]
MORE = ["mobilenet", "vit_linen", "unet", "volumes", "stacked_layers", "option_a"]


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(n, marks=pytest.mark.slow) for n in MORE)]
)
def test_rows_times_kernel_is_what_the_reader_makes(name):
    check_rows(name)


def test_saboteur_rows_from_elsewhere_are_found_out():
    def shifted(reader, values, kernel, groups, sample):
        return read_rows(reader, values, kernel, groups, Sample(sample.steps, 0))

    with pytest.raises(AssertionError):
        check_rows("grouped_transpose", shifted)


def test_no_more_rows_are_taken_than_a_grid_must():
    """Steps are widened one axis at a time: at most twice as many as are wanted."""
    net = NETS["vgg"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    prog = program(net.apply, graph, {}, net.inputs)
    for stop in stops_of(prog, named_leaves(net.params)):
        for wanted in (stop.rows // 3, stop.rows // 7):
            steps = steps_for(stop.reader, 1, wanted)
            b = jnp.zeros(stop.reader.eqn.invars[stop.reader.site.at].aval.shape)
            taken = read_rows(stop.reader, b, stop.kernel, stop.groups, Sample(steps))
            assert wanted <= taken.shape[1] < 2 * wanted + 2


def test_an_axis_of_length_one_is_left_as_it_is():
    def apply(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(
            x, p["a"], (1, 1), "SAME", dimension_numbers=numbers
        )
        return jax.nn.relu(h) @ p["b"]

    p = {"a": normal(0, 1, 3, 2, 4), "b": normal(1, 4, 2)}
    x = normal(2, 6, 1, 64, 2)
    prog = program(apply, cj.trace(apply, p, x), {}, (x,))
    first = stops_of(prog, p)[0].reader
    assert steps_for(first, 1, 6 * 64 // 4) == (1, 4)
    assert steps_for(first, 3, 3 * 6) == (1, 64)


# Moments. ----------------------------------------------------------------------------


def moments(b, y):
    return least.moments(jnp.asarray(b), jnp.asarray(y))


@pytest.mark.parametrize("features", [3, 511, 512, 1025, 2050])
def test_moments_are_those_of_the_definition_however_many_features(features):
    rng = np.random.default_rng(features)
    b, y = rng.normal(size=(2, 40, features)), rng.normal(size=(2, 40, 5))
    m, off = moments(b.astype(np.float32), y.astype(np.float32)), b - b.mean(1)[:, None]
    np.testing.assert_allclose(m.gram, off.swapaxes(1, 2) @ off, atol=1e-3)
    np.testing.assert_allclose(m.gram, m.gram.swapaxes(1, 2), atol=1e-4)


def test_moments_of_parts_are_those_of_the_whole():
    b, y = 3 + normal(0, 2, 50, 4), 7 * normal(1, 2, 50, 3)
    parts = [moments(b[:, i:j], y[:, i:j]) for i, j in ((0, 9), (9, 30), (30, 50))]
    whole = least.about_zero(least.merged(parts))
    wide = b.astype(np.float64)
    np.testing.assert_allclose(whole.gram, wide.swapaxes(1, 2) @ wide, rtol=1e-5)
    np.testing.assert_allclose(whole.cross, wide.swapaxes(1, 2) @ y, atol=1e-3)
    np.testing.assert_allclose(whole.square, np.square(y).sum(1), rtol=1e-5)


@pytest.mark.parametrize("intercept", [False, True])
def test_rows_and_moments_lead_to_the_same_fit(intercept):
    b, y, prior = 1 + normal(0, 1, 30, 6), normal(1, 1, 30, 3), normal(2, 1, 6, 3)
    m = least.merged([moments(b, y)])
    rows = least.Rows(b, y)
    one = least.solve(m, prior, 0.1, intercept=intercept)
    two = least.solve_rows(rows, prior, 0.1, intercept=intercept)
    np.testing.assert_allclose(one.kernel, two.kernel, atol=1e-4)
    np.testing.assert_allclose(one.shift, two.shift, atol=1e-4)
    got = least.error(m, one, intercept=intercept)
    np.testing.assert_allclose(got, least.error_rows(rows, two), rtol=1e-3)
    if not intercept:
        np.testing.assert_allclose(
            one.kernel[0], ridge(b[0], y[0], prior[0], 0.1), atol=1e-4
        )


def test_damping_is_chosen_by_rows_that_were_not_fitted_to():
    """Much noise and few rows ask for more damping than a law without noise."""

    def chosen(noise: float, n: int) -> float:
        b, w = normal(0, 1, 400, 20), normal(1, 20, 2)
        y = b @ w + noise * normal(2, 1, 400, 2)
        fit, held = (
            least.merged([moments(b[:, r], y[:, r])])
            for r in (slice(n), slice(200, 400))
        )
        return least.chosen(
            lambda d: least.error(held, least.solve(fit, 0 * w[None], d))
        )

    assert chosen(0.0, 100) <= 1e-4
    assert chosen(30.0, 25) >= 1e-1


# Biases, skips, groups, stacks, ties. ------------------------------------------------


def two_layers(p: Any, x: Any) -> Any:
    return x @ p["a"] @ p["b"] + p["bias"]


def check_shift(compensate: Any) -> None:
    """A removed channel that is a constant plus others: only a bias can stand in."""

    def apply(p, x):
        return (x @ p["a"] + p["shift"]) @ p["b"] + p["bias"]

    p = {"a": normal(0, 3, 4), "b": normal(1, 4, 2), "bias": normal(2, 2)}
    p["shift"] = np.asarray([0, 0, 0, 5.0], np.float32)
    p["a"][:, 3] = p["a"][:, 0] - p["a"][:, 1]
    x = normal(3, 40, 3)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(4, 3)}
    got, _ = compensate(apply, p, graph, keep, [x], damping=1e-6, **QUIET)
    small, _ = cj.cut(apply, p, graph, keep)
    np.testing.assert_allclose(small(got, x), apply(p, x), atol=1e-4)


def test_a_bias_stands_in_for_what_is_constant():
    check_shift(cj.compensate)


def test_saboteur_without_a_bias_is_found_out(monkeypatch):
    def blind(prog, child, loops):
        return tuple(s._replace(bias=None) for s in stops_of(prog, child, loops))

    monkeypatch.setattr(module, "stops_of", blind)
    with pytest.raises(AssertionError):
        check_shift(cj.compensate)


def residual(p: Any, x: Any, by: float | None = None) -> Any:
    h = jnp.tanh(x @ p["stem"]) @ p["a"]
    branch = (jnp.tanh(h @ p["b"]) @ p["c"] - p["mean"]) * p["scale"]
    return (h - (branch if by is None else by * branch)) @ p["d"]


def check_residual(compensate: Any, by: float | None = None) -> None:
    """What the skip lacks is asked of the block's last layer, through its scale."""
    sizes = {"stem": (4, 9), "a": (9, 6), "b": (6, 12), "c": (12, 6), "d": (6, 3)}
    p = {n: normal(i, *s) for i, (n, s) in enumerate(sizes.items())}
    p |= {"mean": normal(8, 6), "scale": 1 + normal(9, 6) ** 2}
    x = normal(10, 80, 4)
    apply = partial(residual, by=by)
    graph = cj.trace(apply, p, x)
    keep = {"stem:1": off(9, 0, 1, 2, 3), "b:1": off(12, 2, 5)}
    got, _ = compensate(apply, p, graph, keep, [x], damping=1e-3, **QUIET)
    full = np.tanh(x.astype(np.float64) @ p["stem"])
    h, small = full @ p["a"], full[:, keep["stem:1"]]
    a = ridge(small, h, p["a"][keep["stem:1"]], 1e-3)
    mine = small @ a
    stays = keep["b:1"]
    mid, want = np.tanh(h @ p["b"]), np.tanh(mine @ np.asarray(got["b"]))
    wrong = h - mine
    y = mid @ p["c"] - wrong / (p["scale"] * (by or 1))
    about = want - want.mean(0), y - y.mean(0)
    c = ridge(*about, p["c"][stays], 1e-3)
    np.testing.assert_allclose(got["c"], c, atol=2e-3)
    mean = p["mean"] - (y.mean(0) - want.mean(0) @ c)
    np.testing.assert_allclose(got["mean"], mean, atol=2e-3)


@pytest.mark.parametrize("by", [None, 0.5])
def test_a_block_makes_up_for_what_its_skip_lacks(by):
    check_residual(cj.compensate, by)


def test_saboteur_that_ignores_the_skip_is_found_out(monkeypatch):
    def blind(prog, child, loops):
        free = [s.reach._replace(other=None) for s in stops_of(prog, child, loops)]
        stops = zip(stops_of(prog, child, loops), free, strict=True)
        return tuple(s._replace(reach=r) for s, r in stops)

    monkeypatch.setattr(module, "stops_of", blind)
    with pytest.raises(AssertionError):
        check_residual(cj.compensate)


def test_every_group_of_a_grouped_convolution_has_its_own_fit():
    def apply(p, x):
        h = jnp.tanh(x @ p["a"])
        return jax.lax.conv_general_dilated(
            h,
            p["b"],
            (1, 1),
            "VALID",
            feature_group_count=3,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    p = {"a": normal(1, 3, 12), "b": normal(2, 1, 1, 4, 6)}
    x = normal(3, 12, 4, 4, 3)
    graph = cj.trace(apply, p, x)
    (name,) = [g.name for g in graph.free if g.size == 4]
    keep = {name: off(4, 2)}
    got, (*_, fit) = cj.compensate(apply, p, graph, keep, [x], damping=1e-3, **QUIET)
    h = np.tanh(x.astype(np.float64) @ p["a"]).reshape(-1, 3, 4)
    for g in range(3):
        kernel = p["b"][0, 0, :, 2 * g : 2 * g + 2]
        b = h[:, g][:, keep[name]]
        want = ridge(b, h[:, g] @ kernel, kernel[keep[name]], 1e-3)
        np.testing.assert_allclose(
            got["b"][0, 0, :, 2 * g : 2 * g + 2], want, atol=1e-3
        )
    assert fit.features == 3


def test_rows_may_be_fewer_where_more_is_made_than_read():
    """Tokens are a group too: the parent is asked for those that the child has."""

    def apply(p, x):
        h = jnp.tanh(jnp.einsum("bsc,st->btc", x, p["tokens"]) @ p["in"])
        wide = jnp.tanh(h @ p["up"])
        return jnp.einsum("btc,tco->bo", wide, p["head"])

    sizes = {"tokens": (6, 5), "in": (7, 4), "up": (4, 9), "head": (5, 9, 2)}
    p = {n: normal(i, *s) for i, (n, s) in enumerate(sizes.items())}
    x = normal(9, 60, 6, 7)
    graph = cj.trace(apply, p, x)
    keep = {"tokens:1": off(5, 1, 4), "in:1": off(4, 2)}
    got, _ = cj.compensate(apply, p, graph, keep, [x], damping=1e-3, **QUIET)
    full = np.tanh(
        np.einsum("bsc,st->btc", x.astype(np.float64), p["tokens"]) @ p["in"]
    )
    rows = full[:, keep["tokens:1"]].reshape(-1, 4)
    mix = ridge(rows[:, keep["in:1"]], rows, np.eye(4)[keep["in:1"]], 1e-3)
    np.testing.assert_allclose(got["up"], mix @ p["up"], atol=2e-3)


SPECIAL = ["decoder", "stacked_layers", "lstm", "albert", "moe_top2", "mobilenet"]


@pytest.mark.parametrize("name", by_turns(SPECIAL, 2))
def test_special_readers_come_closer_to_the_parent(name):
    """Depthwise kernels, layers stacked for a scan, weights that are read often."""
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = random_keep(graph, 2, 0.7)
    data = [batch_of(net, i) for i in range(3)]
    if name in ("moe_top2", "albert", "decoder"):
        data = [(net.inputs, None)] * 2
    fitted, fits = cj.compensate(net.apply, net.params, graph, keep, data, **QUIET)
    small, as_cut = cj.cut(net.apply, net.params, graph, keep)
    assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, as_cut)
    assert all(f.after <= f.before + 1e-6 for f in fits)
    x, _ = data[0]
    want = outputs(net.apply, net.params, x)
    before = error(outputs(small, as_cut, x), want)
    assert error(outputs(small, fitted, x), want) < 0.9 * before
    looped = {"stacked_layers": "blocks/up", "lstm": "cell/kernel"}.get(name)
    assert looped is None or looped in [f.path for f in fits]


# Statistics. -------------------------------------------------------------------------


def plain(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["a"])
    h = jax.nn.relu(h @ p["b"] + p["shift"])
    return h @ p["c"] + p["bias"]


def check_repair(repair: Any) -> None:
    sizes = {"a": (5, 12), "b": (12, 10), "c": (10, 3), "shift": (10,), "bias": (3,)}
    p = {n: normal(i, *s) for i, (n, s) in enumerate(sizes.items())}
    batches = [normal(10 + i, 40, 5) for i in range(2)]
    graph = cj.trace(plain, p, batches[0])
    keep = {"a:1": off(12, 0, 3, 5, 7), "b:1": off(10, 2, 6, 9)}
    got, fits = repair(plain, p, graph, keep, batches, **QUIET)
    x = np.concatenate(batches)

    def made(q: Any) -> tuple[Any, Any]:
        second = np.maximum(x @ q["a"], 0) @ q["b"] + q["shift"]
        return second, np.maximum(second, 0) @ q["c"] + q["bias"]

    stays = keep["b:1"]
    wanted = made(p)[0][:, stays], made(p)[1]
    for mine, theirs in zip(made(jax.tree.map(np.asarray, got)), wanted, strict=True):
        np.testing.assert_allclose(mine.mean(0), theirs.mean(0), atol=1e-3)
        np.testing.assert_allclose(mine.std(0), theirs.std(0), rtol=1e-3)
    assert [f.path for f in fits] == ["a", "b", "c"]
    # One number per channel: kernels keep their directions.
    kernel = p["b"][keep["a:1"]][:, stays]
    ratio = np.asarray(got["b"] / kernel)
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio), 0), rtol=1e-4)


def test_repair_gives_every_channel_the_spread_that_it_had():
    check_repair(cj.repair)


def test_saboteur_that_repairs_nothing_is_found_out():
    def nothing(apply, p, graph, keep, batches, **kw):
        return cj.cut_params(p, graph, keep), []

    with pytest.raises(AssertionError):
        check_repair(nothing)


class Normed(nn.Module):
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
        x = nn.relu(x).mean((1, 2))
        return {t: nn.Dense(n, name=t)(x) for t, n in (("age", 2), ("smile", 1))}


def check_statistics(recalibrate: Any, momentum: float) -> None:
    """Batches of different sizes count by their examples."""
    net = Normed(momentum)
    x = 2 + normal(0, 22, 5, 5, 3)
    params = net.init(jax.random.key(0), x)

    def train(p, x):
        return net.apply(p, x, True, mutable=["batch_stats"])

    graph = cj.trace(net.apply, params, x)
    keep = {graph.free[0].name: off(6, 1, 4)}
    for tasks in (None, ("age",), ("smile",)):
        small_train = cj.shrink(train, graph, keep, tasks)
        _, small = cj.cut(net.apply, params, graph, keep, tasks)
        parts = [x[:8], x[8:16], x[16:]]
        got = recalibrate(small_train, small, parts, **QUIET)
        kernel = small["params"]["Conv_0"]["kernel"]
        made = im2col(x, 3, 1, 1, True) @ np.asarray(kernel).reshape(27, -1)
        found = got["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(found["mean"], made.mean(0), atol=1e-5)
        np.testing.assert_allclose(found["var"], made.var(0), rtol=1e-4)
        heads = tasks or ("age", "smile")
        assert set(got["params"]) == {"Conv_0", "BatchNorm_0", *heads}


@pytest.mark.parametrize("momentum", [0.99, 0.5])
def test_statistics_are_those_of_all_batches_as_one_for_every_subset(momentum):
    check_statistics(cj.recalibrate, momentum)


def test_statistics_of_several_inputs_in_the_container_that_was_given():
    def train(p, x, mask):
        mean = 0.5 * p["seen"]["mean"] + 0.5 * (x * mask).mean(0)
        return x * p["w"], {"seen": {"mean": mean}}

    x, mask = normal(0, 2, 8, 3)
    params = FrozenDict({"w": np.ones(3), "seen": {"mean": np.zeros(3)}})
    got = cj.recalibrate(train, params, [((x, mask), "labels")], **QUIET)
    assert isinstance(got, FrozenDict)
    np.testing.assert_allclose(got["seen"]["mean"], (x * mask).mean(0), rtol=1e-5)


def test_saboteur_running_averages_are_found_out():
    def running(train, params, batches, **kw):
        for x in batches:
            params = {**params, **train(params, x)[1]}
        return params

    with pytest.raises(AssertionError):
        check_statistics(running, 0.9)


def test_statistics_of_bad_data_are_an_error():
    net = Normed()
    x = normal(0, 4, 5, 5, 3)
    params = net.init(jax.random.key(0), x)

    def train(p, x):
        return net.apply(p, x, True, mutable=["batch_stats"])

    with pytest.raises(DataError, match="no data"):
        cj.recalibrate(train, params, [], **QUIET)
    with pytest.raises(DataError, match="in the batch after 4 examples"):
        cj.recalibrate(train, params, [x, np.nan * x], **QUIET)
    with pytest.raises(MismatchError, match="returned updates for"):
        cj.recalibrate(lambda p, x: (net.apply(p, x), {}), params, [x], **QUIET)


# Much, little, bad. ------------------------------------------------------------------


def test_wide_dense_layers_are_fitted_to_rows_of_data():
    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    p = {"a": normal(0, 6, 40), "b": normal(1, 40, 3)}
    x = normal(2, 20, 6)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(40, *range(0, 40, 5))}
    with pytest.warns(UserWarning, match="'b' has 32 features but 20 rows"):
        got, (*_, fit) = cj.compensate(
            apply, p, graph, keep, [x], damping=1e-2, most_features=20, **QUIET
        )
    h = np.tanh(x.astype(np.float64) @ p["a"])
    b = h[:, keep["a:1"]]
    want = ridge(b, h @ p["b"], p["b"][keep["a:1"]], 1e-2)
    np.testing.assert_allclose(got["b"], want, atol=1e-3)
    assert (fit.features, fit.rows) == (32, 20)


def test_of_many_rows_some_suffice_and_few_are_all_taken(monkeypatch):
    net = NETS["resnext"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = random_keep(graph, 3)
    data = [batch_of(net, i, 48) for i in range(2)]
    args = (net.apply, net.params, graph, keep, data)
    _, fits = cj.compensate(*args, rows=4, **QUIET)
    whole = [f.rows for f in fits if f.features == 27]
    monkeypatch.setattr("cutjax.recover.rows.CHEAP", 0)
    _, fits = cj.compensate(*args, rows=4, **QUIET)
    wide = [f.rows for f in fits if f.features == 27]
    assert wide and all(4 * 27 <= rows < 2 * 4 * 27 for rows in wide)
    assert min(whole) >= 2 * max(wide)


def test_should_it_all_get_worse_it_stays_as_cut(monkeypatch):
    p = {"a": normal(0, 3, 4), "b": normal(1, 4, 2), "bias": normal(2, 2)}
    x = normal(3, 40, 3)
    graph = cj.trace(two_layers, p, x)
    keep = {"a:1": off(4, 3)}

    def spoiled(*args):
        kernel, shift, fit = refitted(*args)
        return kernel * 50, shift, fit

    refitted = module.refitted
    monkeypatch.setattr(module, "refitted", spoiled)
    with pytest.warns(UserWarning, match="made the outputs worse"):
        got, _ = cj.compensate(two_layers, p, graph, keep, [x], **QUIET)
    _, as_cut = cj.cut(two_layers, p, graph, keep)
    jax.tree.map(np.testing.assert_array_equal, got, as_cut)


def test_segments_end_with_the_outputs_of_both():
    net = NETS["mlp_tasks"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    prog = program(net.apply, graph, {}, net.inputs)
    leaves = jax.tree.leaves(net.params)
    alive = module._start(prog, net.inputs)
    _, pairs = segment(prog, (), 0)(module.Pair(leaves, leaves), alive)
    want = jax.tree.leaves(net.apply(net.params, *net.inputs))
    for pair, out in zip(pairs, want, strict=True):
        np.testing.assert_allclose(pair.parent, out, atol=1e-6)
        np.testing.assert_allclose(pair.child, out, atol=1e-6)


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
sys.path.insert(0, sys.argv[1])
import jax, numpy as np, cutjax as cj
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from nets import NETS
from test_compensate import batch_of, random_keep
net = NETS["mlp_tasks"]()
graph = cj.trace(net.apply, net.params, *net.inputs)
keep, runs = random_keep(graph, 1), []
data = [batch_of(net, i, 24) for i in range(3)]
def run(params, sharding):
    args = net.apply, params, graph, keep, data
    return jax.tree.leaves(cj.compensate(*args, progress=False, sharding=sharding)[0])
for devices, kind in ((1, AxisType.Auto), (4, AxisType.Auto), (4, AxisType.Explicit)):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,))
    runs.append(run(net.params, NamedSharding(mesh, PartitionSpec("data"))))
# The parameters divided, and not the data.
whole = NamedSharding(mesh, PartitionSpec())
runs.append(run(jax.device_put(net.params, whole), None))
print(max(np.abs(a - b).max() for other in runs[1:] for a, b in zip(runs[0], other)))
"""


@pytest.mark.slow
def test_moments_are_the_same_on_one_and_four_devices():
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, here],
        capture_output=True,
        text=True,
        env={**os.environ},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 1e-4
