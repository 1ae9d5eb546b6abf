"""Which leaves of a pytree mirror parameters: state, momenta, averages, new statistics.

A leaf mirrors a parameter when its key path ends with the parameter's path (or with
what is left of it below its collection, such as `params`), and the shapes agree.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax


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
