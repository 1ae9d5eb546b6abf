"""NNX modules: split, trace, cut to smaller modules that say their new sizes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from nets.turns import by_turns

import cutjax as cj
import cutjax.nnx as cn
from cutjax.nnx.layers import LAYERS
from cutjax.nnx.state import named_modules

SIZELESS = {
    "PReLU",
    "WeightNorm",
    "SpectralNorm",
    "RNNCellBase",
    "RNN",
    "Bidirectional",
    "Dropout",
    "LoRALinear",  # remembers what Linear does
    "RoPE",
}


def fast(fn):
    return jax.jit(fn)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 5)))


class Chain(nnx.Module):
    """Layers in a row, then the mean over all axes but batch and features."""

    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.mean(tuple(range(1, x.ndim - 1)))


class Transformer(nnx.Module):
    """Tied embedding, one attention block, two tasks."""

    def __init__(self, rngs, **attention):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            4, 8, 24, decode=False, rngs=rngs, **attention
        )
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        return {"next": self.embed.attend(x), "kind": self.out(x[:, 0])}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(6, 10, rngs=rngs)
        self.down = nnx.Linear(10, 6, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class Stack(nnx.Module):
    """Three blocks made by vmap and run by scan."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return Block(rngs)

        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.blocks = blocks(rngs)
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(block, x):
            return block(x)

        return self.last(run(self.blocks, self.first(x)))


class Shared(nnx.Module):
    """One convolution called twice, held under two names."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (1, 1), rngs=rngs)
        self.again = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.more = self.again
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.more(nnx.relu(self.again(self.first(x)))))


def mlp(r):
    layers = (
        *(nnx.Linear(4, 8, rngs=r), nnx.BatchNorm(8, rngs=r), nnx.relu),
        *(nnx.Dropout(0.2, rngs=r), nnx.Linear(8, 6, rngs=r), nnx.PReLU()),
        *(nnx.LayerNorm(6, rngs=r), nnx.Linear(6, 3, rngs=r)),
    )
    return Chain(*layers)


def convolutions(r):
    layers = (
        *(nnx.Conv(3, 8, (3, 3), rngs=r), nnx.BatchNorm(8, rngs=r), nnx.relu),
        *(nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=r), nnx.relu),
        nnx.Conv(8, 8, (3, 3), rngs=r),
        nnx.Conv(8, 12, (1, 1), rngs=r),
        nnx.GroupNorm(12, num_groups=4, rngs=r),
        nnx.Conv(12, 8, (3, 3), feature_group_count=4, rngs=r),
        nnx.InstanceNorm(8, rngs=r),
        nnx.ConvTranspose(8, 6, (2, 2), strides=(2, 2), rngs=r),
        nnx.RMSNorm(6, rngs=r),
        nnx.ConvTranspose(6, 5, (2, 2), transpose_kernel=True, rngs=r),
        nnx.Linear(5, 3, rngs=r),
    )
    return Chain(*layers)


def projections(r):
    lora = nnx.LoRA(5, 4, 4, base_module=nnx.Linear(5, 4, rngs=r), rngs=r)
    layers = (
        *(nnx.Linear(4, 8, rngs=r), nnx.relu),
        *(nnx.SpectralNorm(nnx.Linear(8, 6, rngs=r), rngs=r), nnx.relu),
        *(nnx.LoRALinear(6, 5, lora_rank=2, rngs=r), nnx.relu, lora, nnx.relu),
        nnx.Einsum("bc,cd->bd", (4, 6), (6,), rngs=r),
        nnx.LinearGeneral(6, (2, 3), rngs=r),
        nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=r),
        nnx.Linear(4, 3, rngs=r),
    )
    return Chain(*layers)


def recurrent(cell, r):
    layers = nnx.Linear(4, 6, rngs=r), nnx.RNN(cell(6, 8, rngs=r))
    return Chain(*layers, nnx.Linear(8, 3, rngs=r))


def bidirectional(r):
    both = [nnx.RNN(cell(4, 6, rngs=r)) for cell in (nnx.SimpleCell, nnx.GRUCell)]
    layers = nnx.Bidirectional(*both, rngs=r), nnx.Linear(12, 3, rngs=r)
    return Chain(*layers)


MODELS = {
    "mlp": (mlp, normal(2, 4)),
    "convolutions": (convolutions, normal(2, 4, 4, 3)),
    "projections": (projections, normal(2, 4)),
    "attention": (Transformer, TOKENS),
    "attention_dropout": (functools.partial(Transformer, dropout_rate=0.1), TOKENS),
    "attention_grouped": (functools.partial(Transformer, num_kv_heads=2), TOKENS),
    "attention_normed": (functools.partial(Transformer, normalize_qk=True), TOKENS),
    "lstm": (functools.partial(recurrent, nnx.LSTMCell), normal(2, 5, 4)),
    "lstm_fused": (
        functools.partial(recurrent, nnx.OptimizedLSTMCell),
        normal(2, 5, 4),
    ),
    "bidirectional": (bidirectional, normal(2, 5, 4)),
    "stack": (Stack, normal(2, 4)),
    "shared": (Shared, normal(2, 4, 4, 3)),
}


def filled(i, path, shape, dtype):
    """Telling random numbers; statistics and scales positive."""
    rng = np.random.default_rng(i)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.key(i)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(rng.integers(0, 2, shape), dtype)
    if path[-1] in ("var", "scale"):
        return jnp.asarray(rng.uniform(0.5, 1.5, shape), dtype)
    return jnp.asarray(rng.normal(size=shape) / 2, dtype)


def concrete(make):
    """A module filled without running its initialisers, which take seconds."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    flat = []
    for i, (path, leaf) in enumerate(nnx.to_flat_state(state)):
        value = filled(i, path, leaf.shape, leaf.dtype)
        variable = isinstance(leaf, nnx.Variable)
        flat.append((path, leaf.replace(value) if variable else value))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def build(name):
    make, x = MODELS[name]
    model = concrete(lambda: make(nnx.Rngs(0)))
    # Arrays held bare, which `nnx.eval_shape` does not take.
    if name == "convolutions":
        mask = np.random.default_rng(1).integers(0, 2, (3, 3, 8, 8))
        model.layers[5].mask = nnx.data(jnp.asarray(mask))
    if name == "projections":
        model.layers[0] = nnx.WeightNorm(model.layers[0], rngs=nnx.Rngs(0))
    return model, x


def drawn(graph, seed=0):
    """Loses something of every free group."""
    rng, keep = np.random.default_rng(seed), {}
    for group in graph.free:
        mask = rng.random(group.size) > 0.4
        mask[rng.integers(group.size)] = False
        mask[rng.choice(np.flatnonzero(~mask) if not mask.any() else [0])] |= True
        keep[group.name] = mask
    return keep


@functools.cache
def case(name):
    model, x = build(name)
    graph = cn.trace(model, x)
    keep = drawn(graph)
    apply, params = cn.split(model)
    small_apply, small = cj.cut(apply, params, graph, keep)
    want = fast(small_apply)(small, x)
    return model, x, graph, keep, want


def answer(model, x):
    view = nnx.clone(model)
    view.eval()
    graphdef, state = nnx.split(view)

    def run(state, x):
        return nnx.merge(graphdef, state)(x)

    return fast(run)(state, x)


def close(want, got, tolerance=1e-5):
    def one(a, b):
        size = float(jnp.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * size)

    jax.tree.map(one, want, got)


# What a fresh layer of the sizes that a layer reports looks like.
SAME = {
    nnx.Linear: lambda m, r: nnx.Linear(m.in_features, m.out_features, rngs=r),
    nnx.LinearGeneral: lambda m, r: nnx.LinearGeneral(
        m.in_features, m.out_features, axis=m.axis, rngs=r
    ),
    nnx.Einsum: lambda m, r: nnx.Einsum(
        m.einsum_str, m.kernel_shape, m.bias_shape, rngs=r
    ),
    nnx.Conv: lambda m, r: nnx.Conv(
        m.in_features,
        m.out_features,
        m.kernel_size,
        feature_group_count=m.feature_group_count,
        rngs=r,
    ),
    nnx.ConvTranspose: lambda m, r: nnx.ConvTranspose(
        m.in_features,
        m.out_features,
        m.kernel_size,
        transpose_kernel=m.transpose_kernel,
        rngs=r,
    ),
    nnx.Embed: lambda m, r: nnx.Embed(m.num_embeddings, m.features, rngs=r),
    nnx.LoRA: lambda m, r: nnx.LoRA(
        m.in_features, m.lora_a.shape[-1], m.out_features, rngs=r
    ),
    nnx.BatchNorm: lambda m, r: nnx.BatchNorm(m.num_features, rngs=r),
    nnx.LayerNorm: lambda m, r: nnx.LayerNorm(m.num_features, rngs=r),
    nnx.RMSNorm: lambda m, r: nnx.RMSNorm(m.num_features, rngs=r),
    nnx.InstanceNorm: lambda m, r: nnx.InstanceNorm(m.num_features, rngs=r),
    nnx.GroupNorm: lambda m, r: nnx.GroupNorm(
        m.num_groups * m.group_size, m.num_groups, rngs=r
    ),
    nnx.LSTMCell: lambda m, r: nnx.LSTMCell(m.in_features, m.hidden_features, rngs=r),
    nnx.OptimizedLSTMCell: lambda m, r: nnx.OptimizedLSTMCell(
        m.in_features, m.hidden_features, rngs=r
    ),
    nnx.SimpleCell: lambda m, r: nnx.SimpleCell(
        m.in_features, m.hidden_features, rngs=r
    ),
    nnx.GRUCell: lambda m, r: nnx.GRUCell(m.in_features, m.hidden_features, rngs=r),
    nnx.MultiHeadAttention: lambda m, r: nnx.MultiHeadAttention(
        m.num_heads,
        m.in_features,
        m.qkv_features,
        m.out_features,
        m.num_kv_heads,
        m.in_kv_features,
        normalize_qk=m.normalize_qk,
        rngs=r,
    ),
}


def shapes(layer):
    """Of the parameters that a fresh layer has too."""
    state = nnx.to_flat_state(nnx.state(layer, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {path: leaf.shape for path, leaf in state if path[0] != "base_module"}


def check_sizes(small):
    """Every layer reports the sizes of the parameters that it holds."""
    for path, layer in named_modules(small).items():
        if type(layer) not in SAME or path.startswith("blocks"):
            continue
        want = nnx.eval_shape(lambda layer=layer: SAME[type(layer)](layer, nnx.Rngs(0)))
        for name, shape in shapes(want).items():
            values = isinstance(layer, nnx.MultiHeadAttention) and name[0] in (
                "value",
                "out",
            )
            if name in shapes(layer) and not values:
                assert shapes(layer)[name] == shape, (path, name)
        if isinstance(layer, nnx.Conv | nnx.ConvTranspose):
            assert layer.kernel_shape == layer.kernel.shape


def check(name):
    """The small module: equal to the function, honest about sizes, of its own."""
    model, x, graph, keep, want = case(name)
    before = jax.tree.map(np.asarray, cn.split(model)[1])
    attributes = {p: str(vars(m)) for p, m in named_modules(model).items()}
    small = cn.cut(model, graph, keep, x)
    close(want, answer(small, x))
    check_sizes(small)
    assert type(small) is type(model)
    jax.tree.map(np.testing.assert_array_equal, before, cn.split(model)[1])
    assert attributes == {p: str(vars(m)) for p, m in named_modules(model).items()}
    return small


@pytest.mark.parametrize("name", by_turns(MODELS, 2))
def test_the_small_module_is_the_small_function(name):
    assert len(case(name)[2].free) >= 1
    small = check(name)
    full = sum(v.size for v in jax.tree.leaves(nnx.state(case(name)[0], nnx.Param)))
    left = sum(v.size for v in jax.tree.leaves(nnx.state(small, nnx.Param)))
    assert left < full


def test_every_layer_of_flax_is_known():
    found = {
        cls
        for cls in vars(nnx).values()
        if isinstance(cls, type)
        and issubclass(cls, nnx.Module)
        and cls.__module__.startswith("flax.nnx.nn.")
    }
    assert found
    assert {c.__name__ for c in found - set(LAYERS)} <= SIZELESS
    assert set(SAME) == set(LAYERS)


HOLDS = {
    nnx.Linear: "mlp",
    nnx.LinearGeneral: "projections",
    nnx.Einsum: "projections",
    nnx.Conv: "convolutions",
    nnx.ConvTranspose: "convolutions",
    nnx.Embed: "attention",
    nnx.LoRA: "projections",
    nnx.BatchNorm: "mlp",
    nnx.LayerNorm: "mlp",
    nnx.RMSNorm: "convolutions",
    nnx.InstanceNorm: "convolutions",
    nnx.GroupNorm: "convolutions",
    nnx.LSTMCell: "lstm",
    nnx.OptimizedLSTMCell: "lstm_fused",
    nnx.SimpleCell: "bidirectional",
    nnx.GRUCell: "bidirectional",
    nnx.MultiHeadAttention: "attention",
}


@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_saboteur_an_entry_that_is_missing(cls, monkeypatch):
    model, x, graph, keep, _ = case(HOLDS[cls])
    monkeypatch.setitem(LAYERS, cls, lambda old, new, axes: {})
    monkeypatch.setattr("cutjax.nnx.compact.prove", lambda *args: None)
    with pytest.raises(AssertionError):
        check_sizes(cn.cut(model, graph, keep, x))


def test_saboteur_a_scale_that_is_not_folded(monkeypatch):
    model, x, graph, keep, _ = case("attention")
    monkeypatch.setattr("cutjax.nnx.layers._keep_scale", lambda layer, factor: None)
    with pytest.raises(cj.CutjaxError, match="other values"):
        cn.cut(model, graph, keep, x)


def shared_heads(graph):
    """The group of key/value heads."""
    places = {(m.path, m.axis): g.name for g in graph.groups for m in g.members}
    return places["attention/key/kernel", 1]


def test_sizes_of_a_cut_by_hand():
    model, x, graph, _, _ = case("attention_grouped")
    keep = {shared_heads(graph): np.array([True, False])}
    small = cn.cut(model, graph, keep, x).attention
    assert (small.num_heads, small.num_kv_heads) == (2, 1)
    assert (small.head_dim, small.qkv_features) == (6, 12)
    assert small.out.in_features == (2, 6)
    assert small.attention_fn is nnx.dot_product_attention


def test_a_cut_of_heads_leaves_a_cache_that_decodes():
    model, x, graph, _, _ = case("attention_grouped")
    keep = {shared_heads(graph): np.array([False, True])}
    small = cn.cut(model, graph, keep, x).attention
    small.init_cache((2, 3, 8))
    assert small.cached_key.shape == (2, 3, 1, 6)
    graphdef, state = nnx.split(small)

    def decoded(state, y):
        attention = nnx.merge(graphdef, state)
        steps = [attention(y[:, i : i + 1], decode=True) for i in range(3)]
        return jnp.concatenate(steps, axis=1)

    def at_once(state, y):
        causal = nnx.make_causal_mask(jnp.ones((2, 3)))
        return nnx.merge(graphdef, state)(y, mask=causal, decode=False)

    y = normal(2, 3, 8)
    close(fast(at_once)(state, y), fast(decoded)(state, y))


class Rotary(nnx.Module):
    def __init__(self, rngs, rope):
        attend = functools.partial(nnx.dot_product_attention_with_rope, rope=rope)
        self.attention = nnx.MultiHeadAttention(
            4, 8, 24, decode=False, rngs=rngs, attention_fn=attend
        )

    def __call__(self, x):
        return self.attention(x)


@pytest.mark.skipif(not hasattr(nnx, "RoPE"), reason="flax has it from 0.12.12 on")
def test_rotary_attention_loses_heads_and_values_and_refuses_frequencies():
    rope, x = nnx.RoPE(), normal(2, 5, 8)
    model = concrete(lambda: Rotary(nnx.Rngs(0), rope))
    graph = cn.trace(model, x)
    sizes = {g.size: g.name for g in graph.free}
    assert set(sizes) == {4, 6, 3}  # heads, value width, pairs of channels
    keep = {sizes[n]: np.arange(n) > 0 for n in (4, 6)}
    small = cn.cut(model, graph, keep, x).attention
    assert (small.num_heads, small.head_dim) == (3, 6)
    assert small.value.out_features == (3, 5)
    with pytest.raises(cj.CutjaxError, match=r"(?s)Rotary \(.*keep these widths whole"):
        cn.cut(model, graph, {sizes[3]: np.arange(3) > 0}, x)


def test_half_precision():
    model = concrete(lambda: Transformer(nnx.Rngs(0), dtype=jnp.bfloat16))
    graph = cn.trace(model, TOKENS)
    keep = drawn(graph)
    small = cn.cut(model, graph, keep)
    assert small.attention.query.kernel.dtype == jnp.float32
    assert small.attention.head_dim < 6


def test_names_are_paths_and_random_streams_are_no_parameters():
    model, _, graph, _, _ = case("mlp")
    assert [g.name for g in graph.free] == ["layers/0/kernel:1", "layers/4/kernel:1"]
    assert "layers/1/mean" in graph.shapes
    assert not any("rngs" in name for name in graph.shapes)
    assert model.layers[1].use_running_average is False


def test_shapes_are_enough_to_trace():
    model = nnx.eval_shape(lambda: Transformer(nnx.Rngs(0)))
    graph = cn.trace(model, jax.ShapeDtypeStruct(TOKENS.shape, TOKENS.dtype))
    assert str(graph) == str(case("attention")[2])


def test_another_method_with_settings():
    model, x, _, _, _ = case("attention")

    def call(module, tokens, y):
        return module.attention(module.embed(tokens), y, decode=False)

    y = normal(2, 3, 8)
    graph = cn.trace(model, x, y, call=call, pin="out/*")
    assert "output" in graph.tasks
    keep = drawn(graph)
    small = cn.cut(model, graph, keep, call=call)
    apply, params = cn.split(model, call=call)
    small_apply, cut = cj.cut(apply, params, graph, keep)
    small_call, params = cn.split(small, call=call)
    close(fast(small_apply)(cut, x, y), fast(small_call)(params, x, y))


def test_other_parameters_can_be_put_in():
    model, x, graph, keep, want = case("mlp")
    small = cj.cut_params(cn.split(model)[1], graph, keep)
    small["layers"]["7"]["bias"] += 1.0
    got = answer(cn.cut(model, graph, keep, x, params=small), x)
    close(want + 1.0, got)


def test_a_second_cut():
    model, x, graph, keep, _ = case("attention_dropout")
    first = cn.cut(model, graph, keep, x)
    graph = cn.trace(first, x)
    keep = {
        g.name: np.arange(g.size) > 0
        for g in graph.free
        if g.size > 1 and g.name.startswith("attention")
    }
    assert keep
    apply, params = cn.split(first)
    small_apply, small = cj.cut(apply, params, graph, keep)
    second = cn.cut(first, graph, keep, x)
    close(fast(small_apply)(small, x), answer(second, x))


def test_the_small_module_trains():
    model, x, graph, keep, _ = case("mlp")
    before = jax.tree.map(np.asarray, cn.split(model)[1])
    small = cn.cut(model, graph, keep, x)
    stream = small.layers[3].rngs.count.get_value()
    optimizer = nnx.Optimizer(small, optax.adam(3e-2), wrt=nnx.Param)
    small.train()

    @nnx.jit
    def step(model, optimizer, x, y):
        loss = lambda model: jnp.square(model(x) - y).mean()  # noqa: E731
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    x, y = normal(32, 4), normal(32, 3, seed=1)
    statistics = np.asarray(small.layers[1].mean[...])
    losses = [float(step(small, optimizer, x, y)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert np.abs(small.layers[1].mean[...] - statistics).max() > 0
    assert small.layers[3].rngs.count.get_value() > stream
    assert model.layers[3].rngs.count.get_value() == stream
    jax.tree.map(np.testing.assert_array_equal, before, cn.split(model)[1])


class Heads(nnx.Module):
    """Attention of the user's own, with numbers in its code."""

    def __init__(self, rngs):
        self.num_heads, self.width = 3, 4
        self.scale = self.width**-0.5
        self.qkv = nnx.Linear(6, 36, rngs=rngs)
        self.out = nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, x):
        y = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.width)
        q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        w = nnx.softmax(jnp.einsum("bqhw,bkhw->bhqk", q, k) * self.scale)
        y = jnp.einsum("bhqk,bkhw->bqhw", w, v)
        return self.out(y.reshape(*x.shape[:2], -1))


def test_numbers_in_the_users_code_need_a_word_from_the_user():
    model, x = concrete(lambda: Heads(nnx.Rngs(0))), normal(2, 5, 6)
    graph = cn.trace(model, x)
    heads, width = sorted(g.name for g in graph.free)
    assert sorted((graph[heads].size, graph[width].size)) == [3, 4]
    keep = {g.name: np.arange(g.size) > 0 for g in graph.free}
    with pytest.raises(cj.CutjaxError, match=r"(?s)in Heads \(.*test_nnx.*edit={Heads"):
        cn.cut(model, graph, keep)
    edit = {Heads: lambda old, new: {"num_heads": 2, "width": 3}}
    small = cn.cut(model, graph, keep, edit=edit)
    assert small.qkv.out_features == 18 and small.num_heads == 2
    apply, params = cn.split(model)
    small_apply, small_params = cj.cut(apply, params, graph, keep)
    close(fast(small_apply)(small_params, x), answer(small, x))
    assert model.num_heads == 3


class Scaled(nnx.Module):
    """A scale taken from a width at call time."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.last(nnx.tanh(x / x.shape[-1] ** 0.5))


def test_a_scale_from_a_width_is_caught_and_can_be_mended():
    model, x = concrete(lambda: Scaled(nnx.Rngs(0))), normal(2, 4)
    graph = cn.trace(model, x)
    keep = {g.name: np.arange(g.size) % 2 == 0 for g in graph.free}
    with pytest.raises(cj.CutjaxError, match=r"(?s)other values.*cutjax.nnx.split"):
        cn.cut(model, graph, keep)

    def mend(old, new):
        for variable in (new.first.kernel, new.first.bias):
            factor = (new.first.out_features / old.first.out_features) ** 0.5
            variable.set_value(variable[...] * factor)
        return {}

    small = cn.cut(model, graph, keep, edit={Scaled: mend})
    assert small.first.out_features == 4


def test_errors_say_what_to_do():
    model, x, graph, keep, _ = case("mlp")
    with pytest.raises(cj.CutjaxError, match=r"not an NNX module.*cutjax\.linen"):
        cn.trace(lambda x: x, x)
    with pytest.raises(cj.CutjaxError, match="holds no Heads"):
        cn.cut(model, graph, keep, x, edit={Heads: lambda old, new: {}})
    with pytest.raises(cj.CutjaxError, match=r"'n_features'.*in_features"):
        edit = {nnx.Linear: lambda old, new: {"n_features": 1}}
        cn.cut(model, graph, keep, x, edit=edit)
    with pytest.raises(cj.CutjaxError, match="nearest: 'layers/0/kernel:1'"):
        cn.cut(model, graph, {"layers/0/kernal:1": np.ones(8, bool)}, x)
    with pytest.raises(cj.CutjaxError, match="do not match the graph"):
        cn.cut(case("attention")[0], graph, keep, x)
    with pytest.raises(cj.CutjaxError, match="not the cut parameters"):
        cn.cut(model, graph, keep, x, params=cn.split(model)[1])


def test_inputs_that_cannot_be_made_up_are_asked_for():
    model = nnx.Dropout(0.5)
    graph = cn.trace(model, jax.random.key(0), call=lambda m, key: m(jnp.ones(3)))
    with pytest.raises(cj.CutjaxError, match=r"pass those to check with"):
        cn.cut(model, graph, {}, call=lambda m, key: m(jnp.ones(3)))
