"""Equinox and Haiku: their plain recipes, and smaller Equinox modules."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cutjax as cj

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")

import cutjax.equinox as ce  # noqa: E402


def fast(fn):
    return jax.jit(fn)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def drawn(graph, seed=0):
    """Loses a third of every free group."""
    rng = np.random.default_rng(seed)
    return {
        g.name: rng.permutation(g.size) >= max(1, g.size // 3)
        for g in graph.free
        if g.size > 1
    }


def close(want, got, tolerance=1e-5):
    def one(a, b):
        size = float(jnp.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * size)

    jax.tree.map(one, want, got)


def filled(make):
    """A module of random numbers, without running its initialisers."""
    shapes = eqx.filter_eval_shape(make)
    leaves, tree = jax.tree_util.tree_flatten(shapes)
    values = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            rng = np.random.default_rng(i)
            real = jnp.issubdtype(leaf.dtype, jnp.floating)
            value = rng.normal(size=leaf.shape) / 2 if real else np.ones(leaf.shape)
            leaf = jnp.asarray(value, leaf.dtype)
        values.append(leaf)
    return jax.tree.unflatten(tree, values)


def keys(n):
    return jax.random.split(jax.random.key(0), n)


class Net(eqx.Module):
    """Convolution, depthwise convolution, group norm, linear."""

    conv: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    up: eqx.nn.ConvTranspose2d
    head: eqx.nn.Linear

    def __init__(self):
        k = keys(4)
        self.conv = eqx.nn.Conv2d(3, 8, 3, key=k[0])
        self.depthwise = eqx.nn.Conv2d(8, 8, 3, groups=8, padding=1, key=k[1])
        self.norm = eqx.nn.GroupNorm(4, 8)
        self.up = eqx.nn.ConvTranspose2d(8, 6, 2, stride=2, key=k[2])
        self.head = eqx.nn.Linear(6, 2, key=k[3])

    def __call__(self, x):
        x = jax.nn.relu(self.depthwise(self.conv(x)))
        return self.head(self.up(self.norm(x)).mean((1, 2)))


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    last: eqx.nn.RMSNorm
    mlp: eqx.nn.MLP

    def __init__(self):
        k = keys(3)
        self.embed = eqx.nn.Embedding(7, 6, key=k[0])
        self.norm = eqx.nn.LayerNorm(6)
        self.attention = eqx.nn.MultiheadAttention(
            3, 6, qk_size=4, vo_size=5, use_query_bias=True, dropout_p=0.3, key=k[1]
        )
        self.last = eqx.nn.RMSNorm(6)
        self.mlp = eqx.nn.MLP(6, 3, 8, 2, key=k[2])

    def __call__(self, tokens, key=None):
        x = jax.vmap(self.embed)(tokens)
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y, key=key)
        return jax.vmap(self.mlp)(jax.vmap(self.last)(x)).mean(0)


class Recurrent(eqx.Module):
    first: eqx.nn.GRUCell
    second: eqx.nn.LSTMCell
    head: eqx.nn.WeightNorm

    def __init__(self):
        k = keys(3)
        self.first = eqx.nn.GRUCell(4, 6, key=k[0])
        self.second = eqx.nn.LSTMCell(6, 5, key=k[1])
        self.head = eqx.nn.WeightNorm(eqx.nn.Linear(5, 2, key=k[2]))

    def __call__(self, xs):
        def step(carry, x):
            h, state = carry
            h = self.first(x, h)
            return (h, self.second(h, state)), None

        zeros = jnp.zeros(self.second.hidden_size)
        start = jnp.zeros(self.first.hidden_size), (zeros, zeros)
        (_, (h, _)), _ = jax.lax.scan(step, start, xs)
        return self.head(h)


class Stateful(eqx.Module):
    conv: eqx.nn.Conv1d
    norm: eqx.nn.BatchNorm
    spectral: eqx.nn.SpectralNorm
    head: eqx.nn.Linear

    def __init__(self):
        k = keys(4)
        self.conv = eqx.nn.Conv1d(3, 6, 3, key=k[0])
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="batch")
        layer = eqx.nn.Linear(6, 5, key=k[1])
        self.spectral = eqx.nn.SpectralNorm(layer, "weight", key=k[2])
        self.head = eqx.nn.Linear(5, 2, key=k[3])

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        x, state = self.spectral(jax.nn.relu(x).mean(1), state)
        return self.head(x), state


def each(model, x):
    return jax.vmap(model)(x)


def with_state(both, x):
    model, state = both
    run = jax.vmap(model, (0, None), (0, None), axis_name="batch")
    return run(x, state)[0]


def stateful():
    return filled(lambda: eqx.nn.make_with_state(Stateful)())


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 5)))
MODELS = {
    "convolutions": (lambda: filled(Net), normal(2, 3, 6, 6), each),
    "transformer": (lambda: filled(Transformer), TOKENS, each),
    "recurrent": (lambda: filled(Recurrent), normal(2, 3, 4), each),
    "stateful": (stateful, normal(2, 3, 7), with_state),
}


@functools.cache
def case(name):
    make, x, call = MODELS[name]
    model = make()
    graph = ce.trace(model, x, call=call)
    keep = drawn(graph)
    small_apply, small = cj.cut(*ce.split(model, call=call), graph, keep)
    return model, x, call, graph, keep, fast(small_apply)(small, x)


def sizes(tree):
    """Every module's static numbers: (path, class, field) -> number."""
    return {
        (path, type(m).__name__, name): value
        for path, m in ce._modules(tree).items()
        for name, value in vars(m).items()
        if isinstance(value, int | tuple) and not isinstance(value, bool)
    }


# What a fresh layer of the sizes that a layer tells looks like.
K = jax.random.key(0)
SAME = {
    eqx.nn.Linear: lambda m: eqx.nn.Linear(m.in_features, m.out_features, key=K),
    eqx.nn.Conv: lambda m: eqx.nn.Conv(
        m.num_spatial_dims,
        m.in_channels,
        m.out_channels,
        m.kernel_size,
        groups=m.groups,
        key=K,
    ),
    eqx.nn.ConvTranspose: lambda m: eqx.nn.ConvTranspose(
        m.num_spatial_dims, m.in_channels, m.out_channels, m.kernel_size, key=K
    ),
    eqx.nn.Embedding: lambda m: eqx.nn.Embedding(
        m.num_embeddings, m.embedding_size, key=K
    ),
    eqx.nn.LayerNorm: lambda m: eqx.nn.LayerNorm(m.shape),
    eqx.nn.RMSNorm: lambda m: eqx.nn.RMSNorm(m.shape),
    eqx.nn.GroupNorm: lambda m: eqx.nn.GroupNorm(m.groups, m.channels),
    eqx.nn.BatchNorm: lambda m: eqx.nn.BatchNorm(m.input_size, "batch", mode="batch"),
    eqx.nn.GRUCell: lambda m: eqx.nn.GRUCell(m.input_size, m.hidden_size, key=K),
    eqx.nn.LSTMCell: lambda m: eqx.nn.LSTMCell(m.input_size, m.hidden_size, key=K),
    eqx.nn.MultiheadAttention: lambda m: eqx.nn.MultiheadAttention(
        m.num_heads,
        m.query_size,
        m.key_size,
        m.value_size,
        m.output_size,
        m.qk_size,
        m.vo_size,
        use_query_bias=m.use_query_bias,
        key=K,
    ),
    eqx.nn.MLP: lambda m: eqx.nn.MLP(m.in_size, m.out_size, 1, 1, key=K),
}
HOLDS = {
    "convolutions": {"Linear", "Conv", "ConvTranspose", "GroupNorm"},
    "transformer": {"Embedding", "LayerNorm", "RMSNorm", "MLP", "MultiheadAttention"},
    "recurrent": {"GRUCell", "LSTMCell"},
    "stateful": {"BatchNorm"},
}


def shapes(layer):
    """Of the arrays of a layer; of a MLP only the outer sizes, its one width lies."""
    if isinstance(layer, eqx.nn.MLP):
        ends = layer.layers[0].weight.shape[1], layer.layers[-1].weight.shape[0]
        return {"ends": ends}
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(layer, _is_shaped))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def _is_shaped(leaf):
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def check_sizes(small):
    for path, layer in ce._modules(small).items():
        base = next((c for c in type(layer).__mro__ if c in SAME), None)
        if base is not None:
            want = shapes(eqx.filter_eval_shape(functools.partial(SAME[base], layer)))
            got = shapes(layer)
            assert {k: want[k] for k in got if k in want} == got, path


@pytest.mark.parametrize("name", MODELS)
def test_the_small_module_is_the_small_function(name):
    model, x, call, graph, keep, want = case(name)
    assert len(graph.free) >= 2
    before = jax.tree.map(np.asarray, eqx.filter(model, eqx.is_array))
    remembered = sizes(model)
    small = ce.cut(model, graph, keep, x, call=call)
    arrays, static = eqx.partition(eqx.nn.inference_mode(small), eqx.is_array)
    close(want, fast(lambda a, x: call(eqx.combine(a, static), x))(arrays, x))
    check_sizes(small)
    assert type(small) is type(model)
    assert sizes(model) == remembered
    after = eqx.filter(model, eqx.is_array)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_every_layer_in_the_table_is_tested():
    assert set(SAME) == set(ce.LAYERS)
    assert set.union(*HOLDS.values()) == {cls.__name__ for cls in SAME}


@pytest.mark.parametrize("cls", ce.LAYERS, ids=lambda cls: cls.__name__)
def test_saboteur_an_entry_that_is_missing(cls, monkeypatch):
    name = next(name for name, held in HOLDS.items() if cls.__name__ in held)
    model, x, call, graph, keep, _ = case(name)
    monkeypatch.setitem(ce.LAYERS, cls, lambda old, new, axes: {})
    monkeypatch.setattr(ce, "prove", lambda *args: None)
    with pytest.raises((AssertionError, ValueError)):
        check_sizes(ce.cut(model, graph, keep, x, call=call))


def test_saboteur_a_scale_that_is_not_folded(monkeypatch):
    model, x, call, graph, keep, _ = case("transformer")
    monkeypatch.setattr(ce, "_keep_scale", lambda queries, factor: None)
    with pytest.raises(cj.CutjaxError, match="other values"):
        ce.cut(model, graph, keep, x, call=call)


def test_the_two_line_recipe():
    """`eqx.combine` of cut arrays computes right where no static size is read."""
    model, x = filled(lambda: eqx.nn.MLP(4, 3, 8, 2, key=K)), normal(2, 4)
    params, static = eqx.partition(model, eqx.is_array)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    graph = cj.trace(apply, params, x)
    assert [g.name for g in graph.free] == ["layers/0/weight:0", "layers/1/weight:0"]
    small_apply, small = cj.cut(apply, params, graph, drawn(graph))
    whole = eqx.combine(small, static)
    close(fast(small_apply)(small, x), fast(lambda p: apply(p, x))(small))
    assert whole.layers[0].weight.shape == (6, 4)
    assert whole.layers[0].out_features == 8  # static fields tell the old sizes
    told = ce.cut(model, graph, drawn(graph), call=each)
    assert (told.layers[0].out_features, told.layers[1].in_features) == (6, 6)
    assert told.width_size == 6


def test_the_recipe_fails_where_sizes_are_checked_and_the_function_does_not():
    model, x, call, graph, keep, want = case("transformer")
    params, static = eqx.partition(model, eqx.is_array)
    small = cj.cut_params(params, graph, keep)
    with pytest.raises(ValueError, match="shape"):
        call(eqx.nn.inference_mode(eqx.combine(small, static)), x)
    assert want.shape == (2, 3)


def test_gradients_and_training():
    model, x, call, graph, keep, _ = case("transformer")
    small = ce.cut(model, graph, keep, x, call=call)
    optimizer = optax.adam(3e-2)
    state = optimizer.init(eqx.filter(small, eqx.is_inexact_array))
    y = normal(2, 3, seed=3)

    def loss(model, x, y, key):
        out = jax.vmap(model)(x, jax.random.split(key, len(x)))
        return jnp.square(out - y).mean()

    arrays, static = eqx.partition(small, eqx.is_array)

    @fast
    def step(arrays, state, key):
        model = eqx.combine(arrays, static)
        value, grads = eqx.filter_value_and_grad(loss)(model, x, y, key)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(arrays, updates), state, value, grads

    losses = []
    for i in range(20):
        arrays, state, value, grads = step(arrays, state, jax.random.key(i))
        losses.append(float(value))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    width = small.attention.qk_size * small.attention.num_heads
    assert grads.attention.query_proj.weight.shape == (width, 4)


def test_filtered_gradients_of_the_function():
    model, x, call, graph, keep, _ = case("convolutions")
    small_apply, small = cj.cut(*ce.split(model, call=call), graph, keep)
    grad = eqx.filter_grad(lambda params: small_apply(params, x).sum())
    grads = fast(lambda params: grad(params))(small)
    assert grads.conv.weight.shape == small.conv.weight.shape
    assert float(jnp.abs(grads.conv.weight).max()) > 0


def test_batch_statistics_in_training():
    """State named by a key comes out of the function as small as it went in."""
    model, x, _, _, _, _ = case("stateful")
    params, static = eqx.partition(model[0], eqx.is_array)
    leaves, tree = jax.tree.flatten(model[1])
    both = {"model": params, "state": leaves}

    def train(both, x):
        whole = eqx.combine(both["model"], static)
        state = jax.tree.unflatten(tree, both["state"])
        run = jax.vmap(whole, (0, None), (0, None), axis_name="batch")
        out, state = run(x, state)
        return out, {"state": jax.tree.leaves(state)}

    def infer(both, x):
        whole = eqx.nn.inference_mode(eqx.combine(both["model"], static))
        state = jax.tree.unflatten(tree, both["state"])
        return jax.vmap(whole, (0, None), (0, None), axis_name="batch")(x, state)[0]

    graph = cj.trace(infer, both, x)
    keep = {"model/conv/weight:0": np.arange(6) % 2 == 0}
    small_apply, small = cj.cut(infer, both, graph, keep)
    out, new = fast(cj.shrink(train, graph, keep))(small, x)
    assert out.shape == fast(small_apply)(small, x).shape == (2, 2)
    want = jax.tree.map(jnp.shape, small["state"])
    assert jax.tree.map(jnp.shape, new["state"]) == want
    assert (3,) in want


class Heads(eqx.Module):
    """Attention of the user's own, with numbers in its code."""

    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self):
        self.heads, self.scale = 3, 0.5
        self.qkv = eqx.nn.Linear(6, 36, key=K)
        self.out = eqx.nn.Linear(12, 2, key=K)

    def __call__(self, x):
        y = jax.vmap(self.qkv)(x).reshape(len(x), 3, self.heads, -1)
        w = jnp.einsum("qhw,khw->hqk", y[:, 0], y[:, 1]) * self.scale
        y = jnp.einsum("hqk,khw->qhw", jax.nn.softmax(w), y[:, 2])
        return jax.vmap(self.out)(y.reshape(len(x), -1))


def test_numbers_in_the_users_code_need_a_word_from_the_user():
    model, x = filled(Heads), normal(5, 6)
    graph = ce.trace(model, x)
    keep = {g.name: np.arange(g.size) > 0 for g in graph.free if g.size == 3}
    assert len(keep) == 1
    with pytest.raises(cj.CutjaxError, match=r"(?s)Heads.*heads=3.*edit={Heads"):
        ce.cut(model, graph, keep)
    small = ce.cut(model, graph, keep, edit={Heads: lambda old, new: {"heads": 2}})
    assert (small.heads, model.heads) == (2, 3)
    small_apply, params = cj.cut(*ce.split(model), graph, keep)
    arrays, static = eqx.partition(small, eqx.is_array)
    got = fast(lambda arrays, x: eqx.combine(arrays, static)(x))(arrays, x)
    close(fast(small_apply)(params, x), got)


def test_errors_say_what_to_do():
    model, x, call, graph, keep, _ = case("convolutions")
    with pytest.raises(cj.CutjaxError, match="holds no Equinox module"):
        ce.trace({"w": x}, x)
    with pytest.raises(cj.CutjaxError, match="holds no Heads"):
        ce.cut(model, graph, keep, edit={Heads: lambda old, new: {}}, call=call)
    with pytest.raises(cj.CutjaxError, match="not the cut parameters"):
        params = eqx.filter(model, eqx.is_array)
        ce.cut(model, graph, keep, params=params, call=call)


# Haiku. -----------------------------------------------------------------------------


def haiku_net(x, train):
    x = hk.Conv2D(6, 3, name="conv")(x)
    x = hk.BatchNorm(True, True, 0.9, name="norm")(x, train)
    x = jax.nn.relu(x).reshape(x.shape[0], -1, 6)
    attention = hk.MultiHeadAttention(
        2, 4, w_init=hk.initializers.RandomNormal(0.5), model_size=6, name="attention"
    )
    x = hk.LayerNorm(-1, True, True, name="layer_norm")(x + attention(x, x, x))
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if train else x
    return hk.nets.MLP([7, 3], name="mlp")(x.mean(1))


@functools.cache
def haiku_case():
    net, x = hk.transform_with_state(haiku_net), normal(4, 4, 4, 3)
    shapes = jax.eval_shape(lambda key: net.init(key, x, True), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    values = [
        jnp.asarray(np.random.default_rng(i).uniform(0.2, 1.0, s.shape), s.dtype)
        for i, s in enumerate(leaves)
    ]
    variables = jax.tree.unflatten(tree, values)

    def infer(variables, x):
        return net.apply(*variables, None, x, False)[0]

    def train(variables, x, key):
        out, state = net.apply(*variables, key, x, True)
        return out, ({}, state)

    # Haiku's averages hold what only training reads, and what only inference does:
    # a function of both couples all of it.
    def both(variables, x, key):
        return infer(variables, x), train(variables, x, key)[1]

    graph = cj.trace(both, variables, x, jax.random.key(0))
    return infer, train, variables, x, graph


def test_haiku_parameters_and_state_as_one_pytree():
    infer, train, variables, x, graph = haiku_case()
    assert sorted(g.size for g in graph.free) == [2, 4, 4, 6, 7]
    keep = drawn(graph)
    small_apply, small = cj.cut(infer, variables, graph, keep)
    params, state = small
    assert params["conv"]["w"].shape == (3, 3, 3, 4)
    assert state["norm/~/mean_ema"]["average"].shape == (1, 1, 1, 4)
    out = fast(small_apply)(small, x)
    assert out.shape == (4, 3)
    step = fast(cj.shrink(train, graph, keep))
    noisy, (_, new) = step(small, x, jax.random.key(1))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert float(jnp.abs(noisy - out).max()) > 0
    change = new["norm/~/mean_ema"]["hidden"] - state["norm/~/mean_ema"]["hidden"]
    assert float(jnp.abs(change).max()) > 0


def test_haiku_equals_the_mask_where_nothing_is_averaged_over_channels():
    infer, _, variables, x, graph = haiku_case()
    keep = {n: m for n, m in drawn(graph).items() if not graph[n].notes}
    assert len(keep) == 4
    small_apply, small = cj.cut(infer, variables, graph, keep)
    want = fast(infer)(cj.mask(variables, graph, keep), x)
    close(want, fast(small_apply)(small, x))
    loss = lambda params: small_apply((params, small[1]), x).sum()  # noqa: E731
    grads = fast(jax.grad(loss))(small[0])
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, small[0])


def test_neither_is_imported_by_cutjax():
    import subprocess
    import sys

    code = "import sys, cutjax; print('equinox' in sys.modules, 'haiku' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout.split() == [b"False", b"False"]
