"""What of a batch a function is given."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cutjax.errors import DataError
from cutjax.given import said
from cutjax.placed import relaxed

Array = jax.Array | np.ndarray

IN_FRONT = (
    "every leaf of inputs and targets needs the examples in front, but for numbers and "
    "random keys that are the same for all: batch graphs, as jax.vmap(net, "
    "in_axes=(None, 0, 0)) takes them; split keys per example"
)
"""What saliency asks of the data, for the end of an error message."""


def batches_of(batches: Any) -> Iterable[Any]:
    """Batches as they are, if they are several.

    Raises:
        DataError: one array, whose rows would be taken for batches; or what holds none.
    """
    if isinstance(batches, Array | Mapping | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches is {said(batches)}; pass an iterable of batches, "
            "[(x, ...), ...] or [x, ...]: of one batch, [x]"
        )
    return batches


def inputs_of(batch: Any, traced: Sequence[str] = ()) -> tuple[Any, ...]:
    """The inputs of the function in a batch: `(x, ...)`, or x alone.

    Args:
        batch: `x` is the input, or a tuple of inputs; what follows is not looked at. A
            list is the same, unless it is what was traced.
        traced: `Graph.inputs`, where there is a graph: what the function takes.

    Raises:
        DataError: several inputs that are not held together as one tuple. What follows
            the first would be ignored. A list that may be `[x, ...]` or an input.

    Example:
        >>> inputs_of(("x", "label")), inputs_of((("ids", "mask"), "label"))
        (('x',), ('ids', 'mask'))
    """
    batch = _told(batch, traced)
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
    return between(inputs, 0, n)


def between(inputs: Any, start: int, stop: int) -> Any:
    """Some examples of a batch, end to end; what has no axis as it is."""
    return jax.tree.map(lambda a: a[start:stop] if np.ndim(a) else a, inputs)


def rows(inputs: Any) -> int:
    """The size of a batch by its first leaf with an axis, whatever the others are."""
    leaves = jax.tree.leaves(inputs)
    return next((np.shape(a)[0] for a in leaves if np.ndim(a)), 1)


def equal_inputs(
    batches: Iterable[Any], traced: Sequence[str] = (), *, empty: str
) -> list[tuple[Any, ...]]:
    """The inputs of all batches of the size that most examples come in.

    Args:
        batches: as in `inputs_of`.
        traced: see there.
        empty: what is said if there are none.

    Raises:
        DataError: no batches, none with examples, inputs that are not held together, or
            of one size but otherwise of different shapes.
    """
    found = [inputs_of(batch, traced) for batch in batches_of(batches)]
    if not found:
        raise DataError(f"{empty}; pass batches of (x, ...)")
    sizes = [rows(x) for x in found]
    size = max(sizes, key=lambda n: (n * sizes.count(n), n))
    if size == 0:
        raise DataError(f"{empty}: batches of no examples")
    equal = {i: x for i, x in enumerate(found) if sizes[i] == size}
    _check_alike(equal)
    return list(relaxed([*equal.values()]))


def in_parts(
    found: list[tuple[Any, ...]], take: Callable[[tuple[Any, ...]], Any]
) -> tuple[Any, list[tuple[Any, ...]]]:
    """Of a single batch parts, so that some can judge a fit to the others.

    Args:
        found: batches; if there are several, they stay as they are.
        take: called with the first; a function that takes no part of a batch gets all.

    Returns:
        What `take` made of the first, and the batches.

    Example:
        >>> first, parts = in_parts([(np.arange(11),)], lambda x: x[0])
        >>> [part.tolist() for (part,) in parts]
        [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    """
    n = rows(found[0])
    if len(found) > 1 or n < 2:
        return take(found[0]), found
    number = min(range(2, 9), key=lambda k: (n < k, n % k, abs(k - 4)))
    each = n // number
    parts = [between(found[0], i * each, (i + 1) * each) for i in range(number)]
    try:
        return take(parts[0]), parts
    except (TypeError, ValueError):
        return take(found[0]), found


def held_out(number: int) -> set[int]:
    """Which of some batches judge a fit to the others: data may be sorted.

    Every fourth; of two or three the last one.

    Example:
        >>> held_out(9), held_out(3), held_out(1)
        ({3, 7}, {2}, set())
    """
    return set(range(3, number, 4)) or {number - 1} - {0}


def _check_alike(found: Mapping[int, tuple[Any, ...]]) -> None:
    """Raise if batches of one size differ in anything else."""
    whole = {i: dict(jax.tree.leaves_with_path(x)) for i, x in found.items()}
    (start, like), *others = whole.items()
    for i, leaves in others:
        if leaves.keys() != like.keys():
            raise DataError(f"batch {i} has other inputs than batch {start}")
        for path, leaf in leaves.items():
            here, there = jax.typeof(leaf), jax.typeof(like[path])
            if (here.shape, here.dtype) != (there.shape, there.dtype):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise DataError(
                    f"input {name} is {here} in batch {i}, but {there} in batch "
                    f"{start}; all need one shape and type: pad them"
                )


def _told(batch: Any, traced: Sequence[str]) -> Any:
    """A batch as it is; for a list the tuple `(x, ...)` or `(input,)` it stands for.

    Raises:
        DataError: a list that may be either, by the number of arrays that were traced.
    """
    if not isinstance(batch, list):
        return batch
    count = len(traced)
    begins, is_all = (len(jax.tree.leaves(b)) == count for b in (batch[:1], batch))
    if not traced or begins == is_all:
        raise DataError(
            "a batch is a list, which may be [x, ...] or itself an input: pass "
            "tuples, (x, ...), as `map(tuple, batches)` does, or ([...],)"
        )
    return tuple(batch) if begins else (batch,)


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
            f"the function was traced with {len(traced)} arrays ({', '.join(traced)}), "
            f"of which a batch gives one: hold them together, as (({names}), ...) "
            f"instead of ({names}, ...), or as ((({names}),), ...) where they are one "
            "argument"
        )
