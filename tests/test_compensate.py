"""Compensation against exact redundancy and least squares written in numpy."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS

import cutjax as cj
from cutjax.errors import DataError, KeepError, MismatchError

QUIET: Any = {"progress": False}


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Compiling takes longer than running here."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(size=shape) * scale
    return draw.astype(np.float32)


def off(size: int, *gone: int) -> np.ndarray:
    keep = np.ones(size, bool)
    keep[list(gone)] = False
    return keep


def outputs(apply: Any, params: Any, x: Any) -> dict[str, np.ndarray]:
    out = jax.jit(apply)(params, *(x if isinstance(x, tuple) else (x,)))
    out = out if isinstance(out, dict) else {"output": out}
    return {task: np.asarray(v, np.float64) for task, v in out.items()}


def error(got: dict, want: dict) -> float:
    """Squared error over squared target, all tasks."""
    wrong = sum(float(np.sum((got[t] - want[t]) ** 2)) for t in got)
    return wrong / sum(float(np.sum(want[t] ** 2)) for t in got)


# Channels that the kept ones can rebuild exactly. -----------------------------------


class Net(nn.Module):
    """Convolutions with stride and BatchNorm, a skip, two heads; relu or linear."""

    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        act = (lambda v: v) if self.linear else nn.relu
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = act(norm()(nn.Conv(6, (3, 3), use_bias=False)(x)))
        y = act(norm()(nn.Conv(8, (3, 3), (2, 2), use_bias=False)(x)))
        y = norm()(nn.Conv(7, (3, 3), use_bias=False)(y))
        z = act(y + nn.Conv(7, (1, 1), (2, 2), use_bias=False)(x))
        z = z.mean((1, 2))
        return {"age": nn.Dense(2)(z), "smile": nn.Dense(3)(nn.tanh(nn.Dense(5)(z)))}


def built(linear: bool) -> tuple[Callable, Any]:
    module = Net(linear)
    params = module.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = str(path[-1].key)
        value = rng.normal(size=leaf.shape)
        if name == "var":
            value = np.abs(value) + 0.5
        elif name == "kernel":
            value = value / np.sqrt(np.prod(leaf.shape[:-1]))
        return value.astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, params)
    return lambda p, x: module.apply(p, x), params


def repeat(p: Any, layer: int, to: int, sources: dict[int, float]) -> None:
    """Makes channel `to` of Conv/BatchNorm `layer` a sum of others times factors."""
    kernel = p["params"][f"Conv_{layer}"]["kernel"]
    stats = p["batch_stats"][f"BatchNorm_{layer}"]
    norm = p["params"][f"BatchNorm_{layer}"]
    std = np.sqrt(stats["var"] + 1e-5)
    slope = norm["scale"] / std
    kernel[..., to] = sum(f * slope[c] * kernel[..., c] for c, f in sources.items())
    stats["mean"][to] = 0.0
    stats["var"][to], norm["scale"][to] = 1.0, np.sqrt(1.0 + 1e-5)
    offset = norm["bias"] - slope * stats["mean"]
    norm["bias"][to] = sum(f * offset[c] for c, f in sources.items())


REDUNDANT = {
    # Behind a relu only a multiple of one channel is linear in the kept ones.
    False: [(0, 4, {1: 2.0}), (1, 3, {0: 0.5}), (1, 6, {7: 3.0})],
    True: [(0, 4, {1: 2.0, 2: -1.0}), (1, 3, {0: 0.5, 5: 1.0}), (1, 6, {7: -3.0})],
}


def redundant(linear: bool) -> tuple[Callable, Any, Any, dict[str, np.ndarray]]:
    apply, params = built(linear)
    for layer, to, sources in REDUNDANT[linear]:
        repeat(params, layer, to, sources)
    graph = cj.trace(apply, params, jnp.ones((1, 8, 8, 3)))
    keep = {"params/Conv_0/kernel:3": off(6, 4), "params/Conv_1/kernel:3": off(8, 3, 6)}
    return apply, params, graph, keep


@functools.cache
def images(n: int = 12) -> list[np.ndarray]:
    return [normal(10 + i, n, 8, 8, 3) for i in range(3)]


def check_redundant(compensate: Callable, linear: bool) -> None:
    """Nothing is lost: on the calibration data and on images never seen."""
    apply, params, graph, keep = redundant(linear)
    small, cut_only = cj.cut(apply, params, graph, keep)
    fitted, _ = compensate(apply, params, graph, keep, images(), damping=1e-6, **QUIET)
    for x in (images()[0], normal(99, 5, 8, 8, 3)):
        want = outputs(apply, params, x)
        got = outputs(small, fitted, x)
        for task in want:
            scale = np.abs(want[task]).max()
            np.testing.assert_allclose(got[task], want[task], atol=1e-4 * max(scale, 1))
        assert error(outputs(small, cut_only, x), want) > 1e-3


@pytest.mark.parametrize("linear", [False, True])
def test_channels_that_the_kept_ones_rebuild_are_not_missed(linear):
    check_redundant(cj.compensate, linear)


# One reader, against least squares of our own. --------------------------------------


def im2col(
    x: np.ndarray, size: int, stride: int, dilation: int, same: bool
) -> np.ndarray:
    """Rows of a convolution, features in the order (window, channel); XLA's padding."""
    n, height, width, c = x.shape
    reach = dilation * (size - 1) + 1
    if same:
        made = [-(-length // stride) for length in (height, width)]
        pads = [
            max((m - 1) * stride + reach - length, 0)
            for m, length in zip(made, (height, width), strict=True)
        ]
        halves = [(p // 2, p - p // 2) for p in pads]
        x = np.pad(x, ((0, 0), *halves, (0, 0)))
    else:
        made = [(length - reach) // stride + 1 for length in (height, width)]
    out = np.zeros((n, *made, size, size, c))
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            out[:, :, :, i, j] = x[
                :,
                top : top + stride * (made[0] - 1) + 1 : stride,
                left : left + stride * (made[1] - 1) + 1 : stride,
            ]
    return out.reshape(-1, size * size * c)


def ridge(
    b: np.ndarray, y: np.ndarray, prior: np.ndarray, damping: float
) -> np.ndarray:
    """argmin |b W - y|^2 + lambda |W - prior|^2 as one least-squares problem."""
    squares = np.sum(b**2, 0)
    weight = np.sqrt(damping * np.maximum(squares, np.median(squares[squares > 0])))
    rows = np.concatenate([b, np.diag(weight)])
    wanted = np.concatenate([y, weight[:, None] * prior])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0]


CONVS = [
    (3, 1, 1, True, 1e-3),
    (3, 2, 1, True, 1e-3),
    (2, 2, 1, True, 1e-3),
    (3, 2, 1, True, 0.3),
    (3, 1, 2, False, 1e-3),
    (1, 1, 1, True, 1e-3),
]


def check_conv(compensate: Callable, case: tuple) -> None:
    size, stride, dilation, same, damping = case

    def apply(p, x):
        h = jnp.tanh(x @ p["a"])
        return jax.lax.conv_general_dilated(
            h,
            p["b"],
            (stride, stride),
            "SAME" if same else "VALID",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    p = {"a": normal(1, 3, 6), "b": normal(2, size, size, 6, 4)}
    batches = [normal(20 + i, 7, 7, 6, 3) for i in range(2)]
    graph = cj.trace(apply, p, batches[0])
    keep = {"a:1": off(6, 1, 4)}
    got, (*_, fit) = compensate(
        apply, p, graph, keep, batches, damping=damping, **QUIET
    )
    stays = keep["a:1"]
    h = np.tanh(np.concatenate(batches).astype(np.float64) @ p["a"])
    full = im2col(h, size, stride, dilation, same)
    b = im2col(h[..., stays], size, stride, dilation, same)
    y = full @ p["b"].reshape(-1, 4)
    made = apply(p, batches[0])
    np.testing.assert_allclose(y[: made[..., 0].size], made.reshape(-1, 4), atol=1e-4)
    prior = p["b"][:, :, stays].reshape(-1, 4)
    want = ridge(b, y, prior, damping)
    np.testing.assert_allclose(got["b"].reshape(-1, 4), want, atol=2e-3)
    np.testing.assert_allclose(got["a"], p["a"][:, stays], atol=1e-4)

    def relative(w):
        return np.sum((b @ w - y) ** 2) / np.sum(y**2)

    np.testing.assert_allclose(fit.before, relative(prior), rtol=1e-3)
    np.testing.assert_allclose(fit.after, relative(want), rtol=1e-2, atol=1e-5)
    assert (fit.path, fit.features) == ("b", len(want))


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_a_convolution_is_refitted_by_least_squares(case):
    check_conv(cj.compensate, case)


def test_a_dense_layer_is_refitted_by_least_squares_and_so_is_the_next():
    """Lockstep: the second reader is fitted to what the first refitted one makes."""

    def apply(p, x):
        h = jax.nn.relu(x @ p["a"])
        return jax.nn.relu(h @ p["b"]) @ p["c"] + p["bias"]

    p = {"a": normal(1, 5, 8), "b": normal(2, 8, 7), "c": normal(3, 7, 3)}
    p["bias"] = normal(4, 3)
    x = normal(5, 64, 5)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(8, 0, 3, 5), "b:1": off(7, 2, 6)}
    got, fits = cj.compensate(apply, p, graph, keep, [x], damping=1e-2, **QUIET)
    one, two = keep["a:1"], keep["b:1"]
    h = np.maximum(x.astype(np.float64) @ p["a"], 0)
    pre = h @ p["b"]
    b = ridge(h[:, one], pre[:, two], p["b"][one][:, two], 1e-2)
    np.testing.assert_allclose(got["b"], b, atol=2e-4)
    child = np.maximum(h[:, one] @ b, 0)
    # Where there is a bias the fit is about the means, and the bias makes them agree.
    y = np.maximum(pre, 0) @ p["c"]
    about = child - child.mean(0), y - y.mean(0)
    c = ridge(*about, p["c"][two], 1e-2)
    np.testing.assert_allclose(got["c"], c, atol=5e-4)
    bias = p["bias"] + y.mean(0) - child.mean(0) @ c
    np.testing.assert_allclose(got["bias"], bias, atol=5e-4)
    assert [f.path for f in fits] == ["a", "b", "c"] or [f.path for f in fits] == [
        "b",
        "c",
    ]


# Never worse. -----------------------------------------------------------------------


def random_keep(graph: Any, seed: int, share: float = 0.6) -> dict[str, np.ndarray]:
    rng, keep = np.random.default_rng(seed), {}
    for g in graph.free:
        mask = np.zeros(g.size, bool)
        mask[rng.permutation(g.size)[: max(1, round(share * g.size))]] = True
        keep[g.name] = mask
    return keep


def check_fits(fits: Any) -> None:
    assert fits
    for fit in fits:
        assert np.isfinite([fit.before, fit.after]).all()
        assert fit.after <= fit.before + 1e-5, fit


SPECIMENS = ["resnext", "vit_linen", "unet", "mlp_tasks"]


def batch_of(net: Any, seed: int, n: int = 24) -> tuple[tuple[Any, ...], None]:
    """Inputs like those of the net, more of them; and targets that are not read."""
    rng = np.random.default_rng(seed)
    sizes = [(n, *x.shape[1:]) for x in net.inputs]
    return tuple(rng.normal(size=size).astype(np.float32) for size in sizes), None


@pytest.mark.parametrize("name", SPECIMENS)
def test_readers_never_get_worse_and_neither_does_the_net(name):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = random_keep(graph, 3)
    data = [batch_of(net, 0), batch_of(net, 1)]
    fitted, fits = cj.compensate(net.apply, net.params, graph, keep, data, **QUIET)
    check_fits(fits)
    small, cut_only = cj.cut(net.apply, net.params, graph, keep)
    assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, cut_only)
    x, _ = data[0]
    want = outputs(net.apply, net.params, x)
    before = error(outputs(small, cut_only, x), want)
    after = error(outputs(small, fitted, x), want)
    assert after <= before * 1.001, (before, after)


@pytest.mark.parametrize("name", SPECIMENS[1:4])
def test_a_full_keep_changes_nothing(name):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    fitted, fits = cj.compensate(
        net.apply, net.params, graph, {}, [batch_of(net, 0)], **QUIET
    )
    for a, b in zip(jax.tree.leaves(fitted), jax.tree.leaves(net.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * max(1.0, float(np.abs(b).max())))
    assert all(f.before < 1e-5 and f.after < 1e-5 for f in fits)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(12)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(20)(nn.LayerNorm()(x)))
        return nn.Dense(4)(nn.LayerNorm()(x + nn.Dense(12)(y)).mean(1))


class UpAndDown(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = nn.relu(nn.Conv(6, (3, 3))(x))
        b = nn.relu(nn.Conv(8, (3, 3), (2, 2))(a))
        c = nn.relu(nn.ConvTranspose(5, (3, 3), (2, 2))(b))
        return nn.Conv(2, (1, 1))(jnp.concatenate([a, c], -1))


@pytest.mark.parametrize(
    ("module", "shape", "factor"),
    [(Attention(), (24, 6, 5), 0.9), (UpAndDown(), (8, 6, 6, 3), 0.8)],
    ids=["attention", "unet"],
)
def test_transformers_and_transposed_convolutions_get_better(module, shape, factor):
    x = normal(0, *shape)
    params = jax.jit(module.init)(jax.random.key(1), x)
    graph = cj.trace(module.apply, params, x)
    keep = random_keep(graph, 0, 0.5)
    fitted, fits = cj.compensate(module.apply, params, graph, keep, [x], **QUIET)
    check_fits(fits)
    small, cut_only = cj.cut(module.apply, params, graph, keep)
    want = outputs(module.apply, params, x)
    before = error(outputs(small, cut_only, x), want)
    after = error(outputs(small, fitted, x), want)
    assert after < factor * before, (before, after)


# Tasks, wide readers, batches. ------------------------------------------------------


def test_heads_of_other_tasks_are_dropped_and_not_fitted():
    apply, params, graph, keep = redundant(False)
    small, cut_only = cj.cut(apply, params, graph, keep, tasks=("age",))
    fitted, fits = cj.compensate(
        apply, params, graph, keep, images(), tasks="age", damping=1e-6, **QUIET
    )
    assert jax.tree.map(jnp.shape, fitted) == jax.tree.map(jnp.shape, cut_only)
    assert {"Dense_1", "Dense_2"}.isdisjoint(fitted["params"])
    assert not any("Dense_1" in f.path or "Dense_2" in f.path for f in fits)
    want = outputs(apply, params, images()[0])
    got = outputs(small, fitted, images()[0])
    assert set(got) == {"age"}
    assert error(got, want) < 1e-7


def test_wide_convolutions_get_one_mixing_for_all_of_their_window():
    """`most_features`: W' = M W with M from the channels alone, against numpy."""

    def apply(p, x):
        h = jnp.tanh(x @ p["a"])
        h = jax.lax.conv_general_dilated(
            h, p["b"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(h).mean((1, 2)) @ p["c"]

    p = {"a": normal(1, 3, 6), "b": normal(2, 3, 3, 6, 4), "c": normal(3, 4, 2)}
    x = normal(4, 8, 5, 5, 3)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(6, 1, 4), "b:3": off(4, 2)}
    got, fits = cj.compensate(
        apply, p, graph, keep, [x], most_features=5, damping=1e-3, **QUIET
    )
    stays = keep["a:1"]
    h = np.tanh(x.astype(np.float64) @ p["a"]).reshape(-1, 6)
    mix = ridge(h[:, stays], h, np.eye(6)[stays], 1e-3)
    want = np.einsum("kc,ijcm->ijkm", mix, p["b"])[..., keep["b:3"]]
    np.testing.assert_allclose(got["b"], want, atol=2e-3)
    assert [f.path for f in fits][-1] == "c"
    check_fits(fits)


def test_wide_readers_of_the_redundant_net_lose_nothing_either():
    apply, params, graph, keep = redundant(True)
    small, _ = cj.cut(apply, params, graph, keep)
    fitted, fits = cj.compensate(
        apply, params, graph, keep, images(), damping=1e-6, most_features=7, **QUIET
    )
    check_fits(fits)
    want = outputs(apply, params, images()[0])
    assert error(outputs(small, fitted, images()[0]), want) < 1e-6


def test_data_may_come_in_any_batches():
    apply, params, graph, keep = redundant(False)
    x = np.concatenate(images())
    options = {"damping": 1e-3, **QUIET}
    whole, _ = cj.compensate(apply, params, graph, keep, [x], **options)
    parts = [
        (x[i : i + 9], {"age": "labels are not looked at"}) for i in range(0, 36, 9)
    ]
    split, _ = cj.compensate(apply, params, graph, keep, parts, **options)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_smaller_last_batch_is_left_out():
    apply, params, graph, keep = redundant(False)
    x = images()[0]
    whole, _ = cj.compensate(apply, params, graph, keep, [x], **QUIET)
    more, _ = cj.compensate(apply, params, graph, keep, [x, 1e3 * x[:5]], **QUIET)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(more), strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_are_not_compiled_again():
    apply, params, graph, keep = redundant(False)
    traces = []

    def counted(p, x):
        traces.append(x.shape)
        return apply(p, x)

    counts = []
    for data in (images()[:1], images()):
        traces.clear()
        cj.compensate(counted, params, graph, keep, data, **QUIET)
        counts.append(len(traces))
    assert counts[0] == counts[1]


# Errors. ----------------------------------------------------------------------------


def test_errors_are_clear():
    apply, params, graph, keep = redundant(False)

    def call(data: Any, params: Any = params, keep: Any = keep, **kw: Any) -> Any:
        return cj.compensate(apply, params, graph, keep, data, **kw, **QUIET)

    with pytest.raises(DataError, match="calibration data is empty"):
        call([])
    with pytest.raises(DataError, match=r"what the reader of 'params/.*' sees is NaN"):
        call([images()[0] * np.nan])
    for damping in (-1.0, 0.0, np.nan):
        with pytest.raises(DataError, match=f"damping={damping}: give a number above"):
            call(images(), damping=damping)
    with pytest.raises(KeepError, match="no task 'agee'; nearest: 'age'"):
        call(images(), tasks="agee")
    with pytest.raises(KeepError, match="no group"):
        call(images(), keep={"params/Conv_9/kernel:3": off(6, 1)})
    with pytest.raises(MismatchError, match="is missing"):
        call(images(), params={"params": params["params"]})


# Saboteurs. -------------------------------------------------------------------------


def cut_only(apply, params, graph, keep, batches, **kw):
    """No compensation at all."""
    _, fits = cj.compensate(apply, params, graph, keep, batches, **kw)
    return cj.cut_params(params, graph, keep), fits


def transposed(apply, params, graph, keep, batches, **kw):
    """Window positions written back in the wrong order."""
    fitted, fits = cj.compensate(apply, params, graph, keep, batches, **kw)

    def turn(leaf):
        return leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf

    return jax.tree.map(turn, fitted), fits


def undamped(apply, params, graph, keep, batches, *, damping, **kw):
    """The damping that was asked for is ignored."""
    return cj.compensate(apply, params, graph, keep, batches, damping=1e-9, **kw)


@pytest.mark.parametrize("broken", [cut_only, transposed])
def test_saboteurs_of_exact_recovery_are_found_out(broken):
    with pytest.raises(AssertionError):
        check_redundant(broken, False)


@pytest.mark.parametrize("broken", [cut_only, transposed, undamped])
def test_saboteurs_of_least_squares_are_found_out(broken):
    with pytest.raises(AssertionError):
        check_conv(broken, (3, 2, 1, True, 0.3))


def test_saboteur_a_fit_to_the_wrong_target_gets_worse():
    _, fits = cj.compensate(*redundant(False), images(), **QUIET)
    check_fits(fits)
    with pytest.raises(AssertionError):
        check_fits([f._replace(after=f.before + 0.01) for f in fits])


@pytest.mark.parametrize("rows", [(), (40,), (8, 5)])
def test_a_head_may_be_a_vector(rows):
    rng = np.random.default_rng(0)
    w = {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in
         {"in": (3, 6), "out": (6,)}.items()}  # fmt: skip
    data = [jnp.asarray(rng.normal(size=(*rows, 3)), "float32") for _ in range(4)]

    def apply(w, x):
        return jnp.tanh(x @ w["in"]) @ w["out"]

    graph, keep = cj.trace(apply, w, data[0]), {"in:1": np.arange(6) > 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few rows
        small, fits = cj.compensate(apply, w, graph, keep, data, progress=False)
    assert [fit.path for fit in fits] == ["in", "out"]
    cut, as_cut = cj.cut(apply, w, graph, keep)
    off = [sum(float(jnp.sum((cut(p, x) - apply(w, x)) ** 2)) for x in data)
           for p in (small, as_cut)]  # fmt: skip
    assert off[0] <= off[1]


def test_a_block_of_which_nothing_is_left_needs_no_fit():
    net = NETS["resnet18"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    name = "params/Basic_1/Conv_0/kernel:3"
    keep = {name: np.zeros(graph[name].size, bool)}
    small, fits = cj.compensate(
        net.apply, net.params, graph, keep, [net.inputs] * 2, progress=False
    )
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(small))
    paths = [fit.path for fit in fits]
    assert len(paths) > 10 and not {p for p in paths if "Basic_1/" in p}
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)


def test_outputs_that_are_no_numbers_are_not_compared():
    def apply(p: Any, x: Any) -> dict[str, Any]:
        y = jax.nn.relu(x @ p["a"]) @ p["b"]
        return {"task": y, "sure": y > 0, "best": jnp.argmax(y, -1)}

    p = {"a": normal(1, 5, 8), "b": normal(2, 8, 3)}
    x = normal(3, 64, 5)
    graph = cj.trace(apply, p, x)
    keep = {"a:1": off(8, 1, 4)}
    small, _ = cj.compensate(apply, p, graph, keep, [x], progress=False)
    plain = cj.cut_params(p, graph, keep)
    fn = cj.shrink(apply, graph, keep)
    want = outputs(apply, p, x)["task"]
    wrong = [np.sum((outputs(fn, w, x)["task"] - want) ** 2) for w in (small, plain)]
    assert wrong[0] < wrong[1]


FILLED: dict[str, tuple[Callable[[Any], Any], float]] = {
    "zeros plus": (lambda y: jnp.zeros((64, 6)) + y, 0.0),
    "plus ones_like": (lambda y: y + jnp.ones_like(y), 1.0),
    "minus full": (lambda y: y - jnp.full((64, 6), 0.5), -0.5),
    "a carry of zeros": (
        lambda y: jax.lax.scan(lambda c, u: (c + u, None), jnp.zeros((64, 6)), y[None])[
            0
        ],
        0.0,
    ),
}


@pytest.mark.parametrize("how", FILLED)
def test_an_array_of_one_number_may_be_added_to_what_a_reader_makes(how):
    """Like that number alone, which the way goes on through."""
    fill, number = FILLED[how]
    params = {"a": normal(1, 3, 8), "b": normal(2, 8, 6) / 3, "o": normal(3, 6, 2)}
    x, fitted = normal(4, 64, 3), []
    for step in (fill, lambda y: y + number):

        def apply(p: Any, x: Any, step: Any = step) -> Any:
            return jnp.tanh(step(jax.nn.relu(x @ p["a"]) @ p["b"])) @ p["o"]

        graph = cj.trace(apply, params, x)
        keep = {"a:1": off(8, 1, 4)}
        fitted.append(cj.compensate(apply, params, graph, keep, [(x,)], **QUIET)[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *fitted
    )
