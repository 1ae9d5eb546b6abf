"""Examples are rows: of one array, or of all arrays of a pytree alike.

A tuple is what a function is given as several inputs, `apply(params, *x)`; whatever
else is one, `apply(params, x)`.
"""

from typing import Any

import jax
import numpy as np

from cutjax.errors import DataError


def inputs_in(x: Any) -> tuple[Any, ...]:
    """The inputs of a function, one after the other.

    Example:
        >>> inputs_in(("ids", "mask")), inputs_in({"ids": 1, "mask": 2})
        (('ids', 'mask'), ({'ids': 1, 'mask': 2},))
    """
    return x if isinstance(x, tuple) else (x,)


def count(x: Any, what: str) -> int:
    """How many examples there are.

    Args:
        x: one array, or a pytree of arrays with as many rows.
        what: what takes it, for the error.

    Raises:
        DataError: no arrays, or arrays of other lengths.
    """
    named = jax.tree_util.tree_leaves_with_path(x)
    if not named:
        raise DataError(f"{what}: x is a {type(x).__name__} that holds no array")
    sizes: dict[int, str] = {}
    for path, leaf in named:
        name = f"x{jax.tree_util.keystr(path)}"
        if not getattr(leaf, "shape", ()):
            raise DataError(
                f"{what}: {name} is a {type(leaf).__name__} without rows; every leaf "
                "of x is an array with the examples in front: np.asarray(...) of "
                "lists; numbers that are the same for all go into the function"
            )
        sizes.setdefault(leaf.shape[0], name)
    if len(sizes) > 1:
        found = ", ".join(f"{n} in {name}" for n, name in sizes.items())
        raise DataError(
            f"{what}: x holds examples of several numbers: {found}; every example has "
            "all inputs: repeat the rows of those with fewer, leaf[np.arange(n) % "
            "len(leaf)], or leave out some of the others"
        )
    return next(iter(sizes))


def rows(x: Any, which: Any) -> Any:
    """Some of the examples, as indices, a mask or a slice."""
    return jax.tree.map(lambda leaf: leaf[which], x)


def padded(x: Any, size: int) -> Any:
    """The same examples with the first one repeated up to `size`."""
    n = count(x, "padded")
    which = np.zeros(size, int)
    which[:n] = np.arange(n)
    return x if n == size else rows(x, which)


def shapes(x: Any, size: int) -> Any:
    """The shapes of so many examples like these."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), x
    )
