"""A clear error for everything that can be wrong with a checkpoint or its reader."""

import shutil

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
from orbax.checkpoint import v1 as ocp

import cutjax as cj
from cutjax import checkpoint
from cutjax.checkpoint import load, read, save
from cutjax.errors import CheckpointError

pytest_plugins = ("checkpoint_scenes",)


def data_files(path):
    return [f for f in path.rglob("d/*") if f.is_file()]


# Reading what is not, or no longer, there


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere"):
        load(tmp_path / "nowhere", weighted)
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            load(path, weighted)


def test_a_checkpoint_of_somebody_else(tmp_path):
    ocp.save(tmp_path / "a", {"w": np.ones(3)})
    ocp.save(tmp_path / "b", {"w": np.ones(3)}, custom_metadata={"cutjax": "me too"})
    for name in "ab":
        with pytest.raises(CheckpointError, match=r"none of cutjax\.save; .*load"):
            load(tmp_path / name, weighted)


def flip(path):
    for file in data_files(path):
        raw = bytearray(file.read_bytes())
        raw[: len(raw) // 2] = bytes(b ^ 255 for b in raw[: len(raw) // 2])
        file.write_bytes(bytes(raw))


def cut_half(*files):
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "data truncated": lambda p: cut_half(*data_files(p)),
    "data gone": lambda p: [f.unlink() for f in data_files(p)],
    "data flipped": flip,
    "manifest gone": lambda p: [f.unlink() for f in p.rglob("manifest.ocdbt")],
    "state gone": lambda p: shutil.rmtree(p / "state"),
    "tree gone": lambda p: (p / "state" / "_METADATA").unlink(),
    "tree truncated": lambda p: cut_half(p / "state" / "_METADATA"),
    "metadata truncated": lambda p: cut_half(p / "_CHECKPOINT_METADATA"),
    "metadata gone": lambda p: (p / "_CHECKPOINT_METADATA").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_reported_once(copy, small, capfd, what):
    check_round_trip(copy, small)
    DAMAGE[what](copy)
    with pytest.raises(CheckpointError, match=r"model is damaged: .*save it again"):
        load(copy, weighted)
    assert capfd.readouterr().err == ""


LIES = {
    "changed after": (lambda b: b["keep"].update({"w1:1": [8, 4, "f0"]}), False),
    "changed after ": (lambda b: b["provenance"].update(seed=8), False),
    r"'head/w' is float32\[4, 5\].*keep \[5, 5\]": (
        lambda b: b["keep"].update({"w1:1": [8, 5, "f8"]}),
        True,
    ),
    "not understood .*what it says": (
        lambda b: b["keep"].update({"w1:1": [8, 4, "f8"]}),
        True,
    ),
    r"not understood \(no group 'w9:1'": (
        lambda b: b["keep"].update({"w9:1": [8, 4, "f0"]}),
        True,
    ),
    "not understood .*groups": (lambda b: b["graph"].pop("groups"), True),
    "not understood .*not an axis": (
        lambda b: b["graph"]["params"][0].update(axes=[["ring", 8]] * 2),
        True,
    ),
    "checksum": (lambda b: b["arrays"][0].__setitem__(2, 1), True),
    "'w2' is not in its metadata": (lambda b: b["arrays"].pop(), True),
    "'w3' is missing": (
        lambda b: b["arrays"].append(["w3", ["float32", 1], 0]),
        True,
    ),
}


@pytest.mark.parametrize("match", LIES)
def test_metadata_that_does_not_fit_is_refused(copy, match):
    change, sign = LIES[match]
    tamper(copy, change, sign)
    with pytest.raises(CheckpointError, match=match.strip()):
        load(copy, weighted)


def test_arrays_of_another_model_are_refused(copy, tmp_path):
    ocp.save(tmp_path / "other", {"w1": np.ones(3), "w2": np.ones(4)})
    shutil.rmtree(copy / "state")
    shutil.copytree(tmp_path / "other" / "state", copy / "state")
    with pytest.raises(CheckpointError, match="'head/w' is missing"):
        load(copy, weighted)


def test_a_newer_format_asks_for_a_newer_cutjax(copy):
    tamper(copy, lambda b: b.update(format=checkpoint.FORMAT + 1))
    with pytest.raises(
        CheckpointError, match=rf"up to {checkpoint.FORMAT}; .*pip install -U cutjax"
    ):
        read(copy)


# Code that is not that of the model


def test_another_model_is_refused(saved):
    def deeper(params, x):
        return weighted(params, jnp.tanh(x @ params["w0"]))

    def crossed(params, x):
        return {"y": x @ params["w1"], "z": x @ params["w1"] @ params["w1"]}

    def untold(params, x):
        return {"y": weighted(params, x)["y"]}

    for other, match in {
        deeper: r"apply\(params, float32\[4, 3\]\) fails with .*w0",
        crossed: "is not the model in .*fails with",
        untold: r"a dict of the tasks \['y', 'z'\]",
    }.items():
        with pytest.raises(CheckpointError, match=match):
            load(saved, other)


def test_nested_inputs_are_stored_or_given(tmp_path):
    def nested(params, batch):
        return weighted(params, batch["x"] + batch["more"][0])

    batch = {"x": X, "more": (X,)}
    graph = cj.trace(nested, weights(), batch)
    _, params = cj.cut(nested, weights(), graph, {})
    save(tmp_path / "a", params, graph=graph, keep={}, inputs=(batch,))
    load(tmp_path / "a", nested)
    save(tmp_path / "b", params, graph=graph, keep={})
    with pytest.raises(CheckpointError, match=r"load\(path, apply, inputs="):
        load(tmp_path / "b", nested)
    again, loaded, _ = load(tmp_path / "b", nested, inputs=(batch,))
    assert again(loaded, batch)["y"].shape == (4, 2)


def test_other_containers_need_like(tmp_path):
    def apply(params, x):
        return weighted({**params, "head": {"w": params["head"].w}}, x)

    full = {**weights(), "head": Head(weights()["head"]["w"])}
    graph = cj.trace(apply, full, X)
    keep = {"w1:1": np.arange(8) < 4}
    small_apply, params = cj.cut(apply, full, graph, keep)
    save(tmp_path / "m", params, graph=graph, keep=keep)
    assert read(tmp_path / "m").needs_like.endswith(".Head")
    with pytest.raises(CheckpointError, match=r"Head; .*load\(path, apply, like=para"):
        load(tmp_path / "m", apply)
    for bad, match in {
        "small": (params, r"'head/w' is \[4, 5\], not \[8, 5\]"),
        "less": ({"w1": full["w1"]}, "'head/w' is missing"),
        "more": ({**full, "b": X}, "'b' is not in the checkpoint"),
    }.values():
        with pytest.raises(CheckpointError, match=match):
            load(tmp_path / "m", apply, like=bad)
    shapes = jax.eval_shape(lambda: full)
    again, loaded, info = load(tmp_path / "m", apply, like=shapes)
    assert_same(params, loaded)
    assert_same(small_apply(params, X), again(loaded, X))
    assert info.graph == graph
