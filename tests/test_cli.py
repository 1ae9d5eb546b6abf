import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import cutjax as cj
from cutjax import checkpoint
from cutjax.cli import COMMANDS, main
from cutjax.cli.common import whole
from cutjax.cli.parent import from_parent
from cutjax.data import digits_scenes
from cutjax.metrics import accuracy
from cutjax.models import MultiTaskResNet
from cutjax.source import Job, from_source

SIZES = {"train": 192, "calibration": 64, "validation": 64, "test": 64}

SOURCE = f"""
import jax
import numpy as np
from cutjax.data import digits_scenes
from cutjax.source import Job

def apply(params, x):
    x = jax.nn.relu(x.reshape(len(x), -1) @ params["in"])
    x = jax.nn.relu(x @ params["middle"])
    return {{task: x @ head for task, head in params["heads"].items()}}

def job():
    data = digits_scenes(sizes={SIZES})
    rng = np.random.default_rng(0)
    def weights(n, m):
        return (rng.normal(size=(n, m)) / n**0.5).astype(np.float32)
    heads = {{task: weights(16, n) for task, n in data.tasks.items()}}
    params = {{"in": weights(240, 24), "middle": weights(24, 16), "heads": heads}}
    return Job(apply, None, params, data)

def stateful():
    found = job()
    state = {{"batch_stats": {{"mean": np.zeros(16, np.float32)}}}}
    def normed(params, x):
        return apply({{**params, "middle": params["middle"] - state_of(params)}}, x)
    def state_of(params):
        return params["batch_stats"]["mean"]
    return found._replace(apply=normed, params={{**found.params, **state}})

def unlabelled():
    found = job()
    data = found.dataset
    return found._replace(dataset=data._replace(tasks={{**data.tasks, "colour": 3}}))

def greedy(width, depth=2):
    return job()

def number():
    return 7

def broken():
    raise ValueError("no such file of mine")
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "cutjax_tiny.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "cutjax_tiny:job"
    sys.modules.pop("cutjax_tiny", None)


@pytest.fixture
def tiny_reference(tmp_path, monkeypatch):
    def tiny(dataset):
        return MultiTaskResNet(dataset.tasks, widths=(16,), blocks=(0,), stem_stride=2)

    monkeypatch.chdir(tmp_path)
    for place in ("cutjax.models.reference", "cutjax.cli.parent"):
        monkeypatch.setattr(f"{place}.reference", tiny)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert {"train", "trace", "cut", "merge", "bench", "demo"} == set(COMMANDS)
    assert all(f"• {name} " in said for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_an_example_and_what_it_writes(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"Example:\n  cutjax {name}" in said and "Writes:\n" in said


def test_trace_prints_the_graph_that_trace_finds(source, capsys):
    job = from_source(source)
    x = jax.ShapeDtypeStruct((1, 12, 20, 1), np.float32)
    graph = cj.trace(job.apply, job.params, x)
    assert main(["trace", "--source", source]) == 0
    assert capsys.readouterr().out == f"{graph}\n"
    assert main(["trace", "--source", source, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [g["name"] for g in record["groups"]] == [g.name for g in graph.groups]
    assert record["cost"]["params"] == graph.cost().params
    name = graph.free[0].name
    assert main(["trace", "--source", source, "--explain", name]) == 0
    assert capsys.readouterr().out == f"{graph.explain(name)}\n"


def test_trace_of_the_reference_needs_no_parent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["trace"]) == 0
    assert "stem/kernel" in capsys.readouterr().out


def test_cut_of_a_source_runs_as_its_record_says(source, tmp_path, capsys):
    words = f"cut --source {source} --out runs/mine --tasks left larger --params 0.5"
    words += " --multiple 4 --calibration 64 --no-progress"
    assert main(words.split()) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "runs/mine/cut.json").read_text())
    job = from_source(source)
    apply, params, info = checkpoint.load("runs/mine/model", job.apply)
    assert info.tasks == ("left", "larger") and record["tasks"] == ["left", "larger"]
    assert set(apply(params, job.dataset.test.x[:2])) == {"left", "larger"}
    found = accuracy(apply, params, job.dataset.test)
    assert record["test"]["distilled"] == pytest.approx(found)
    assert set(record["test"]) == {"full", "cut", "compensated", "distilled"}
    kept = record["cost"]["compact"]["params"] / record["cost"]["full"]["params"]
    assert kept <= 0.5
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert record["cost"]["compact"]["params"] == count
    assert "distilled" in said and f"{count:,} of" in said
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["mine"]

    assert main(words.split()) == 2, "a second run must not replace the first"
    assert json.loads((tmp_path / "runs/mine/cut.json").read_text()) == record


def test_a_source_without_a_mode_of_training_is_cut_without_distillation(source):
    words = "cut --source cutjax_tiny:stateful --out a --params 0.6 --no-progress"
    words += " --calibration 64 --criterion random --fuse union"
    assert main(words.split()) == 2, "it would train its statistics as weights"
    assert main([*words.split(), "--finetune-epochs", "0"]) == 0
    assert "distilled" not in json.loads(open("a/cut.json").read())["test"]
    words = words.replace("--out a", "--out b").replace("random", "taylor_squared")
    words = words.replace("union", "worst_case") + " --normalize isomorphic"
    words += " --allocate nested --finetune-epochs 0"
    assert main(words.split()) == 0
    assert json.loads(open("b/cut.json").read())["made"]["allocate"] == "nested"


def test_the_options_of_cut_name_all_that_there_is():
    from typing import get_args

    from cutjax import allocate, criteria, fuse, normalize
    from cutjax.cli import cut

    assert set(get_args(cut.Criterion)) == set(criteria.ALL)
    for options, module in (
        (cut.Normalize, normalize),
        (cut.Fuse, fuse),
        (cut.Allocate, allocate),
    ):
        for name in set(get_args(options)) - {"worst_case"}:
            assert callable(getattr(module, name)), name


def test_train_cut_and_bench_the_reference(tiny_reference, tmp_path, capsys):
    train = "train --out runs/parent --scenes 128 --epochs 1 --seed 3 --no-progress"
    assert main(train.split()) == 0
    record = json.loads((tmp_path / "runs/parent/train.json").read_text())
    job = from_parent(tmp_path / "runs/parent")
    assert isinstance(job, Job) and len(job.dataset.train.x) == 128
    same = digits_scenes(3, {"train": 128}).test
    np.testing.assert_array_equal(job.dataset.test.x, same.x)
    assert record["test"] == pytest.approx(accuracy(job.apply, job.params, same))

    assert main(train.split()) == 0
    again = json.loads((tmp_path / "runs/parent/train.json").read_text())
    assert again == record, "a finished run is found, not repeated"

    cut = "cut --parent runs/parent --out runs/cut --flops 0.6 --calibration 64"
    assert main([*cut.split(), "--finetune-epochs", "0", "--no-progress"]) == 0
    capsys.readouterr()
    bench = "bench runs/cut --out b.json --batch-sizes 1 --threads 1 --rounds 1"
    assert main([*bench.split(), "--seconds", "0.01", "--no-progress"]) == 0
    assert "times as fast as full" in capsys.readouterr().out
    result = json.loads((tmp_path / "b.json").read_text())
    assert {t["name"] for t in result["timings"]} == {"full", "cut"}
    (up,) = result["speedups"]
    medians = {(t["name"], t["setting"]): t["median_ms"] for t in result["timings"]}
    ratio = medians["full", "default"] / medians["cut", "default"]
    assert up["default"] == pytest.approx(ratio) and up["best"] > 0

    assert main(["cut", "--parent", "runs/cut", "--out", "x", "--params", "0.5"]) == 2
    assert "holds a cut model" in capsys.readouterr().err


WRONG = {
    "no budget": ("cut --source {job}", "--params 0.32"),
    "half a parameter": ("cut --source {job} --params 1.5", "whole number"),
    "a negative share": ("cut --source {job} --params -0.5", "fraction"),
    "too small a budget": ("cut --source {job} --params 3", "least"),
    "unknown task": ("cut --source {job} --params 0.5 --tasks lef", "'left'"),
    "no parent": ("cut --parent nowhere --params 0.5", "cutjax train --out nowhere"),
    "no colon": ("trace --source cutjax_tiny", "module:function"),
    "no module": ("trace --source nosuch_module:job", "'nosuch_module'"),
    "no function": ("trace --source cutjax_tiny:jobb", "'job'"),
    "arguments": ("trace --source cutjax_tiny:greedy", "takes width;"),
    "no job": ("trace --source cutjax_tiny:number", "int, not a Job"),
    "no such output": ("trace --source cutjax_tiny:unlabelled", "['colour']"),
    "no such group": ("trace --source {job} --explain midle", "'middle'"),
    "nothing to time": ("bench", "cutjax bench runs/parent"),
    "no model": ("bench nowhere", "nowhere holds no model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_paragraph_and_exit_code_2(case, source, tmp_path, capsys):
    words, hint = WRONG[case]
    words = words.format(job=source).split()
    words += [] if words[0] == "trace" else ["--out", "out", "--no-progress"]
    before = sorted(tmp_path.iterdir())
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("cutjax: ") and hint in said
    assert "Traceback" not in said and "\n\n" not in said.strip()
    left = [p for p in sorted(tmp_path.iterdir()) if p.name != "__pycache__"]
    assert left == before


def test_an_error_in_the_users_own_code_keeps_its_traceback(source):
    with pytest.raises(ValueError, match="file of mine"):
        main(["trace", "--source", "cutjax_tiny:broken"])


def test_a_write_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    def full_disk(path, *args, **options):
        path.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save", full_disk)
    words = f"cut --source {source} --out runs/a --params 0.6 --criterion l1"
    words += " --finetune-epochs 0 --calibration 64 --no-progress"
    with pytest.raises(OSError, match="No space"):
        main(words.split())
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_is_replaced_only_on_demand_and_only_when_whole(tmp_path):
    out = tmp_path / "out"
    with whole(out, overwrite=False) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(KeyboardInterrupt), whole(out, overwrite=True) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert (out / "a").read_text() == "first"
    with whole(out, overwrite=True) as folder:
        (folder / "b").write_text("second")
    assert [p.name for p in out.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [out]


def test_xla_flags_are_set_unless_the_user_did(source, monkeypatch):
    import os

    monkeypatch.delenv("XLA_FLAGS")
    main(["trace", "--source", source])
    assert "ynn_fusion_type=" in os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", "")
    main(["trace", "--source", source])
    assert os.environ["XLA_FLAGS"] == ""


def test_the_process_ends_with_the_exit_code(tmp_path):
    words = [sys.executable, "-m", "cutjax", "bench", "nowhere"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("cutjax: ") and done.stdout == ""
