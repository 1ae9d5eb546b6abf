"""Channels turned into principal components: the same function, the first hold most."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import NETS
from nets.norm import layernorm, rmsnorm
from nets.turns import by_turns

import cutjax as cj
from cutjax.errors import DataError, KeepError
from cutjax.recover import leading, rotate
from cutjax.recover.program import program
from cutjax.recover.trial import gap, turns_of
from cutjax.recover.turned import turned

# What can be turned, by hand: pre-norm streams, and the values of attention.
TURNS = {
    "swiglu": {"embed:1"},
    "vit_linen": {
        "params/Conv_0/kernel:3",
        "params/MultiHeadDotProductAttention_0/value/kernel:2",
        "params/MultiHeadDotProductAttention_1/value/kernel:2",
    },
    "vit_fused": {
        *("embed/kernel:1", "blocks/0/qkv/kernel:1.1", "blocks/1/qkv/kernel:1.1"),
    },
    # The stream's embedding is a head too, behind a scale.
    "decoder": {"blocks/0/v:2", "blocks/1/v:2"},
    "grouped_rotary": {"embed:1", "v:2"},
    "multi_query": {"embed/kernel:1", "v:1"},
    # The values as a part of an axis: of heads and their width.
    "gptj": {"embed/kernel:1", "v:1.1"},
    "kv_cache": {"embedding:1"},
    "t5": {"embedding:1", "enc/v:2", "cross/v:2"},
    "scanned": {"params/Dense_0/kernel:1"},
    "mlp": set(),
    "vgg": set(),
    "mobilenet": set(),
    "lstm": set(),
    "groupnorm": set(),
}
FAST = {"swiglu", "grouped_rotary", "mlp", "lstm"}


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def turn(apply, params, *inputs, **options):
    graph = cj.trace(apply, params, *inputs)
    found = rotate(apply, params, graph, [(inputs,)], progress=False, **options)
    return graph, found


def apart(apply, a, b, *inputs):
    return gap(*(jax.tree.leaves(apply(p, *inputs)) for p in (a, b)))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in TURNS],
)
def test_turned_it_is_the_same_function(name):
    net = NETS[name]()
    graph, found = turn(net.apply, net.params, *net.inputs)
    assert found.energy.keys() == TURNS[name]
    assert found.energy.keys() | found.left.keys() == {g.name for g in graph.free}
    assert apart(net.apply, found.params, net.params, *net.inputs) < 1e-5
    for group, energy in found.energy.items():
        assert energy.shape == (graph[group].size,)
        assert (np.diff(energy) >= 0).all()
        assert energy[-1] == pytest.approx(1)


def rms(x, scale):
    return rmsnorm({"scale": scale}, x)


def layer(x, scale, bias):
    return layernorm({"scale": scale, "bias": bias}, x)


STREAM = 16


def residual(norm):
    """A block beside a stream of 16 channels that moves in few directions mostly."""

    def apply(p, x):
        h = x @ p["in"] + p["at"]
        branch = jnp.tanh(norm(p, 0, h) @ p["up"]) @ p["down"] + p["bias"]
        return norm(p, 1, h + branch * p.get("branch", 1.0)) @ p["head"]

    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(STREAM, STREAM)))
    sizes = 3 * 0.65 ** np.arange(STREAM)
    params = {
        "in": jnp.asarray(sizes[:, None] * directions, jnp.float32),
        "at": normal(rng, STREAM) * 0.1,
        "up": normal(rng, STREAM, 12),
        "down": normal(rng, 12, STREAM) * 0.1,
        "bias": normal(rng, STREAM) * 0.1,
        "head": normal(rng, STREAM, 5),
    }
    for i in range(2):
        params[f"scale{i}"] = jnp.asarray(rng.uniform(0.5, 2, STREAM), jnp.float32)
        params[f"shift{i}"] = normal(rng, STREAM)
    return apply, params, jnp.asarray(rng.normal(size=(400, STREAM)), jnp.float32)


NORMS = {
    "rms": lambda p, i, x: rms(x, p[f"scale{i}"]),
    "rms from one": lambda p, i, x: rms(x, 1 + p[f"scale{i}"]),
    "layer": lambda p, i, x: layer(x, p[f"scale{i}"], p[f"shift{i}"]),
    "layer from one": lambda p, i, x: layer(x, 1 + p[f"scale{i}"], p[f"shift{i}"]),
    # LayerScale: the branch, not what is read, is scaled.
    "layer, branch scaled": lambda p, i, x: layer(x, 1.0, 0.0),
    # As Flax does: the scale comes before what is scaled.
    "layer scaled early": lambda p, i, x: (
        (x - x.mean(-1, keepdims=True))
        * (jax.lax.rsqrt(x.var(-1, keepdims=True)))
        * p[f"scale{i}"]
        + p[f"shift{i}"]
    ),
    "none": lambda p, i, x: x,
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_any_form(name):
    apply, params, x = residual(NORMS[name])
    if "branch" in name:
        params["branch"] = normal(np.random.default_rng(1), STREAM) * 4
    _, found = turn(apply, params, x)
    assert list(found.energy) == ["in:1"]
    assert apart(apply, found.params, params, x) < 1e-5
    # For a mean one channel more.
    held = found.energy["in:1"][4 if "layer" in name else 3]
    assert 0.9 < held < 0.9999
    spread = np.asarray(x @ params["in"]).var(0)
    assert np.sort(spread)[-4:].sum() / spread.sum() < 0.7


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_cut_after_it_less_is_lost(name):
    """As cut and refitted; the saboteur keeps the last channels, not the first."""
    apply, params, x = residual(NORMS[name])
    graph, found = turn(apply, params, x[:200])
    keep = {"in:1": np.arange(STREAM) % 4 == 0}

    def lost(params, keep, *, refit):
        small, less = cj.cut(apply, params, graph, keep)
        if refit:
            given = (apply, params, graph, keep, [x[:200]])
            less, _ = cj.compensate(*given, progress=False)
        return gap([small(less, x[200:])], [apply(params, x[200:])])

    first = leading(found, keep)
    assert first["in:1"].tolist() == [True] * 4 + [False] * 12
    # As cut, all is too small: a mean square over fewer channels is a larger one.
    for refit, share in ((False, 1.0), (True, 0.8)):
        turned_loss = lost(found.params, first, refit=refit)
        assert turned_loss < share * lost(params, keep, refit=refit)
        last = {"in:1": first["in:1"][::-1]}
        assert turned_loss < share * lost(found.params, last, refit=refit)


def test_the_first_channels_of_a_centred_group_are_its_principal_components():
    """LayerNorm of k + 1 channels is that of the projection on k directions."""

    def apply(p, x):
        return layer(x @ p["in"], p["scale"], p["shift"]) @ p["head"]

    rng = np.random.default_rng(0)
    params = {"in": normal(rng, 8, 10), "head": normal(rng, 10, 4)}
    params |= {"scale": jnp.asarray(rng.uniform(0.5, 2, 10), jnp.float32)}
    params |= {"shift": normal(rng, 10)}
    x, k = normal(rng, 300, 8) * 3, 4
    graph, found = turn(apply, params, x)
    small, less = cj.cut(apply, found.params, graph, {"in:1": np.arange(10) <= k})
    # By NumPy: directions of the normalised stream, its own scale, the kernel behind.
    h = np.asarray(x @ params["in"], np.float64)
    h -= h.mean(1, keepdims=True)
    y = h / np.sqrt((h**2).mean(1, keepdims=True))
    _, _, directions = np.linalg.svd(y)
    z = h @ directions[:k].T @ directions[:k]
    z /= np.sqrt((z**2).sum(1, keepdims=True) / (k + 1))
    head = np.asarray(params["scale"][:, None] * params["head"], np.float64)
    got, want = small(less, x), z @ head
    assert gap([got - got.mean(0)], [want - want.mean(0)]) < 1e-3
    other = h / np.sqrt((h**2).sum(1, keepdims=True) / (k + 1)) @ head
    assert gap([got - got.mean(0)], [other - other.mean(0)]) > 1e-2


def test_scales_that_are_not_taken_up_change_the_function():
    """The saboteurs: scales turned along, and what is no turn or moves the mean."""
    apply, params, x = residual(NORMS["layer"])
    graph = cj.trace(apply, params, x)
    leaves, tree = jax.tree.flatten(params)
    prog, names = program(apply, graph, {}, (x,)), ["in:1"]

    def answer(leaves):
        return [apply(jax.tree.unflatten(tree, leaves), x)]

    turns, _ = turns_of(prog, graph, answer, leaves, (x,), names, progress=False)
    right = turns["in:1"]
    assert right.centred
    assert len(right.scales) == 2
    rng = np.random.default_rng(1)
    matrix, _ = np.linalg.qr(rng.normal(size=(STREAM, STREAM)))
    v = np.eye(STREAM)[0] - np.eye(STREAM)[1]
    mirror = np.eye(STREAM) - np.outer(v, v) / 5  # no orthogonal one
    v = rng.normal(size=STREAM)
    v -= v.mean()
    inner = np.eye(STREAM) - 2 * np.outer(v, v) / (v @ v)

    def change(turn, matrix):
        return gap(answer(turned(graph, turn, leaves, matrix)), answer(leaves))

    assert change(right, inner) < 1e-5
    assert change(right, matrix) > 1e-2
    assert change(right, mirror) > 1e-2
    assert change(right._replace(scales=()), inner) > 1e-2


def test_what_is_in_the_way_is_said():
    net = NETS["decoder"]()
    _, found = turn(net.apply, net.params, *net.inputs)
    (stream,) = (why for why in found.left.values() if "serves elsewhere" in why)
    assert "embedding is read behind the scale last/scale" in stream
    apply, params, x = residual(NORMS["rms"])
    params = {**params, "scale0": params["scale0"].at[3].set(0.0)}
    _, found = turn(apply, params, x)
    assert found.left["in:1"] == "a scale before its readers is next to zero"
    assert found.left["up:1"].startswith("more than linear maps")
    assert found.params is not None
    assert not found.energy


def test_a_branch_may_be_scaled_by_more_than_its_channels():
    """One number per position and channel cannot go into a kernel."""
    apply, params, x = residual(NORMS["rms"])
    x = x.reshape(-1, 4, STREAM)
    sizes = np.random.default_rng(2).uniform(0.5, 2, (4, STREAM))
    params = {**params, "branch": jnp.asarray(sizes, jnp.float32)}
    _, found = turn(apply, params, x)
    assert found.left["in:1"].startswith("more than linear maps")
    params = {**params, "branch": params["branch"][0]}
    assert "in:1" in turn(apply, params, x)[1].energy


def test_only_the_groups_that_are_named():
    net = NETS["grouped_rotary"]()
    _, found = turn(net.apply, net.params, *net.inputs, groups="v:2")
    assert list(found.energy) == ["v:2"]
    with pytest.raises(KeepError, match="no group 'w'"):
        turn(net.apply, net.params, *net.inputs, groups=["w"])


def test_bfloat16_keeps_its_type():
    apply, params, x = residual(NORMS["layer"])
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    _, found = turn(apply, low, x)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
    assert list(found.energy) == ["in:1"]
    assert apart(apply, found.params, low, x) < 0.05


@pytest.mark.parametrize(
    "name", by_turns(["gptj", "vit_linen", "equinox_attention"], 3)
)
def test_groups_of_networks_in_bfloat16_are_found_as_in_float32(name):
    net = NETS[name]()
    low = jax.tree.map(_half, (net.params, net.inputs))
    _, found = turn(net.apply, low[0], *low[1])
    _, want = turn(net.apply, net.params, *net.inputs)
    assert list(found.energy) == list(want.energy) and found.left == want.left
    got, full = net.apply(found.params, *low[1]), net.apply(low[0], *low[1])
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, full)
    assert apart(net.apply, found.params, low[0], *low[1]) < 0.05


def _half(a):
    return a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a


def test_what_is_worked_out_in_16_bits_may_hide_what_turns():
    def apply(w, x):
        return (x @ w["a"]).astype(jnp.bfloat16) @ w["b"].astype(jnp.bfloat16)

    rng = np.random.default_rng(0)
    w = {"a": rng.normal(size=(4, 6)), "b": rng.normal(size=(6, 3))}
    w = jax.tree.map(lambda a: jnp.asarray(a, "float32"), w)
    _, found = turn(apply, w, jnp.ones((2, 4)))
    assert "16 bits" in found.left["a:1"]


def test_bad_data_is_told():
    apply, params, x = residual(NORMS["rms"])
    graph = cj.trace(apply, params, x)
    with pytest.raises(DataError, match="no data to rotate by"):
        rotate(apply, params, graph, [], progress=False)
    with pytest.raises(DataError, match="NaN"):
        rotate(apply, params, graph, [x, x.at[5].set(jnp.nan)], progress=False)
