"""Linen modules: a compact module that is called like the full one, without init."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import cutjax as cj
import cutjax.linen as cl


def fast(fn):
    return jax.jit(fn)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(shapes):
    """Telling random numbers; all positive, so that variances are."""
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [
        np.random.default_rng(i).uniform(size=s.shape) for i, s in enumerate(leaves)
    ]
    values = [jnp.asarray(x - 0.3 * (x.ndim > 1), jnp.float32) for x in drawn]
    return jax.tree.unflatten(tree, values)


class Net(nn.Module):
    """Convolution, statistics, attention, dropout, two tasks."""

    @nn.compact
    def __call__(self, x, train=False, scale=None):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        attention = nn.MultiHeadDotProductAttention(2, qkv_features=8, name="attention")
        x = x + attention(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = x.mean(1) if scale is None else x.mean(1) * scale
        self.sow("intermediates", "features", x)
        hidden = nn.tanh(nn.Dense(7, name="hidden")(x))
        return {"a": nn.Dense(3, name="a")(x), "b": nn.Dense(2, name="b")(hidden)}

    @nn.compact
    def features(self, x):
        return nn.Conv(6, (3, 3), name="conv")(x).sum(-1)


MODEL, X = Net(), normal(4, 4, 4, 3)


def drawn(graph):
    rng, keep = np.random.default_rng(0), {}
    for group in graph.free:
        keep[group.name] = rng.permutation(group.size) >= max(1, group.size // 3)
    return keep


@functools.cache
def case():
    variables = filled(jax.eval_shape(MODEL.init, jax.random.key(0), X))
    variables = {k: variables[k] for k in ("params", "batch_stats")}
    graph = cl.trace(MODEL, variables, X)
    return variables, graph, drawn(graph)


def close(want, got, tolerance=1e-5):
    def one(a, b):
        size = float(jnp.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * size)

    jax.tree.map(one, want, got)


def full(variables, x, **options):
    return MODEL.apply(variables, x, **options)


def test_it_is_the_small_function():
    variables, graph, keep = case()
    assert len(graph.free) == 5
    small_apply, want = cj.cut(full, variables, graph, keep)
    compact, small = cl.cut(MODEL, variables, graph, keep)
    jax.tree.map(np.testing.assert_array_equal, want, small)
    assert small["params"]["conv"]["kernel"].shape[-1] == 4
    close(fast(small_apply)(small, X), fast(compact.apply)(small, X))
    assert repr(compact) == f"Compact(module={MODEL!r}, tasks=None)"


class Narrow(nn.Module):
    """A module that can be built at the width of the cut."""

    width: int = 6

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x.mean((1, 2)))


def test_it_is_the_module_built_narrower():
    model = Narrow()
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), X))
    graph = cl.trace(model, variables, X)
    compact, small = cl.cut(model, variables, graph, drawn(graph))
    key = {"dropout": jax.random.key(3)}
    for options in ({}, {"train": True, "mutable": ["batch_stats"], "rngs": key}):
        want = fast(lambda v, o=options: Narrow(4).apply(v, X, **o))(small)
        got = fast(lambda v, o=options: compact.apply(v, X, **o))(small)
        assert jax.tree.structure(want) == jax.tree.structure(got)
        close(want, got)


def test_state_comes_out_small_and_as_from_the_module():
    variables, graph, keep = case()
    compact, small = cl.cut(MODEL, variables, graph, keep)
    rngs = {"dropout": jax.random.key(1)}

    @fast
    def step(small, x, rngs):
        return compact.apply(small, x, train=True, rngs=rngs, mutable=["batch_stats"])

    out, state = step(small, X, rngs)
    again, _ = step(small, X, {"dropout": jax.random.key(2)})
    assert state["batch_stats"]["norm"]["mean"].shape == (4,)
    assert jnp.abs(state["batch_stats"]["norm"]["mean"]).max() > 0
    assert jnp.abs(out["a"] - again["a"]).max() > 0

    def train(variables, x, rngs):
        return MODEL.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    want = fast(cj.shrink(train, graph, keep))(small, X, rngs)
    close(want, (out, state))


def test_arrays_by_name_other_methods_and_static_arguments():
    variables, graph, keep = case()
    compact, small = cl.cut(MODEL, variables, graph, keep)
    scaled = fast(lambda v, x, s: compact.apply(v, x, False, scale=s))
    want = cj.shrink(lambda v, x, s: MODEL.apply(v, x, scale=s), graph, keep)
    close(fast(want)(small, X, 3.0), scaled(small, X, jnp.float32(3.0)))
    close(scaled(small, X, 1.0), fast(compact.apply)(small, X))
    for method in ("features", Net.features):
        out = fast(lambda v, x, m=method: compact.apply(v, x, method=m))(small, X)
        kernel, bias = (small["params"]["conv"][k] for k in ("kernel", "bias"))
        dense = jax.lax.conv_general_dilated(
            X, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        close((dense + bias).sum(-1), out)


def test_what_was_sown_comes_out_small():
    variables, graph, keep = case()
    compact, small = cl.cut(MODEL, variables, graph, keep)
    sown = fast(lambda v: compact.apply(v, X, mutable="intermediates"))(small)[1]
    assert sown["intermediates"]["features"][0].shape == (4, 4)


def test_tasks():
    variables, graph, keep = case()
    compact, small = cl.cut(MODEL, variables, graph, keep, tasks="a")
    assert "b" not in small["params"] and "hidden" not in small["params"]
    out = fast(compact.apply)(small, X)
    assert set(out) == {"a"}
    whole, all_small = cl.cut(MODEL, variables, graph, keep)
    close(fast(whole.apply)(all_small, X)["a"], out["a"])
    options = {"train": True, "rngs": {"dropout": jax.random.key(1)}}
    options["mutable"] = ["batch_stats"]
    out, state = fast(lambda v: compact.apply(v, X, **options))(small)
    assert set(out) == {"a"} and set(state) == {"batch_stats"}


def test_vmap_and_grad():
    model = Narrow()
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), X))
    graph = cl.trace(model, variables, X)
    compact, small = cl.cut(model, variables, graph, drawn(graph))
    alone = fast(jax.vmap(lambda v, x: compact.apply(v, x[None])[0], (None, 0)))
    close(fast(compact.apply)(small, X), alone(small, X))
    loss = lambda module, v: jnp.square(module.apply(v, X)).sum()  # noqa: E731
    want = fast(jax.grad(lambda v: loss(Narrow(4), v)))(small)
    close(want, fast(jax.grad(lambda v: loss(compact, v)))(small))


class TrainState(train_state.TrainState):
    batch_stats: dict


def test_a_train_state():
    variables, graph, keep = case()
    compact, small = cl.cut(MODEL, variables, graph, keep)
    state = TrainState.create(
        apply_fn=compact.apply,
        params=small["params"],
        batch_stats=small["batch_stats"],
        tx=optax.adam(3e-2),
    )
    before = jax.tree.map(np.asarray, variables)
    y = jnp.asarray(np.arange(4) % 3)
    traced = []

    @fast
    def step(state, x, y, key):
        traced.append(1)

        def loss(params):
            out, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                x,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(out["a"], y)
            return losses.mean(), updates

        (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads, **updates)
        return state, value

    losses = []
    for i in range(30):
        state, value = step(state, X, y, jax.random.key(i))
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert len(traced) == 1
    assert state.batch_stats["norm"]["mean"].shape == (4,)
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_errors_say_what_to_do():
    variables, graph, keep = case()
    compact, small = cl.cut(MODEL, variables, graph, keep)
    with pytest.raises(cj.CutjaxError, match=r"not a Linen module.*cutjax\.nnx"):
        cl.trace(lambda v, x: x, variables, X)
    with pytest.raises(cj.CutjaxError, match=r"not a Linen module.*cutjax\.nnx"):
        cl.cut(lambda v, x: x, variables, graph, keep)
    with pytest.raises(cj.CutjaxError, match="not the cut parameters"):
        compact.apply(variables, X)
    with pytest.raises(cj.CutjaxError, match="'batch_stats/norm/mean' is missing"):
        compact.apply({"params": small["params"]}, X)
    with pytest.raises(cj.CutjaxError, match="no task 'c'"):
        cl.cut(MODEL, variables, graph, keep, tasks=("c",))
    with pytest.raises(cj.CutjaxError, match="do not match the graph"):
        cl.cut(MODEL, small, graph, keep)


def test_saboteur_a_compact_that_forgets_its_keep():
    """Equality with the narrower module is not had for nothing."""
    variables, graph, keep = case()
    _, small = cl.cut(MODEL, variables, graph, keep)
    other = {name: mask[::-1] for name, mask in keep.items()}
    wrong = cl.cut(MODEL, variables, graph, other)[1]
    compact = cl.Compact(MODEL, graph, keep)
    with pytest.raises(AssertionError):
        close(fast(compact.apply)(small, X), fast(compact.apply)(wrong, X))
    with pytest.raises(cj.CutjaxError, match="not the cut parameters"):
        cl.Compact(MODEL, graph, {}).apply(small, X)
