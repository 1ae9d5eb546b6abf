"""`cutjax merge`: what it writes runs as it says; wrong input leaves nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutjax as cj
from cutjax import checkpoint
from cutjax.cli import bundle, main, options, union
from cutjax.cli.merge import Merge
from cutjax.cli.parent import from_parent
from cutjax.errors import CheckpointError
from cutjax.merge import Network
from cutjax.metrics import accuracy
from cutjax.mirror import named_leaves
from cutjax.models import MultiTaskResNet
from cutjax.source import SourceError, from_source

SOURCE = """
import jax
import numpy as np
from cutjax.data import digits_scenes
from cutjax.source import Job

SIZES = {"train": 8, "calibration": 64, "validation": 8, "test": 64}

def apply(params, x):
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["in"])
    x = jax.nn.relu(x @ params["middle"] + params["bias"])
    return {task: x @ head for task, head in params["heads"].items()}

def made(seed, *tasks, width=24, more=0):
    data = digits_scenes(sizes=SIZES)
    data = data._replace(tasks={task: data.tasks[task] for task in tasks})
    rng = np.random.default_rng(seed)
    def weights(n, m):
        return (rng.normal(size=(n, m)) / n**0.5).astype(np.float32)
    heads = {task: weights(12, n + more) for task, n in data.tasks.items()}
    first, middle = 5 * weights(240, width), weights(width, 12)
    bias = 0.1 * weights(1, 12)[0]
    params = {"in": first, "middle": middle, "bias": bias, "heads": heads}
    return Job(apply, None, params, data)

def left():
    return made(0, "left")

def again():
    return made(1, "left")

def shuffled():
    job = left()
    order = np.random.default_rng(3).permutation(24)
    new = {"in": job.params["in"][:, order], "middle": job.params["middle"][order]}
    return job._replace(params={**job.params, **new})

def pair():
    return made(0, "left", "larger")

def other_pair():
    return made(1, "left", "larger")

def wide():
    return made(2, "left", width=32)

def cropped():
    job = made(2, "left")
    splits = {n: getattr(job.dataset, n) for n in ("calibration", "test")}
    new = {n: s._replace(x=s.x[:, :6]) for n, s in splits.items()}
    params = {**job.params, "in": job.params["in"][:120]}
    return job._replace(params=params, dataset=job.dataset._replace(**new))

def stateful():
    job = left()
    state = {"batch_stats": {"mean": np.zeros(12, np.float32)}}
    def normed(params, x):
        bias = params["bias"] - params["batch_stats"]["mean"]
        return apply({**params, "bias": bias}, x)
    return job._replace(apply=normed, params={**job.params, **state})
"""
NAMES = "left again shuffled pair other_pair wide cropped stateful".split()
FEW = "--calibration 64 --no-progress"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A module in the current folder: its functions by name."""
    (tmp_path / "cutjax_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield {name: f"cutjax_nets:{name}" for name in NAMES}
    sys.modules.pop("cutjax_nets", None)


def merge(words: str, names: dict[str, str]) -> int:
    return main(f"merge {words.format(**names)} {FEW}".split())


def record(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "merge.json").read_text())


# ---- what it writes


def test_what_is_written_runs_as_the_record_says(source, tmp_path, capsys):
    words = "one={left} two={again} --layers 1 --out runs/both"
    assert merge(words, source) == 0
    said = capsys.readouterr().out
    merged, found = bundle.load("runs/both"), record("runs/both")
    rows = {row["task"]: row for row in found["tasks"]}
    for name, model in (("one", "left"), ("two", "again")):
        job = from_source(source[model])
        x, y = job.dataset.test
        got = np.asarray(merged.apply(merged.params, x)[name])
        own = np.asarray(job.apply(job.params, x)["left"])
        same = 100 * float(np.mean(got.argmax(-1) == own.argmax(-1)))
        assert rows[name]["agreement"] == pytest.approx(same)
        right = 100 * float(np.mean(got.argmax(-1) == y["left"]))
        assert rows[name]["accuracy"] == pytest.approx(right)
        alone = accuracy(job.apply, job.params, job.dataset.test, tasks=["left"])
        assert rows[name]["accuracy_alone"] == pytest.approx(alone["left"])
        entropy = -jax.nn.log_softmax(got)[np.arange(len(x)), y["left"]].mean()
        assert rows[name]["loss"] == pytest.approx(float(entropy), rel=1e-4)
        assert f"{same:.2f}" in said
    params = found["params"]
    assert params["total"] == sum(leaf.size for leaf in jax.tree.leaves(merged.params))
    assert params["shared"] + sum(params["own"].values()) == params["total"]
    assert f"{params['shared']:,} shared" in said
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["both"]

    assert merge(words, source) == 2, "a second run must not replace the first"
    assert "--overwrite" in capsys.readouterr().err and record("runs/both") == found


def test_costs_of_subsets_are_those_of_the_compiled_programs(source):
    words = "a={left} b={again} c={shuffled} --layers 1 --out out"
    assert merge(f"{words} --method average", source) == 0
    merged, rows = bundle.load("out"), record("out")["subsets"]
    assert len(rows) == 7
    found = cj.merge.programs(merged, jax.ShapeDtypeStruct((1, 12, 20, 1), jnp.float32))
    for row in rows:
        cost = found[row["networks"]].cost
        assert (row["flops"], row["params"]) == (cost.flops, cost.params)
    assert [row["of_one"] for row in rows[:3]] == pytest.approx([1, 1, 1])
    assert rows[-1]["side_by_side"] == pytest.approx(rows[-1]["of_one"] / 3)


@pytest.mark.parametrize("align", ["weights", "activations"])
def test_a_disordered_copy_is_the_network_itself(source, align):
    words = "one={left} two={shuffled} --method average --out out"
    assert merge(f"{words} --align {align}", source) == 0
    assert [row["agreement"] for row in record("out")["tasks"]] == [100, 100]
    assert record("out")["subsets"][-1]["of_one"] < 1.05
    assert merge(f"{words} --share as-is --overwrite", source) == 0
    assert min(row["agreement"] for row in record("out")["tasks"]) < 100


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ("--share zip --method mtz --layers 1", {"in:1"}),
        ("--share zip --layers in:1,middle:1", {"in:1", "middle:1"}),
        ("--method mtz --align weights --damping 0.1", {"in:1", "middle:1"}),
        ("--share as-is --align none --layers in:1 --seed 3", {"in:1"}),
    ],
)
def test_options_reach_what_they_name(source, options, shared):
    assert merge(f"one={{pair}} two={{other_pair}} {options} --out out", source) == 0
    stored = checkpoint.read("out/model").provenance["merge"]["sharing"]
    own = {g for g, found in stored.items() if set(found["one"]) == {cj.merge.OWN}}
    assert set(stored) - own == shared
    merged = bundle.load("out")
    x = np.ones((2, 12, 20, 1), np.float32)
    tasks = {f"{n}/{t}" for n in ("one", "two") for t in ("left", "larger")}
    assert set(merged.apply(merged.params, x)) == tasks
    assert {row["task"] for row in record("out")["tasks"]} == tasks


def test_the_reference_with_its_statistics(source, monkeypatch):
    def tiny(dataset: Any) -> MultiTaskResNet:
        return MultiTaskResNet(dataset.tasks, widths=(16,), blocks=(0,), stem_stride=2)

    for place in ("cutjax.models.reference", "cutjax.cli.parent"):
        monkeypatch.setattr(f"{place}.reference", tiny)
    train = "train --scenes 64 --epochs 1 --no-progress --batch-size 32"
    for seed in "01":
        assert main([*train.split(), "--seed", seed, "--out", f"net{seed}"]) == 0
    assert merge("a=net0 b=net1 --method average --share as-is --out out", {}) == 0
    merged = bundle.load("out")
    made = merged.params["batch_stats"]["shared"]
    mean = from_parent(Path("net0")).params["batch_stats"]
    assert made and len(record("out")["tasks"]) == 8
    old = {path: leaf for path, leaf in named_leaves(mean).items() if path in made}
    assert old and not any(np.array_equal(made[path], old[path]) for path in old)


# ---- loading


class Layers(NamedTuple):
    """Containers that JSON does not rebuild."""

    a: Any
    b: Any


def small(seed: int) -> Layers:
    keys = jax.random.split(jax.random.key(seed))
    return Layers(
        jax.random.normal(keys[0], (3, 8)), jax.random.normal(keys[1], (8, 2))
    )


def net(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p.a) @ p.b


def test_networks_in_other_containers_are_rebuilt_by_an_example(tmp_path):
    x = jnp.ones((2, 3))
    graph = cj.trace(net, small(0), x)
    nets = {n: Network(net, small(i), graph) for i, n in enumerate(("one", "two"))}
    merged = cj.merge.average(nets, {}, x)
    bundle.save(tmp_path, merged, nets, {})
    applies = {"one": net, "two": net}
    with pytest.raises(CheckpointError, match="like=params"):
        _ = bundle.load(tmp_path, applies)
    found = bundle.load(tmp_path, applies, like=jax.eval_shape(small, 0))
    want = merged.apply(merged.params, x)
    for name, y in found.apply(found.params, x).items():
        np.testing.assert_array_equal(y, want[name])
    with pytest.raises(CheckpointError, match=r"'two': apply_two"):
        _ = bundle.load(tmp_path, {"one": net}, like=small(0))
    other = dict.fromkeys(applies, lambda p, x: x @ p.c)
    with pytest.raises(CheckpointError, match="not the model"):
        _ = bundle.load(tmp_path, other, like=small(0))


def test_what_is_no_merged_network_says_so(source, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        _ = bundle.load("nowhere")
    job = from_source(source["left"])
    graph = cj.trace(job.apply, job.params, job.dataset.test.x[:1])
    checkpoint.save("mine/model", job.params, graph=graph, keep={})
    with pytest.raises(CheckpointError, match="holds no merged network"):
        _ = bundle.load("mine")
    words = "one={left} two={again} --method average --share as-is --out out"
    assert merge(words, source) == 0
    gone = (tmp_path / "cutjax_nets.py").read_text().replace("def again", "def never")
    (tmp_path / "cutjax_nets.py").write_text(gone)
    sys.modules.pop("cutjax_nets")
    with pytest.raises(SourceError, match="'two': cutjax_nets:again"):
        _ = bundle.load("out")


def test_a_changed_sharing_is_damage(source):
    words = "one={left} two={again} --method average --share as-is --out out"
    assert merge(words, source) == 0
    (file,) = Path("out/model").glob("_CHECKPOINT_METADATA")
    text = file.read_text()
    at = text.index("sharing")
    file.write_text(text[:at] + text[at:].replace("[0, 1, 2", "[1, 0, 2", 1))
    assert file.read_text() != text
    with pytest.raises(CheckpointError, match="damaged"):
        _ = bundle.load("out")


# ---- wrong input

WRONG = {
    "nothing": ("", "cutjax merge one=runs/one two=runs/two"),
    "one network": ("one={left}", "1 network to merge; give two"),
    "no name": ("{left} two={again}", "not NAME=MODEL"),
    "no model": ("one= two={again}", "not NAME=MODEL"),
    "a slash": ("a/b={left} two={again}", "a name of letters"),
    "twice": ("one={left} one={again}", "two networks are called 'one'"),
    "no folder": ("one={left} two=nowhere", "cutjax train --out nowhere"),
    "no module": ("one={left} two=nosuch:job", "network 'two': nosuch:job: no module"),
    "no function": ("one={left} two=cutjax_nets:agin", "nearest: 'again'"),
    "an empty folder": ("one={left} two=empty", "empty holds no model"),
    "another width": ("one={left} two={wide}", "first group that differs"),
    "another shape": ("one={left} two={cropped}", "[12, 20, 1] against [6, 20, 1]"),
    "zip by weights": ("one={left} two={again} --share zip --align weights", "permute"),
    "as-is aligned": ("one={left} two={again} --share as-is --align weights", "as-is,"),
    "permute by none": ("one={left} two={again} --align none", "--share as-is"),
    "no data": ("one={left} two={again} --calibration 1", "an example per network"),
    "seed": ("one={left} two={again} --seed -1", "--seed -1: give a whole number"),
    "damping": ("one={left} two={again} --damping -1", "a number above 0"),
    "layers": ("one={left} two={again} --layers 3", "a number from 1 to 2"),
    "a group": ("one={left} two={again} --layers on:1", "nearest: 'in:1'"),
    "a pinned group": ("one={left} two={again} --layers left:1", "left:1' is pinned"),
    "a head more": ("one={left} two={pair}", "do not answer alike: 'two' answers"),
    "nothing to read": ("a={left} b={again} --layers middle:1", "share 'in:1' too"),
    "statistics": ("a={stateful} b={stateful} --method average", "least-squares"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_paragraph_and_leaves_nothing(
    case, source, tmp_path, capsys
):
    words, hint = WRONG[case]
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    words = f"merge {words.format(**source)} --out out --no-progress"
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("cutjax: ") and hint in said
    assert "Traceback" not in said and "\n\n" not in said.strip()
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "__pycache__"] == before


def test_a_file_is_not_overwritten_by_a_folder(source, capsys):
    Path("out").write_text("mine")
    assert merge("one={left} two={again} --out out --overwrite", source) == 2
    assert "out is a file" in capsys.readouterr().err
    assert Path("out").read_text() == "mine"


def test_a_merged_network_is_not_merged_again(source, capsys):
    assert merge("one={left} two={again} --out out", source) == 0
    assert merge("one={left} two=out --out more", source) == 2
    assert "two=out: that is a merged network" in capsys.readouterr().err


def calibration(names: list[str], number: int) -> list[Any]:
    args = Merge(tuple(f"{name}={name}" for name in names), calibration=number)
    jobs = {name: from_source(f"cutjax_nets:{name}") for name in names}
    return union.calibration(jobs, options.checked(args))


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("number", [2, 3, 5, 64, 100])
def test_few_examples_are_divided_so_that_some_can_judge(number):
    found = calibration(["left", "again"], number)
    total = 2 * -(-number // 2)
    assert len(found) == min(4, total) and len({x.shape for x in found}) == 1
    assert sum(map(len, found)) > total - 4


@pytest.mark.usefixtures("source")
def test_a_network_with_less_data_than_asked_for_is_named():
    with pytest.warns(UserWarning, match="100 examples of each.*'left' has 64"):
        calibration(["left", "again"], 200)


def test_a_write_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def full_disk(path: Path, *args: Any, **options: Any) -> None:
        path.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save", full_disk)
    words = "one={left} two={again} --method average --share as-is --out runs/a"
    with pytest.raises(OSError, match="No space"):
        _ = merge(words, source)
    assert list((tmp_path / "runs").iterdir()) == []
