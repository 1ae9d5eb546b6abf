"""Every criterion against its formula, worked out another way on a small net."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_saliency import (
    CONV,
    LOSSES,
    MLP,
    QUIET,
    batched,
    conv_data,
    conv_loop,
    conv_net,
    mlp,
    mlp_data,
    mlp_losses,
)

import cutjax as cj
from cutjax import criteria
from cutjax.dims import Concat, Fixed, Leaf, Product, incidence
from cutjax.errors import DataError, KeepError
from cutjax.saliency import members

TASKS = ("age", "smile")


@pytest.fixture(scope="module")
def graph() -> cj.Graph:
    return cj.trace(mlp, MLP, jnp.ones((1, 4)))


@pytest.fixture(scope="module")
def conv_graph() -> cj.Graph:
    return cj.trace(conv_net, CONV, jnp.ones((1, 5, 5, 2)))


def score(graph: cj.Graph, criterion: Any, n: int = 7, size: int = 3) -> Any:
    return criterion(mlp, MLP, graph, LOSSES, batched(*mlp_data(n), size), **QUIET)


def check(got: Any, want: dict[str, dict[str, Any]], **tolerance: float) -> None:
    for task, groups in want.items():
        for name, values in groups.items():
            given = {"rtol": 1e-3, "atol": 1e-5, **tolerance}
            np.testing.assert_allclose(got[task][name], values, err_msg=name, **given)


# Gates. -----------------------------------------------------------------------------


def test_signed_and_squared_taylor_are_of_the_mean_gradient(conv_graph):
    data = batched(*conv_data(7), 3)
    args = (conv_net, CONV, conv_graph, LOSSES, data)
    mean = {name: v.mean(0) for name, v in conv_loop(7).items()}
    signed = cj.criteria.taylor_signed(*args, **QUIET)
    check(signed, {t: {g: -v[i] for g, v in mean.items()} for i, t in enumerate(TASKS)})
    squared = cj.criteria.taylor_squared(*args, **QUIET)
    want = {t: {g: v[i] ** 2 for g, v in mean.items()} for i, t in enumerate(TASKS)}
    check(squared, want)


def brute_gram(each: np.ndarray) -> np.ndarray:
    """Greedy growth of the removed set by its cost, every cost worked out whole."""
    n, gone, cost, reached, out = (
        each.shape[1],
        [],
        0.0,
        -np.inf,
        np.zeros(each.shape[1]),
    )

    def of(removed: list[int]) -> float:
        return float((each[:, removed].sum(1) ** 2).mean() / 2)

    for _ in range(n):
        after = {c: of([*gone, c]) - cost for c in range(n) if c not in gone}
        at = min(after, key=lambda c: after[c])
        reached = max(reached, after[at])
        out[at], cost = reached, cost + after[at]
        gone.append(at)
    return out


def check_gram(gram: Any, conv_graph: cj.Graph) -> None:
    data = batched(*conv_data(7), 3)
    got = gram(conv_net, CONV, conv_graph, LOSSES, data, **QUIET)
    loop = conv_loop(7)
    check(
        got,
        {
            t: {g: brute_gram(v[:, i]) for g, v in loop.items()}
            for i, t in enumerate(TASKS)
        },
        rtol=2e-3,
    )


def test_gram_equals_brute_force_over_sets(conv_graph):
    check_gram(cj.criteria.gram, conv_graph)
    # Saboteur: the diagonal alone, which is what Fisher scores are.
    with pytest.raises(AssertionError):
        check_gram(cj.fisher, conv_graph)


def brute_hessian(n: int) -> dict[str, np.ndarray]:
    """Second central differences of the mean losses at each gate, in float64."""
    x, y = mlp_data(n)
    step, out = 1e-4, {"w1:1": np.zeros((2, 6)), "w2:1": np.zeros((2, 5))}

    def losses(name: str, c: int, shift: float) -> np.ndarray:
        gates = {"w1:1": np.ones(6), "w2:1": np.ones(5)}
        gates[name][c] += shift
        each = [
            mlp_losses(
                *gates.values(), x[i].astype(float), {t: v[i] for t, v in y.items()}
            )
            for i in range(n)
        ]
        return np.mean(each, axis=0)

    for name, found in out.items():
        for c in range(found.shape[1]):
            up, here, down = (losses(name, c, s * step) for s in (1, 0, -1))
            found[:, c] = (up - 2 * here + down) / step**2 / 2
    return out


def test_hessian_equals_second_differences(graph):
    found = brute_hessian(7)
    want = {t: {g: v[i] for g, v in found.items()} for i, t in enumerate(TASKS)}
    exact = cj.criteria.hessian(samples=None)
    got = cj.saliency(mlp, MLP, graph, LOSSES, [mlp_data(7)], criterion=exact, **QUIET)
    check(got, want, rtol=5e-3, atol=5e-4)
    # Saboteur: the Fisher in its place is another matrix.
    with pytest.raises(AssertionError):
        check(score(graph, cj.fisher), want, rtol=5e-3, atol=5e-4)


def gate_hessian(graph: cj.Graph, task: str) -> np.ndarray:
    """The whole Hessian of a task's mean loss by JAX, gates w1:1 then w2:1."""
    gated, (x, y) = cj.gate(mlp, graph), mlp_data(7)

    def loss(flat):
        out = gated({"w1:1": flat[:6], "w2:1": flat[6:]}, MLP, x)
        # Both losses are means over examples of what one example costs.
        return LOSSES[task](out[task], y[task])

    return np.asarray(jax.hessian(loss)(jnp.ones(11)))


def test_hutchinson_is_unbiased_with_the_stated_variance(graph):
    """Over seeds of 4 samples each; the criterion is v * Hv / 2."""
    gates = {"w1:1": slice(0, 6), "w2:1": slice(6, 11)}
    matrix = gate_hessian(graph, "smile")
    exact = np.diag(matrix) / 2
    variance = ((matrix**2).sum(1) - np.diag(matrix) ** 2) / 4 / 4
    named = {f"{s}": cj.criteria.hessian(samples=4, seed=s) for s in range(12)}
    args = (mlp, MLP, graph, LOSSES, [mlp_data(7)])
    found = cj.saliency(*args, criterion=named, **QUIET)
    for name, at in gates.items():
        draws = np.array([found[s]["smile"][name] for s in named])
        sigma = np.sqrt(variance[at] / len(draws)) + 1e-6
        assert (np.abs(draws.mean(0) - exact[at]) < 4.5 * sigma).all()
        loud = variance[at] > 1e-8
        ratio = draws.var(0, ddof=1)[loud] / variance[at][loud]
        assert ((ratio > 0.15) & (ratio < 4)).all()


# Weights. ---------------------------------------------------------------------------


def weight_gradients(rows: slice, task: str) -> dict[str, np.ndarray]:
    """Gradient of the mean loss over some rows of seven examples."""
    x, y = mlp_data(7)

    def loss(p):
        return LOSSES[task](mlp(p, x[rows])[task], y[task][rows])

    return jax.tree.map(np.asarray, jax.grad(loss)(MLP))


def channel_sums(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Slices of the perceptron by hand: who writes, the bias, who reads."""
    return {
        "w1:1": values["w1"].sum(0)
        + values["b1"]
        + values["w2"].sum(1)
        + values["smile"].sum(1),
        "w2:1": values["w2"].sum(0) + values["age"].sum(1),
    }


def test_cut_sums_absolute_products_batch_by_batch(graph):
    want: dict[str, Any] = {}
    for task in TASKS:
        parts = []
        for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
            g, size = weight_gradients(rows, task), len(range(7)[rows])
            parts.append({p: size * np.abs(MLP[p] * g[p]) for p in MLP})
        want[task] = channel_sums({p: sum(q[p] for q in parts) / 7 for p in MLP})
    cut = cj.criteria.cut(batch=3)
    args = (mlp, MLP, graph, LOSSES)
    # However the stream is divided, CUT's batches are of three.
    for size in (7, 2):
        data = batched(*mlp_data(7), size)
        check(cj.saliency(*args, data, criterion=cut, **QUIET), want)
    with pytest.raises(AssertionError):
        check(score(graph, cj.criteria.snip), want)


def test_snip_is_of_the_mean_gradient_and_biases_count(graph):
    want = {}
    for task in TASKS:
        g = weight_gradients(slice(0, 7), task)
        want[task] = channel_sums({p: np.abs(MLP[p] * g[p]) for p in MLP})
    check(score(graph, cj.criteria.snip), want)
    without = {
        t: {
            **v,
            "w1:1": v["w1:1"]
            - np.abs(MLP["b1"] * weight_gradients(slice(0, 7), t)["b1"]),
        }
        for t, v in want.items()
    }
    with pytest.raises(AssertionError):
        check(score(graph, cj.criteria.snip), without)


def test_parameters_of_batch_norm_count(conv_graph):
    """Scaling a BatchNorm's scale by two doubles w dL/dw's share that it has."""
    data = [conv_data(6)]
    got = cj.criteria.snip(conv_net, CONV, conv_graph, LOSSES, data, **QUIET)
    x, y = conv_data(6)
    for task in TASKS:

        def loss(p, task=task):
            return LOSSES[task](conv_net(p, x)[task], y[task])

        g = jax.grad(loss)(CONV)
        p = jax.tree.map(lambda w, s: np.abs(np.asarray(w * s, np.float64)), CONV, g)
        want = p["c2"].sum((0, 1, 2)) + p["c3"].sum((0, 1, 3))
        kernels_only = want.copy()
        for part in p["bn2"].values():
            want = want + part
        np.testing.assert_allclose(got[task]["c2:3"], want, rtol=1e-3)
        assert not np.allclose(want, kernels_only, rtol=1e-2)


def test_grasp_equals_the_hessian_times_the_gradient(graph):
    flat, back = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, MLP))
    x, y = mlp_data(7)
    want = {}
    for task in TASKS:

        def loss(flat, task=task):
            return LOSSES[task](mlp(back(flat), x)[task], y[task])

        hessian, g = jax.hessian(loss)(flat), jax.grad(loss)(flat)
        want[task] = channel_sums(jax.tree.map(np.asarray, back(flat * (hessian @ g))))
    check(score(graph, cj.criteria.grasp), want, rtol=5e-3, atol=1e-3)


def test_cosprune_is_the_mean_cosine_of_slices(graph):
    g = {t: weight_gradients(slice(0, 7), t) for t in TASKS}

    def slices(task: str) -> dict[str, np.ndarray]:
        v = g[task]
        rows = [v["w1"], v["b1"][None], v["w2"].T, v["smile"].T]
        return {
            "w1:1": np.concatenate(rows),
            "w2:1": np.concatenate([v["w2"], v["age"].T]),
        }

    a, b = slices("age"), slices("smile")
    want = {}
    for name in a:
        size = np.linalg.norm(a[name], axis=0) * np.linalg.norm(b[name], axis=0)
        dot = (a[name] * b[name]).sum(0)
        want[name] = np.where(size > 0, dot / np.where(size > 0, size, 1), 0)
    assert np.abs(want["w1:1"]).max() > 0.05 and not want["w2:1"].any()
    check(score(graph, cj.criteria.cosprune), {"age": want, "smile": want})
    with pytest.raises(DataError, match="cosprune compares tasks"):
        cj.criteria.cosprune(mlp, MLP, graph, {"age": LOSSES["age"]}, [mlp_data(3)])


# Weights alone. ---------------------------------------------------------------------


def filters(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per group all kernel weights of each channel, [weights, n]."""
    w1 = np.concatenate([p["w1"], p["w2"].T, p["smile"].T])
    return {"w1:1": w1, "w2:1": np.concatenate([p["w2"], p["age"].T])}


def lamp(v: np.ndarray) -> np.ndarray:
    s = (v**2).sum(0)
    return np.array([x / s[s >= x].sum() for x in s])


def median(v: np.ndarray) -> np.ndarray:
    return np.linalg.norm(v[:, :, None] - v[:, None, :], axis=0).sum(1)


BY_HAND = {
    "l1": lambda v: np.abs(v).mean(0),
    "l2": lambda v: np.sqrt((v**2).mean(0)),
    "linf": lambda v: np.abs(v).max(0),
    "lamp": lamp,
    "fpgm": median,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sizes_of_weights_by_hand(graph, name):
    got = cj.criteria.ALL[name](None, MLP, graph)
    want = {g: BY_HAND[name](v) for g, v in filters(MLP).items()}
    check(got, dict.fromkeys(TASKS, want))


def test_batch_norm_scale_and_what_has_none(conv_graph, graph):
    got = cj.criteria.bn_scale(None, CONV, conv_graph)["age"]
    np.testing.assert_allclose(got["c2:3"], np.abs(CONV["bn2"]["scale"]), rtol=1e-6)
    with pytest.raises(KeepError, match=r"group 'w1:1' has no vector.*'\*scale'"):
        cj.criteria.bn_scale(None, MLP, graph)


def test_reductions_of_members_by_hand(graph):
    sums = {"w1": 4, "b1": 1, "w2": 5, "smile": 3}
    values = {p: np.abs(v) for p, v in MLP.items()}
    axes = {"w1": 0, "w2": 1, "smile": 1}
    each = np.stack([values[p].sum(axes[p]) if p in axes else values[p] for p in sums])
    counts = np.array(list(sums.values()), float)[:, None]
    want = {
        members.total: each.sum(0),
        members.mean: each.sum(0) / counts.sum(),
        members.average: (each / counts).mean(0),
        members.largest: (each / counts).max(0),
        members.norm: np.sqrt((each**2).sum(0)),
    }
    for reduce, value in want.items():
        got = members.per_channel(values, graph, reduce)
        np.testing.assert_allclose(got["w1:1"], value, rtol=1e-5)


def test_incidence_of_nested_axes_equals_counting():
    a, b = Leaf("a", 2), Leaf("b", 3)
    axis = Concat((Product((a, b, a)), Fixed(2), Product((b, Concat((a, Fixed(1)))))))
    grids = [
        [(i, k) for i, _, k in itertools.product(range(2), range(3), range(2))],
        [(), ()],
        [(i,) if i < 2 else () for _, i in itertools.product(range(3), range(3))],
    ]
    flat = list(itertools.chain(*grids))
    want = sorted((at, c) for at, cs in enumerate(flat) for c in cs)
    got = sorted(zip(*(v.tolist() for v in incidence(axis, "a")), strict=True))
    assert got == want and axis.size == len(flat)


# Activations. -----------------------------------------------------------------------


def read(n: int) -> dict[str, np.ndarray]:
    """What readers of the perceptron read, [examples, n]."""
    h = np.tanh(mlp_data(n)[0] @ MLP["w1"] + MLP["b1"])
    return {"w1:1": h, "w2:1": np.tanh(h @ MLP["w2"])}


def test_activations_by_hand(graph):
    # Both readers of w1:1 read the same values.
    want = {g: np.abs(v).mean(0) for g, v in read(7).items()}
    check(score(graph, cj.criteria.mean_activation), dict.fromkeys(TASKS, want))
    size = {g: np.sqrt((v**2).mean(0)) for g, v in read(7).items()}
    weight = {
        "w1:1": np.abs(MLP["w2"]).sum(1) + np.abs(MLP["smile"]).sum(1),
        "w2:1": np.abs(MLP["age"]).sum(1),
    }
    want = {g: size[g] * weight[g] for g in size}
    check(score(graph, cj.criteria.wanda), dict.fromkeys(TASKS, want))


def test_zero_rate_counts_positions(conv_graph):
    data = batched(*conv_data(7), 3)
    got = cj.criteria.zero_rate(conv_net, CONV, conv_graph, LOSSES, data, **QUIET)
    x = conv_data(7)[0]
    from test_saliency import bn, conv

    a = jax.nn.relu(bn(CONV["bn1"], conv(x, CONV["c1"])))
    b = jax.nn.relu(bn(CONV["bn2"], conv(a, CONV["c2"])))
    want = np.asarray(b != 0).mean((0, 1, 2))
    assert 0 < want.min() < want.max()
    np.testing.assert_allclose(got["age"]["c2:3"], want, atol=1e-6)


def test_mutual_information_equals_its_sums(graph):
    n, sigma2 = 12, 0.1
    x, y = mlp_data(n)
    got = cj.criteria.mutual_information(
        *(mlp, MLP, graph, LOSSES, batched(x, y, 5)), **QUIET
    )
    bins = np.searchsorted(
        np.quantile(y["age"][:, 0], np.linspace(0, 1, 9)[1:-1]), y["age"][:, 0]
    )
    labels = {"age": bins, "smile": y["smile"]}

    def entropy(h: np.ndarray) -> float:
        inner = [np.mean([np.exp(-((a - b) ** 2) / 2 / sigma2) for b in h]) for a in h]
        return float(-np.mean(np.log(inner)))

    for task, label in labels.items():
        for name, values in read(n).items():
            for c in range(values.shape[1]):
                h = values[:, c].astype(np.float64)
                h = (h - h.mean()) / h.std()
                parts = [
                    (label == v).mean() * entropy(h[label == v])
                    for v in np.unique(label)
                ]
                want = entropy(h) - sum(parts)
                assert got[task][name][c] == pytest.approx(want, rel=2e-3, abs=1e-4)


def test_mutual_information_finds_the_informative_channel():
    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    label = np.arange(90) % 3
    rng = np.random.default_rng(0)
    x = np.stack([label - 1.0, *rng.normal(size=(3, 90))], 1).astype(np.float32)
    p = {"a": np.eye(4, dtype=np.float32), "b": np.ones((4, 3), np.float32)}
    graph = cj.trace(apply, p, x)
    losses = {"output": LOSSES["smile"]}
    data = batched(x, {"output": label}, 40)
    got = cj.criteria.mutual_information(apply, p, graph, losses, data, **QUIET)
    found = got["output"]["a:1"]
    assert found[0] > 0.8 * np.log(3) > 3 * found[1:].max()
    with pytest.raises(DataError, match="needs one label per example"):
        losses = {"output": lambda o, t: (o**2).sum()}
        data = [(x, {"output": np.ones((90, 2, 2), np.int32)})]
        cj.criteria.mutual_information(apply, p, graph, losses, data, **QUIET)


def test_what_cannot_be_seen_is_an_error():
    def apply(p, x):
        def body(h, _):
            return jnp.tanh(jnp.tanh(h @ p["in"]) @ p["out"]), None

        return jax.lax.scan(body, x, None, 3)[0]

    p = {"in": np.ones((3, 5), np.float32), "out": np.ones((5, 3), np.float32)}
    x = np.ones((2, 3), np.float32)
    graph = cj.trace(apply, p, x)
    data = [(x, {"output": np.ones((2, 3))})]
    losses = {"output": lambda o, t: ((o - t) ** 2).sum()}
    for name in ("mean_activation", "mutual_information", "wanda"):
        with pytest.raises(DataError, match=rf"{name}.*'in:1'.*(loop|kernel)"):
            cj.criteria.ALL[name](apply, p, graph, losses, data, **QUIET)
    assert cj.taylor(apply, p, graph, losses, data, **QUIET)["output"]["in:1"].all()


# One pass. --------------------------------------------------------------------------

CHEAP = {n: f for n, f in criteria.ALL.items() if n not in ("hessian", "bn_scale")}


def test_all_criteria_read_the_data_once_and_score_as_alone(graph):
    x, y = mlp_data(7)
    reads = []

    def stream():
        for batch in batched(x, y, 3):
            reads.append(len(batch[0]))
            yield batch

    args = (mlp, MLP, graph, LOSSES)
    together = cj.saliency(*args, stream(), criterion=CHEAP, **QUIET)
    assert reads == [3, 3, 1] and list(together) == list(CHEAP)
    for name in ("taylor", "joint", "cut", "cosprune", "wanda", "mutual_information"):
        data = batched(x, y, 3)
        alone = cj.saliency(*args, data, criterion=CHEAP[name], **QUIET)
        rtol = 1e-3 if name == "joint" else 1e-5
        check(together[name], alone, rtol=rtol, atol=1e-6)


def test_a_pass_that_was_interrupted_goes_on(graph):
    x, y = mlp_data(9)
    data, args = batched(x, y, 3), (mlp, MLP, graph, LOSSES)
    names = ("taylor", "cut", "joint", "mutual_information")
    # Without sizes of their own, so that parts end where batches do.
    small = {n: CHEAP[n]()._replace(batch=None) for n in names}
    kwargs: dict[str, Any] = {"criteria": small, **QUIET}
    whole = criteria.gather(*args, data, **kwargs)
    part = criteria.gather(*args, data[:2], **kwargs)
    # A state is a pytree of arrays: what is kept and read back is the same.
    part = jax.tree.map(lambda v: jnp.asarray(np.asarray(v)), part)
    assert int(part.examples) == 6
    rest = criteria.gather(*args, data[2:], state=part, **kwargs)
    assert int(rest.examples) == int(whole.examples) == 9
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    got = criteria.finish(*args, criteria=small, state=rest)
    check(got["taylor"], cj.taylor(*args, data, **QUIET), rtol=1e-5)
    with pytest.raises(DataError, match="nothing was gathered for 'fisher'"):
        criteria.finish(*args, criteria={"fisher": cj.fisher()}, state=rest)


AMPLIFY = ("joint", "gram", "mutual_information", "reconstruction")
STEADY = [n for n in CHEAP if n not in AMPLIFY]


def test_scores_are_the_same_for_any_batch_size(conv_graph):
    """To 1e-6 of the largest score; what inverts or sums sets, to 1e-4."""
    x, y = conv_data(13)
    args = (conv_net, CONV, conv_graph, LOSSES)
    chosen = {
        n: f for n, f in CHEAP.items() if n != "grasp"
    }  # it takes long to compile
    runs = [
        cj.saliency(*args, batched(x, y, size), criterion=chosen, **QUIET)
        for size in (13, 4, 1)
    ]
    for name, other in itertools.product(chosen, runs[1:]):
        for task, groups in runs[0][name].items():
            scale = max(np.abs(v).max() for v in groups.values())
            for group, values in groups.items():
                error = np.abs(other[name][task][group] - values).max() / scale
                assert error <= (1e-6 if name in STEADY else 1e-4), (name, error)


def test_a_given_batch_size_makes_scores_the_same_bit_for_bit(conv_graph):
    x, y = conv_data(13)
    args = (conv_net, CONV, conv_graph, LOSSES)
    runs = [
        cj.joint(*args, batched(x, y, size), **QUIET)
        if size == 4
        else cj.saliency(
            *args, batched(x, y, size), criterion=cj.joint, batch_size=4, **QUIET
        )
        for size in (4, 13, 3)
    ]
    for other in runs[1:]:
        for a, b in zip(jax.tree.leaves(runs[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_batch_sizes_that_differ_are_an_error(graph):
    pair = (cj.criteria.cut(batch=2), cj.criteria.grasp(batch=3))
    with pytest.raises(DataError, match="'cut': 2, 'grasp': 3"):
        cj.saliency(mlp, MLP, graph, LOSSES, [mlp_data(6)], criterion=pair, **QUIET)


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
sys.path.insert(0, sys.argv[1])
import jax, numpy as np, cutjax as cj
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_saliency import CONV, LOSSES, batched, conv_data, conv_net
graph = cj.trace(conv_net, CONV, np.ones((1, 5, 5, 2), np.float32))
names = ("taylor", "fisher", "snip", "wanda", "mutual_information", "joint")
chosen = {n: cj.criteria.ALL[n] for n in names}
runs = []
for devices in (1, 2, 8):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    args = (conv_net, CONV, graph, LOSSES, batched(*conv_data(21), 12))
    runs.append(cj.saliency(*args, criterion=chosen, progress=False,
        sharding=NamedSharding(mesh, PartitionSpec("data"))))
for name in names:
    first, *others = (jax.tree.leaves(r[name]) for r in runs)
    scale = max(np.abs(v).max() for v in first)
    worst = max(np.abs(a - b).max() for o in others for a, b in zip(first, o))
    print(name, worst / scale)
"""


@pytest.mark.slow
def test_scores_are_the_same_on_one_two_and_eight_devices():
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, here],
        capture_output=True,
        text=True,
        env={**os.environ},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.split() for line in done.stdout.splitlines())
    assert len(found) == 6
    for name, error in found.items():
        assert float(error) <= (1e-6 if name in STEADY else 1e-4), (name, error)


def test_scores_in_bfloat16_are_close(conv_graph):
    low = jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), CONV)
    x, y = conv_data(8)
    data = [(jnp.asarray(x, jnp.bfloat16), y)]
    names = ("taylor", "joint", "cut", "l1", "wanda")
    chosen = {n: CHEAP[n] for n in names}
    got = cj.saliency(
        conv_net, low, conv_graph, LOSSES, data, criterion=chosen, **QUIET
    )
    want = cj.saliency(
        conv_net, CONV, conv_graph, LOSSES, [(x, y)], criterion=chosen, **QUIET
    )
    for name in names:
        for a, b in zip(
            jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True
        ):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=0.3, atol=0.06 * np.abs(b).max())
