import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax.data import Split, digits_scenes, take
from cutjax.fit import cross_entropy, fit
from cutjax.metrics import accuracy
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply

TINY = {"train": 512, "calibration": 1, "validation": 100, "test": 1}


@pytest.fixture(scope="module")
def net():
    data = digits_scenes(sizes=TINY)
    model = MultiTaskResNet(data.tasks, widths=(8,), blocks=(1,), stem_stride=2)
    return data, model, init(model, data.train.x)


@pytest.fixture(scope="module")
def line():
    x = np.random.default_rng(0).normal(size=(64, 1, 1, 2)).astype(np.float32)
    return Split(x, {"y": (x[:, 0, 0, :] @ np.array([2.0, -1.0])).astype(np.float32)})


def linear(w, x):
    return x[:, 0, 0, :] @ w, None


def squares(out, y):
    error = jnp.mean((out - y["y"]) ** 2)
    return error, {"error": error}


def run(net, **options):
    data, model, variables = net
    apply = eval_apply(model)
    settings = {
        "optimizer": optax.adam(1e-2),
        "epochs": 3,
        "batch_size": 32,
        "evaluate": lambda p: accuracy(apply, p, data.validation),
        "progress": False,
    }
    loss = cross_entropy(data.tasks)
    return fit(
        train_apply(model), variables, loss, data.train, **{**settings, **options}
    )


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_least_squares_finds_the_planted_weights(line):
    w, info = fit(
        linear, jnp.zeros(2), squares, line,
        optimizer=optax.sgd(0.1), epochs=20, batch_size=16, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(w, [2, -1], atol=1e-3)
    assert info.best_epoch == 20 and len(info.history) == 21
    assert info.history[-1]["error"] == info.history[-1]["loss"] < 1e-4


def test_training_lowers_the_loss_and_moves_the_state(net):
    variables, info = run(net, epochs=4)
    losses = [record["loss"] for record in info.history[1:]]
    assert losses[-1] < losses[0] - 0.2
    start = net[2]["batch_stats"]["norm_stem"]["mean"]
    assert np.abs(variables["batch_stats"]["norm_stem"]["mean"] - start).max() > 1e-3
    best = max(info.history, key=lambda record: record["mean"])
    assert info.best_epoch == best["epoch"]
    score = accuracy(eval_apply(net[1]), variables, net[0].validation)
    assert score == best["validation"]


def test_one_step_is_one_step_of_the_optimizer(net):
    data, model, variables = net
    few = (data._replace(train=take(data.train, np.arange(64))), model, variables)
    got, _ = run(few, epochs=1, optimizer=optax.sgd(0.1), evaluate=None)

    @jax.jit
    def slope_of(params, variables, x, y):
        def objective(params):
            out, updates = train_apply(model)({**variables, "params": params}, x)
            return cross_entropy(data.tasks)(out, y)[0], updates

        return jax.grad(objective, has_aux=True)(params)

    order = np.random.default_rng([0, 1]).permutation(64).reshape(2, 32)
    for rows in order:
        batch = take(data.train, rows)

        slope, updates = slope_of(variables["params"], variables, *batch)
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], slope)
        variables = {"params": stepped, **updates}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, variables
    )


def test_runs_repeat_by_seed(net):
    ends = [run(net, epochs=1, evaluate=None, seed=s)[0] for s in (0, 0, 1)]
    same(ends[0], ends[1])
    kernels = [end["params"]["stem"]["kernel"] for end in ends[1:]]
    assert jnp.abs(kernels[0] - kernels[1]).max() > 0


def test_an_interrupted_run_resumes_bit_for_bit(net, tmp_path):
    def train(**options):
        return run(net, **options)

    interrupt_and_resume(train, tmp_path / "run", [0, 1, 2, 3], best=3)


def test_the_best_epoch_survives_an_interruption(line, tmp_path):
    def train(**options):
        return fit(
            linear, jnp.zeros(2), squares, line, optimizer=optax.adam(0.1), epochs=3,
            batch_size=16, progress=False, **options,
        )  # fmt: skip

    interrupt_and_resume(train, tmp_path / "run", [0, 9, 2, 3], best=1)
    again, done = train(checkpoint=tmp_path / "run", evaluate=None)
    assert done.resumed_from == 3 and done.best_epoch == 1
    assert np.abs(again - train()[0]).max() > 1e-3  # not the last epoch's


def test_what_comes_from_a_checkpoint_is_compiled_for_once(line, tmp_path):
    """Tied arrays beside the free ones of a new optimiser compile a step twice."""

    def train(start, **options):
        trained, _ = fit(
            linear, start, squares, line, optimizer=optax.adam(0.1), epochs=1,
            batch_size=16, progress=False, **options,
        )  # fmt: skip
        return trained

    train(jnp.zeros(2), checkpoint=tmp_path / "run")
    found = train(jnp.zeros(2), checkpoint=tmp_path / "run")
    assert not found.committed
    tied = jax.device_put(found, jax.devices()[0])
    assert tied.committed and train(tied).committed  # the saboteur: tied stays tied
    assert not train(found).committed


def interrupt_and_resume(train, folder, scores, best):
    def scored(start, stop=None):
        left = iter(scores[start:stop])

        def evaluate(params):
            score = next(left, None)
            if score is None:
                raise KeyboardInterrupt
            return {"score": float(score)}

        return evaluate

    straight, info = train(evaluate=scored(0))
    with pytest.raises(KeyboardInterrupt):  # after the start and two epochs
        train(checkpoint=folder, evaluate=scored(0, 3))
    resumed, later = train(checkpoint=folder, evaluate=scored(3))
    same(straight, resumed)
    assert later.resumed_from == 2 and info.resumed_from == 0
    assert later.best_epoch == info.best_epoch == best
    for a, b in zip(info.history, later.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    steps = [int(p.name.removeprefix("step_")) for p in folder.iterdir()]
    assert sorted(steps) == [2 * max(steps) // 3, max(steps)]  # of epochs 2 and 3


def test_a_checkpoint_of_another_run_is_refused(net, tmp_path):
    run(net, epochs=1, evaluate=None, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="different: batch_size"):
        run(net, epochs=2, batch_size=64, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="different: shapes"):
        run(net, epochs=2, optimizer=optax.sgd(0.1), checkpoint=tmp_path)
    data, model, variables = net
    other = (data, model, jax.tree.map(lambda leaf: leaf + 1, variables))
    with pytest.raises(ValueError, match="different: start"):
        run(other, epochs=2, checkpoint=tmp_path)


def test_the_start_is_kept_when_training_makes_it_worse(line):
    start = jnp.array([2.0, -1.0])
    w, info = fit(
        linear, start, squares, Split(line.x, {"y": -line.y["y"]}),
        optimizer=optax.sgd(0.1), epochs=2, batch_size=16, progress=False,
        evaluate=lambda w: {"near": -float(jnp.abs(w - start).sum())},
    )  # fmt: skip
    assert info.best_epoch == 0
    same(w, start)


def test_leaves_that_are_not_floating_are_left_alone(line):
    params = {"w": jnp.zeros(2), "steps": jnp.arange(3)}
    trained, _ = fit(
        lambda p, x: linear(p["w"], x), params, squares, line,
        optimizer=optax.adam(0.1), epochs=1, batch_size=64, progress=False,
    )  # fmt: skip
    same(trained["steps"], params["steps"])
    assert jnp.abs(trained["w"]).min() > 0 and jnp.abs(params["w"]).max() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"batch_size": 65}, "use 1 to 64"), ({"epochs": 0}, "1 or more")],
)
def test_settings_that_do_not_fit_are_refused(line, options, reason):
    settings = {"epochs": 1, "batch_size": 8, "progress": False, **options}
    with pytest.raises(ValueError, match=reason):
        fit(linear, jnp.zeros(2), squares, line, optimizer=optax.sgd(0.1), **settings)


def test_empty_data_nan_and_foreign_updates_are_refused(line):
    rest = {
        "epochs": 1,
        "batch_size": 8,
        "progress": False,
        "optimizer": optax.sgd(1.0),
    }
    with pytest.raises(ValueError, match="is empty"):
        fit(linear, jnp.zeros(2), squares, Split(line.x[:0], {"y": line.x[:0]}), **rest)
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1"):
        fit(linear, jnp.full(2, jnp.nan), squares, line, **rest)
    params = {"w": jnp.zeros(2)}

    def update(value):
        return lambda p, x: (linear(p["w"], x)[0], value)

    with pytest.raises(ValueError, match="top level of params"):
        fit(update({"stats": jnp.zeros(1)}), params, squares, line, **rest)
    with pytest.raises(ValueError, match="other shapes"):
        fit(update({"w": jnp.zeros(3)}), params, squares, line, **rest)
    with pytest.raises(ValueError, match="finite"):
        bad = {**rest, "evaluate": lambda w: {"score": float("nan")}}
        fit(linear, jnp.zeros(2), squares, line, **bad)


def test_cross_entropy_sums_over_tasks_with_weights():
    logits = {"a": jnp.zeros((4, 10)), "b": jnp.zeros((4, 2)), "c": jnp.ones((4, 2))}
    y = {"a": jnp.arange(4), "b": jnp.zeros(4, int)}
    value, each = cross_entropy(("a", "b"), {"b": 0.5})(logits, y)
    np.testing.assert_allclose(value, np.log(10) + 0.5 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(each["b"], np.log(2), rtol=1e-6)
    with pytest.raises(ValueError, match="at least one task"):
        cross_entropy(("a",), {"b": 1.0})


def test_accuracy_pads_the_last_batch_and_compiles_once():
    traces = []

    def apply(params, x):
        traces.append(x.shape)
        return {"t": jax.nn.one_hot(x[:, 0, 0, 0].astype(int), 3) * params}

    x = np.array([0, 1, 2, 0, 1, 2, 0], np.float32).reshape(7, 1, 1, 1)
    split = Split(x, {"t": np.array([0, 1, 2, 0, 1, 0, 1])})
    for _ in range(3):
        got = accuracy(apply, jnp.ones(()), split, batch_size=3)
        assert got["t"] == pytest.approx(500 / 7)
    # Three looks at the outputs (eval_shape) and one compilation.
    assert len(traces) <= 4 and set(traces) == {(3, 1, 1, 1)}


def test_accuracy_counts_positions_and_single_outputs():
    x = np.zeros((2, 2, 2, 1), np.float32)
    labels = np.array([[[1, 1], [1, 0]], [[1, 1], [1, 1]]])
    logits = np.array([0.0, 1.0], np.float32) * np.ones((2, 2, 2, 2), np.float32)
    got = accuracy(lambda p, x: p[: len(x)], logits, Split(x, {"output": labels}))
    assert got == {"output": 87.5}
    with pytest.raises(ValueError, match="'depth'"):
        accuracy(lambda p, x: p, logits, Split(x, {"output": labels}), tasks=("depth",))
