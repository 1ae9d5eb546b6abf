"""How alike two networks are: sums of products over axes that hold one group each.

Weights and correlations of activations are terms of one form. A term is linear in the
order of each group that it holds once; where one holds a group twice (the kernel of a
recurrent layer, a Gram matrix), it is quadratic in its order.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from cutjax.merge.blocks import Label
from cutjax.merge.permute import Permutation

Square = Float[np.ndarray, "n n"]
Rows = tuple[Float[np.ndarray, "n _"], Float[np.ndarray, "n _"]]


@runtime_checkable
class Objective(Protocol):
    """What to maximise over the orders of the second network's channels.

    `sizes`: of the groups that it says something of. A permutation leaves out the
    groups whose order is not known yet.
    """

    sizes: dict[str, int]

    def known(self, group: str, orders: Permutation) -> float:
        """How much can be told of a group when these orders are known."""
        ...

    def guess(self, group: str, orders: Permutation) -> Square:
        """Similarities of the channels of a group, whatever the unknown orders are."""
        ...

    def similarity(self, group: str, orders: Permutation) -> Square:
        """Similarities of its channels, the orders of all groups being known."""
        ...

    def value(self, group: str, orders: Permutation) -> float:
        """The sum over the terms that hold the group."""
        ...

    def neighbours(self, group: str) -> set[str]:
        """The groups whose similarities depend on the order of this one; itself too,
        where a term holds it twice."""
        ...

    def score(self, orders: Permutation) -> dict[str, float]:
        """By group, how alike the networks are where it is, at most one."""
        ...


class Term(NamedTuple):
    """`sum(a * b)`, the axes of `b` reordered; `labels` name them."""

    a: Shaped[np.ndarray, "..."]
    b: Shaped[np.ndarray, "..."]
    labels: tuple[Label, ...]

    def axes_of(self, group: str) -> list[int]:
        """The axes that hold the group."""
        return [i for i, label in enumerate(self.labels) if label == group]

    def twice(self, group: str) -> bool:
        """Whether the group is held more than once."""
        return self.labels.count(group) > 1

    def moved(self, orders: Permutation, but: int | None = None) -> Any:
        """`b` with its axes reordered, all or all but one."""
        b = self.b
        for i, label in enumerate(self.labels):
            if label is not None and label in orders and i != but:
                b = np.take(b, orders[label], i)
        return b

    def value(self, orders: Permutation) -> float:
        """The value of the term."""
        return dot(self.a, self.moved(orders))


def dot(a: Shaped[np.ndarray, "..."], b: Shaped[np.ndarray, "..."]) -> float:
    """The sum of products of two arrays."""
    return float(np.vdot(a, b).real)


def rows_of(a: Shaped[np.ndarray, "..."], axis: int) -> Shaped[np.ndarray, "n m"]:
    """An array as a matrix with one of its axes in front."""
    return np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1)


def products(pairs: Sequence[Rows], n: int) -> Square:
    """Inner products of the rows of matrices side by side, `n` rows each.

    Args:
        pairs: matrices of the first network and of the second.
        n: rows of each.
    """
    if not pairs:
        return np.zeros((n, n))
    a, b = (np.concatenate(side, 1) for side in zip(*pairs, strict=True))
    return (a @ b.T).astype(np.float64)


def rows(term: Term, axis: int, orders: Permutation) -> Rows:
    """The slices of `a` and `b` along an axis."""
    return rows_of(term.a, axis), rows_of(term.moved(orders, axis), axis)


def sorted_rows(term: Term, axis: int, orders: Permutation, weight: float) -> Rows:
    """The same, times a weight, sorted along the axes whose order is not known.

    Sorting forgets the order: slices that are reordered copies become equal.
    """
    unknown = [i for i in unknown_axes(term, orders) if i != axis]
    n = term.a.shape[axis]
    a, b = (
        sorted_along(x, (axis,), unknown).reshape(n, -1)
        for x in (term.a, term.moved(orders, axis))
    )
    return weight * a, b


def unknown_axes(term: Term, orders: Permutation) -> list[int]:
    """The axes of a group whose order is not known."""
    found = enumerate(term.labels)
    return [i for i, label in found if label is not None and label not in orders]


def sorted_along(
    x: Shaped[np.ndarray, "..."], front: Sequence[int], unknown: Sequence[int]
) -> Shaped[np.ndarray, "..."]:
    """An array with some axes in front and the values sorted along others, together."""
    rest = [i for i in range(x.ndim) if i not in (*front, *unknown)]
    shape = [x.shape[i] for i in front]
    known = int(np.prod([x.shape[i] for i in rest], dtype=int))
    moved = x.transpose(*front, *rest, *unknown).reshape(*shape, known, -1)
    return np.sort(moved, axis=-1) if unknown else moved


def pair_products(
    term: Term, group: str, inner: str, orders: Permutation
) -> Float[np.ndarray, "n a n b"]:
    """Inner products of slices along two axes, other unknown orders forgotten."""
    front = [term.labels.index(group), term.labels.index(inner)]
    unknown = [i for i in unknown_axes(term, orders) if i not in front]
    n, m = (term.a.shape[i] for i in front)
    a, b = (
        sorted_along(x, front, unknown).reshape(n * m, -1)
        for x in (term.a, term.moved(orders))
    )
    return (a @ b.T).reshape(n, m, n, m).astype(np.float64)


def total(values: Iterable[Square], n: int) -> Square:
    """The sum of matrices, in double precision."""
    out = np.zeros((n, n))
    for value in values:
        out += value
    return out


def identity(sizes: dict[str, int]) -> dict[str, Int[np.ndarray, "_"]]:
    """The order that changes nothing."""
    return {name: np.arange(n) for name, n in sizes.items()}
