"""Keras weights, from an HDF5 file, in the variables of a Flax Linen module.

Nothing is guessed: every leaf of the module is looked up under one name, and whatever
is missing, left over or of another shape is an error that names it. Keras itself is not
needed, h5py is.
"""

from collections.abc import Container, Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cutjax.errors import DataError, MismatchError, suggest

LEAVES = {
    ("params", "kernel"): "kernel",
    ("params", "bias"): "bias",
    ("params", "scale"): "gamma",
    ("batch_stats", "mean"): "moving_mean",
    ("batch_stats", "var"): "moving_variance",
}
PARTS = {"depthwise": "depthwise_kernel", "pointwise": "pointwise_kernel"}
"""The kernels of a separable convolution, by the names of the two Flax has for it."""


def read_hdf5(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The weights in an HDF5 file that Keras 1 or 2 wrote: a model, or weights only.

    Args:
        path: the file.

    Returns:
        `{"layer/weight": array}`, such as `conv2d_1/kernel`.

    Raises:
        ImportError: h5py is not installed.
        DataError: there is no such file, it is no HDF5, Keras did not write it, or it
            holds a model within a model.
    """
    h5py = _h5py()
    if not Path(path).is_file():
        raise DataError(f"no file {path}")
    try:
        with h5py.File(path, "r") as file:
            return _arrays(file.get("model_weights", file), path)
    # A damaged file raises any of these, wherever it is damaged.
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} cannot be read as HDF5: {error}") from error


def from_keras(
    model: nn.Module,
    arrays: Mapping[str, np.ndarray],
    x: np.ndarray | jax.ShapeDtypeStruct,
) -> dict[str, Any]:
    """The variables of a module of Conv, Dense and BatchNorm, from Keras weights.

    Submodules are named like the layers. A separable convolution is a submodule with
    two convolutions inside, `depthwise` and `pointwise`.

    Args:
        model: called as `model(x)`.
        arrays: `{"layer/weight": array}`, from `read_hdf5`, say.
        x: images or their shape, only to know the shapes of the variables.

    Returns:
        Variables of `model`, float32.

    Raises:
        MismatchError: a weight is missing, has another shape, or is not used.
        DataError: a weight holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> arrays = {"out/kernel": np.ones((3, 2)), "out/bias": np.zeros(2)}
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return nn.Dense(2, name="out")(x)
        >>> variables = from_keras(Net(), arrays, np.ones((1, 3)))
        >>> variables["params"]["out"]["kernel"].shape
        (3, 2)
    """
    shape = jax.ShapeDtypeStruct(x.shape, np.float32)
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), shape))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    paths = {tuple(key.key for key in path): leaf for path, leaf in leaves}
    names = {_keras_name(path, paths): leaf for path, leaf in paths.items()}
    unknown = [name for name in arrays if name not in names]
    if unknown:
        raise MismatchError(
            f"{unknown[0]!r} has no place in {type(model).__name__} "
            f"({len(unknown)} such); {suggest(unknown[0], names)}"
        )
    found = [_leaf(name, leaf, arrays) for name, leaf in names.items()]
    return jax.tree.unflatten(treedef, found)


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "read_hdf5 needs h5py: pip install 'cutjax[keras]', or pip install h5py"
        ) from error
    return h5py


def _arrays(group: Any, path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """By layer and weight. A weight has a longer name in the file, `a/b/kernel:0`."""
    if "layer_names" not in group.attrs:
        raise DataError(
            f"{path} is an HDF5 file, but not one of Keras 1 or 2: no `layer_names`; "
            f"it holds {', '.join(map(repr, list(group)[:5])) or 'nothing'}"
        )
    out: dict[str, np.ndarray] = {}
    for layer in map(_text, group.attrs["layer_names"]):
        for weight in map(_text, group[layer].attrs["weight_names"]):
            name = f"{layer}/{weight.split('/')[-1].split(':')[0]}"
            if name in out:
                raise DataError(
                    f"{path}: layer {layer!r} holds {name!r} twice, so it is a model "
                    "of its own; save that one alone"
                )
            out[name] = np.asarray(group[layer][weight])
    return out


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _keras_name(path: tuple[str, ...], paths: Container[tuple[str, ...]]) -> str:
    collection, *modules, leaf = path
    if (collection, leaf) not in LEAVES:
        raise MismatchError(
            f"{'/'.join(path)} is no leaf of a Conv, Dense or BatchNorm; from_keras "
            "knows only these"
        )
    name = LEAVES[collection, leaf]
    if name == "bias" and ("batch_stats", *modules, "mean") in paths:
        name = "beta"
    if name == "kernel" and modules[-1] in PARTS:
        name = PARTS[modules.pop()]
    return "/".join([*modules, name])


def _leaf(name: str, leaf: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in arrays:
        raise MismatchError(f"{name!r} is missing; {suggest(name, arrays)}")
    values, expected = np.asarray(arrays[name], np.float32), leaf.shape
    if name.endswith("/depthwise_kernel"):
        # Keras has [h, w, in, times], Flax [h, w, 1, in times], in the same order.
        expected = (*expected[:2], expected[3], 1)
        if values.shape[:2] == expected[:2] and values.size == leaf.size:
            values, expected = values.reshape(leaf.shape), leaf.shape
    if values.shape != expected:
        raise MismatchError(f"{name!r} is {values.shape}, expected {expected}")
    if not np.isfinite(values).all():
        raise DataError(f"{name!r} holds NaN or infinity")
    return values
