"""Networks that look at inputs of different shapes, over kernels stored once."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets.turns import by_turns

import cutjax as cj
from cutjax.errors import CutjaxError
from cutjax.merge import OWN, Network
from cutjax.models import eval_apply, init, train_apply


class Encoder(nn.Module):
    """A stem, a residual block and a head; BatchNorm."""

    outputs: int

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> dict[str, Any]:
        def normed(y: Any) -> Any:
            return nn.BatchNorm(use_running_average=not train)(y)

        h = nn.relu(normed(nn.Conv(12, (3, 3), use_bias=False)(x)))
        y = nn.relu(normed(nn.Conv(16, (3, 3), use_bias=False)(h)))
        h = nn.relu(h + normed(nn.Conv(12, (1, 1), use_bias=False)(y)))
        return {"answer": nn.Dense(self.outputs)(h.mean((1, 2)))}


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


SHAPES = {"photo": (10, 10, 3), "depth": (8, 12, 1)}
OUTPUTS = {"photo": 5, "depth": 2}
DATA = {n: [normal(10 + i, 32, *s) for i in range(8)] for n, s in SHAPES.items()}
X = {name: batches[0] for name, batches in DATA.items()}


def networks(*, alike: bool) -> tuple[dict[str, Network], dict[str, Network]]:
    """In evaluation and in train mode; `alike`: one trunk, but for channels' order."""
    found, trains, trunk = {}, {}, {}
    for seed, (name, x) in enumerate(X.items()):
        model = Encoder(OUTPUTS[name])
        params = init(model, x, seed)
        new = cj.recalibrate(train_apply(model), params, [(b,) for b in DATA[name]])
        params = {**params, **new} if "params" in new else new
        if alike:
            trunk = trunk or {k: params["params"][k] for k in ("Conv_1", "Conv_2")}
            params = {**params, "params": {**params["params"], **trunk}}
        graph = cj.trace(eval_apply(model), params, x)
        rng = np.random.default_rng(seed)
        order = {g.name: rng.permutation(g.size) for g in graph.free}
        params = cj.merge.permute(params, graph, order)
        found[name] = Network(eval_apply(model), params, graph)
        trains[name] = Network(train_apply(model), params, graph)
    return found, trains


def aligned(nets: dict[str, Network]) -> Any:
    graph = nets["photo"].graph
    trees = {name: net.params for name, net in nets.items()}
    orders, _ = cj.merge.align_all(graph, trees, progress=False)
    return cj.merge.from_permutations(graph, orders)


def wrong(merged: Any, nets: dict[str, Network]) -> float:
    found = merged.apply(merged.params, X)
    pairs = [
        (found[n], net.apply(net.params, X[n])["answer"]) for n, net in nets.items()
    ]
    return sum(float(jnp.mean((a - b) ** 2) / jnp.var(b)) for a, b in pairs)


@pytest.mark.parametrize("lockstep", by_turns([True, False], 2))
def test_a_trunk_that_is_the_same_is_found_and_stored_once(lockstep):
    nets, _ = networks(alike=True)
    sharing = aligned(nets)
    options: Any = {"lockstep": lockstep, "damping": 1e-6, "progress": False}
    merged = cj.merge.tied(nets, sharing, DATA, **options)
    assert wrong(merged, nets) < 1e-6
    shared = merged.params["params"]["shared"]
    assert sorted(shared) == ["Conv_1/kernel", "Conv_2/kernel"]
    assert merged.params["params"]["own"]["depth"]["Conv_0/kernel"].shape[2] == 1
    trunk = sum(leaf.nbytes for leaf in shared.values())
    apart = sum(cj.merge.unique_bytes(net.params) for net in nets.values())
    assert cj.merge.unique_bytes(merged.params) == apart - trunk
    unaligned = cj.merge.tied(nets, {}, DATA, **options)
    assert wrong(unaligned, nets) > 1e-3


def test_lockstep_comes_closer():
    nets, _ = networks(alike=False)
    sharing = aligned(nets)
    found = [
        wrong(cj.merge.tied(nets, sharing, DATA, lockstep=one, progress=False), nets)
        for one in (True, False)
    ]
    assert found[0] < 0.7 * found[1]


def dense(p: Any, x: Any) -> Any:
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] + p["c"]) @ p["d"]


def dense_networks() -> tuple[dict[str, Network], dict[str, list]]:
    nets, data = {}, {}
    for seed, (name, size) in enumerate({"one": 4, "two": 7}.items()):
        shapes = {"a": (size, 12), "b": (12, 8), "c": (8,), "d": (8, 3)}
        p = {k: normal(20 * seed + i, *s) for i, (k, s) in enumerate(shapes.items())}
        data[name] = [normal(50 + 9 * seed + i, 128, size) + seed for i in range(4)]
        nets[name] = Network(dense, p, cj.trace(dense, p, data[name][0]))
    return nets, data


def test_mtz_equals_an_independent_solver():
    nets, data = dense_networks()
    merged = cj.merge.tied(
        *(nets, {}, data),
        lockstep=False,
        damping=1e-9,
        rows=1 << 20,
        progress=False,
    )
    read, made = [], []
    for at, (name, net) in enumerate(nets.items()):
        p = jax.tree.map(np.float64, net.params)
        h = np.maximum(np.concatenate(data[name]).astype(np.float64) @ p["a"], 0)
        read.append(np.c_[h, np.full(len(h), at == 0), np.full(len(h), at == 1)])
        made.append(h @ p["b"] + p["c"])
    want = np.linalg.lstsq(np.concatenate(read), np.concatenate(made), rcond=None)[0]
    p = merged.params["params"]
    np.testing.assert_allclose(p["shared"]["b"], want[:-2], atol=2e-3)
    for name, bias in zip(nets, want[-2:], strict=True):
        np.testing.assert_allclose(p["own"][name]["c"], bias, atol=5e-3)
        np.testing.assert_array_equal(p["own"][name]["a"], nets[name].params["a"])


def test_networks_count_alike_however_much_data_there_is():
    nets, data = dense_networks()
    options: Any = {"damping": 1e-3, "rows": 1 << 20, "progress": False}
    found = [
        cj.merge.tied(nets, {}, {**data, "two": data["two"] * n}, **options)
        for n in (1, 5)
    ]
    once, often = (m.params["params"]["shared"]["b"] for m in found)
    np.testing.assert_allclose(once, often, atol=1e-4)


def test_a_smaller_last_batch_is_left_out():
    nets, data = dense_networks()
    more = {**data, "two": [*data["two"], data["two"][0][:9]]}
    found, want = (cj.merge.tied(nets, {}, d, progress=False) for d in (more, data))
    jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
    with pytest.raises(CutjaxError, match="batches of no examples"):
        cj.merge.tied(nets, {}, {**data, "two": [data["two"][0][:0]]})


def test_statistics_are_made_anew():
    nets, trains = networks(alike=False)
    sharing = aligned(nets)
    merged = cj.merge.tied(nets, sharing, DATA, lockstep=False, progress=False)
    train = cj.merge.tied_train_apply(trains)
    pairs = zip(DATA["photo"], DATA["depth"], strict=True)
    batches = [({"photo": a, "depth": b},) for a, b in pairs]
    new = cj.recalibrate(train, merged.params, batches, progress=False)
    moved = new["batch_stats"]["own"]["depth"]["BatchNorm_1/var"]
    held = merged.params["batch_stats"]["own"]["depth"]["BatchNorm_1/var"]
    assert moved.shape == held.shape and jnp.abs(moved - held).max() > 1e-4
    assert wrong(merged._replace(params=new), nets) < wrong(merged, nets)


def test_it_is_cut_like_any_other():
    nets, _ = networks(alike=True)
    merged = cj.merge.tied(nets, aligned(nets), DATA, progress=False)
    graph = cj.trace(merged.apply, merged.params, X)
    keep = {g.name: np.arange(g.size) % 3 > 0 for g in graph.free}
    small_apply, small = cj.cut(merged.apply, merged.params, graph, keep)
    masked = merged.apply(cj.mask(merged.params, graph, keep), X)
    for name, y in jax.jit(small_apply)(small, X).items():
        np.testing.assert_allclose(y, masked[name], rtol=1e-4, atol=1e-4)
    assert small["params"]["shared"]["Conv_1/kernel"].shape == (3, 3, 8, 10)
    alone_apply, alone = cj.cut(
        *(merged.apply, merged.params, graph, keep), tasks=("depth",)
    )
    np.testing.assert_allclose(
        alone_apply(alone, X)["depth"], masked["depth"], rtol=1e-4, atol=1e-4
    )
    assert "photo" not in alone["params"]["own"]


def test_errors_say_what_would_work():
    nets, data = dense_networks()
    half = np.where(np.arange(12) < 4, OWN, np.arange(12))
    sharing = {"a:1": {"one": half, "two": half}}
    with pytest.raises(CutjaxError, match=r"'a:1'.*'one'.*one to one.*until"):
        cj.merge.tied(nets, sharing, data, progress=False)
    with pytest.raises(CutjaxError, match=r"no data of 'two'"):
        cj.merge.tied(nets, {}, {"one": data["one"]}, progress=False)
    with pytest.raises(CutjaxError, match=r"'d'.*NaN|NaN.*'d'|'a'"):
        cj.merge.tied(nets, {}, {**data, "two": [jnp.full((9, 7), jnp.nan)]})
    merged = cj.merge.tied(nets, {}, data, progress=False)
    with pytest.raises(CutjaxError, match=r"no network 'tow'.*two"):
        merged.apply(merged.params, {"tow": data["two"][0]})
