"""Regression of one number beside classification: data, losses, metric, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutjax.data import Split, describe, from_arrays
from cutjax.data.base import SPLITS, check_dataset
from cutjax.fit import cross_entropy, fit
from cutjax.losses import losses_for, of_numbers, spreads, summed
from cutjax.metrics import accuracy
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply
from cutjax.recover.finetune import distillation, finetune, frozen, teach


def toy(n=400, scale=1.0):
    """Pictures whose brightness is a number, and whose brighter half is a class."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.1, (n, 4, 6, 1)).astype(np.float32)
    half, level = rng.integers(0, 2, n), rng.uniform(-1, 1, n)
    x += level[:, None, None, None].astype(np.float32)
    for row, side in zip(x, half, strict=True):
        row[:, 3 * side : 3 * side + 3] += 0.5
    y = {"half": half.astype(np.int32), "level": (scale * level).astype(np.float32)}
    return from_arrays(x, y)


@pytest.fixture(scope="module")
def trained():
    data = toy()
    model = MultiTaskResNet(data.tasks, widths=(8,), blocks=(1,))
    params, _ = fit(
        train_apply(model), init(model, data.train.x), summed(losses_for(data)),
        data.train, optimizer=optax.adam(1e-2), epochs=20, batch_size=40,
        progress=False,
    )  # fmt: skip
    return data, model, params


def test_float_labels_make_a_task_of_0_classes():
    data = toy()
    assert data.tasks == {"half": 2, "level": 0}
    assert "level (a number)" in describe(data) and "half (2)" in describe(data)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.array([0, 1, 2]), 0, "labels are floats"),
        (np.array([0.0, 1.0, np.nan]), 0, "hold 1 that are NaN"),
        (np.array([0.0, 1.0, 2.0]), 3, "0 classes for a regression"),
    ],
)
def test_labels_that_do_not_fit_their_task_are_refused(labels, classes, message):
    split = Split(np.zeros((3, 1, 1, 1), np.float32), {"t": labels})
    with pytest.raises(ValueError, match=message):
        check_dataset(dict.fromkeys(SPLITS, split), {"t": classes}, "toy")


def r_squared(y, p):
    y, p = np.asarray(y, np.float64), np.asarray(p, np.float64)
    return 100 * (1 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2))


def test_the_metric_of_a_number_is_the_variance_explained():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(1)
    y = rng.normal(5, 2, 23).astype(np.float32)
    guess = (y + rng.normal(0, 1, 23)).astype(np.float32)
    x = guess.reshape(-1, 1, 1, 1)
    for shape in ((-1,), (-1, 1)):  # with and without a last axis of one
        got = accuracy(
            lambda p, x, shape=shape: {"t": p * x.reshape(shape)},
            jnp.ones(()),
            Split(x, {"t": y}),
            batch_size=5,  # the last batch is padded
        )
        assert got["t"] == pytest.approx(100 * r2_score(y, guess), abs=1e-3)
        assert got["t"] == pytest.approx(r_squared(y, guess), abs=1e-3)
    # Saboteurs: the square of the correlation, or an unpadded count, would differ.
    assert abs(100 * np.corrcoef(y, guess)[0, 1] ** 2 - got["t"]) > 1e-2


def test_an_answer_worse_than_the_mean_explains_nothing():
    y = np.array([1.0, 2.0, 3.0], np.float32)
    split = Split(y.reshape(-1, 1, 1, 1), {"t": y})

    def score(fn):
        return accuracy(lambda p, x: {"t": fn(x[:, 0, 0, 0])}, 0.0, split)["t"]

    assert score(lambda v: v) == 100
    assert score(lambda v: -v) == 0
    assert score(lambda v: jnp.full_like(v, 2.0)) == 0
    assert score(lambda v: v / 0) == 0  # infinite
    same = split._replace(y={"t": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="no variance to explain"):
        accuracy(lambda p, x: {"t": x[:, 0, 0, 0]}, 0.0, same)


def test_losses_are_means_over_examples_in_units_of_the_spread():
    data = toy(scale=7.0)
    assert spreads(data) == {"level": pytest.approx(np.std(data.train.y["level"]))}
    losses = losses_for(data)
    y = data.train.y["level"][:4]
    answers = np.zeros((4, 1), np.float32)
    each = [float(losses["level"](answers[:1], y[i : i + 1])) for i in range(4)]
    np.testing.assert_allclose(each, (y / np.std(data.train.y["level"])) ** 2, 1e-5)
    np.testing.assert_allclose(losses["level"](answers, y), np.mean(each), rtol=1e-6)
    mean = np.full_like(data.train.y["level"], data.train.y["level"].mean())
    assert float(losses["level"](mean, data.train.y["level"])) == pytest.approx(1)
    logits, half = jnp.zeros((4, 2)), data.train.y["half"][:4]
    np.testing.assert_allclose(losses["half"](logits, half), np.log(2), rtol=1e-6)
    # [n, 1] against [n] must not broadcast to [n, n].
    wide = of_numbers()(jnp.arange(3.0)[:, None], jnp.arange(3.0))
    assert float(wide) == 0


def test_losses_for_names_only_tasks_of_the_data():
    data = toy()
    assert list(losses_for(data, ("level",))) == ["level"]
    for wrong in (("depth",), ()):
        with pytest.raises(ValueError, match="has the tasks"):
            losses_for(data, wrong)
    with pytest.raises(ValueError, match="ask for a number"):
        cross_entropy(data.tasks)


def test_the_sum_is_that_of_cross_entropy_where_all_are_classes():
    y = {"a": jnp.arange(4), "b": jnp.zeros(4, int)}
    logits = {"a": jax.random.normal(jax.random.key(0), (4, 10)), "b": jnp.ones((4, 2))}
    data = check_dataset(
        dict.fromkeys(
            SPLITS, Split(np.zeros((4, 1, 1, 1), np.float32), jax.tree.map(np.array, y))
        ),
        {"a": 10, "b": 2},
        "toy",
    )
    ours = summed(losses_for(data), {"b": 0.5})(logits, y)[0]
    assert float(ours) == float(cross_entropy(("a", "b"), {"b": 0.5})(logits, y)[0])
    with pytest.raises(ValueError, match="at least one task"):
        summed(losses_for(data), {"c": 1.0})


def test_a_network_learns_a_class_and_a_number_together(trained):
    data, model, params = trained
    answer = eval_apply(model)(params, data.test.x[:3])
    assert answer["level"].shape == (3, 1) and answer["half"].shape == (3, 2)
    score = accuracy(eval_apply(model), params, data.test)
    assert score["half"] > 90 and score["level"] > 90


def test_distillation_is_the_squared_error_to_the_parents_number():
    y = {"teacher:n": jnp.array([[1.0], [3.0]]), "teacher:c": jnp.zeros((2, 2))}
    out = {"n": jnp.array([[2.0], [5.0]]), "c": jnp.array([[0.0, 2.0], [2.0, 0.0]])}
    _, each = distillation(("n", "c"))(out, y)
    assert float(each["n"]) == 2.5
    _, scaled = distillation(("n", "c"), spreads={"n": 2.0})(out, y)
    assert float(scaled["n"]) == 0.625 and scaled["c"] == each["c"] > 0
    y |= {"n": jnp.array([2.0, 5.0]), "c": jnp.array([1, 0])}
    _, both = distillation(("n", "c"), labels=3.0)(out, y)
    assert float(both["n"]) == 2.5  # labels are met, the parent is not
    hard = cross_entropy(("c",))(out, y)[0]
    assert float(both["c"]) == pytest.approx(float(each["c"] + 3 * hard))


def test_finetuning_recovers_a_number_whatever_its_unit(trained):
    data, model, params = trained
    hurt = jax.tree.map(lambda a: a, params)
    hurt["params"]["head_level"] = jax.tree.map(
        jnp.zeros_like, params["params"]["head_level"]
    )
    taught = teach(eval_apply(model), params, data.train, tasks=("level",))
    losses = []
    for unit in (1.0, 1000.0):
        scaled = taught._replace(
            y={k: unit * v for k, v in taught.y.items() if k != "half"}
        )
        _, info = finetune(
            train_apply(model), hurt, scaled, tasks=("level",), epochs=1,
            batch_size=280, learning_rate=1e-6, progress=False,
        )  # fmt: skip
        losses.append(info.history[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    better, _ = finetune(
        train_apply(model), hurt, taught, tasks=("level",), epochs=15, batch_size=40,
        learning_rate=1e-2, progress=False,
    )  # fmt: skip
    apply = eval_apply(model)
    before = accuracy(apply, hurt, data.test, tasks=("level",))["level"]
    after = accuracy(apply, better, data.test, tasks=("level",))["level"]
    assert before == 0 and after > 80


def test_frozen_training_moves_weights_and_leaves_statistics(trained):
    data, model, params = trained
    taught = teach(eval_apply(model), params, data.train, tasks=("level",))
    ends = {}
    for name, train in (
        ("frozen", frozen(eval_apply(model))),
        ("following", train_apply(model)),
    ):
        ends[name], _ = finetune(
            train, params, taught, tasks=("level",), epochs=1, batch_size=40,
            progress=False,
        )  # fmt: skip
        after, before = (p["params"]["stem"]["kernel"] for p in (ends[name], params))
        assert jnp.abs(after - before).max() > 0
    mean = {k: v["batch_stats"]["norm_stem"]["mean"] for k, v in ends.items()}
    before = params["batch_stats"]["norm_stem"]["mean"]
    np.testing.assert_array_equal(mean["frozen"], before)
    assert jnp.abs(mean["following"] - before).max() > 0
