"""Arrays in memory as a data set: split by group where rows belong together."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from cutjax.data.base import SPLITS, Dataset, Split, check_dataset, check_split, take

FRACTIONS = {"train": 0.7, "calibration": 0.05, "validation": 0.1, "test": 0.15}


def from_arrays(
    x: Float[np.ndarray, "n h w c"],
    y: dict[str, np.ndarray],
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    groups: Sequence[object] | np.ndarray | None = None,
    tasks: Mapping[str, int] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Splits labelled arrays at random, once, into four disjoint parts.

    Args:
        x: images.
        y: labels by task, each `[n]` integers (or `[n, ...]`); floats are numbers to
            predict.
        seed: decides the split.
        fractions: share of each of the four splits; must sum to one.
        groups: one value per row. Rows of one group (crops of a photo, say) share
            light and camera, so a group is never divided between splits.
        tasks: number of classes of each task, 0 for a regression; default: 0 for
            floats, else the largest label plus one.
        name: name of the data set.

    Returns:
        The data set.

    Raises:
        ValueError: fractions or groups that do not fit, or a split left empty.

    Example:
        >>> x, photo = np.zeros((100, 2, 2, 1), np.float32), np.arange(100) // 5
        >>> data = from_arrays(x, {"card": np.arange(100) % 3}, groups=photo)
        >>> len(data.train.x), len(data.test.x), data.tasks
        (70, 15, {'card': 3})
    """
    split = Split(x, y)
    n = check_split(split, name)
    if groups is not None and len(groups) != n:
        raise ValueError(f"{name}: {len(groups)} groups for {n} rows; give one per row")
    rows = split_rows(np.arange(n) if groups is None else groups, fractions, seed)
    classes = tasks or {task: _classes(labels) for task, labels in y.items()}
    parts = {part: take(split, chosen) for part, chosen in rows.items()}
    return check_dataset({part: parts[part] for part in SPLITS}, classes, name)


def _classes(labels: np.ndarray) -> int:
    return 0 if labels.dtype.kind == "f" else int(labels.max()) + 1


def split_rows(
    groups: Sequence[object] | np.ndarray, fractions: Mapping[str, float], seed: int
) -> dict[str, Int[np.ndarray, " m"]]:
    """Rows of each split, whole groups at a time, in their original order.

    Args:
        groups: group of each row.
        fractions: share of the rows per split, met to within one group.
        seed: decides the order in which groups are dealt out.

    Returns:
        Disjoint row indices by the names of `fractions`, together all rows.

    Raises:
        ValueError: fractions that are not positive or do not sum to one.
    """
    shares = np.array(list(fractions.values()))
    if not len(shares) or (shares <= 0).any() or not np.isclose(shares.sum(), 1):
        raise ValueError(
            f"split fractions {dict(fractions)} must be positive and sum to one, as in "
            f"{FRACTIONS}"
        )
    values, member = np.unique(np.asarray(groups), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(values))
    sizes = np.bincount(member, minlength=len(values))[order]
    # A group goes where its middle row falls.
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()
    split = np.empty(len(values), int)
    split[order] = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right")
    owner: Bool[np.ndarray, "splits n"] = (
        split[member] == np.arange(len(shares))[:, None]
    )
    return {name: np.flatnonzero(owner[i]) for i, name in enumerate(fractions)}
