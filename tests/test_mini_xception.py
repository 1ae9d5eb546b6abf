"""Mini-XCEPTION with weights of Keras, small and published, against numpy."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from keras_scenes import CLASSES, STEM, WIDTHS, arrays, by_hand, written

import cutjax as cj
from cutjax.models import eval_apply, init, train_apply
from cutjax.models.keras import from_keras, read_hdf5
from cutjax.models.mini_xception import MiniXception
from cutjax.recover import recalibrate

REAL = Path(__file__).parents[2] / "shared/data/weights/face_classification"
MODEL = MiniXception("mood", CLASSES, STEM, WIDTHS)
X = np.random.default_rng(5).normal(size=(2, 21, 24, 1)).astype(np.float32)


@pytest.mark.parametrize("size", [(21, 24), (20, 17)])
def test_a_file_becomes_the_network_that_it_describes(tmp_path, size):
    """Even and odd sizes: with a stride of 2 "same" pads another side."""
    path, x = written(tmp_path / "net.hdf5", arrays()), X[:, : size[0], : size[1]]
    variables = from_keras(MODEL, read_hdf5(path), x)
    found = MODEL.apply(variables, x)["mood"]
    np.testing.assert_allclose(found, by_hand(path, x), rtol=1e-4, atol=1e-5)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(dict(shapes))


@pytest.mark.parametrize(
    "name",
    [
        "batch_normalization_3/beta",  # of the skip, which Keras counted first
        "batch_normalization_5/moving_variance",
        "separable_conv2d_2/depthwise_kernel",
        "conv2d_4/kernel",
    ],
)
def test_saboteur_the_oracle_sees_every_kind_of_weight(tmp_path, name):
    changed = {**arrays(), name: arrays(seed=1)[name]}
    a, b = (written(tmp_path / f"{i}.h5", w) for i, w in enumerate((arrays(), changed)))
    assert np.abs(by_hand(a, X) - by_hand(b, X)).max() > 1e-3


def test_a_cut_is_the_masked_network():
    apply, variables = eval_apply(MODEL), from_keras(MODEL, arrays(), X)
    graph = cj.trace(apply, variables, X)
    # A residual block has two widths: within, and at its end with the skip's.
    assert [group.size for group in graph.free] == [STEM, STEM, 4, 4, 6, 6]
    draw = np.random.default_rng(3)
    keep = {g.name: draw.permutation(g.size) >= g.size // 3 for g in graph.free}
    small_apply, small = cj.cut(apply, variables, graph, keep)
    masked = apply(cj.mask(variables, graph, keep), X)["mood"]
    found = small_apply(small, X)["mood"]
    np.testing.assert_allclose(found, masked, rtol=1e-4, atol=1e-5)


def test_statistics_can_be_taken_anew():
    variables = from_keras(MODEL, arrays(), X)
    new = recalibrate(train_apply(MODEL), variables, [X], progress=False)
    outputs, _ = train_apply(MODEL)(variables, X)
    found = MODEL.apply(new, X)["mood"]
    np.testing.assert_allclose(found, outputs["mood"], rtol=1e-3, atol=1e-4)


def test_networks_of_other_tasks_are_merged():
    """Heads differ, trunks do not: one network of both tasks, here of equal trunks."""
    other = MiniXception("gender", 2, STEM, WIDTHS)
    mine, its = from_keras(MODEL, arrays(), X), init(other, X)
    head = f"conv2d_{len(WIDTHS) + 3}"
    its = {**mine, "params": {**mine["params"], head: its["params"][head]}}
    networks = {
        model.task: cj.merge.Network(
            eval_apply(model), params, cj.trace(eval_apply(model), params, X)
        )
        for model, params in ((MODEL, mine), (other, its))
    }
    merged = cj.merge.average(networks, {}, X)
    found = merged.apply(merged.params, X)
    for name, net in networks.items():
        expected = net.apply(net.params, X)[name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


# The published weights. --------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason=f"no folder {REAL}")
@pytest.mark.parametrize(
    ("task", "classes", "file"),
    [
        ("emotion", 7, "fer2013_mini_XCEPTION.102-0.66.hdf5"),
        ("gender", 2, "gender_mini_XCEPTION.21-0.95.hdf5"),
    ],
)
def test_published_weights_are_what_they_were(task, classes, file):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 1)).astype(np.float32)
    model = MiniXception(task, classes)
    variables = from_keras(model, read_hdf5(REAL / file), x)
    # The paper's "approximately 60,000 parameters", statistics and all.
    sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
    assert sum(sizes) == {"emotion": 58_423, "gender": 52_658}[task]
    found = model.apply(variables, x)[task]
    np.testing.assert_allclose(found, by_hand(REAL / file, x), rtol=1e-3, atol=1e-4)
