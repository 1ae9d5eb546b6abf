"""PyTorch weights, as arrays by their names, in the variables of a Flax Linen module.

Nothing is guessed: every leaf of the module is looked up under one name, and whatever
is missing, left over or of another shape is an error that names it.
"""

import re
import zipfile
from collections.abc import Mapping
from os import PathLike
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cutjax.errors import DataError, MismatchError, suggest

IGNORED = "num_batches_tracked"

LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def read_npz(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz file; nothing pickled is read.

    Args:
        path: the file.

    Returns:
        `{name: array}`.

    Raises:
        DataError: there is no such file, or it is no whole npz.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # A bare npy opens as an array, which is no context.
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as npz: {error}") from error


def from_torch(
    model: nn.Module,
    arrays: Mapping[str, np.ndarray],
    x: np.ndarray | jax.ShapeDtypeStruct,
) -> dict[str, Any]:
    """The variables of a module of Conv, Dense and BatchNorm, from a `state_dict`.

    A submodule `layer1_0/conv1` has the prefix `layer1.0.conv1`; convolutions turn
    from `[out, in, h, w]` to `[h, w, in, out]`, dense layers from `[out, in]` to
    `[in, out]`. Entries named `num_batches_tracked` are left out.

    Args:
        model: called as `model(x)`; submodules named like those in PyTorch.
        arrays: `{name: array}`, from `read_npz`, say.
        x: images or their shape, only to know the shapes of the variables.

    Returns:
        Variables of `model`, float32.

    Raises:
        MismatchError: an array is missing, has another shape, or is not used.
        DataError: an array holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> arrays = {"linear.weight": np.ones((2, 3)), "linear.bias": np.zeros(2)}
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return nn.Dense(2, name="linear")(x)
        >>> variables = from_torch(Net(), arrays, np.ones((1, 3)))
        >>> variables["params"]["linear"]["kernel"].shape
        (3, 2)
    """
    shapes = _shapes(model, x)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    used = {_torch_name(path): leaf for path, leaf in leaves}
    unknown = [n for n in arrays if n not in used and not n.endswith(IGNORED)]
    if unknown:
        raise MismatchError(
            f"{unknown[0]!r} has no place in {type(model).__name__} "
            f"({len(unknown)} such); {suggest(unknown[0], used)}"
        )
    out = [_leaf(name, leaf, arrays) for name, leaf in used.items()]
    return jax.tree.unflatten(treedef, out)


def _shapes(model: nn.Module, x: Any) -> dict[str, Any]:
    shape = jax.ShapeDtypeStruct(x.shape, np.float32)
    return dict(jax.eval_shape(model.init, jax.random.key(0), shape))


def _torch_name(path: tuple[Any, ...]) -> str:
    collection, *modules, leaf = (key.key for key in path)
    if (collection, leaf) not in LEAVES:
        raise MismatchError(
            f"{collection}/{'/'.join(modules)}/{leaf} is no leaf of a Conv, Dense or "
            "BatchNorm; from_torch knows only these"
        )
    prefix = [re.sub(r"_(?=\d)", ".", module) for module in modules]
    return ".".join([*prefix, LEAVES[collection, leaf]])


def _leaf(name: str, leaf: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in arrays:
        raise MismatchError(f"{name!r} is missing; {suggest(name, arrays)}")
    found = np.asarray(arrays[name])
    # Output channels come first in PyTorch, last in Flax; input channels next to them.
    order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(found.ndim, tuple(range(found.ndim)))
    turned = found.transpose(order)
    if turned.shape != leaf.shape:
        back = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(leaf.shape), (0,))
        expected = tuple(leaf.shape[i] for i in back)
        raise MismatchError(f"{name!r} is {found.shape}, expected {expected}")
    values = np.ascontiguousarray(turned, np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{name!r} holds NaN or infinity")
    return values
