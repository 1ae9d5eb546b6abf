"""Statistics of the data; the function is what it was, in training too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from laws.tools import close, run
from nets import NETS
from test_merge import normal

import cutjax as cj
from cutjax.errors import DataError, MismatchError
from cutjax.mirror import named_leaves
from cutjax.recover import settle

EVERY = ("vgg", "option_a", "densenet", "mobilenet", "resnext")


def settled(net: Any) -> Any:
    return settle(net.apply, net.params, [(net.inputs[0],)], progress=False)


def check_settled(name: str, settled: Callable[[Any], Any]) -> None:
    """In one batch, its statistics are those of all data: both modes do the same."""
    net = NETS[name]()
    want = run(net.apply, net.params, *net.inputs)
    params = settled(net)
    close(run(net.apply, params, *net.inputs), want, 1e-5)
    trained, _ = run(net.train_apply, params, *net.train_inputs or net.inputs)
    close(trained, want, 1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_both_modes_do_what_inference_did(name):
    check_settled(name, settled)


def in_training(net: Any) -> Callable[[Any, Any], Any]:
    *_, key = net.train_inputs
    return lambda p, x: net.train_apply(p, x, key)


def statistics_only(net: Any) -> Any:
    return cj.recalibrate(in_training(net), net.params, net.inputs, progress=False)


def no_bias(net: Any) -> Any:
    def kept(path: Any, new: Any, old: Any) -> Any:
        return old if "bias" in jax.tree_util.keystr(path) else new

    return jax.tree_util.tree_map_with_path(kept, settled(net), net.params)


@pytest.mark.parametrize("broken", [statistics_only, no_bias, lambda net: net.params])
def test_saboteurs_are_found_out(broken):
    with pytest.raises(AssertionError):
        check_settled("option_a", broken)


def test_batches_are_taken_together():
    """Means and variances are those of all examples, far from zero or not."""

    def apply(p: Any, x: Any) -> Any:
        h = (x - p["seen"]["mean"]) / jnp.sqrt(p["seen"]["var"] + 1e-3)
        return h * p["scale"] + p["bias"]

    seen = {"mean": jnp.full(3, 2.0), "var": jnp.full(3, 5.0)}
    p = {"seen": seen, "scale": jnp.array([1.0, 0.0, -2.0]), "bias": normal(1, 3)}
    x = normal(2, 20, 4, 3) * np.array([0.1, 1, 10], np.float32) + 1000
    batches = [(x[i : i + 5], "labels") for i in range(0, 20, 5)] + [x[:2]]
    new = settle(apply, p, batches, state="seen", progress=False)
    double = np.asarray(x, np.float64)
    np.testing.assert_allclose(new["seen"]["mean"], double.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(new["seen"]["var"], double.var((0, 1)), rtol=1e-3)
    np.testing.assert_allclose(apply(new, x), apply(p, x), rtol=1e-3, atol=1e-3)


def test_layers_that_hold_all_they_have():
    """Such as those of NNX: statistics lie beside what is trained."""
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(1))
    )
    model.eval()
    apply, params = cj.nnx.split(model)
    x = normal(1, 20, 3)
    new = settle(apply, params, [x], state=("mean", "var"), progress=False)
    h = np.asarray(model.layers[0](x))
    found = named_leaves(new)
    np.testing.assert_allclose(found["layers/1/mean"], h.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["layers/1/var"], h.var(0), atol=1e-5)
    np.testing.assert_allclose(apply(new, x), apply(params, x), atol=1e-5)


def test_a_fit_survives_the_first_step_of_a_training():
    net: Any = NETS["option_a"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = {g.name: np.arange(g.size) % 2 == 0 for g in graph.free}
    small, train = (cj.shrink(f, graph, keep) for f in (net.apply, in_training(net)))
    x = normal(5, 64, *net.inputs[0].shape[1:])
    fitted, _ = cj.compensate(net.apply, net.params, graph, keep, [x], progress=False)
    want = small(fitted, x)

    def lost(params: Any) -> float:
        pairs = zip(*map(jax.tree.leaves, (train(params, x)[0], want)), strict=True)
        return max(float(jnp.abs(a - b).max()) for a, b in pairs)

    assert lost(settle(small, fitted, [x], progress=False)) < 1e-3 < lost(fitted) / 10


def of(scale: Any, twice: bool) -> Callable[..., Any]:
    def apply(p: Any, x: Any) -> Any:
        for _ in range(1 + twice):
            x = (x - p["seen"]["mean"]) * jax.lax.rsqrt(p["seen"]["var"])
            x = x * p["scale"] + p["bias"] if scale else x
        return x

    return apply


def test_scales_around_one_count_as_well():
    """Where the function adds one to its scale, or its mean is divided by a root."""

    def apply(p: Any, x: Any) -> Any:
        h = (x - p["seen"]["mean"]) / jnp.sqrt(p["seen"]["var"] + 1e-3)
        return (1 + p["scale"]) * h + p["bias"]

    p = {"seen": {"mean": normal(1, 3), "var": jnp.full(3, 5.0)}}
    p |= {"scale": jnp.array([0.0, -1.0, 2.0]), "bias": normal(2, 3)}
    x = normal(3, 20, 3)
    new = settle(apply, p, [x], state=["seen"], progress=False)
    np.testing.assert_allclose(new["seen"]["mean"], x.mean(0), atol=1e-6)
    np.testing.assert_allclose(apply(new, x), apply(p, x), atol=1e-5)


@pytest.mark.parametrize("size", [1e-2, 1e4, 1e7])
@pytest.mark.parametrize("old", [1.0, 1e4])
def test_values_of_any_size(size, old):
    """A step of one beside them would be lost in float32."""

    def apply(p: Any, x: Any) -> Any:
        h = (x - p["seen"]["mean"]) / jnp.sqrt(p["seen"]["var"] + 1e-9)
        return h * p["scale"] + p["bias"]

    p = {"seen": {"mean": old * normal(1, 3), "var": jnp.full(3, old**2)}}
    p |= {"scale": jnp.array([1.0, 0.1, -2.0]), "bias": normal(2, 3)}
    x = size * (normal(3, 64, 3) + 1)
    new = settle(apply, p, [x[:32], x[32:]], state="seen", progress=False)
    double = np.asarray(x, np.float64)
    np.testing.assert_allclose(new["seen"]["mean"], double.mean(0), rtol=1e-4)
    np.testing.assert_allclose(new["seen"]["var"], double.var(0), rtol=1e-4)
    want = np.asarray(apply(p, x))
    np.testing.assert_allclose(apply(new, x), want, atol=1e-4 * np.abs(want).max())


def test_a_normalisation_that_stays_as_it_was_is_told():
    def apply(p: Any, x: Any) -> Any:
        h = (x - p["seen"]["mean"]) * jax.lax.rsqrt(p["seen"]["var"])
        return h * jnp.exp(p["scale"]) + p["bias"]

    p = {"seen": {"mean": jnp.zeros(3), "var": jnp.full(3, 9.0)}}
    p |= {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    with pytest.warns(UserWarning, match="settle: 'seen/mean' and 'seen/var' stay"):
        new = settle(apply, p, [normal(1, 20, 3)], state=["seen"], progress=False)
    for a, b in zip(*map(jax.tree.leaves, (new, p)), strict=True):
        assert a is b


@pytest.mark.parametrize("apply", [of(False, False), of(True, True)])
def test_what_cannot_make_up_for_it_is_no_normalisation(apply):
    p = {"seen": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    p |= {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    with pytest.raises(MismatchError, match="nothing is normalised"):
        settle(apply, p, [normal(1, 4, 3)], state=["seen"], progress=False)


def test_bad_data_is_told():
    net = NETS["vgg"]()
    with pytest.raises(DataError, match="no data"):
        settle(net.apply, net.params, [], progress=False)
    with pytest.raises(DataError, match="NaN or infinite"):
        settle(net.apply, net.params, [net.inputs[0] * np.nan], progress=False)
