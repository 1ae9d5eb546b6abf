import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutjax.data.digits import digits_scenes
from cutjax.models import MultiTaskResNet, eval_apply, init, train_apply
from cutjax.models.reference import reference

TASKS = {"a": 3, "b": 2}


@pytest.fixture(scope="module")
def small():
    model = MultiTaskResNet(TASKS, widths=(4, 8), blocks=(1, 1), stem_stride=2)
    x = jax.random.normal(jax.random.key(1), (6, 12, 20, 1))
    return model, init(model, x, seed=0), x


def test_answers_every_task(small):
    model, variables, x = small
    outputs = jax.jit(eval_apply(model))(variables, x)
    assert {task: o.shape for task, o in outputs.items()} == {"a": (6, 3), "b": (6, 2)}


def test_evaluation_sees_examples_one_by_one(small):
    model, variables, x = small
    apply = jax.jit(eval_apply(model))
    whole, alone = apply(variables, x), apply(variables, x[2:3])
    np.testing.assert_allclose(whole["a"][2:3], alone["a"], atol=1e-5)


def test_training_normalises_by_the_batch_and_replaces_the_statistics(small):
    model, variables, x = small
    outputs, updates = jax.jit(train_apply(model))(variables, x)
    assert set(updates) == {"batch_stats"}
    old, new = variables["batch_stats"], updates["batch_stats"]
    assert jax.tree.structure(old) == jax.tree.structure(new)
    kernel = variables["params"]["stem"]["kernel"]
    layout = ("NHWC", "HWIO", "NHWC")
    stem = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", None, None, layout)
    mean = stem.mean((0, 1, 2))
    np.testing.assert_allclose(new["norm_stem"]["mean"], 0.1 * mean, atol=1e-5)
    still = eval_apply(model)(variables, x)
    assert jnp.abs(still["a"] - outputs["a"]).max() > 1e-3


def test_init_repeats_by_seed_and_reads_shapes_only():
    model, x = MultiTaskResNet(TASKS, widths=(4,), blocks=(0,)), jnp.ones((2, 6, 6, 1))
    variables = init(model, x, seed=0)
    again = init(model, jax.ShapeDtypeStruct(x.shape, x.dtype), seed=0)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    other = init(model, x, seed=1)["params"]["stem"]["kernel"]
    assert jnp.abs(other - variables["params"]["stem"]["kernel"]).max() > 0


def test_every_stage_but_the_first_halves_the_image():
    model = MultiTaskResNet(TASKS, widths=(4, 8, 8), blocks=(1, 1, 1))
    x = jnp.zeros((1, 12, 20, 1))

    def look(x):
        variables = model.init(jax.random.key(0), x)
        return model.apply(variables, x, capture_intermediates=True)[1]

    seen = jax.eval_shape(look, x)["intermediates"]
    shapes = [seen[f"stage{i}_block1"]["__call__"][0].shape[1:3] for i in (1, 2, 3)]
    assert shapes == [(12, 20), (6, 10), (3, 5)]


def test_widths_and_blocks_must_agree():
    model = MultiTaskResNet(TASKS, widths=(4, 8), blocks=(1,))
    with pytest.raises(ValueError, match="one of each per stage"):
        init(model, jnp.zeros((1, 8, 8, 1)))


def test_reference_fits_the_scenes():
    data = digits_scenes(sizes={"train": 8})
    shapes = jax.eval_shape(lambda: init(reference(data), data.train.x))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert 500_000 < count < 1_200_000
    assert set(reference(data).tasks) == {"left", "right", "larger", "sum_parity"}
