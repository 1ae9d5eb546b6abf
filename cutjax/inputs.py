"""What of a batch a function is given."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.errors import DataError

Array = jax.Array | np.ndarray


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
    size = len(jax.tree.leaves(found[0])[0])
    return [x for x in found if len(jax.tree.leaves(x)[0]) == size]


def _check_held(batch: tuple[Any, ...], traced: Sequence[str]) -> None:
    """Raise if a batch begins with all that was traced, side by side."""
    kinds = [(str(a.dtype), a.ndim) for a in batch if isinstance(a, Array)]
    wanted = [(text.split("[")[0], 1 + text.count(",")) for text in traced]
    if kinds[: len(traced)] == wanted and len(kinds) == len(batch):
        names = ", ".join("abcdefgh"[: len(traced)])
        raise DataError(
            f"the function was traced with {len(traced)} inputs ({', '.join(traced)}), "
            f"of which a batch gives one: hold them together, as (({names}), ...) "
            f"instead of ({names}, ...)"
        )
