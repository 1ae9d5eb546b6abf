"""The one shape of data: four splits that never mix, labels by task.

Pruning code reads `calibration`, chooses on `validation`, and `test` is read once, for
the figure that is reported. Everything downstream consumes an iterable of
`(x, {task: labels})`, whatever it came from.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cutjax.data.examples import count, rows as rows_of
from cutjax.errors import DataError

SPLITS = ("train", "calibration", "validation", "test")


class Split(NamedTuple):
    """Examples and their labels, row by row.

    Attributes:
        x: images, `[n, height, width, channels]`, float32; or any other array, or
            pytree of arrays, with `n` rows. A tuple is several inputs of a function.
        y: labels by task, each with `n` rows: `[n]` class indices, or `[n, ...]` where
            a task has one label per position. Integers are classes, floats are numbers
            to predict.
    """

    x: Any
    y: dict[str, np.ndarray]


class Dataset(NamedTuple):
    """Four disjoint splits of one data set.

    Attributes:
        train: what the parent is trained on.
        calibration: what scores and moments are measured on.
        validation: what choices (best epoch, ratios, dampings) are made on.
        test: what is reported, and nothing else.
        tasks: number of classes of each task; 0 for a regression of one number.
        name: what the data are, for tables and file names.
    """

    train: Split
    calibration: Split
    validation: Split
    test: Split
    tasks: dict[str, int]
    name: str


Batch = tuple[np.ndarray, dict[str, np.ndarray]]


def batches(
    split: Split, size: int, *, seed: int | None = None, drop_last: bool = False
) -> Iterator[Batch]:
    """The split as a stream of minibatches.

    Args:
        split: the examples.
        size: examples per batch; the last batch holds what is left over.
        seed: None keeps the order of the split; an integer shuffles it, always alike.
        drop_last: leave out a last batch that is not full.

    Returns:
        An iterator of `(x, {task: labels})`.

    Raises:
        ValueError: the split is empty or ragged, `size` is not positive, or `drop_last`
            would leave nothing. Raised by the call, not by the first `next`.

    Example:
        >>> split = Split(np.zeros((5, 2, 2, 1), np.float32), {"digit": np.arange(5)})
        >>> [y["digit"].tolist() for _, y in batches(split, 2)]
        [[0, 1], [2, 3], [4]]
    """
    n = check_split(split)
    if size < 1:
        raise ValueError(f"batches: size is {size}, but a batch needs at least 1 row")
    if drop_last and size > n:
        raise ValueError(
            f"batches: drop_last with size {size} leaves nothing of {n} examples; use "
            f"size <= {n} or drop_last=False"
        )
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    stop = n - n % size if drop_last else n
    return (take(split, order[i : i + size]) for i in range(0, stop, size))


def take(split: Split, rows: Any) -> Split:
    """The examples `rows` of a split: indices, a mask or a slice."""
    return Split(rows_of(split.x, rows), {t: y[rows] for t, y in split.y.items()})


def as_split(data: Any, what: str) -> Split:
    """A split, also where it comes as a pair.

    Args:
        data: anything with `x` and `y` as in `Split`, or `(x, {task: labels})`.
        what: the function that takes it, for the error.

    Raises:
        DataError: something else, or inputs without rows.
    """
    if hasattr(data, "x") and hasattr(data, "y"):
        _ = count(data.x, what)
        return data
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        _ = count(data[0], what)
        return Split(data[0], dict(data[1]))
    raise DataError(
        f"{what} takes a cutjax.data.Split, not a {type(data).__name__}: "
        "cutjax.data.Split(x, {task: labels}); without labels Split(x, {})"
    )


def check_split(split: Split, name: str = "split") -> int:
    """Number of examples, after checking that there are any and that labels fit.

    Args:
        split: anything with `x` and `y` as in `Split`.
        name: what to call it in the error.

    Returns:
        How many examples the split holds.

    Raises:
        ValueError: no examples, no tasks, a task with another number of rows, or
            inputs without rows.
    """
    n = count(split.x, name)
    if n == 0:
        raise ValueError(f"{name} is empty: it holds 0 examples")
    if not split.y:
        raise ValueError(
            f"{name} has no labels: y is an empty dict, expected {{task: labels}}"
        )
    wrong = {task: len(y) for task, y in split.y.items() if len(y) != n}
    if wrong:
        raise ValueError(
            f"{name} has {n} examples but labels of other lengths: {wrong}"
        )
    return n


def describe(dataset: Dataset) -> str:
    """A few lines for a person: sizes of the splits and classes of the tasks."""
    shape = " + ".join(
        "x".join(str(d) for d in leaf.shape[1:])
        for leaf in jax.tree.leaves(dataset.train.x)
    )
    sizes = ", ".join(f"{s} {count(getattr(dataset, s).x, s):,}" for s in SPLITS)
    tasks = ", ".join(f"{t} ({n or 'a number'})" for t, n in dataset.tasks.items())
    return f"{dataset.name}: {shape} images\n  {sizes}\n  tasks: {tasks}"


def check_dataset(
    parts: Mapping[str, Split], tasks: Mapping[str, int], name: str
) -> Dataset:
    """Assembles a `Dataset` from checked parts.

    Args:
        parts: the four splits by name.
        tasks: number of classes of each task; 0 for a regression of one number.
        name: name of the data set.

    Returns:
        The data set.

    Raises:
        ValueError: a split is empty or ragged, a label is not in `0 .. classes - 1`,
            or a regression has labels that are no floats or not finite.
    """
    for split, part in parts.items():
        check_split(part, f"{name}.{split}")
        for task, classes in tasks.items():
            check = _check_classes if classes else _check_numbers
            check(part.y[task], classes, f"{name}.{split}: labels of task {task!r}")
    return Dataset(**parts, tasks=dict(tasks), name=name)


def _check_classes(labels: np.ndarray, classes: int, what: str) -> None:
    if labels.dtype.kind not in "biu":
        raise ValueError(
            f"{what} are {labels.dtype}, but classes are integers: use "
            "y.astype(np.int32), or 0 classes for a regression of one number"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{what} run from {low} to {high}, but {classes} classes need 0 to "
            f"{classes - 1}"
        )


def _check_numbers(labels: np.ndarray, _: int, what: str) -> None:
    if labels.dtype.kind != "f":
        raise ValueError(
            f"{what} are {labels.dtype}, but 0 classes mean a regression of one "
            "number, whose labels are floats: use y.astype(np.float32)"
        )
    bad = int((~np.isfinite(labels)).sum())
    if bad:
        raise ValueError(f"{what} hold {bad} that are NaN or infinite; leave them out")
