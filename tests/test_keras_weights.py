"""Keras weights in Flax: what is read, and what is refused."""

from __future__ import annotations

import sys

import h5py
import numpy as np
import pytest
from flax import linen as nn
from keras_scenes import CLASSES, STEM, WIDTHS, alone, arrays, written

from cutjax.errors import DataError, MismatchError
from cutjax.models.keras import from_keras, read_hdf5
from cutjax.models.mini_xception import MiniXception

MODEL = MiniXception("mood", CLASSES, STEM, WIDTHS)
X = np.zeros((1, 16, 16, 1), np.float32)


def test_weights_only_are_read_alike(tmp_path):
    found = read_hdf5(written(tmp_path / "weights.h5", arrays(), only=True))
    assert found.keys() == arrays().keys()
    for name, value in arrays().items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("times", [1, 2])
def test_depthwise_channels_keep_their_order(times):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Alone(name="layer")(x)

    class Alone(nn.Module):
        @nn.compact
        def __call__(self, x):
            n = x.shape[-1]
            conv = nn.Conv(
                n * times,
                (3, 3),
                feature_group_count=n,
                use_bias=False,
                name="depthwise",
            )
            return conv(x)

    x = np.random.default_rng(1).normal(size=(2, 5, 5, 3)).astype(np.float32)
    kernel = np.random.default_rng(2).normal(size=(3, 3, 3, times))
    variables = from_keras(Net(), {"layer/depthwise_kernel": kernel}, x)
    expected = alone(x, kernel, {"padding": "same", "strides": [1, 1]})
    np.testing.assert_allclose(Net().apply(variables, x), expected, rtol=1e-4)


def test_what_is_missing_or_left_over_is_named():
    name = "separable_conv2d_3/depthwise_kernel"
    rest = {key: value for key, value in arrays().items() if key != name}
    with pytest.raises(MismatchError, match=f"'{name}' is missing"):
        from_keras(MODEL, rest, X)
    more = {**arrays(), "conv2d_9/kernel": np.zeros((1, 1, 2, 2))}
    with pytest.raises(MismatchError, match="'conv2d_9/kernel' has no place"):
        from_keras(MODEL, more, X)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("conv2d_2/kernel", (3, 3, 3, 9), r"\(3, 3, 3, 3\)"),
        ("separable_conv2d_1/depthwise_kernel", (3, 3, 2, 1), r"\(3, 3, 3, 1\)"),
        ("separable_conv2d_1/depthwise_kernel", (2, 2, 3, 1), r"\(3, 3, 3, 1\)"),
        ("separable_conv2d_2/pointwise_kernel", (1, 1, 4, 6), r"\(1, 1, 4, 4\)"),
        ("batch_normalization_1/beta", (3, 1), r"\(3,\)"),
    ],
)
def test_another_shape_is_named_with_the_one_expected(name, shape, expected):
    with pytest.raises(MismatchError, match=f"'{name}' is .*, expected {expected}"):
        from_keras(MODEL, {**arrays(), name: np.zeros(shape)}, X)


def test_nan_and_other_layers_are_refused():
    broken = {**arrays(), "conv2d_1/kernel": np.full((3, 3, 1, 3), np.nan)}
    with pytest.raises(DataError, match="'conv2d_1/kernel' holds NaN"):
        from_keras(MODEL, broken, X)
    with pytest.raises(MismatchError, match="negative_slope is no leaf of"):
        from_keras(nn.PReLU(), {}, X)


def test_files_that_keras_did_not_write_are_refused(tmp_path):
    whole = written(tmp_path / "whole.h5", arrays())
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "part.h5").write_bytes(whole.read_bytes()[:-900])
    for name in ("text.h5", "part.h5"):
        with pytest.raises(DataError, match=f"{name} cannot be read as HDF5"):
            read_hdf5(tmp_path / name)
    with pytest.raises(DataError, match="no file"):
        read_hdf5(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layers"] = np.zeros(3)
    with pytest.raises(DataError, match=r"not one of Keras 1 or 2.*'layers'"):
        read_hdf5(tmp_path / "other.h5")
    with h5py.File(tmp_path / "lost.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense_1"]
    with pytest.raises(DataError, match=r"lost\.h5 cannot be read.*dense_1"):
        read_hdf5(tmp_path / "lost.h5")


def test_a_model_within_a_model_is_refused(tmp_path):
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        file.attrs["layer_names"] = [b"model_1"]
        group = file.create_group("model_1")
        names = ["a/kernel:0", "b/kernel:0"]
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name in names:
            group[name] = np.zeros(3)
    with pytest.raises(DataError, match="'model_1' holds 'model_1/kernel' twice"):
        read_hdf5(tmp_path / "nested.h5")


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path / "net.h5", arrays())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'cutjax\[keras\]'"):
        read_hdf5(path)
