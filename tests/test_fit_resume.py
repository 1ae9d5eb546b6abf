"""Killed at any moment, a run that goes on ends where it would have ended."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fit_run
import jax
import numpy as np
import pytest

from cutjax import _resume
from cutjax.errors import CheckpointError

SCRIPT = str(Path(__file__).parent / "fit_run.py")
SELDOM = {"save_every": 1000.0}  # in seconds: at the end of epochs only
TMP = ".orbax-checkpoint-tmp"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return uninterrupted(tmp_path_factory.mktemp("straight"))


def uninterrupted(folder, **options):
    """What a run without a checkpoint ends with, and its lines."""
    path = folder / "run.jsonl"
    return *fit_run.run(None, metrics=path, log_every=4, **options), lines(path)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))


def timeless(record):
    return {**record, "seconds": 0}


def lines(path):
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def check(folder, straight, params, info):
    """All that a run leaves is what the run that was not stopped left."""
    same(params, straight[0])
    want = straight[1]
    assert [*map(timeless, info.history)] == [*map(timeless, want.history)]
    assert info.best_epoch == want.best_epoch
    assert lines(folder / "run.jsonl") == straight[2]


def start(folder, scan=1):
    return subprocess.Popen(
        [sys.executable, SCRIPT, str(folder), str(scan)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ,
    )


def killed(folder, when, scan=1):
    """Kills a run by SIGKILL when `when()` is true; False if it ended before."""
    process = start(folder, scan)
    while process.poll() is None:
        time.sleep(0.001)  # writing a checkpoint takes a hundred times as long
        if when():
            process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
    assert process.returncode == 0, process.stdout.read().decode()[-2000:]
    return False


def writing(folder, nth):
    """True in the middle of the nth checkpoint that is written from now on."""
    seen = set()

    def when():
        run = folder / "run"
        names = os.listdir(run) if run.is_dir() else []
        seen.update(n for n in names if n.endswith(TMP) and n not in old)
        return len(seen) >= nth

    run = folder / "run"
    old = set(os.listdir(run)) if run.is_dir() else set()
    return when


def later(folder, seconds):
    """True some time after the first checkpoint that is written from now on."""
    run, begun = folder / "run", []
    old = set(run.glob("step_*"))

    def when():
        if not begun and set(run.glob("step_*")) - old:
            begun.append(time.monotonic())
        return begun and time.monotonic() - begun[0] >= seconds

    return when


def test_killed_while_it_writes_and_at_any_time(tmp_path, straight):
    halves = whole = []
    while not halves:  # on a busy machine the signal may come late
        assert killed(tmp_path, writing(tmp_path, 4))
        names = os.listdir(tmp_path / "run")
        halves = [name for name in names if name.endswith(TMP)]
        whole = [name for name in names if name not in halves]
    assert whole
    _ = killed(tmp_path, later(tmp_path, random.uniform(0, 0.6)))
    params, info = fit_run.run(tmp_path, **SELDOM)
    check(tmp_path, straight, params, info)
    assert len(list((tmp_path / "run").iterdir())) == _resume.KEPT


@pytest.mark.slow
@pytest.mark.parametrize("scan", [1, 4])
def test_killed_again_and_again(tmp_path, tmp_path_factory, scan):
    """Two minutes each."""
    straight = uninterrupted(tmp_path_factory.mktemp("straight"), scan=scan)
    kills = 0
    for i in range(20):
        drawn = random.uniform(0, 1)
        when = writing(tmp_path, i % 3 + 1) if i % 2 else later(tmp_path, drawn)
        if not killed(tmp_path, when, scan):
            break
        kills += 1
    assert kills >= 5
    params, info = fit_run.run(tmp_path, **SELDOM, scan=scan)
    check(tmp_path, straight, params, info)


class Stop(Exception):
    pass


def stopped_after(folder, saves, **options):
    """A run that ends right after its nth save, in this process."""
    real, count = _resume.save, []

    def save(*args):
        real(*args)
        count.append(args[1])
        if len(count) == saves:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_resume, "save", save)
        with pytest.raises(Stop):
            fit_run.run(folder, **options)
    return count


@pytest.mark.parametrize("saves", [1, 8])
def test_between_the_parts_of_an_update(tmp_path, straight, saves):
    """Parts are 3 steps, saves 2: after the first, one part of an update is missing."""
    at = stopped_after(tmp_path, saves)
    assert at == [2, 4, 6, 8, 10, 12, 14, 15, 17][:saves]
    params, info = fit_run.run(tmp_path, **SELDOM)
    check(tmp_path, straight, params, info)
    assert info.resumed_from == (1 if saves == 8 else 0)


def test_saboteur_a_state_that_forgets_a_part(tmp_path, straight):
    """Without what was gathered, the resumed run ends elsewhere."""
    stopped_after(tmp_path, 1)
    real = _resume.load

    def load(*args):
        step, state, info = real(*args)
        moving = state.moving
        gone = jax.tree.map(np.zeros_like, moving.gathered)
        gone = jax.tree.map(jax.numpy.asarray, gone)
        return step, state._replace(moving=moving._replace(gathered=gone)), info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_resume, "load", load)
        params, _ = fit_run.run(tmp_path, **SELDOM)
    assert np.abs(params["a"] - straight[0]["a"]).max() > 0


def test_seconds_between_saves(tmp_path, straight):
    """Every moment is late enough: a save after each step."""
    at = stopped_after(tmp_path, 3, save_every=1e-9)
    assert at == [1, 2, 3]
    assert stopped_after(tmp_path, 1, save_every=1000.0) == [15]
    same(fit_run.run(tmp_path, save_every=1000.0)[0], straight[0])


def damages(path):
    """Every file of a checkpoint: gone, cut in half, with a byte changed."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        for kind in ("gone", "half", "flipped"):
            if kind == "gone" or file.stat().st_size:
                yield file.relative_to(path), kind


def damage(file, kind):
    data = bytearray(file.read_bytes())
    if kind == "gone":
        file.unlink()
    elif kind == "half":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("each", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_never_believed(tmp_path, each):
    """Read rightly, or not at all: then the one before is."""
    state = {"w": jax.numpy.arange(5000.0), "n": jax.numpy.int32(3)}
    run = _resume.fingerprint(state, state, state)
    older = {**state, "w": state["w"] + 1}
    _resume.save(tmp_path / "good", 3, run, older, {"at": 3})
    _resume.save(tmp_path / "good", 6, run, state, {"at": 6})
    noticed, said = 0, []
    for file, kind in [*damages(tmp_path / "good" / "step_000000006")][::each]:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        damage(tmp_path / "bad" / "step_000000006" / file, kind)
        said.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_resume, "warn", said.append)
            step, got, info = _resume.load(tmp_path / "bad", run, state)
        assert step == info["at"] and bool(said) == (step == 3), (file, kind)
        same(got, older if step == 3 else state)
        noticed += step == 3
    assert noticed >= 5 / each


def test_the_run_goes_on_from_the_checkpoint_before(tmp_path, straight):
    stopped_after(tmp_path, 4)
    newest = tmp_path / "run" / "step_000000008"
    shutil.rmtree(newest / "state")
    with pytest.warns(UserWarning, match="step_000000008 is damaged"):
        params, _ = fit_run.run(tmp_path, **SELDOM)
    same(params, straight[0])
    assert not newest.exists()


def test_nothing_whole_is_an_error(tmp_path):
    stopped_after(tmp_path, 2)
    for path in (tmp_path / "run").iterdir():
        (path / "_CHECKPOINT_METADATA").write_text("{")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match="delete the directory to start anew"),
    ):
        fit_run.run(tmp_path, **SELDOM)


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_is_no_folder_and_that_is_known_at_once(tmp_path, inside):
    _ = (tmp_path / "run").write_text("mine")
    path = tmp_path / "run" / "inside" if inside else tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"run is a file; give another"):
        fit_run.run(tmp_path, checkpoint=path, evaluate=None, patience=None)
    assert not (tmp_path / "run.jsonl").exists()


def test_a_folder_that_may_not_be_written_is_known_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(CheckpointError, match="may not be written to"):
        fit_run.run(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ema": 0.9}, "ema"),
        ({"ema": None}, "ema"),
        ({"accumulate": 1}, "accumulate"),
        ({"dtype": jax.numpy.bfloat16}, "dtype"),
        ({"settings": {"rate": 0.1}}, "rate"),
    ],
)
def test_other_options_are_another_run(tmp_path_factory, options, reason):
    folder = tmp_path_factory.getbasetemp() / "other"
    if not folder.exists():
        folder.mkdir()
        stopped_after(folder, 1)
    with pytest.raises(ValueError, match=f"another run .different: {reason}"):
        fit_run.run(folder, **options)
