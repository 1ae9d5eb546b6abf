"""Law 10 for checkpoints, and an error for everything that can be wrong with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_scenes import (
    Head,
    X,
    assert_same,
    check_round_trip,
    tamper,
    weighted,
    weights,
)
from nets import NETS
from orbax.checkpoint import v1 as ocp

import cutjax as cj
from cutjax import _store
from cutjax.checkpoint import load, read, save
from cutjax.errors import CheckpointError, KeepError, MismatchError
from cutjax.graph_json import graph_from_json, graph_to_json

pytest_plugins = ("checkpoint_scenes",)
HERE = Path(__file__).parent
ROUND_TRIP = {
    "mlp_nested": None,
    "mlp_tasks": ("age",),
    "vgg": None,
    "swiglu": None,
    "scanned": ("output",),
    "nnx_conv": ("output",),
}


def random_keep(graph, seed=0):
    rng = np.random.default_rng(seed)
    keep = {}
    for group in graph.free:
        keep[group.name] = rng.random(group.size) < 0.6
        keep[group.name][rng.integers(group.size)] = True
    return keep


def cut_net(name, tasks=None):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    keep = random_keep(graph)
    return net, graph, keep, cj.cut(net.apply, net.params, graph, keep, tasks)


# Law 10


@pytest.mark.parametrize(("name", "tasks"), ROUND_TRIP.items(), ids=list(ROUND_TRIP))
def test_a_loaded_model_is_the_saved_one(tmp_path, name, tasks):
    net, graph, keep, (apply, params) = cut_net(name, tasks)
    save(tmp_path / "m", params, graph=graph, keep=keep, tasks=tasks)
    like = net.params if read(tmp_path / "m").needs_like else None
    again, loaded, info = load(tmp_path / "m", net.apply, like=like)
    assert_same(params, loaded)
    assert_same(apply(params, *net.inputs), again(loaded, *net.inputs))
    assert info.graph == graph
    assert info.keep.keys() == keep.keys()
    assert all((info.keep[g] == keep[g]).all() for g in keep)


def test_dropped_parameters_stay_dropped(tmp_path):
    net, graph, keep, (_, params) = cut_net("mlp_tasks", "smile")
    save(tmp_path / "m", params, graph=graph, keep=keep, tasks="smile")
    again, loaded, info = load(tmp_path / "m", net.apply)
    assert "age" not in loaded
    assert set(again(loaded, *net.inputs)) == set(info.tasks) == {"smile"}
    assert info.cost == graph.cost(keep, ("smile",))


def test_a_fresh_process_says_nothing_and_answers_the_same(tmp_path):
    net, graph, keep, (apply, params) = cut_net("vgg")
    save(tmp_path / "m", params, graph=graph, keep=keep)
    code = (
        "import sys, jax, numpy as np; from nets import NETS\n"
        "from cutjax.checkpoint import load\n"
        "net = NETS['vgg']()\n"
        "apply, params, _ = load(sys.argv[1], net.apply)\n"
        "np.save(sys.argv[2], jax.jit(apply)(params, *net.inputs))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m"), str(tmp_path / "out.npy")],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    want = jax.jit(apply)(params, *net.inputs)
    assert np.load(tmp_path / "out.npy").tobytes() == np.asarray(want).tobytes()


def odd(params, x):
    scale = params["a/b"]["ü.v"].astype(jnp.float32) + params["n"][0] + params["n"][1]
    return jax.nn.relu(x @ params["w"][0] * scale) @ params["w"][1]


def odd_params():
    nan = np.array([0x7FC1], np.uint16).view(jnp.bfloat16)[0]
    return {
        "a/b": {"ü.v": jnp.full(8, 1.1, jnp.bfloat16).at[0].set(nan)},
        "n": (jnp.int8(-3), jnp.float32(-0.0), None),
        "w": [jnp.ones((3, 8)), jnp.ones((8, 2), jnp.bfloat16)],
        "unused": {
            "double": np.array([1 / 3]),
            "int4": jnp.array([-8, 7], jnp.int4),
            "flag": jnp.array(True),
            "empty": jnp.zeros((0, 3), jnp.int16),
            "key": jax.random.key(5),
            "keys": jax.random.split(jax.random.key(6, impl="rbg"), 2),
        },
        "nothing": {},
        7: [],
    }


def test_every_leaf_survives_bit_for_bit(tmp_path):
    params = {str(k): v for k, v in odd_params().items()}
    graph = cj.trace(odd, params, X)
    keep = {graph.free[0].name: np.arange(8) < 5}
    for name, some in {
        "cut": cj.cut(odd, params, graph, keep)[1],
        "cut_params": cj.cut_params(params, graph, keep),
    }.items():
        save(tmp_path / name, some, graph=graph, keep=keep)
        assert_same(some, load(tmp_path / name, odd)[1])


def test_a_bare_array_and_nothing_but_empty_arrays(tmp_path):
    for name, params in {"bare": jnp.ones((3, 2)), "empty": [jnp.ones((0, 2))]}.items():
        graph = cj.trace(lambda p, x: x * 2, params, X)
        save(tmp_path / name, params, graph=graph, keep={})
        assert_same(params, load(tmp_path / name, lambda p, x: x * 2)[1])


def test_numbers_stored_as_other_types_stay_so(tmp_path, small):
    graph, keep, _, params = small
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    save(tmp_path / "m", half, graph=graph, keep=keep)
    assert_same(half, load(tmp_path / "m", weighted)[1])


def test_a_keep_of_other_channels_breaks_the_law(copy, small):
    check_round_trip(copy, small)
    tamper(copy, lambda b: b["keep"].update({"w1:1": [8, 4, "f0"]}), sign=True)
    with pytest.raises(AssertionError):
        check_round_trip(copy, small)


# What is said about a model


def test_read_tells_all_that_save_was_told(tmp_path, small):
    graph, keep, _, params = small
    notes = {"data": "digits", "seeds": (1, 2), "accuracy": np.float32(0.5)}
    save(tmp_path / "m", params, graph=graph, keep=keep, provenance=notes)
    info = read(tmp_path / "m")
    assert info.provenance == {"data": "digits", "seeds": [1, 2], "accuracy": 0.5}
    assert info.tasks == ("y", "z")
    assert info.cost == graph.cost(keep)
    assert info.full_cost == graph.cost()
    assert {n: s.shape for n, s in info.arrays.items()} == {
        "head/w": (4, 5),
        "w1": (3, 4),
        "w2": (4, 2),
    }
    assert info.versions["jax"] == jax.__version__
    assert info.created.endswith("+00:00")
    assert info.graph.explain("w1:1") == graph.explain("w1:1")


@pytest.mark.parametrize("name", ["vit_fused", "shuffle_once", "unet", "mlp_nested"])
def test_a_graph_is_json(name):
    net = NETS[name]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    text = json.dumps(graph_to_json(graph), allow_nan=False)
    assert graph_from_json(json.loads(text)) == graph


def test_a_graph_of_format_1_is_still_read():
    """It told neither how members are tied nor who reads whom."""
    net = NETS["vit_fused"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    value = json.loads(json.dumps(graph_to_json(graph)))
    for group in value["groups"]:
        group["members"] = [member[:2] for member in group["members"]]
        group["ties"] = ["`add` at net.py:3"]
    value["terms"] = [[t["times"], t["axes"], t["tasks"]] for t in value["terms"]]
    old = graph_from_json(value)
    assert old.axes == graph.axes and old.cost() == graph.cost()
    assert [g.name for g in old.groups] == [g.name for g in graph.groups]
    assert [t.axes for t in old.terms] == [t.axes for t in graph.terms]


# Writing


def test_an_existing_path_is_kept(saved, small):
    graph, keep, _, params = small
    with pytest.raises(CheckpointError, match=r"exists; .*overwrite=True"):
        save(saved, params, graph=graph, keep=keep)


def test_overwrite_replaces(copy, small):
    graph, keep, _, params = small
    twice = jax.tree.map(lambda a: a * 2, params)
    save(copy, twice, graph=graph, keep=keep, overwrite=True)
    assert_same(twice, load(copy, weighted)[1])
    assert [p.name for p in copy.parent.iterdir()] == ["model"]


def test_overwrite_deletes_checkpoints_only(tmp_path, small):
    graph, keep, _, params = small
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save(tmp_path, params, graph=graph, keep=keep, overwrite=True)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        path = tmp_path / "thesis.tex"
        save(path, params, graph=graph, keep=keep, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", ["before", "after", "rename"])
def test_a_failed_save_changes_nothing(copy, small, monkeypatch, where, overwrite):
    graph, keep, _, params = small
    true_save, path = ocp.save, copy if overwrite else copy.parent / "new"

    def full_disk(*args, **kwargs):
        if where == "after":
            true_save(*args, **kwargs)
        raise OSError("no space left on device")

    def rename(old, new, true=_store.os.rename):
        return full_disk() if Path(old).name == "new" else true(old, new)

    if where == "rename":
        monkeypatch.setattr(_store.os, "rename", rename)
    else:
        monkeypatch.setattr(ocp, "save", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*no space left"):
        save(path, params, graph=graph, keep=keep, overwrite=overwrite)
    monkeypatch.undo()
    assert [p.name for p in copy.parent.iterdir()] == ["model"]
    check_round_trip(copy, small)


def test_only_the_parameters_of_the_keep_are_saved(tmp_path, small):
    graph, keep, _, params = small
    wrong = {
        r"'w1' is \[3, 8\], not \[3, 4\]": weights(),
        r"'w2' is missing": {k: v for k, v in params.items() if k != "w2"},
        r"'more' is not in the graph": {**params, "more": jnp.ones(1)},
        "the containers differ": {**params, "head": Head(**params["head"])},
    }
    for match, some in wrong.items():
        with pytest.raises(MismatchError, match=match):
            save(tmp_path / "m", some, graph=graph, keep=keep)
    with pytest.raises(KeepError, match="no task 'age'"):
        save(tmp_path / "m", params, graph=graph, keep=keep, tasks=["age"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_stored_is_named(tmp_path, small):
    graph, keep, _, params = small

    def store(some, **more):
        save(tmp_path / "m", some, graph=graph, keep=keep, **more)

    for notes in ({"when": {1, 2}}, {"when": float("nan")}, {"when": [object()]}):
        with pytest.raises(CheckpointError, match=r"provenance\['when'\] is not JSON"):
            store(params, provenance=notes)
    with pytest.raises(CheckpointError, match=r"'head/w'\] is a ShapeDtypeStruct"):
        store(jax.eval_shape(lambda: params))
    with pytest.raises(CheckpointError, match="outside of jit"):
        jax.jit(store)(params)
    with pytest.raises(CheckpointError, match=r"inputs cannot be stored: .*Head"):
        store(params, inputs=(Head(X),))
    assert not list(tmp_path.iterdir())
