"""Distillation: parent's answers and features, against numpy and finite differences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from nets import NETS

import cutjax as cj
from cutjax.data import Split
from cutjax.data.base import as_split
from cutjax.errors import DataError, KeepError, MismatchError
from cutjax.fit import fit
from cutjax.recover.balance import static
from cutjax.recover.distill import (
    beside_parent,
    distillation,
    feature_losses,
    task_losses,
    teach,
)
from cutjax.recover.features import FEATURE, features, mismatch
from cutjax.recover.finetune import finetune, frozen
from cutjax.recover.kinds import is_number, spreads_of

TASKS = ("kind", "size")


def apply(p, x):
    """A convolution, a residual pair of dense layers, a class and a number."""
    h = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.relu(h).mean((1, 2))
    h = h + jnp.tanh(h @ p["up"]) @ p["down"]
    return {"kind": h @ p["kind"], "size": h @ p["size"]}


SHAPES = {"conv": (3, 3, 2, 8), "up": (8, 6), "down": (6, 8), "kind": (8, 3)}


@functools.cache
def setup():
    rng = np.random.default_rng(0)
    params = {
        k: (rng.normal(size=s) / np.sqrt(np.prod(s[:-1]))).astype(np.float32)
        for k, s in {**SHAPES, "size": (8, 1)}.items()
    }
    x = rng.normal(size=(64, 5, 5, 2)).astype(np.float32)
    graph = cj.trace(apply, params, x)
    keep = {"conv:3": np.arange(8) % 4 != 1, "up:1": np.arange(6) > 1}
    return params, x, graph, keep


def everything(graph):
    return {g.name: np.ones(g.size, bool) for g in graph.free}


def numpy_mismatch(child, parent):
    child, parent = np.float64(child), np.float64(parent)
    return ((child - parent) ** 2).mean() / ((parent - parent.mean(0)) ** 2).mean()


# Features correspond. ---------------------------------------------------------------


def test_features_are_what_kernels_read_without_what_went():
    params, x, graph, keep = setup()
    small = cj.cut_params(params, graph, keep)
    seen = features(apply, graph, keep)
    parent, child = jax.jit(seen.parent)(params, x), jax.jit(seen.child)(small, x)
    # `kind` reads first what `size` reads too, so that shows once.
    assert {k for k in parent if k.startswith(FEATURE)} == {
        f"{FEATURE}{k}" for k in ("up", "down", "kind")
    }
    conv = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pooled = np.maximum(np.asarray(conv), 0).mean((1, 2))
    inner = np.tanh(pooled @ params["up"])
    for name, values in {"up": pooled, "down": inner}.items():
        kept = keep["conv:3" if name == "up" else "up:1"]
        got = parent[FEATURE + name]
        np.testing.assert_allclose(got, values[:, kept], atol=1e-5)
    # The child's first feature has lost nothing upstream but channels.
    np.testing.assert_allclose(child[FEATURE + "up"], parent[FEATURE + "up"], atol=1e-5)
    assert float(mismatch(child[FEATURE + "kind"], parent[FEATURE + "kind"])) > 0.01
    plain = apply(params, x)
    for task in TASKS:
        np.testing.assert_allclose(parent[task], plain[task], atol=1e-5)


def losses_at_parent(names: dict[str, np.ndarray]):
    """Losses of the whole parent as its own child."""
    params, x, graph, _ = setup()
    seen = features(apply, graph, names)
    data = teach(features(apply, graph, everything(graph)).parent, params,
                 Split(x, {}), tasks=TASKS, batch_size=40)  # fmt: skip
    loss = distillation(TASKS, features=1.0)
    total, each = loss(seen.child(params, x), data.y)
    return float(total), each


def test_the_parent_itself_has_no_loss():
    graph = setup()[2]
    total, each = losses_at_parent(everything(graph))
    assert total < 1e-9 and each["features"] < 1e-9


def corresponding(keep_of_child, keep_of_parent) -> float:
    """The mismatch of the first features, where nothing upstream was cut."""
    params, x, graph, _ = setup()
    small = cj.cut_params(params, graph, keep_of_child)
    child = features(apply, graph, keep_of_child).child(small, x)
    parent = features(apply, graph, keep_of_parent).parent(params, x)
    return float(mismatch(child[FEATURE + "up"], parent[FEATURE + "up"]))


def test_channel_i_is_channel_keep_i_and_a_shift_is_noticed():
    keep = setup()[3]
    shifted = {**keep, "conv:3": np.roll(keep["conv:3"], 1)}
    assert corresponding(keep, keep) < 1e-9
    assert corresponding(keep, shifted) > 0.1  # the saboteur


@pytest.mark.parametrize("name", ["densenet", "vit_split", "option_a", "llama"])
def test_specimens_agree_with_themselves(name):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = {g.name: np.arange(g.size) != 0 for g in graph.free if g.size > 1}
    seen = features(net.apply, graph, keep)
    small = cj.cut_params(net.params, graph, keep)
    parent = jax.eval_shape(seen.parent, net.params, *net.inputs)
    child = jax.eval_shape(seen.child, small, *net.inputs)
    assert any(k.startswith(FEATURE) for k in parent)
    assert {k: v.shape for k, v in parent.items()} == {
        k: v.shape for k, v in child.items()
    }


def test_features_of_chosen_groups_tasks_and_functions_in_training():
    params, x, graph, keep = setup()
    found = jax.eval_shape(features(apply, graph, keep, at="up:1").parent, params, x)
    assert [k for k in found if k.startswith(FEATURE)] == [FEATURE + "down"]
    small, own = cj.cut(apply, params, graph, keep, "size")
    seen = features(apply, graph, keep, tasks="size")
    out = seen.child(own, x)
    assert "kind" not in out and FEATURE + "kind" not in out
    np.testing.assert_allclose(out["size"], small(own, x)["size"], atol=1e-5)
    assert out[FEATURE + "size"].shape == seen.parent(params, x)[FEATURE + "size"].shape
    train = features(lambda p, x: (apply(p, x), {}), graph, keep).child
    outputs, updates = train(cj.cut_params(params, graph, keep), x)
    assert updates == {} and FEATURE + "up" in outputs
    with pytest.raises(KeepError, match="no kernel outside of loops reads 'up:7'"):
        features(apply, graph, keep, at=["up:7"]).parent(params, x)


# The losses. ------------------------------------------------------------------------


def test_mismatch_is_squared_error_over_variance():
    rng = np.random.default_rng(1)
    child, parent = rng.normal(size=(2, 6, 4, 3)).astype(np.float32)
    want = numpy_mismatch(child, parent)
    np.testing.assert_allclose(mismatch(child, parent), want, rtol=1e-5)
    # The same in any unit; one for the mean; nothing where nothing varies.
    np.testing.assert_allclose(mismatch(9 * child, 9 * parent), want, rtol=1e-5)
    mean = np.broadcast_to(parent.mean(0), parent.shape)
    np.testing.assert_allclose(mismatch(mean, parent), 1, rtol=1e-5)
    assert float(mismatch(child, np.ones_like(parent))) == 0
    slope = jax.grad(lambda c: mismatch(c, jnp.ones((6, 4, 3))))(jnp.asarray(child))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e6])
def test_what_varies_is_told_by_the_size_of_the_feature(size):
    rng = np.random.default_rng(4)
    parent = (size * rng.normal(size=(32, 8))).astype(np.float32)
    want = numpy_mismatch(0 * parent, parent)
    np.testing.assert_allclose(mismatch(0 * parent, parent), want, rtol=1e-4)
    constant = np.full((31, 8), 0.1 * size, np.float32)
    assert float(mismatch(0 * constant, constant)) == 0


def numpy_divergence(logits, taught, t):
    def softmax(v):
        e = np.exp(np.float64(v) / t - np.max(v / t, -1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(taught), softmax(logits)
    return t**2 * (p * np.log(p / q)).sum(-1).mean()


@pytest.mark.parametrize("place", [(), (4, 5)], ids=["example", "position"])
def test_losses_of_logits_and_numbers_per_example_and_position(place):
    rng = np.random.default_rng(2)
    kind, taught = rng.normal(size=(2, 6, *place, 3)).astype(np.float32)
    size, number = rng.normal(size=(2, 6, *place, 1)).astype(np.float32)
    y = {"teacher:kind": taught, "teacher:size": number}
    labels = {"kind": rng.integers(0, 3, (6, *place)), "size": number[..., 0] + 1}
    out = {"kind": kind, "size": size}
    spreads = spreads_of(Split(out["kind"], y), TASKS)
    assert spreads == {"size": pytest.approx(number.std(), rel=1e-5)}
    each = task_losses(TASKS, temperature=3.0, spreads=spreads)(out, y)
    np.testing.assert_allclose(each["kind"], numpy_divergence(kind, taught, 3), 1e-4)
    want = ((size - number) ** 2).mean() / number.var()
    np.testing.assert_allclose(each["size"], want, rtol=1e-4)
    more = task_losses(TASKS, temperature=3.0, labels=0.5, spreads=spreads)
    hard = ((size[..., 0] - labels["size"]) ** 2).mean() / number.var()
    got = more(out, {**y, **labels})["size"]
    np.testing.assert_allclose(got, want + 0.5 * hard, rtol=1e-4)
    flat = {"teacher:size": number[..., 0]}
    if place:  # without a last axis of one only a spread tells that it is a number
        got = task_losses(("size",), spreads=spreads)({"size": size[..., 0]}, flat)
        np.testing.assert_allclose(got["size"], want, rtol=1e-4)
    else:
        assert is_number(flat["teacher:size"])


def test_the_gradient_is_that_of_finite_differences():
    params, x, graph, keep = setup()
    with jax.enable_x64(True):
        wide = {k: np.float64(v) for k, v in params.items()}
        small = cj.cut_params(wide, graph, keep)
        seen = features(apply, graph, keep)
        some = np.float64(x[:6])
        y = {f"teacher:{k}": v for k, v in seen.parent(wide, some).items()}
        loss = distillation(TASKS, features=0.7)
        value = jax.jit(lambda p: loss(seen.child(p, some), y)[0])
        slope = jax.grad(value)(small)
        rng = np.random.default_rng(3)
        way = {k: rng.normal(size=v.shape) for k, v in small.items()}
        ends = [value({k: v + h * way[k] for k, v in small.items()})
                for h in (1e-4, -1e-4)]  # fmt: skip
        along = sum(np.sum(slope[k] * way[k]) for k in way)
        # Features are compared in float32, whose rounding this sees.
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, along, rtol=5e-3)


def test_missing_answers_and_features_are_named():
    params, x, graph, keep = setup()
    seen = features(apply, graph, keep)
    out = seen.parent(params, x)
    with pytest.raises(DataError, match="parent's 'kind' is not known"):
        distillation(TASKS)(out, {})
    with pytest.raises(DataError, match="feature:up"):
        feature_losses(out, {})
    with pytest.raises(DataError, match="hold no features"):
        distillation(TASKS, features=1.0)(
            apply(params, x), {f"teacher:{t}": out[t] for t in TASKS}
        )


# Training. --------------------------------------------------------------------------


@functools.cache
def trained(weight: float, online: bool = False):
    params, x, graph, keep = setup()
    seen = features(apply, graph, keep)
    small = cj.cut_params(params, graph, keep)
    plain = Split(x, {"kind": np.zeros(len(x))})
    data = plain if online else teach(seen.parent, params, plain, tasks=TASKS)
    return finetune(
        frozen(seen.child, ()), small, data, tasks=TASKS, epochs=15, batch_size=32,
        learning_rate=2e-2, features=weight, progress=False,
        parent=(seen.parent, params) if online else None,
    )  # fmt: skip


def left(small) -> float:
    params, x, graph, keep = setup()
    seen = features(apply, graph, keep)
    y = {f"teacher:{k}": v for k, v in seen.parent(params, x).items()}
    return float(np.mean([*feature_losses(seen.child(small, x), y).values()]))


def test_training_on_features_reduces_their_mismatch():
    params, _, graph, keep = setup()
    before = left(cj.cut_params(params, graph, keep))
    logits, both = left(trained(0.0)[0]), left(trained(1.0)[0])
    assert both < 0.7 * before and both < logits


def test_the_parent_may_answer_within_the_step():
    (a, told), (b, asked) = trained(1.0), trained(1.0, online=True)
    assert b.keys() == a.keys()
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-4), a, b)
    last = [info.history[-1]["features"] for info in (told, asked)]
    np.testing.assert_allclose(*last, rtol=1e-3)


def test_the_parent_is_not_trained():
    params, x, graph, keep = setup()
    small = cj.cut_params(params, graph, keep)
    child = cj.shrink(apply, graph, keep)
    train, both = beside_parent(frozen(child, ()), small, apply, params)
    after, _ = fit(
        train, both, distillation(TASKS), Split(x, {"row": np.arange(len(x))}),
        optimizer=optax.sgd(0.1), epochs=1, batch_size=32, progress=False,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, after["parent"], params)
    assert np.abs(after["kind"] - small["kind"]).max() > 1e-4


def test_a_parent_needs_a_dict_of_parameters():
    x = np.ones((8, 2), np.float32)
    with pytest.raises(ValueError, match="needs params to be a dict"):
        finetune(
            lambda w, x: ({"t": x @ w}, None), jnp.ones((2, 1)), Split(x, {}),
            tasks=("t",), parent=(lambda w, x: {"t": x @ w}, jnp.ones((2, 1))),
        )  # fmt: skip


def test_one_task_is_a_name_and_statistics_need_not_be_there():
    params, x, graph, keep = setup()
    small = cj.cut_params(params, graph, keep)
    data = teach(apply, params, Split(x, {}), tasks="kind")
    assert list(data.y) == ["teacher:kind"]
    train = frozen(cj.shrink(apply, graph, keep))
    _, info = finetune(train, small, data, tasks="kind", epochs=1, progress=False)
    assert "kind" in info.history[-1]
    held = {"batch_stats": 1, "w": 2}
    for state in (None, "batch_stats"):
        assert frozen(lambda p, x: x, state)(held, 3) == (3, {"batch_stats": 1})
    with pytest.raises(MismatchError, match="no state 'stats'; nearest: 'batch_stats'"):
        frozen(lambda p, x: x, "stats")(held, 3)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"tasks": "kinds"}, KeepError, "no task 'kinds'; nearest: 'kind'"),
        ({"tasks": ()}, KeepError, "no task chosen"),
        ({"labels": 1.0}, DataError, "no labels of 'kind'"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"accumulate": 0}, ValueError, "accumulate is 0"),
        ({"train": apply}, MismatchError, r"returned dict.*frozen\(apply\)"),
        ({"train": lambda p, x: x}, MismatchError, "returned ShapeDtypeStruct"),
        ({"train": lambda p, x: (x, x)}, MismatchError, r"'ShapeDtypeStruct'\], exp"),
    ],
)
def test_arguments_of_finetune_that_do_not_fit_are_named(changed, error, match):
    params, x, *_ = setup()
    data = Split(x, {f"teacher:{t}": v for t, v in apply(params, x).items()})
    options = {"tasks": TASKS, "train": frozen(apply), "progress": False, **changed}
    with pytest.raises(error, match=match):
        finetune(options.pop("train"), params, data, **options)


def test_a_split_may_come_as_a_pair():
    params, x, *_ = setup()
    pair, split = (
        teach(apply, params, d, tasks=TASKS) for d in ((x, {}), Split(x, {}))
    )
    jax.tree.map(np.testing.assert_array_equal, pair, split)
    tuned, _ = finetune(
        frozen(apply), params, tuple(split), tasks=TASKS, epochs=1, progress=False
    )
    assert tuned.keys() == params.keys()
    for data in (x, (x, x), (x,)):
        with pytest.raises(DataError, match=r"me takes a .*Split, not a.*Split\(x, "):
            _ = as_split(data, "me")


def test_what_teach_cannot_ask_is_named():
    params, x, *_ = setup()
    with pytest.raises(KeepError, match="no task 'sise'; nearest: 'size'"):
        teach(apply, params, Split(x, {}), tasks=("sise",))
    several = lambda p, x: tuple(apply(p, x).values())  # noqa: E731
    with pytest.raises(MismatchError, match=r"'output' is answered by a tuple"):
        teach(several, params, Split(x, {}), tasks="output")
    with pytest.raises(MismatchError, match=r"'output' is answered by a tuple"):
        finetune(frozen(several), params, Split(x, {}), tasks="output")
    with pytest.raises(DataError, match="teach: 0 examples"):
        teach(apply, params, Split(x[:0], {}), tasks=TASKS)
    with pytest.raises(DataError, match="in batches of 0"):
        teach(apply, params, Split(x, {}), tasks=TASKS, batch_size=0)


def test_a_checkpoint_of_other_arguments_is_another_run(tmp_path):
    params, x, graph, keep = setup()
    small = cj.cut_params(params, graph, keep)
    train = frozen(cj.shrink(apply, graph, keep), ())

    def run(**changed):
        options = {"parent": (apply, params), "tasks": TASKS, "epochs": 1}
        options |= {"checkpoint": tmp_path / str("optimizer" in changed)}
        options |= {"progress": False, **changed}
        return finetune(train, small, Split(x, labels), **options)

    labels = {t: np.zeros(len(x), int) for t in TASKS}
    first, _ = run()
    again, info = run()
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert info.resumed_from == 1
    for name, value in {
        "learning_rate": 0.1, "temperature": 20.0, "tasks": ("kind",), "epochs": 2,
        "labels": 1.0, "features": 0.5, "balance": static({"kind": 2.0}),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"another run .different: .*{name}"):
            run(**{name: value})
    # A schedule of the caller's need not depend on the epochs, or says so.
    _ = run(optimizer=optax.sgd(0.1))
    assert run(optimizer=optax.sgd(0.1), epochs=2)[1].resumed_from == 1
    with pytest.raises(ValueError, match="different: rate"):
        run(optimizer=optax.sgd(0.2), settings={"rate": 0.2})


@pytest.mark.parametrize("kind", [FrozenDict, nnx.State])
@pytest.mark.parametrize("more", ["parent", "balance", "both", "dtype"])
def test_parameters_come_back_in_the_container_that_was_given(kind, more):
    """Statistics that move, which functions return as plain dicts."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(32, 4)).astype(np.float32)

    def train(p, x):
        mean = 0.9 * p["seen"]["norm"]["mean"] + 0.1 * x.mean(0)
        y = (x - mean) @ p["params"]["w"]
        return {"kind": y, "size": y[:, :1]}, {"seen": {"norm": {"mean": mean}}}

    def asked(p, x):
        assert type(p) is dict and type(p["seen"]) is dict
        return train(p, x)[0]

    plain = {"params": {"w": np.ones((4, 3), np.float32)}}
    plain["seen"] = {"norm": {"mean": np.zeros(4, np.float32)}}
    options = {"parent": (asked, plain)} if more in ("parent", "both") else {}
    options |= {"balance": "famo"} if more in ("balance", "both") else {}
    options |= {"dtype": jnp.bfloat16} if more == "dtype" else {}
    data = Split(x, {f"teacher:{t}": v for t, v in asked(plain, x).items()})
    options |= {"tasks": TASKS, "epochs": 1, "batch_size": 16, "progress": False}
    got, _ = finetune(train, kind(plain), data, **options)
    want, _ = finetune(train, plain, data, **options)
    assert jax.tree.structure(got) == jax.tree.structure(kind(want))
    jax.tree.map(np.testing.assert_array_equal, got, kind(want))


def test_options_of_fit_pass_through():
    """Two parts per update are the examples of one update: the schedule is as long."""
    params, x, graph, keep = setup()
    small = cj.cut_params(params, graph, keep)
    data = teach(apply, params, Split(x, {}), tasks=TASKS)
    train = frozen(cj.shrink(apply, graph, keep), ())
    options = {"tasks": TASKS, "epochs": 2, "progress": False, "balance": "famo"}
    after, info = finetune(
        train, small, data, batch_size=16, accumulate=2, ema=0.5, **options
    )
    assert after.keys() == small.keys() and len(info.history) == 3
    with pytest.raises(ValueError, match="would round"):
        finetune(train, small, data, dtype=jnp.bfloat16, **options)
    finer, _ = finetune(
        train,
        small,
        data,
        batch_size=16,
        accumulate=2,
        **{**options, "balance": "uniform"},
    )
    whole, _ = finetune(
        train, small, data, batch_size=32, **{**options, "balance": "uniform"}
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), finer, whole)
