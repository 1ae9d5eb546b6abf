"""Which leaves of a pytree mirror parameters: state, momenta, averages, new statistics.

A leaf mirrors a parameter when its key path ends with the parameter's path (or with
what is left of it below its collection, such as `params`), and the shapes agree. So
does each leaf of a result that is built like the parameters. An output per example may
look like that by chance, at one size of the batch: it has the axis of the examples
where the parameter has another.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from cutjax.unify import Var, leaf_vars

Dims = tuple[Var, ...]


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as `params/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path name, in order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def namesake(name: str, shapes: Mapping[str, Any]) -> str | None:
    """The parameter whose path the path of another pytree's leaf ends with, or None.

    Paths of one key, or of numbers only, are too common to mean anything.
    """
    parts, below = name.split("/"), _below(tuple(shapes))
    for start in range(len(parts) - 1):
        tail = "/".join(parts[start:])
        if tail.replace("/", "").isdigit():
            return None
        if tail in shapes:
            return tail
        if below.get(tail) is not None:
            return below[tail]
    return None


@functools.lru_cache(maxsize=8)
def _below(paths: tuple[str, ...]) -> dict[str, str | None]:
    """What is left of each path below its collection; None where two agree."""
    found: dict[str, str | None] = {}
    for path in paths:
        tail = path.partition("/")[2]
        found[tail] = None if tail in found else path
    return found


def mirrored(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, Any]
) -> str | None:
    """The parameter that the leaf `name` of another pytree mirrors, or None.

    Args:
        name: path name of the leaf.
        shape: its shape.
        shapes: path name of each parameter -> its shape.

    Example:
        >>> mirrored("0/mu/conv/kernel", (3, 4), {"params/conv/kernel": (3, 4)})
        'params/conv/kernel'
    """
    found = namesake(name, shapes)
    return found if found is not None and shapes[found] == shape else None


def states(
    out: Any,
    like: Any,
    shapes: Mapping[str, tuple[int, ...]],
    by_example: Callable[[int, str], bool],
) -> list[str | None]:
    """Which parameter each leaf of a result mirrors, or None, in order.

    Args:
        out: the result, of arrays or their shapes.
        like: the structure of the parameters.
        shapes: path name of each parameter -> its shape, in order.
        by_example: of the number of a leaf and a parameter, whether the leaf has an
            axis of examples where the parameter has none.
    """

    def twin(node: Any) -> bool:
        return jax.tree.structure(node) == like and [
            leaf.shape for leaf in jax.tree.leaves(node)
        ] == [*shapes.values()]

    # One array, or numbers only, are built like too much.
    firm = not jax.tree_util.treedef_is_leaf(like) and any(
        math.prod(shape) > 1 for shape in shapes.values()
    )
    found: list[str | None] = []
    is_leaf = twin if firm else None
    for path, node in jax.tree_util.tree_flatten_with_path(out, is_leaf=is_leaf)[0]:
        pairs = list(enumerate(shapes, len(found)))
        if firm and twin(node) and not any(by_example(*pair) for pair in pairs):
            found += shapes
            continue
        for inner, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
            name = mirrored(path_name((*path, *inner)), leaf.shape, shapes)
            chance = name is not None and by_example(len(found), name)
            found.append(None if chance else name)
    return found


def examples_axis(inputs: Sequence[Dims]) -> Callable[[Dims, Sequence[Dims]], bool]:
    """Whether an array has the axis of the examples where a parameter has another.

    Args:
        inputs: the axes of what the function is given, the examples in front.

    Returns:
        A function of the axes of an array, and those of the parameter, once or more.
    """
    every = {leaf for dims in inputs for d in dims[:1] for leaf in leaf_vars(d)}

    def has(dims: Dims, params: Sequence[Dims]) -> bool:
        for axis, d in enumerate(dims):
            own = {leaf for other in params for leaf in leaf_vars(other[axis])}
            # Axes of size 1 are never tied, so that they tell nothing.
            if any(v.size > 1 and v in every - own for v in leaf_vars(d)):
                return True
        return False

    return has
