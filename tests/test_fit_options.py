"""Accumulation, precision, averages, patience, scans: each against an oracle."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_compiles import compiled

from cutjax.data import Split
from cutjax.fit import fit, last_state
from cutjax.training.parts import heeding

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 1, 1, 3)).astype(np.float32)
Y = np.sin(X[:, 0, 0, :] @ np.array([2.0, -1.0, 0.5])).astype(np.float32)
DATA = Split(X, {"y": Y})
START = {
    "a": jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=5), jnp.float32),
}


def mlp(p, x):
    return jnp.tanh(x[:, 0, 0, :] @ p["a"]) @ p["b"], None


def squares(out, y):
    return jnp.mean((out - y["y"]) ** 2), {}


def train(apply=mlp, start=START, loss=squares, data=DATA, **options):
    settings = {"optimizer": optax.adam(1e-2), "epochs": 2, "batch_size": 8}
    return fit(apply, start, loss, data, **{**settings, "progress": False, **options})


def gap(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), a, b)))


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), None])
def test_accumulated_parts_are_one_large_batch(optimizer):
    """100 examples: 3 updates of 32, or of 4 parts of 8; the same 96 examples."""
    rate = optax.cosine_decay_schedule(1e-2, 6)  # counts updates, not parts
    optimizer = optimizer or optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(rate)
    )
    whole, _ = train(batch_size=32, optimizer=optimizer)
    parts, info = train(batch_size=8, accumulate=4, optimizer=optimizer)
    assert gap(whole, parts) < 1e-6
    assert info.history[-1]["loss"] == pytest.approx(
        train(batch_size=32, optimizer=optimizer)[1].history[-1]["loss"], rel=1e-5
    )
    # The saboteurs: small batches are another run, and so are other parts.
    assert gap(whole, train(batch_size=8, optimizer=optimizer)[0]) > 1e-3
    assert gap(whole, train(batch_size=8, accumulate=3, optimizer=optimizer)[0]) > 1e-4


def seen_by_numpy(batch, decay, updates, rate=0.1):
    """Least squares in float64: parameters after each update, and their average."""
    x, target = np.float64(X[:, 0, 0, :]), np.float64(Y)
    w, path = np.zeros(3), []
    for epoch in range(1, 100):
        order = np.random.default_rng([0, epoch]).permutation(100)
        for i in range(100 // batch):
            rows = order[i * batch : (i + 1) * batch]
            error = x[rows] @ w - target[rows]
            w = w - rate * 2 * x[rows].T @ error / batch
            path.append(w)
            if len(path) == updates:
                weights = decay ** np.arange(updates)[::-1]
                return w, weights @ np.array(path) / weights.sum()
    raise AssertionError


def linear(w, x):
    return x[:, 0, 0, :] @ w, None


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_that_of_numpy(decay):
    options = {"start": jnp.zeros(3), "optimizer": optax.sgd(0.1), "epochs": 1}
    last, average = seen_by_numpy(20, decay, 5)
    got, _ = train(linear, **options, batch_size=20, ema=decay)
    np.testing.assert_allclose(got, average, atol=1e-6)
    np.testing.assert_allclose(train(linear, **options, batch_size=20)[0], last, 1e-5)
    assert np.abs(last - average).max() > 1e-3
    # Parts of an update do not count.
    got, _ = train(linear, **options, batch_size=10, accumulate=2, ema=decay)
    np.testing.assert_allclose(got, average, atol=1e-6)


def test_the_average_is_what_is_evaluated():
    seen = []

    def evaluate(w):
        seen.append(np.asarray(w))
        return {"score": float(len(seen))}

    options = {"start": jnp.zeros(3), "optimizer": optax.sgd(0.1), "epochs": 2}
    got, _ = train(linear, **options, batch_size=20, ema=0.9, evaluate=evaluate)
    for epoch, w in enumerate(seen):
        want = seen_by_numpy(20, 0.9, 5 * epoch)[1] if epoch else np.zeros(3)
        np.testing.assert_allclose(w, want, atol=1e-6)
    np.testing.assert_array_equal(got, seen[-1])


def test_state_is_averaged_and_whole_numbers_are_not():
    def counting(p, x):
        return linear(p["w"], x)[0], {"seen": p["seen"] + 1, "n": p["n"] + 1}

    start = {"w": jnp.zeros(3), "seen": jnp.zeros(()), "n": jnp.zeros((), int)}
    got, _ = train(counting, start, batch_size=50, epochs=1, ema=0.5)
    assert got["n"] == 2
    assert got["seen"] == pytest.approx((0.5 * 1 + 2) / 1.5)


def test_averages_of_narrow_parameters_do_not_stand_still(tmp_path):
    """Parameter and state are 1 to 200, exact in bfloat16; their average is not."""

    def counting(p, x):
        return -p["w"] * jnp.ones(len(x)), {"seen": p["seen"] + 1}

    zero = jnp.zeros((), jnp.bfloat16)
    start, sgd = {"w": zero, "seen": zero}, optax.sgd(1.0)
    got, _ = train(
        counting, start, lambda out, y: (out.mean(), {}), optimizer=sgd, ema=0.99,
        batch_size=1, checkpoint=tmp_path,
    )  # fmt: skip
    weights = 0.99 ** np.arange(200)[::-1]
    want = weights @ np.arange(1, 201) / weights.sum()
    kept = last_state(tmp_path, start, sgd).average
    for name in start:
        assert got[name].dtype == jnp.bfloat16 and kept[name].dtype == jnp.float32
        assert abs(float(got[name]) - want) <= 0.5  # one rounding
        assert kept[name] == pytest.approx(want, rel=1e-5)


def test_parts_of_narrow_gradients_are_added_up_in_full():
    x = 1 + RNG.integers(8, size=(96, 1)).astype(np.float32) / 8
    start = {"w": jnp.zeros((), jnp.bfloat16)}
    got, _ = train(
        lambda p, x: (p["w"].astype(jnp.float32) * x, None), start,
        data=Split(x, {"y": x}),
        loss=lambda out, y: (out.mean(), {}), optimizer=optax.sgd(1.0, momentum=0.9),
        batch_size=1, accumulate=96, epochs=1,
    )  # fmt: skip
    assert got["w"] == -jnp.asarray(x.astype(np.float64).mean(), jnp.bfloat16)


def test_precision_is_low_within_and_full_outside():
    kinds = {}

    def apply(p, x):
        kinds.update(a=p["w"].dtype, x=x.dtype, state=p["seen"].dtype)
        out = linear(p["w"], x)[0]
        return out, {"seen": p["seen"] + out.mean()}

    def loss(out, y):
        kinds.update(out=out.dtype, y=y["y"].dtype)
        return squares(out, y)

    adam = optax.adam(1e-2)

    def update(grads, state, params):
        kinds.update(grad=grads["w"].dtype, moment=state[0].mu["w"].dtype)
        return adam.update(grads, state, params)

    start = {"w": jnp.zeros(3), "seen": jnp.zeros(())}
    tx = optax.GradientTransformation(adam.init, update)
    got, _ = train(apply, start, loss, optimizer=tx, dtype=jnp.bfloat16)
    low = {name for name, kind in kinds.items() if kind == jnp.bfloat16}
    assert low == {"a", "x"} and {*kinds.values()} == {
        jnp.dtype("bfloat16"), jnp.dtype("float32")
    }  # fmt: skip
    assert {v.dtype for v in got.values()} == {jnp.dtype("float32")}


def test_low_precision_is_close_and_keeps_small_updates():
    options = {"optimizer": optax.sgd(1e-1)}
    full, low = train(**options)[0], train(**options, dtype=jnp.bfloat16)[0]
    assert 1e-6 < gap(full, low) < 0.02 * gap(full, START)
    # 24 updates of 1e-4 on a weight near 1, where bfloat16 knows steps of 0.004 only.
    options = {"optimizer": optax.sgd(1e-4), "loss": lambda out, y: (out.mean(), {})}
    one = {"w": jnp.ones(())}
    got, _ = train(lambda p, x: (p["w"] * jnp.ones_like(x), None), one,
                   dtype=jnp.bfloat16, **options)  # fmt: skip
    assert got["w"] == pytest.approx(1 - 24e-4, abs=5e-5)


def scripted(scores):
    left = iter(scores)
    return lambda params: {"score": float(next(left))}


def test_patience_ends_a_run_that_does_not_improve(tmp_path):
    options = {"epochs": 9, "checkpoint": tmp_path}
    scores = [0, 5, 4, 5, 6, 1, 2]
    best, info = train(**options, patience=2, evaluate=scripted(scores[:4]))
    # Epoch 3 is no better than epoch 1; of the two it is the one that is returned.
    assert info.best_epoch == 3 and [r["epoch"] for r in info.history] == [0, 1, 2, 3]
    assert gap(best, train(epochs=3)[0]) == 0
    # What is over stays over: nothing is evaluated, nothing trained.
    again, done = train(**options, patience=2, evaluate=scripted([]))
    assert done.resumed_from == 3 and done.history == info.history
    assert gap(again, best) == 0
    # More patience goes on where the other run ended.
    more, info = train(**options, patience=3, evaluate=scripted([*scores[4:], 3]))
    assert info.best_epoch == 4 and len(info.history) == 8
    assert gap(more, train(epochs=4)[0]) == 0


def test_a_run_may_be_evaluated_from_an_epoch_on(tmp_path):
    train(epochs=2, checkpoint=tmp_path)
    options = {"epochs": 5, "checkpoint": tmp_path, "patience": 1}
    best, info = train(**options, evaluate=scripted([3, 2]))
    assert info.best_epoch == 3 and len(info.history) == 5
    assert gap(best, train(epochs=3)[0]) == 0


@pytest.mark.parametrize("scan", [2, 5, 12, 100])
def test_steps_in_a_scan_are_the_same_steps(scan):
    alone, info = train(ema=0.9, accumulate=2)
    scanned, other = train(ema=0.9, accumulate=2, scan=scan)
    assert gap(alone, scanned) < 1e-6 < 1e-4 < gap(alone, train(seed=1)[0])
    for a, b in zip(info.history[1:], other.history[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


@pytest.mark.parametrize(("scan", "programs"), [(1, 1), (5, 2)])
def test_epochs_compile_nothing_new(scan, programs):
    """12 steps: scans of 5 leave one of 2, which is one program more."""

    def run(epochs):
        return train(epochs=epochs, scan=scan, ema=0.9, accumulate=2)

    _ = run(1)  # meets small programs that are kept
    assert compiled(lambda: run(1)) == compiled(lambda: run(4)) == programs
    # The saboteur: one more is seen.
    more = compiled(lambda: (run(1), jax.jit(lambda x: x + 1)(1.0)))
    assert more == programs + 1


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_metrics(tmp_path):
    path, fine = tmp_path / "a" / "run.jsonl", tmp_path / "fine.jsonl"

    def loss(out, y):
        return squares(out, y)[0], {"odd": jnp.where(out.mean() > 1e9, 1.0, jnp.nan)}

    options = {"loss": loss, "evaluate": lambda p: {"b": -float(p["b"].sum())}}
    _, info = train(**options, metrics=path, log_every=5)
    _, _ = train(**options, metrics=fine, log_every=1)
    lines = read(path)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    for line, record in zip(epochs, info.history, strict=True):
        assert line["step"] == 12 * record["epoch"]
        assert line["seconds"] == record["seconds"]
        assert line["validation"] == record["validation"]
        assert line.get("odd", None) is None and record.get("odd", 0) != 1
    steps = [line for line in lines if line["kind"] == "steps"]
    assert [line["step"] for line in steps] == [5, 10, 17, 22]
    single = {e["step"]: e["loss"] for e in read(fine) if e["kind"] == "steps"}
    for line in steps:
        span = range(line["step"] - 4, line["step"] + 1)
        assert line["loss"] == pytest.approx(np.mean([single[s] for s in span]))
    means = [np.mean([single[s] for s in e]) for e in (range(1, 13), range(13, 25))]
    assert means == pytest.approx([line["loss"] for line in epochs[1:]])


def test_a_new_run_starts_its_file_anew_and_takes_no_other(tmp_path):
    path = tmp_path / "run.jsonl"
    for epochs in (3, 1):
        _ = train(metrics=path, epochs=epochs)
    assert [line["epoch"] for line in read(path)] == [0, 1]
    for text in ("epoch,loss\n1,2\n", '{"a": 1}\n', "[1]\n{}\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="something else than metrics"):
            train(metrics=path)
        assert path.read_text() == text


NEEDED = {
    "patience": (2, "patience needs `evaluate`"),
    "save_every": (5, "save_every needs `checkpoint`"),
    "log_every": (5, "log_every needs `metrics`"),
}


@pytest.mark.parametrize("name", NEEDED)
def test_options_that_need_another_say_so(name):
    value, reason = NEEDED[name]
    with pytest.raises(ValueError, match=reason):
        train(**{name: value})


WRONG = [
    ({"accumulate": 0}, "accumulate is 0, expected 1 or more"),
    ({"accumulate": 13}, "13 batches of 8 are 104 examples.*at most 12"),
    ({"scan": 0}, "scan is 0"),
    ({"ema": 1.0}, "ema is 1.0, expected a decay between 0 and 1"),
    ({"ema": 0.0}, "between 0 and 1"),
    ({"ema": float("nan")}, "between 0 and 1"),
    ({"dtype": jnp.int8}, "dtype is int8, expected a floating type"),
    ({"save_every": 0.0, "checkpoint": "unused"}, "save_every is 0.0"),
    ({"patience": 0, "evaluate": lambda p: {"a": 0.0}}, "patience is 0"),
    ({"log_every": 0, "metrics": "unused"}, "log_every is 0"),
    ({"evaluate": lambda p: jnp.ones(())}, "evaluate returned 1.0 .*numbers by name"),
    ({"evaluate": lambda p: {"a": np.ones(2)}}, "numbers by name"),
    ({"loss": lambda o, y: squares(o, y)[0]}, r"loss returned one array of shape \[\]"),
    (
        {"loss": lambda o, y: ((o - y["y"]) ** 2, {})},
        r"loss returned .*\(8,\).*the mean",
    ),
    (
        {"loss": lambda o, y: (squares(o, y)[0], {"a": o})},
        r"loss returned .*'a': \(8,\)",
    ),
    ({"loss": lambda o, y: (o.mean(), o.mean())}, r"loss returned .*\(scalar, {name"),
    ({"sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0])}, "give a mesh"),
]


@pytest.mark.parametrize(("options", "reason"), WRONG, ids=lambda v: str(v)[:30])
def test_options_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        train(**options)


def test_numbers_of_numpy_are_numbers(tmp_path, monkeypatch):
    """A step count of NumPy is one, no number of seconds; JSON takes all of them."""
    names = ("epochs", "batch_size", "seed", "accumulate", "save_every", "log_every")
    options = dict(zip(names, (1, 8, 3, 2, 4, 4), strict=True))
    narrow = {k: np.int64(v) for k, v in options.items()} | {"ema": np.float64(0.9)}
    saved, lines = [], tmp_path / "run.jsonl"
    monkeypatch.setattr("cutjax._resume.save", lambda _, step, *__: saved.append(step))
    unchecked = inspect.unwrap(fit)  # the annotations say int
    for given in ({**options, "ema": 0.9}, narrow):
        _ = unchecked(
            mlp, START, squares, DATA, **given, optimizer=optax.sgd(0.1),
            checkpoint=tmp_path, metrics=lines, progress=False,
        )  # fmt: skip
        assert [line["step"] for line in read(lines)] == [0, 4, 8, 12, 12]
    assert saved == 2 * [4, 8, 12]


@pytest.mark.parametrize("scan", [1, 5])
def test_a_loss_that_is_not_finite_names_its_step(scan):
    """Whatever is trained in parts or scans: the step is the one of the epoch."""
    order = np.random.default_rng([0, 2]).permutation(100)
    y = Y.copy()
    y[order[8 * 6]] = np.inf  # in the 7th batch of epoch 2
    first = np.flatnonzero(np.random.default_rng([0, 1]).permutation(100) == order[48])
    step = first[0] // 8 + 1
    place = f"step {step} of epoch 1" if step <= 12 else "step 7 of epoch 2"
    with pytest.raises(FloatingPointError, match=place):
        train(data=Split(X, {"y": y}), scan=scan, accumulate=2)


def test_metrics_may_be_called_like_what_a_record_holds(tmp_path):
    names = ("loss", "mean", "epoch", "seconds", "validation", "kind", "step")

    def loss(out, y):
        return squares(out, y)[0], {name: -(out.mean() ** 2) for name in names}

    _, plain = train(evaluate=scripted([0, 2, 1]))
    for options in ({}, {"evaluate": scripted([0, 2, 1])}):
        _, info = train(loss=loss, metrics=tmp_path / "run.jsonl", **options)
        assert info.best_epoch == (1 if options else 2)
        lines = read(tmp_path / "run.jsonl")
        for line, record in zip(lines, info.history, strict=True):
            assert line["kind"] == "epoch" and line["step"] == 12 * record["epoch"]
        assert info.history[2]["loss"] == plain.history[2]["loss"]


def test_an_optimizer_that_takes_no_extras_is_told_none():
    """SAM says that it takes them, and does not (optax 0.2)."""
    tx = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01), opaque_mode=False)
    told = heeding(tx)
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    want, _ = tx.update(params, state, params)
    got, _ = told.update(params, state, params, value=1.0, grad=params)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    heard = heeding(optax.contrib.reduce_on_plateau())
    with pytest.raises(TypeError, match="value"):  # it is asked for, not left out
        heard.update(params, heard.init(params), params, grad=params)
    _ = heard.update(params, heard.init(params), params, value=1.0, grad=params)
