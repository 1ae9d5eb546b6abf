"""What of a batch a function is given."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.errors import DataError

Array = jax.Array | np.ndarray

IN_FRONT = (
    "every leaf of inputs and targets needs the examples in front, but for numbers and "
    "random keys that are the same for all: batch graphs, as jax.vmap(net, "
    "in_axes=(None, 0, 0)) takes them; split keys per example"
)
"""What saliency asks of the data, for the end of an error message."""


def inputs_of(batch: Any, traced: Sequence[str] = ()) -> tuple[Any, ...]:
    """The inputs of the function in a batch: `(x, ...)`, or x alone.

    Args:
        batch: `x` is the input, or a tuple of inputs; what follows is not looked at.
        traced: `Graph.inputs`, where there is a graph: what the function takes.

    Raises:
        DataError: several inputs that are not held together as one tuple. What follows
            the first would be ignored.

    Example:
        >>> inputs_of(("x", "label")), inputs_of((("ids", "mask"), "label"))
        (('x',), ('ids', 'mask'))
    """
    x = batch[0] if isinstance(batch, tuple) else batch
    found = x if isinstance(x, tuple) else (x,)
    if isinstance(batch, tuple) and len(jax.tree.leaves(found)) < len(traced):
        _check_held(batch, traced)
    return found


def examples(**parts: Any) -> int:
    """How many examples lie along the first axis of every leaf that has one.

    What has no axis, a number or a random key, is each example's.

    Args:
        **parts: pytrees, by what they are called in an error.

    Raises:
        DataError: leaves that disagree, or no leaf with an axis.
    """
    sizes: dict[int, str] = {}
    for path, leaf in jax.tree.leaves_with_path(parts):
        if np.ndim(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            sizes.setdefault(np.shape(leaf)[0], name)
    if len(sizes) == 1:
        return next(iter(sizes))
    found = ", ".join(f"{name} has {size}" for size, name in sizes.items())
    raise DataError(f"how many examples? {found or 'no leaf has an axis'}; {IN_FRONT}")


def first(inputs: Any, n: int) -> Any:
    """The first examples of a batch; what has no axis as it is."""
    return jax.tree.map(lambda a: a[:n] if np.ndim(a) else a, inputs)


def rows(inputs: Any) -> int:
    """The size of a batch by its first leaf with an axis, whatever the others are."""
    leaves = jax.tree.leaves(inputs)
    return next((np.shape(a)[0] for a in leaves if np.ndim(a)), 1)


def equal_inputs(
    batches: Iterable[Any], traced: Sequence[str] = (), *, empty: str
) -> list[tuple[Any, ...]]:
    """The inputs of all batches as large as the first; smaller ones are left out.

    Args:
        batches: as in `inputs_of`.
        traced: see there.
        empty: what is said if there are none.

    Raises:
        DataError: no batches, or inputs that are not held together.
    """
    found = [inputs_of(batch, traced) for batch in batches]
    if not found:
        raise DataError(f"{empty}; pass batches of (x, ...)")
    size = rows(found[0])
    return [x for x in found if rows(x) == size]


def _rank(text: str) -> tuple[str, int]:
    """Of `float32[40, 3]`: the type and the number of axes."""
    kind, _, shape = text.partition("[")
    return kind, shape.count(",") + (shape != "]")


def _check_held(batch: tuple[Any, ...], traced: Sequence[str]) -> None:
    """Raise if a batch begins with all that was traced, side by side."""
    kinds = [(str(a.dtype), a.ndim) for a in batch if isinstance(a, Array)]
    wanted = [_rank(text) for text in traced]
    if kinds[: len(traced)] == wanted and len(kinds) == len(batch):
        names = ", ".join("abcdefgh"[: len(traced)])
        raise DataError(
            f"the function was traced with {len(traced)} inputs ({', '.join(traced)}), "
            f"of which a batch gives one: hold them together, as (({names}), ...) "
            f"instead of ({names}, ...)"
        )
