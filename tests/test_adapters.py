"""Adapters: the identity at the start, equal after folding, on every kind of kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import NETS

import cutjax as cj
from cutjax.data import Split
from cutjax.errors import CutjaxError, KeepError, MismatchError
from cutjax.fit import fit
from cutjax.recover.adapters import adapters, fold, made_axes, opened, trained
from cutjax.recover.finetune import frozen


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Compiling takes longer than running here."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def specimen(name: str):
    net = NETS[name]()
    return net, cj.trace(net.apply, net.params, *net.inputs)


@functools.cache
def adapted_specimen(name: str, kind: str):
    net, graph = specimen(name)
    return adapters(net.apply, net.params, graph, *net.inputs, rank=2, kind=kind)


def outputs(fn, *args):
    return [np.asarray(v) for v in jax.tree.leaves(jax.jit(fn)(*args))]


def moved(entries, seed=0):
    """Adapters as after a training: nothing is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda v: v + 0.1 * rng.normal(size=v.shape).astype(np.float32), entries
    )


NAMES = ["option_a", "vit_split", "llama"]


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_identity_bit_for_bit(name):
    net, _ = specimen(name)
    adapted, start = adapted_specimen(name, "both")
    folded = jax.jit(fold)(net.params, start)
    jax.tree.map(np.testing.assert_array_equal, folded, net.params)
    # XLA folds what is constant, the frozen network, in an order of its own.
    got = jax.eval_shape(adapted, start, *net.inputs)
    want = jax.eval_shape(net.apply, net.params, *net.inputs)
    assert jax.tree.map(_like, got) == jax.tree.map(_like, want)


def _like(leaf):
    return leaf.shape, leaf.dtype


def test_the_function_starts_as_it_was_bit_for_bit():
    params, x, graph = by_hand()
    adapted, start = adapters(conv_and_heads, params, graph, x, kind="both")
    np.testing.assert_array_equal(adapted(start, x), conv_and_heads(params, x))
    assert np.abs(adapted(moved(start), x) - conv_and_heads(params, x)).max() > 1e-3


def check_fold(folding, name: str, kind: str) -> None:
    net, _ = specimen(name)
    adapted, start = adapted_specimen(name, kind)
    after = moved(start)
    folded = jax.jit(folding)(net.params, after)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, net.params)
    plain = outputs(lambda p: net.apply(p, *net.inputs), net.params)
    got = outputs(lambda p: net.apply(p, *net.inputs), folded)
    want = outputs(lambda a: adapted(a, *net.inputs), after)
    assert max(np.abs(p - w).max() for p, w in zip(plain, want, strict=True)) > 1e-3
    for g, w in zip(got, want, strict=True):
        scale = max(np.abs(w).max(), 1.0)
        np.testing.assert_allclose(g / scale, w / scale, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_folded_parameters_compute_the_same(name):
    check_fold(fold, name, "both")


def test_saboteur_a_fold_that_forgets_one_adapter():
    def forgetful(params, after):
        some = dict([*after["open"].items()][:-1])
        return fold(params, {"open": some, "closed": {}})

    with pytest.raises(AssertionError):
        check_fold(forgetful, "option_a", "lowrank")


def conv_and_heads(p, x):
    """A convolution with outputs first, a dense layer to heads and one from them."""
    numbers = ("NHWC", "OIHW", "NHWC")
    h = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=numbers
    )
    h = jnp.tanh(h.mean((1, 2)))
    h = jnp.tanh(jnp.einsum("bi,ihd->bhd", h, p["split"]))
    h = jnp.einsum("bhd,hdo->bo", h, p["join"]) + p["bias"]
    return h @ p["square"].T


@functools.cache
def by_hand():
    shapes = {"conv": (6, 2, 3, 3), "split": (6, 2, 4), "join": (2, 4, 5)}
    shapes |= {"bias": (5,), "square": (5, 5)}
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    x = rng.normal(size=(16, 4, 4, 2)).astype(np.float32)
    return params, x, cj.trace(conv_and_heads, params, x)


def test_axes_that_make_channels_are_found():
    params, x, graph = by_hand()
    found = made_axes(
        conv_and_heads, params, graph, jax.ShapeDtypeStruct(x.shape, "f4")
    )
    assert found == {"conv": (0,), "split": (1, 2), "join": (2,), "square": (0,)}


def test_low_rank_is_a_product_over_read_and_made_axes():
    params, x, graph = by_hand()
    _, start = adapters(conv_and_heads, params, graph, x, rank=3)
    after = moved(start)
    folded = jax.jit(fold)(params, after)
    for path, how in {
        "conv": "xihwr,oxyzr->oihw",
        "split": "ixyr,zhdr->ihd",
        "join": "hdxr,yzor->hdo",
        "square": "xir,oyr->oi",
    }.items():
        entry = {k: np.float64(v) for k, v in after["open"][path].items()}
        delta = np.einsum(how, entry["a"], entry["b"])
        np.testing.assert_allclose(folded[path], params[path] + delta, atol=1e-5)
        rank = np.linalg.matrix_rank(
            (np.moveaxis(delta, 0, -1) if path == "conv" else delta).reshape(
                entry["a"].size // 3, -1
            )
            if path != "square"
            else delta,
            tol=1e-6,
        )
        assert rank <= 3
    np.testing.assert_array_equal(folded["bias"], params["bias"])
    # A: read x rank, B: made x rank; of `split` and `join` 6 + 8 and 8 + 5.
    assert trained(start) == 3 * ((18 + 6) + (6 + 8) + (8 + 5) + (5 + 5))


def test_scale_is_an_affine_map_of_what_is_made():
    params, x, graph = by_hand()
    _, start = adapters(conv_and_heads, params, graph, x, kind="scale")
    assert trained(start) == 6 + 8 + 5 + 5 + 5
    after = moved(start)
    entry = after["open"]
    folded = jax.jit(fold)(params, after)
    want = params["conv"] * (1 + entry["conv"]["scale"].reshape(6, 1, 1, 1))
    np.testing.assert_allclose(folded["conv"], want, rtol=1e-6)
    np.testing.assert_allclose(folded["bias"], params["bias"] + entry["bias"]["shift"])


def test_statistics_get_no_shift():
    net, graph = specimen("option_a")
    _, start = adapters(net.apply, net.params, graph, *net.inputs, kind="scale")
    assert any(path.endswith("bias") for path in start["open"])
    assert not any(path.startswith("batch_stats") for path in start["open"])


def training(start, adapted):
    params, x, _ = by_hand()
    want = np.asarray(conv_and_heads(params, x)) * 1.5 + 0.3
    return fit(
        frozen(adapted, ("closed",)), start,
        lambda out, y: (jnp.mean((out - y["t"]) ** 2), {}), Split(x, {"t": want}),
        optimizer=optax.adam(0.03), epochs=20, batch_size=16, progress=False,
    )  # fmt: skip


def test_only_what_is_open_is_trained_group_by_group():
    params, x, graph = by_hand()
    adapted, start = adapters(
        conv_and_heads, params, graph, x, kind="both", open=["conv:0"]
    )
    assert set(start["open"]) == {"conv"}
    first, info = training(start, adapted)
    assert info.history[-1]["loss"] < info.history[1]["loss"]
    jax.tree.map(np.testing.assert_array_equal, first["closed"], start["closed"])
    assert np.abs(first["open"]["conv"]["b"]).max() > 1e-3
    # The next group; what was trained before stays and counts.
    again = opened(first, graph, "square")
    assert set(again["open"]) == {"square"}
    np.testing.assert_allclose(adapted(again, x), adapted(first, x), atol=1e-6)
    second, _ = training(again, adapted)
    jax.tree.map(
        np.testing.assert_array_equal, second["closed"]["conv"], first["open"]["conv"]
    )
    np.testing.assert_allclose(
        conv_and_heads(fold(params, second), x), adapted(second, x), atol=1e-5
    )
    everything = opened(second, graph, None)
    assert not everything["closed"] and trained(everything) > trained(second)
    # As the docstring says, also where nothing is closed.
    out, state = frozen(adapted, ("closed",))(everything, x)
    np.testing.assert_array_equal(out, adapted(everything, x))
    assert not state


def test_what_does_not_fit_is_named():
    params, x, graph = by_hand()
    _, start = adapters(conv_and_heads, params, graph, x)
    with pytest.raises(KeepError, match="no adapter at 'conv:9'"):
        opened(start, graph, ["conv:9"])
    with pytest.raises(CutjaxError, match="no kind 'low-rank'; nearest: 'lowrank'"):
        adapters(conv_and_heads, params, graph, x, kind="low-rank")
    for rank in (0, -1):
        with pytest.raises(CutjaxError, match=f"rank={rank} leaves nothing"):
            adapters(conv_and_heads, params, graph, x, rank=rank)
    with pytest.raises(KeepError, match="no kernel that is read"):
        adapters(conv_and_heads, params, graph, x, where=lambda path: False)
    with pytest.raises(MismatchError, match="no parameter 'conv'"):
        fold({"cnov": params["conv"]}, start)


def test_a_compact_model_is_adapted_by_its_own_graph():
    params, x, graph = by_hand()
    keep = {"conv:0": np.arange(6) % 2 == 0}
    apply, small = cj.cut(conv_and_heads, params, graph, keep)
    own = cj.trace(apply, small, x)
    adapted, start = adapters(apply, small, own, x, rank=1)
    assert start["open"]["conv"]["b"].shape == (3, 1, 1, 1, 1)
    after = moved(start)
    np.testing.assert_allclose(
        apply(fold(small, after), x), adapted(after, x), atol=1e-6
    )


@pytest.mark.parametrize(
    ("state", "left"),
    [(None, {"scale"}), (("var",), {"mean", "scale"}), ((), {"mean", "var", "scale"})],
)
def test_statistics_beside_what_is_trained_get_no_shift(state, left):
    """As NNX has them: in one layer with scale and bias."""

    def net(p, x):
        bn = p["l"]["bn"]
        return (x @ p["w"] - bn["mean"]) * bn["scale"] * bn["var"] @ p["o"]

    bn = {name: jnp.ones(4) for name in ("mean", "var", "scale")}
    p = {"w": jnp.ones((3, 4)), "l": {"bn": bn}, "o": jnp.ones((4, 2))}
    x = jnp.ones((2, 3))
    given = {} if state is None else {"state": state}
    _, extra = adapters(net, p, cj.trace(net, p, x), x, kind="scale", **given)
    assert set(extra["open"]) == {"w", "o"} | {f"l/bn/{name}" for name in left}


def test_convolutions_in_groups_are_adapted():
    """A kernel [3, 3, 2, 9] of 3 groups changes by a matrix [18, 9] of rank 2."""

    def net(p, x):
        h = jax.lax.conv_general_dilated(
            x, p["g"], (1, 1), "SAME", feature_group_count=3,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return h.mean((1, 2)) @ p["o"]

    p = {"g": jnp.ones((3, 3, 2, 9)), "o": jnp.ones((9, 2))}
    x = jnp.ones((2, 4, 4, 6))
    _, extra = adapters(net, p, cj.trace(net, p, x), x, rank=2)
    fill = lambda v: jax.random.normal(jax.random.key(v.size), v.shape)  # noqa: E731
    change = fold(p, jax.tree.map(fill, extra))["g"] - p["g"]
    assert np.linalg.matrix_rank(np.asarray(change).reshape(18, 9), tol=1e-3) == 2
