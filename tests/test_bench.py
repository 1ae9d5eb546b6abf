"""cutjax.bench: what it counts, what it times, and what it leaves behind."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from rich.console import Console

from cutjax import bench
from cutjax.bench.bundle import Bundle, bundle, resize
from cutjax.bench.process import Worker, WorkerDied
from cutjax.bench.timing import allowed_cpus

# The package exports the function under the name of its module.
measure_module = importlib.import_module("cutjax.bench.measure")

UNKNOWN = {"xla_cpu_no_such_option": True}
QUICK = dict(threads=(1,), rounds=2, seconds_per_round=0.02, progress=False)
linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity, /proc")


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def square(x):
    return x @ x


SQUARE = 2 * 4**3  # flops of `square` on 4 x 4


# --- counting -------------------------------------------------------------------------


def conv(x, w, **kwargs):
    names = ("NHWC", "HWIO", "NHWC")
    kwargs = {"window_strides": (1, 1), "padding": "SAME"} | kwargs
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=names, **kwargs)


def oihw(x, w):
    names = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=names, feature_group_count=3
    )


@pytest.mark.parametrize(
    ("fn", "shapes", "expected"),
    [
        (jnp.matmul, [(5, 7), (7, 3)], 2 * 5 * 7 * 3),
        (jnp.matmul, [(2, 5, 7), (2, 7, 3)], 2 * 2 * 5 * 7 * 3),
        (lambda x, w: jnp.einsum("bqhd,bkhd->bhqk", x, w), [(2, 3, 4, 5)] * 2, 720),
        (conv, [(2, 8, 8, 3), (3, 3, 3, 16)], 2 * (2 * 64 * 16) * 27),
        (
            lambda x, w: conv(x, w, padding="VALID", window_strides=(2, 2)),
            [(1, 9, 9, 3), (3, 3, 3, 16)],
            2 * (16 * 16) * 27,
        ),
        (
            lambda x, w: conv(x, w, feature_group_count=4),
            [(1, 8, 8, 16), (3, 3, 4, 8)],
            2 * (64 * 8) * 36,
        ),
        (
            lambda x, w: conv(x, w, feature_group_count=16),
            [(1, 8, 8, 16), (3, 3, 1, 16)],
            2 * (64 * 16) * 9,
        ),
        (oihw, [(1, 6, 5, 5), (9, 2, 3, 3)], 2 * (9 * 9) * (2 * 9)),
        (
            lambda x, w: conv(x, w, batch_group_count=2),
            [(4, 8, 8, 3), (3, 3, 3, 6)],
            2 * (2 * 64 * 6) * 27,
        ),
    ],
    ids="matmul batched einsum same valid grouped depthwise oihw batchgroup".split(),
)
def test_flops_of_contractions_by_hand(fn, shapes, expected):
    assert bench.count_flops(fn, *(f32(*shape) for shape in shapes)) == expected


@jax.custom_jvp
def with_jvp(x):
    return square(x)


with_jvp.defjvp(lambda p, t: (with_jvp(*p), square(square(*t))))


@jax.custom_vjp
def with_vjp(x):
    return square(x)


with_vjp.defvjp(lambda x: (square(x), x), lambda x, g: (square(g),))


def scanned(x):
    return jax.lax.scan(lambda c, _: (square(c), None), x, length=5)[0]


def branches(x):
    several = [lambda x: x, square, lambda x: square(square(x))]
    return jax.lax.switch(x.sum().astype(int), several, x)


def dead_everywhere(x):
    def two(x):
        return square(x), square(square(x))

    def body(carry, _):
        alive, dead = carry
        return (square(alive), square(dead)), square(dead)

    y = jax.jit(two)(x)[0]
    y = jax.checkpoint(two)(y)[0]
    (z, _), _ = jax.lax.scan(body, (y, y), length=3)
    square(z)
    return z


@pytest.mark.parametrize(
    ("fn", "times"),
    [
        (jax.jit(lambda x: jax.jit(square)(square(x))), 2),
        (with_jvp, 1),
        (with_vjp, 1),
        (jax.checkpoint(square), 1),
        (scanned, 5),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, x: square(x), x), 3),
        (branches, 2),
        (dead_everywhere, 1 + 1 + 3),
        (lambda x: (square(x), x + 1)[1], 0),
        (lambda x: {"a": square(x), "b": (square(x.T),)}, 2),
        (jax.grad(lambda x: square(x).sum()), 2),
        (lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), 0),
    ],
    ids=(
        "jit jvp vjp remat scan fori switch dead-inside dead pytree grad while"
    ).split(),
)
def test_flops_through_higher_order_primitives(fn, times):
    assert bench.count_flops(fn, f32(4, 4)) == times * SQUARE


def test_flops_of_an_unbounded_loop_are_refused():
    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, square, x)

    with pytest.raises(bench.UncountableError, match=r"jax\.lax\.scan"):
        bench.count_flops(loop, f32(4, 4))


@pytest.mark.parametrize("shapes", [[(32, 64), (64, 16)], [(1, 300), (300, 10)]])
def test_flops_agree_with_xla_where_nothing_is_padded(shapes):
    args = [f32(*shape) for shape in shapes]
    xla = jax.jit(jnp.matmul).lower(*args).compile().cost_analysis()["flops"]
    assert bench.count_flops(jnp.matmul, *args) == xla


def test_flops_of_a_linen_net_by_hand():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            x = nn.BatchNorm(use_running_average=True)(x)
            return nn.Dense(10)(x.mean((1, 2)))

    x = f32(2, 16, 16, 3)
    params = jax.eval_shape(Net().init, jax.random.key(0), x)
    expected = 2 * (2 * 256 * 8) * 27 + 2 * 2 * 8 * 10
    assert bench.count_flops(Net().apply, params, x) == expected


# --- timing ---------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A pytree class that jax.export knows nothing of."""

    kernel: jax.Array
    bias: jax.Array


def mlp(width, dtype=jnp.float32):
    def apply(params, x):
        hidden = jax.nn.relu(x @ params["in"].kernel + params["in"].bias)
        return {"y": hidden @ params["out"].kernel.astype(hidden.dtype)}

    keys = jax.random.split(jax.random.key(0))
    kernel = jax.random.normal(keys[0], (64, width))
    out = jax.random.normal(keys[1], (width, 10)).astype(dtype)
    layers = (Dense(kernel, jnp.zeros(width)), Dense(out, jnp.zeros(0, dtype)))
    return apply, dict(zip(("in", "out"), layers, strict=True))


@pytest.fixture(scope="module")
def measured():
    """Two nets, an honest and an impossible setting; all that was said, in order."""
    said = []

    class Recorded(Worker):
        def ask(self, message):
            said.append((self.name, message["do"], message.get("key")))
            return super().ask(message)

    candidates = {"full": mlp(2048), "half": mlp(1024, jnp.bfloat16)}
    settings = {"default": {}, "bogus": UNKNOWN}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_module, "Worker", Recorded)
        timings = bench.measure(
            candidates, f32(3, 64), batch_sizes=(1, 4), settings=settings, **QUICK
        )
    return timings, said


def test_measure_reports_every_combination(measured):
    timings, _ = measured
    seen = [(t.name, t.batch, t.threads, t.setting) for t in timings]
    assert len(set(seen)) == len(seen) == 2 * 2 * 2
    for t in timings:
        width = {"full": 2048, "half": 1024}[t.name]
        assert t.params == 64 * width + width + 10 * width
        assert t.flops == 2 * t.batch * (64 * width + 10 * width)
        element = 4 if t.name == "full" else 2
        assert 0 <= t.file_bytes - 4 * 65 * width - element * 10 * width < 2000


def test_measure_times_what_works(measured):
    timings, _ = measured
    for t in (t for t in timings if t.setting == "default"):
        assert not t.refused
        assert 0 < t.p10_ms <= t.median_ms <= t.p90_ms
        assert t.cpu_ms > 0 and t.compile_s > 0
        assert t.calls >= 2 * 3
        assert t.peak_bytes > 4 * 65 * {"full": 2048, "half": 1024}[t.name]


def test_measure_reports_a_refused_setting(measured):
    timings, _ = measured
    for t in (t for t in timings if t.setting == "bogus"):
        assert "xla_cpu_no_such_option" in t.refused
        assert math.isnan(t.median_ms) and t.calls == 0


def test_measure_interleaves_and_starts_when_all_are_ready(measured):
    _, said = measured
    assert [s[:2] for s in said[:2]] == [("full", "pin"), ("half", "pin")]
    runs = [(name, key) for name, do, key in said if do == "run"]
    keys = ["1/default", "4/default"]
    assert runs == [(n, k) for k in keys for n in ("full", "half")] * 2


def test_questions_about_timings(measured):
    timings, _ = measured
    full = bench.best(timings, "full", 4)
    half = bench.best(timings, "half", 4)
    assert full.setting == half.setting == "default"
    ratio = full.median_ms / half.median_ms
    assert bench.speedup(timings, "full", "half", 4) == ratio
    assert bench.speedup(timings, "full", "half", 4, setting="default") == ratio
    with pytest.raises(KeyError, match="measured"):
        bench.best(timings, "full", batch=7)


def test_json_and_table(measured):
    timings, _ = measured
    read = json.loads(bench.to_json(timings))
    assert read["machine"]["jax"] == jax.__version__
    assert read["machine"]["cores_allowed"] == len(allowed_cpus())
    kept = [r["median_ms"] for r in read["timings"]]
    assert kept == [None if t.refused else t.median_ms for t in timings]
    console = Console(file=io.StringIO(), width=200)
    console.print(bench.table(timings))
    text = console.file.getvalue()
    # What is timed may come out level with what it is compared to.
    assert text.count("refused") == 4 and text.count("1.00x") >= 2


def test_best_is_the_lowest_median():
    def timing(setting, ms, refused=""):
        numbers = dict(p10_ms=ms, p90_ms=ms, cpu_ms=ms, compile_s=1.0, peak_bytes=1)
        return bench.Timing(
            name="a", batch=1, threads=1, setting=setting, median_ms=ms, **numbers,
            flops=1, params=1, file_bytes=1, calls=1, refused=refused,
        )  # fmt: skip

    slow, fast, none = (
        timing("s", 2.0), timing("f", 1.0), timing("n", math.nan, "no")
    )  # fmt: skip
    assert bench.best([none, slow, fast], "a") is fast
    assert bench.speedup([none, slow, fast], "a", "a", setting="s") == 1.0


# --- processes ------------------------------------------------------------------------


def eigen_threads(pid):
    names = (p.read_text().strip() for p in Path(f"/proc/{pid}/task").glob("*/comm"))
    return sum("XLAEigen" in name for name in names)


def started(tmp_path, cpus, name="net", width=2048):
    source = bundle(name, *mlp(width), f32(64, 64), (64,), tmp_path / name)
    return Worker(source, tmp_path / f"{name}.log", cpus, patience=60.0)


@linux
def test_one_thread_is_one_core_in_a_fresh_process(tmp_path):
    cpus = allowed_cpus()
    key = {"key": "64/default"}
    compile_it = {"do": "compile", "batch": 64, "options": {}} | key
    with started(tmp_path, cpus[-1:]) as one, started(tmp_path, cpus, "all") as many:
        hello, hello_many = one.receive(), many.receive()
        assert len({hello["pid"], hello_many["pid"], os.getpid()}) == 3
        assert hello["cpus"] == cpus[-1:] and hello_many["cpus"] == cpus
        for worker in (one, many):
            assert worker.ask(compile_it)["compile_s"] > 0
        assert eigen_threads(hello["pid"]) == 1
        assert eigen_threads(hello_many["pid"]) == len(cpus)
        reply = one.ask({"do": "run", "seconds": 0.2} | key)
        # One core at most; less where others use the machine, never more.
        assert reply["cpu_ms"] < 1.05 * np.mean(reply["wall_ms"])
        assert reply["cpu_ms"] > 0.02 * np.mean(reply["wall_ms"])
        assert one.ask({"do": "pin", "cpus": cpus[:1]}) == {"cpus": cpus[:1]}
        tasks = os.listdir(f"/proc/{hello['pid']}/task")
        assert {tuple(os.sched_getaffinity(int(t))) for t in tasks} == {(cpus[0],)}
    assert not psutil.pid_exists(hello["pid"])
    assert not psutil.pid_exists(hello_many["pid"])


def test_a_dead_or_silent_worker_is_named(tmp_path):
    with started(tmp_path, allowed_cpus()) as worker:
        worker.process.send_signal(signal.SIGKILL)
        with pytest.raises(WorkerDied, match=r"'net' died .signal 9"):
            worker.receive()
    with started(tmp_path, allowed_cpus(), "mute") as worker:
        worker.patience = 0.01
        with pytest.raises(WorkerDied, match=r"'mute' died .no answer in 0.01 s"):
            worker.receive()
        assert worker.process.poll() is not None


@contextlib.contextmanager
def nothing_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) == before
    assert not list(tmp_path.glob("cutjax-bench-*"))


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    def apply(params, x):
        host = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return host @ params

    candidates = {"good": mlp(8), "on the host": (apply, jnp.ones((64, 3)))}
    with nothing_left_behind(tmp_path, monkeypatch):
        with pytest.raises(bench.BenchError, match="'on the host' cannot be exported"):
            bench.measure(candidates, f32(1, 64), **QUICK)
        with pytest.raises(bench.BenchError, match="leading batch axis"):
            bench.measure({"good": mlp(8)}, f32(), **QUICK)


def test_what_runs_at_no_setting_is_named(tmp_path, monkeypatch):
    with nothing_left_behind(tmp_path, monkeypatch):
        with pytest.raises(bench.BenchError, match=r"(?s)'net' .*no_such_option"):
            bench.measure(
                {"net": mlp(8)}, f32(1, 64), settings={"bogus": UNKNOWN}, **QUICK
            )


@pytest.mark.skipif(version("jaxlib") != "0.10.2", reason="fixed in later versions")
def test_a_setting_that_crashes_xla_spares_the_others(tmp_path, monkeypatch):
    def crash(params, x):  # jax-ml/jax#40412
        return jnp.sum(x * params, axis=3)

    shape = (3, 1, 2, 2, 8, 8, 8)
    settings = {k: bench.SETTINGS[k] for k in ("default", "tuned")}
    with nothing_left_behind(tmp_path, monkeypatch):
        default, tuned = bench.measure(
            {"crash": (crash, jnp.ones(shape))},
            f32(*shape),
            batch_sizes=(3,),
            settings=settings,
            **QUICK,
        )
    assert "signal 11" in default.refused
    assert tuned.median_ms > 0 and not tuned.refused


def test_stray_output_stays_out_of_the_answers():
    spec = importlib.util.find_spec("cutjax.bench.worker")
    code = (
        "import os, runpy, sys\n"
        "w = runpy.run_path(sys.argv[1])\n"
        "out = w['_private_stdout']()\n"
        "print('noise', flush=True); os.write(1, b'more noise')\n"
        "w['_say'](out, {'answer': 1})\n"
    )
    command = [sys.executable, "-c", code, spec.origin]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"answer": 1}
    assert done.stderr.endswith("noise\nmore noise")


def test_the_worker_imports_nothing_before_it_pins():
    code = (
        "import runpy, sys\n"
        "runpy.run_path(sys.argv[1])\n"
        "sys.exit(any(m.split('.')[0] in ('jax', 'cutjax') for m in sys.modules))"
    )
    spec = importlib.util.find_spec("cutjax.bench.worker")
    command = [sys.executable, "-P", "-c", code, spec.origin]
    assert subprocess.run(command, check=False).returncode == 0


# --- inputs ---------------------------------------------------------------------------


def test_other_batch_sizes():
    x = jnp.arange(6.0).reshape(3, 2)
    assert resize(x, 1).tolist() == [[0, 1]]
    assert resize(x, 4).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    noise = resize(f32(1, 50), 40)
    assert noise.shape == (40, 50) and abs(float(noise.std()) - 1) < 0.1
    ids = resize(jax.ShapeDtypeStruct((1, 7), jnp.int32), 2)
    assert ids.dtype == jnp.int32 and not ids.any()


@pytest.mark.parametrize(
    "wrong", [{"threads": (10_000,)}, {"rounds": 0}, {"batch_sizes": (0,)}]
)
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        bench.measure({"net": mlp(8)}, f32(1, 64), **({"threads": (1,)} | wrong))


def test_many_candidates_are_split_evenly():
    bundles = [Bundle(f"{i}", {}, {}, 0, 0) for i in range(9)]
    blocks = list(measure_module._blocks(bundles, 8))
    assert [len(block) for block in blocks] == [4, 5]
    assert [b for block in blocks for b in block] == bundles
