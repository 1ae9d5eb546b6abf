"""Criteria against finite differences, explicit loops and brute force."""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax.errors import DataError, KeepError
from cutjax.saliency.seen import per_example

QUIET = {"progress": False}


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(size=shape) * scale
    return draw.astype(np.float32)


# A perceptron with two tasks, and the same thing by hand in numpy float64. ---------


def mlp(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    h = jnp.tanh(x @ p["w1"] + p["b1"])
    h2 = jnp.tanh(h @ p["w2"])
    return {"age": h2 @ p["age"], "smile": h @ p["smile"]}


MLP = {
    "w1": normal(1, 4, 6),
    "b1": normal(2, 6),
    "w2": normal(3, 6, 5),
    "age": normal(4, 5, 1),
    "smile": normal(5, 6, 3),
}


def mlp_losses(g1: np.ndarray, g2: np.ndarray, x: np.ndarray, y: Any) -> list[float]:
    """Both losses of one example, float64, channels times gates where they are read."""
    p = {k: v.astype(np.float64) for k, v in MLP.items()}
    h = np.tanh(x @ p["w1"] + p["b1"]) * g1
    h2 = np.tanh(h @ p["w2"]) * g2
    logits = h @ p["smile"]
    return [
        float(np.sum((h2 @ p["age"] - y["age"]) ** 2)),
        float(np.log(np.exp(logits).sum()) - logits[y["smile"]]),
    ]


def square(out: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum((out - target) ** 2, -1))


def entropy(out: jax.Array, target: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(jax.nn.log_softmax(out), target[:, None], 1)
    return -jnp.mean(picked)


LOSSES = {"age": square, "smile": entropy}


def mlp_data(n: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return normal(6, n, 4), {"age": normal(7, n, 1), "smile": np.arange(n) % 3}


def batched(x: Any, y: Any, size: int) -> list[Any]:
    """The data in batches; the last one may be smaller."""
    return [
        (x[i : i + size], {t: v[i : i + size] for t, v in y.items()})
        for i in range(0, len(x), size)
    ]


def by_differences(n: int) -> dict[str, np.ndarray]:
    """Per group [examples, tasks, channels]: central differences of each gate."""
    x, y = mlp_data(n)
    step, out = 1e-5, {"w1:1": np.zeros((n, 2, 6)), "w2:1": np.zeros((n, 2, 5))}
    for (name, found), i in itertools.product(out.items(), range(n)):
        target = {t: v[i] for t, v in y.items()}
        for c in range(found.shape[2]):
            gates = {"w1:1": np.ones(6), "w2:1": np.ones(5)}
            ends = []
            for sign in (1, -1):
                gates[name][c] = 1 + sign * step
                ends.append(mlp_losses(*gates.values(), x[i].astype(float), target))
            found[i, :, c] = (np.array(ends[0]) - ends[1]) / (2 * step)
    return out


def check_gradient_criteria(taylor: Any, fisher: Any, size: int) -> None:
    n = 7
    graph = cj.trace(mlp, MLP, jnp.ones((1, 4)))
    want = by_differences(n)
    batches = batched(*mlp_data(n), size)
    for fn, reduce in (
        (taylor, lambda d: np.abs(d).mean(0)),
        (fisher, lambda d: (d**2).mean(0) / 2),
    ):
        got = fn(mlp, MLP, graph, LOSSES, batches, **QUIET)
        assert list(got) == ["age", "smile"]
        for t, task in enumerate(got):
            assert set(got[task]) == {"w1:1", "w2:1"}
            for name, values in got[task].items():
                np.testing.assert_allclose(
                    values, reduce(want[name])[t], rtol=1e-3, atol=1e-5
                )


@pytest.mark.parametrize("size", [7, 3, 1])
def test_taylor_and_fisher_equal_finite_differences(size):
    check_gradient_criteria(cj.taylor, cj.fisher, size)


def test_a_task_owes_nothing_to_channels_it_does_not_reach():
    graph = cj.trace(mlp, MLP, jnp.ones((1, 4)))
    scores = cj.taylor(mlp, MLP, graph, LOSSES, [mlp_data(5)], **QUIET)
    assert not scores["smile"]["w2:1"].any()
    assert (scores["age"]["w2:1"] > 0).all()


# A small residual convolutional net with BatchNorm in evaluation mode. -------------


def conv(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=numbers
    )


def bn(p: Any, x: jax.Array) -> jax.Array:
    return (x - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def gated_conv_net(g: Any, p: Any, x: jax.Array) -> dict[str, jax.Array]:
    """By hand, with a gate wherever channels are read."""
    a = jax.nn.relu(bn(p["bn1"], conv(x, p["c1"])))
    b = jax.nn.relu(bn(p["bn2"], conv(a * g["c1:3"], p["c2"])))
    c = jax.nn.relu(a + conv(b * g["c2:3"], p["c3"]))
    pooled = c.mean((1, 2)) * g["c1:3"]
    return {"age": pooled @ p["age"], "smile": pooled @ p["smile"]}


def conv_net(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    return gated_conv_net({"c1:3": 1.0, "c2:3": 1.0}, p, x)


def bn_params(seed: int, n: int) -> dict[str, np.ndarray]:
    return {
        "mean": normal(seed, n, scale=0.1),
        "var": np.abs(normal(seed + 1, n)) + 0.5,
        "scale": normal(seed + 2, n),
        "bias": normal(seed + 3, n),
    }


CONV = {
    "c1": normal(10, 3, 3, 2, 4, scale=0.3),
    "bn1": bn_params(20, 4),
    "c2": normal(11, 3, 3, 4, 5, scale=0.3),
    "bn2": bn_params(30, 5),
    "c3": normal(12, 3, 3, 5, 4, scale=0.3),
    "age": normal(13, 4, 1),
    "smile": normal(14, 4, 3),
}


def conv_data(n: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return normal(15, n, 5, 5, 2), {"age": normal(16, n, 1), "smile": np.arange(n) % 3}


def conv_loop(n: int) -> dict[str, np.ndarray]:
    """An explicit loop over examples and tasks, gates by hand."""
    x, y = conv_data(n)
    ones = {"c1:3": jnp.ones(4), "c2:3": jnp.ones(5)}

    @jax.jit
    def grads(x, y):
        def loss(g, task):
            return LOSSES[task](gated_conv_net(g, CONV, x)[task], y[task])

        return [jax.grad(loss)(ones, task) for task in LOSSES]

    out: dict[str, Any] = {name: [] for name in ones}
    for i in range(n):
        each = grads(x[i : i + 1], {t: v[i : i + 1] for t, v in y.items()})
        for name, rows in out.items():
            rows.append([np.asarray(g[name]) for g in each])
    return {name: np.array(rows) for name, rows in out.items()}


@pytest.fixture(scope="module")
def conv_graph() -> cj.Graph:
    graph = cj.trace(conv_net, CONV, jnp.ones((1, 5, 5, 2)))
    assert {g.name for g in graph.free} == {"c1:3", "c2:3"}
    return graph


def test_a_convolutional_net_equals_the_loop_over_examples(conv_graph):
    n, want = 7, conv_loop(7)
    criteria = {"taylor": cj.taylor(), "fisher": cj.fisher()}
    state = cj.criteria.gather(
        *(conv_net, CONV, conv_graph, LOSSES, batched(*conv_data(n), 3)),
        criteria=criteria,
        **QUIET,
    )
    assert int(state.examples) == n and int(state.batches) == 3
    absolute, square = (state.total[c.measure.name] for c in criteria.values())
    for name, values in want.items():
        got = np.asarray(absolute[name])
        np.testing.assert_allclose(got, np.abs(values).sum(0), rtol=2e-4, atol=1e-5)
        got = np.asarray(square[name])
        np.testing.assert_allclose(got, (values**2).sum(0), rtol=2e-4, atol=1e-6)


def test_per_example_values_equal_the_loop(conv_graph):
    x, y = conv_data(4)
    got = per_example(conv_net, conv_graph, LOSSES)(CONV, (x,), y)
    for name, values in conv_loop(4).items():
        assert got[name].shape == values.shape
        np.testing.assert_allclose(got[name], values, rtol=2e-4, atol=1e-5)


def experts(p: Any, x: jax.Array) -> jax.Array:
    """Every row by one expert: JAX cannot map ragged products over examples."""
    chosen = (x @ p["route"]).argmax(-1)
    order, sizes = jnp.argsort(chosen), jnp.bincount(chosen, length=3)
    h = jnp.tanh(jax.lax.ragged_dot(x[order], p["up"], sizes))
    y = jax.lax.ragged_dot(h, p["down"], sizes)
    return jnp.zeros_like(y).at[order].set(y) @ p["head"]


def every_expert(p: Any, x: jax.Array) -> jax.Array:
    """The same by products with all experts."""
    chosen = jax.nn.one_hot((x @ p["route"]).argmax(-1), 3)
    y = jnp.einsum(
        "bef,efd->bed", jnp.tanh(jnp.einsum("bd,edf->bef", x, p["up"])), p["down"]
    )
    return jnp.einsum("bed,be->bd", y, chosen) @ p["head"]


def test_without_a_rule_for_vmap_examples_go_in_turn():
    p = {"route": normal(1, 4, 3), "up": normal(2, 3, 4, 6), "down": normal(3, 3, 6, 5)}
    p["head"] = normal(4, 5, 2)
    x, y = normal(5, 7, 4), normal(6, 7, 2)
    graph = cj.trace(experts, p, x)
    losses, data = {"output": square}, [(x, {"output": y})]

    def loss(gates: Any, p: Any, i: int) -> jax.Array:
        out = cj.gate(experts, graph)(gates, p, x[i : i + 1])
        return square(out, y[i : i + 1])

    ones = {g.name: jnp.ones(g.size) for g in graph.free}
    each = [jax.grad(loss, (0, 1))(ones, p, i) for i in range(7)]
    got = per_example(experts, graph, losses)(p, (x,), {"output": y})
    assert set(got) == set(ones) == {"up:2", "down:2"}
    for name, values in got.items():
        want = [g[name] for g, _ in each]
        np.testing.assert_allclose(values[:, 0], want, rtol=1e-4, atol=1e-5)
    criteria = {"snip": cj.criteria.snip(), "joint": cj.joint()}
    args = (experts, p, graph, losses, batched(x, {"output": y}, 4))
    state = cj.criteria.gather(*args, criteria=criteria, **QUIET)
    for name, slope in state.total["weights: gradients"].items():
        want = sum(g[name] for _, g in each)
        np.testing.assert_allclose(slope[0], want, rtol=1e-4, atol=1e-5)
    score = cj.criteria.finish(*args[:4], criteria=criteria, state=state)["joint"]
    full = cj.trace(every_expert, p, x)
    all_run = cj.joint(every_expert, p, full, losses, data, **QUIET)
    values = (s["output"]["down:2"] for s in (score, all_run))
    np.testing.assert_allclose(*values, rtol=1e-3)
    with pytest.raises(DataError, match=r"no rule for a deriv.* ragged_dot"):
        cj.criteria.hessian(experts, p, graph, losses, data, **QUIET)


CRITERIA = {"taylor": cj.taylor, "fisher": cj.fisher, "joint": cj.joint}


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_means_the_same_data_twice_changes_nothing(conv_graph, name):
    data = batched(*conv_data(4), 4)
    once, twice = (
        CRITERIA[name](conv_net, CONV, conv_graph, LOSSES, data * k, **QUIET)
        for k in (1, 2)
    )
    for task, groups in once.items():
        for group, values in groups.items():
            np.testing.assert_allclose(twice[task][group], values, rtol=2e-3)


@pytest.mark.parametrize("name", CRITERIA)
def test_more_batches_are_neither_compiled_again_nor_held(conv_graph, name):
    x, y = conv_data(4)
    traces, alive, most = [], weakref.WeakSet(), []

    class Watched(np.ndarray):
        __hash__ = object.__hash__  # type: ignore[assignment]

    def apply(p, x):
        traces.append(x.shape)
        return conv_net(p, x)

    def stream(k):
        for _ in range(k):
            batch = x.copy().view(Watched)
            alive.add(batch)
            yield batch, y
            del batch
            # Dispatch is asynchronous: what runs may hold a batch for a while; and
            # tracing leaves cycles that hold one until the collector comes by.
            until = time.monotonic() + 10
            while len(alive) > 2 and time.monotonic() < until:
                time.sleep(0.01)
                gc.collect()
            most.append(len(alive))

    counts = []
    for k in (1, 9):
        traces.clear()
        CRITERIA[name](apply, CONV, conv_graph, LOSSES, stream(k), **QUIET)
        counts.append(len(traces))
    assert counts[0] == counts[1], "the number of traces grows with the batches"
    assert max(most) <= 2, "batches gather in memory"


def test_a_partial_last_batch_is_not_compiled_again(conv_graph):
    x, y = conv_data(7)
    traces = []

    def apply(p, x):
        traces.append(x.shape)
        return conv_net(p, x)

    counts = []
    for n in (4, 7):
        traces.clear()
        head = batched(x[:n], {t: v[:n] for t, v in y.items()}, 4)
        cj.taylor(apply, CONV, conv_graph, LOSSES, head, **QUIET)
        counts.append(len(traces))
    assert counts[0] == counts[1]


def test_several_inputs_come_as_a_tuple():
    def apply(p, x, z):
        return jnp.tanh(x @ p["a"] + z @ p["b"]) @ p["c"]

    p = {"a": normal(1, 3, 4), "b": normal(2, 2, 4), "c": normal(3, 4, 1)}
    x, z, y = normal(4, 5, 3), normal(5, 5, 2), normal(6, 5, 1)
    graph = cj.trace(apply, p, x, z)
    got = cj.taylor(
        apply, p, graph, {"output": square}, [((x, z), {"output": y})], **QUIET
    )

    def h(i):
        return np.tanh(x[i] @ p["a"] + z[i] @ p["b"])

    each = [2 * (h(i) @ p["c"] - y[i]) * h(i) * p["c"][:, 0] for i in range(5)]
    (name,) = got["output"]
    np.testing.assert_allclose(got["output"][name], np.abs(each).mean(0), rtol=1e-4)


# The joint criterion, brute force. --------------------------------------------------


def refitted_loss(h: np.ndarray, y: np.ndarray, kept: list[int], per: int) -> float:
    """Half the squared error per example once the reader is refitted exactly."""
    fit = np.linalg.lstsq(h[:, kept], y, rcond=None)[0] if kept else 0.0
    left = y - (h[:, kept] @ fit if kept else 0.0)
    return 0.5 * float(np.sum(left**2)) / (len(h) / per)


def greedy(h: np.ndarray, y: np.ndarray, per: int) -> tuple[np.ndarray, list[int]]:
    """Backward elimination by brute force: costs so far at most, and the order."""
    kept, cost, order = list(range(h.shape[1])), np.zeros(h.shape[1]), []
    now, reached = refitted_loss(h, y, kept, per), 0.0
    while kept:
        after = [refitted_loss(h, y, [k for k in kept if k != c], per) for c in kept]
        at = int(np.argmin(after))
        reached = max(reached, after[at] - now)
        cost[kept[at]], now = reached, after[at]
        order.append(kept.pop(at))
    return cost, order


def half_square(out: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((out - target) ** 2) / len(out)


@pytest.mark.parametrize("positions", [1, 4])
def test_joint_equals_brute_force_refitting(positions):
    """A linear net that answers its targets, a quadratic loss: Gauss-Newton is exact.

    With four positions the layers are 1 x 1 convolutions and the loss sums over them.
    """
    n, channels, made = 2048, 6, 3
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n * positions, 7)) * [1, 2, 1, 0.5, 1, 1, 0.2]
    p = {"a": rng.normal(size=(7, channels)), "b": rng.normal(size=(channels, made))}
    h = x @ p["a"]
    y = h @ p["b"]
    want, order = greedy(h, y, positions)
    kernel = (1, 1) if positions > 1 else ()
    p32 = {k: v.reshape(*kernel, *v.shape).astype(np.float32) for k, v in p.items()}
    shape = (n, 2, 2) if positions > 1 else (n,)

    def apply(p, x):
        if positions > 1:
            return conv(conv(x, p["a"]), p["b"])
        return (x @ p["a"]) @ p["b"]

    x32, y32 = (v.reshape(*shape, -1).astype(np.float32) for v in (x, y))
    graph = cj.trace(apply, p32, x32)
    (name,) = (g.name for g in graph.free)
    data = batched(x32, {"output": y32}, 40)
    got = cj.joint(
        apply, p32, graph, {"output": half_square}, data, damping=1e-6, **QUIET
    )["output"][name]
    np.testing.assert_allclose(got, want, rtol=0.1, atol=1e-3 * want.max())
    assert [got[c] for c in order] == sorted(got)


def test_joint_gives_each_task_its_own_reader():
    n = 2048
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4))
    p = {
        "a": rng.normal(size=(4, 4)),
        "u": np.diag([3.0, 2.0, 1.0, 0.0]),
        "v": np.diag([0.0, 1.0, 2.0, 3.0]),
    }
    h = x @ p["a"]
    targets = {name: h @ p[name] for name in ("u", "v")}

    def apply(p, x):
        h = x @ p["a"]
        return {"u": h @ p["u"], "v": h @ p["v"]}

    p32, x32, y32 = jax.tree.map(np.float32, (p, x, targets))
    graph = cj.trace(apply, p32, x32)
    losses = {"u": half_square, "v": half_square}
    got = cj.joint(apply, p32, graph, losses, [(x32, y32)], damping=1e-6, **QUIET)
    for task in ("u", "v"):
        want, _ = greedy(h, targets[task], 1)
        np.testing.assert_allclose(got[task]["a:1"], want, rtol=0.1, atol=1e-3)
    assert got["u"]["a:1"][3] < 1e-3 < got["v"]["a:1"][3]


@pytest.mark.parametrize("positions", [1, 4])
def test_joint_loses_nothing_where_nothing_is_read(positions):
    """Of blank tokens the norm is steep, so that gradients are huge; not their cost."""

    def apply(p, x):
        if positions > 1:
            h = conv(conv(x, p["a"]), p["b"])
        else:
            h = (x @ p["a"]) @ p["b"]
        return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)

    kernel = (1, 1) if positions > 1 else ()
    p = {"a": normal(1, *kernel, 4, 6), "b": normal(2, *kernel, 6, 3)}
    shape = (2, 2) if positions > 1 else ()
    x, y = normal(3, 48, *shape, 4), normal(4, 64, *shape, 3)
    blank = np.concatenate([x, np.zeros((16, *x.shape[1:]), np.float32)])
    graph = cj.trace(apply, p, x)
    (name,) = (g.name for g in graph.free)
    got, want = (
        cj.joint(
            apply,
            p,
            graph,
            {"output": half_square},
            [(x, {"output": y[: len(x)]})],
            **QUIET,
        )["output"][name]
        for x in (blank, x)
    )
    np.testing.assert_allclose(got, want * 48 / 64, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_joint_knows_no_units_of_channels_nor_noise_of_labels(scale):
    def apply(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    p = {"a": normal(1, 4, 9), "b": normal(2, 9, 2)}
    units = np.float32(scale) ** np.linspace(0, 1, 9, dtype=np.float32)
    same = {"a": p["a"] * units, "b": p["b"] / units[:, None]}
    x, y = normal(3, 80, 4), normal(4, 80, 2)
    graph, losses = cj.trace(apply, p, x), {"output": half_square}
    want, *others = (
        cj.joint(apply, q, graph, losses, [(x, {"output": z})], **QUIET)["output"]
        for q, z in ((p, y), (same, y), (p, 100 * y), (p, apply(p, x)))
    )
    assert want["a:1"].min() > 0
    for got in others:
        np.testing.assert_allclose(got["a:1"], want["a:1"], rtol=2e-3)


def test_joint_is_in_units_of_the_loss():
    x, y = mlp_data(30)
    graph = cj.trace(mlp, MLP, x)
    tenfold = {t: lambda o, y, f=f: 10 * f(o, y) for t, f in LOSSES.items()}
    one, ten = (
        cj.joint(mlp, MLP, graph, losses, batched(x, y, 8), **QUIET)
        for losses in (LOSSES, tenfold)
    )
    for task, groups in one.items():
        for name, scores in groups.items():
            np.testing.assert_allclose(ten[task][name], 10 * scores, rtol=1e-3)


def test_joint_sees_through_a_kernel_of_several_parameters():
    def apply(p, x):
        h = jnp.tanh(jnp.concatenate([x @ p["in"], x @ p["side"]], -1))
        return h @ (p["w"] if "w" in p else jnp.concatenate([p["a"], p["b"]]))

    first = {"in": normal(1, 4, 5), "side": normal(2, 4, 3)}
    several = {**first, "a": normal(3, 5, 2), "b": normal(4, 3, 2)}
    one = {**first, "w": np.concatenate([several["a"], several["b"]])}
    x, y = normal(5, 40, 4), normal(6, 40, 2)
    got, want = (
        cj.joint(
            apply,
            p,
            cj.trace(apply, p, x),
            {"output": half_square},
            [(x, {"output": y})],
            **QUIET,
        )["output"]
        for p in (several, one)
    )
    assert {*got} == {*want} == {"in:1", "side:1"}
    for name, scores in want.items():
        np.testing.assert_allclose(got[name], scores, rtol=1e-4)


def test_joint_knows_that_a_copy_costs_nothing():
    def apply(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    a = normal(1, 4, 5)
    a[:, 3] = 2 * a[:, 0]
    p = {"a": a, "b": normal(2, 5, 2)}
    x, y = normal(3, 40, 4), normal(4, 40, 2)
    graph = cj.trace(apply, p, x)
    data, losses = [(x, {"output": y})], {"output": half_square}
    joint = cj.joint(apply, p, graph, losses, data, damping=1e-6, **QUIET)["output"][
        "a:1"
    ]
    taylor = cj.taylor(apply, p, graph, losses, data, **QUIET)["output"]["a:1"]
    assert np.argmin(joint) in (0, 3) and joint.min() < 1e-3 * np.median(joint)
    assert taylor[[0, 3]].min() > 0.05 * np.median(taylor)


def test_saboteurs_of_the_gradient_criteria_are_found_out():
    def padded_counts(fn):
        def broken(apply, params, graph, losses, batches, **kw):
            """Divides by the rows of whole batches: the padding counts."""
            size = len(batches[0][0])
            rows = sum(len(b[0]) for b in batches)
            good = fn(apply, params, graph, losses, batches, **kw)
            factor = rows / (size * len(batches))
            return jax.tree.map(lambda v: v * factor, good)

        return broken

    def batch_first(apply, params, graph, losses, batches, **kw):
        """The absolute value of the mean instead of the mean of absolute values."""
        gates = per_example(apply, graph, losses)
        each = [gates(params, (x,), y) for x, y in batches]
        mean = {g: np.concatenate([e[g] for e in each]).mean(0) for g in each[0]}
        return {
            t: {g: np.abs(v[i]) for g, v in mean.items()} for i, t in enumerate(losses)
        }

    with pytest.raises(AssertionError):
        check_gradient_criteria(padded_counts(cj.taylor), cj.fisher, 3)
    with pytest.raises(AssertionError):
        check_gradient_criteria(cj.taylor, padded_counts(cj.fisher), 3)
    with pytest.raises(AssertionError):
        check_gradient_criteria(batch_first, cj.fisher, 7)


# Criteria without data. -------------------------------------------------------------


def test_l1_by_hand():
    def apply(p, x):
        return jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]

    p = {
        "a": np.array([[1.0, -2.0, 0.0], [3.0, 0.0, 0.5]], np.float32),
        "bias": np.array([100.0, 100.0, 100.0], np.float32),
        "b": np.array([[1.0, 1.0], [-4.0, 0.0], [0.0, 0.5]], np.float32),
    }
    graph = cj.trace(apply, p, jnp.ones((1, 2)))
    got = cj.l1(None, p, graph)
    # Writer (1 + 3), reader (1 + 1), over four weights; the bias does not count.
    np.testing.assert_allclose(got["output"]["a:1"], [6 / 4, 6 / 4, 1 / 4])


def test_l1_of_a_merged_axis_sums_over_what_is_merged():
    def apply(p, x):
        h = (x @ p["a"]).reshape(len(x), 2, 3)
        return jnp.einsum("nhc,hco->no", jnp.tanh(h), p["b"])

    p = {"a": normal(1, 4, 6), "b": normal(2, 2, 3, 2)}
    graph = cj.trace(apply, p, jnp.ones((1, 4)))
    scores = cj.l1(None, p, graph)["output"]
    a, b = np.abs(p["a"]).reshape(4, 2, 3), np.abs(p["b"])
    heads = (a.sum((0, 2)) + b.sum((1, 2))) / (12 + 6)
    width = (a.sum((0, 1)) + b.sum((0, 2))) / (8 + 4)
    found = {len(v): v for v in scores.values()}
    np.testing.assert_allclose(found[2], heads, rtol=1e-5)
    np.testing.assert_allclose(found[3], width, rtol=1e-5)


def test_random_is_seeded_and_covers_every_free_group(conv_graph):
    a, b, c = (cj.random(None, None, conv_graph, seed=s) for s in (0, 0, 1))
    for task in conv_graph.tasks:
        assert {n: len(v) for n, v in a[task].items()} == {"c1:3": 4, "c2:3": 5}
        assert all((v > 0).all() and (v < 1).all() for v in a[task].values())
    assert all(np.array_equal(a["age"][n], b["age"][n]) for n in a["age"])
    assert not all(np.array_equal(a["age"][n], c["age"][n]) for n in a["age"])


def test_saliency_calls_any_criterion(conv_graph):
    def mine(apply, params, graph, losses, batches, *, progress):
        return {
            task: {g.name: np.arange(g.size, dtype=np.float32) for g in graph.free}
            for task in losses
        }

    got = cj.saliency(conv_net, CONV, conv_graph, LOSSES, [], criterion=mine, **QUIET)
    assert got["smile"]["c2:3"].tolist() == [0, 1, 2, 3, 4]
    data = [conv_data(3)]
    default = cj.saliency(conv_net, CONV, conv_graph, LOSSES, data, **QUIET)
    want = cj.joint(conv_net, CONV, conv_graph, LOSSES, data, **QUIET)
    np.testing.assert_array_equal(default["age"]["c1:3"], want["age"]["c1:3"])


# Errors. ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRITERIA)
def test_errors_of_data_are_clear(conv_graph, name):
    fn, data = CRITERIA[name], batched(*conv_data(3), 3)
    x, y = data[0]

    def score(losses: Any, batches: Any, params: Any = CONV) -> Any:
        return fn(conv_net, params, conv_graph, losses, batches, **QUIET)

    with pytest.raises(DataError, match="calibration data is empty"):
        score(LOSSES, [])
    with pytest.raises(DataError, match=r"no target for task 'smile'.*known: 'age'"):
        score(LOSSES, [(x, {"age": y["age"]})])
    with pytest.raises(KeepError, match="no task 'smlie'; nearest: 'smile'"):
        score({"smlie": entropy}, [(x, {"smlie": y["smile"]})])
    with pytest.raises(DataError, match="no loss given"):
        score({}, data)
    with pytest.raises(
        DataError, match=r"loss of 'age' has shape \(1,\), not a scalar"
    ):
        score({"age": lambda o, t: ((o - t) ** 2).sum(-1)}, data)
    with pytest.raises(DataError, match="a batch of 3 examples after one of 2"):
        score(LOSSES, [(x[:2], {t: v[:2] for t, v in y.items()}), *data])
    for poisoned in (
        {"batches": [(x * np.nan, y)]},
        {"batches": data, "params": {**CONV, "c1": CONV["c1"] * np.nan}},
    ):
        with pytest.raises(DataError, match=r"NaN or infinite.*'(age|smile)'|NaN"):
            score(LOSSES, **poisoned)


def test_a_loss_that_is_not_finite_names_task_and_batch():
    bad = {**MLP, "smile": MLP["smile"] * np.inf}
    graph = cj.trace(mlp, MLP, jnp.ones((1, 4)))
    with pytest.raises(DataError, match=r"task 'smile' is NaN or inf.* batch 1 of 2"):
        cj.taylor(mlp, bad, graph, LOSSES, batched(*mlp_data(6), 3), **QUIET)
    x, y = mlp_data(6)
    y["age"] = np.where(np.arange(6)[:, None] == 4, np.nan, y["age"])
    with pytest.raises(DataError, match=r"task 'age' is NaN or .* in batch 2 of 2"):
        cj.joint(mlp, MLP, graph, LOSSES, batched(x, y, 3), **QUIET)


def test_nan_names_criterion_group_and_task():
    def rooted(out, target):
        # Its value is finite, its derivative at zero is not.
        return jnp.sqrt(jnp.sum((out - out) ** 2))

    graph = cj.trace(mlp, MLP, jnp.ones((1, 4)))
    want = r"taylor: 6 of 6 scores of group 'w1:1' for task 'age'"
    with pytest.raises(DataError, match=want):
        losses = {**LOSSES, "age": rooted}
        cj.taylor(mlp, MLP, graph, losses, [mlp_data(3)], **QUIET)
    bad = {**MLP, "smile": MLP["smile"] * np.inf}
    with pytest.raises(DataError, match="l1: 6 of 6 scores of group 'w1:1'"):
        cj.l1(None, bad, graph)


def test_a_criterion_of_a_function_without_its_graph_is_an_error(conv_graph):
    for given in ((conv_net,), (conv_net, CONV), (CONV, conv_graph)):
        with pytest.raises(DataError, match="taylor: no graph given; pass"):
            cj.taylor(*given)
