"""How alike two networks are by their weights.

Parameters of different shapes (heads of other classes) say nothing.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cutjax.graph import Graph
from cutjax.merge.assign import affordable, best_within
from cutjax.merge.blocks import blocks
from cutjax.merge.permute import Permutation
from cutjax.merge.terms import (
    Square,
    Term,
    dot,
    pair_products,
    products,
    rows,
    sorted_rows,
    total,
)

FORGOTTEN = 0.01
"""What values whose order had to be forgotten weigh beside those in known places: they
tell apart what else looks alike, and rarely which of two networks' channels agree."""

MOST_PAIRS = 1 << 26


class Weights:
    """The objective `sum(a * b)` over all parameters, see `terms.Objective`.

    Args:
        graph: of both networks.
        a: parameters of the first, by path, see `scaled.normalised`.
        b: of the second, whose channels are to be reordered.
        free: the groups that may be.
        asked: those of them to be matched; the orders of the others are given.
    """

    def __init__(
        self,
        graph: Graph,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        free: frozenset[str],
        asked: frozenset[str],
    ) -> None:
        self.sizes = {g.name: g.size for g in graph.groups if g.name in asked}
        self.terms = [
            Term(block.of(one), block.of(other), block.labels)
            for path, axes in graph.axes.items()
            if path in a and path in b and a[path].shape == b[path].shape
            for one, other in zip(_real(a[path]), _real(b[path]), strict=True)
            for block in blocks(axes, free)
            if set(block.labels) != {None}
        ]
        self.of: dict[str, list[Term]] = defaultdict(list)
        for term in self.terms:
            for name in dict.fromkeys(term.labels):
                if name is not None:
                    self.of[name].append(term)
        self.inner = {name: self._inner(name) for name in self.sizes}

    def _inner(self, group: str) -> list[str]:
        """The groups that sit nowhere without this one: the width of heads.

        Where two sit only together the one that comes first in the graph is outside.
        """
        at = {name: i for i, name in enumerate(self.sizes)}
        return [
            name
            for name in self.sizes
            if name != group
            and self.of[name]
            and self._within(name, group)
            and (at[group] < at[name] or not self._within(group, name))
        ]

    def _within(self, name: str, group: str) -> bool:
        return all(group in term.labels for term in self.of[name])

    def known(self, group: str, orders: Permutation) -> float:
        """Weights per channel whose place is known, or found within the channel."""
        known = {None, group, *orders, *self.inner[group]}
        terms = (term for term in self.of[group] if not term.twice(group))
        found = sum(term.a.size for term in terms if known >= set(term.labels))
        return found / self.sizes[group]

    def guess(self, group: str, orders: Permutation) -> Square:
        """Of weights in known places; those elsewhere are sorted, and weigh little."""
        found, rest, left = [], [], list(self.of[group])
        for inner in self.inner[group]:
            mine = [t for t in left if inner in t.labels]
            if inner in orders or not self._paired(group, inner, mine):
                continue
            both = {group, inner}
            pairs = [
                _weight(term, both, orders) * pair_products(term, group, inner, orders)
                for term in mine
            ]
            found.append(best_within(np.sum(pairs, axis=0)))
            left = [t for t in left if inner not in t.labels]
        known = {n: o for n, o in orders.items() if n != group}
        for term in left:
            weight = _weight(term, {group}, known)
            for axis in term.axes_of(group):
                rest.append(sorted_rows(term, axis, known, weight))
        n = self.sizes[group]
        return total([products(rest, n), *found], n)

    def _paired(self, group: str, inner: str, terms: list[Term]) -> bool:
        n, m = self.sizes[group], self.sizes[inner]
        once = all(not t.twice(group) and not t.twice(inner) for t in terms)
        return bool(terms) and once and affordable(n) and (n * m) ** 2 <= MOST_PAIRS

    def similarity(self, group: str, orders: Permutation) -> Square:
        """Inner products of the slices of all parameters."""
        found = [
            rows(term, axis, orders)
            for term in self.of[group]
            for axis in term.axes_of(group)
        ]
        return products(found, self.sizes[group])

    def value(self, group: str, orders: Permutation) -> float:
        """The sum over the parameters that hold the group."""
        return float(sum(term.value(orders) for term in self.of[group]))

    def neighbours(self, group: str) -> set[str]:
        """The groups to be matched with which it shares a parameter."""
        return {
            label
            for term in self.of[group]
            for label in term.labels
            if label in self.sizes and (label != group or term.twice(group))
        }

    def score(self, orders: Permutation) -> dict[str, float]:
        """By group, the cosine of what both networks have of it."""
        found: dict[str, list[float]] = {name: [0.0, 0.0] for name in self.sizes}
        for term in self.terms:
            both = np.sqrt(dot(term.a, term.a) * dot(term.b, term.b))
            value = term.value(orders)
            for name in self.sizes.keys() & {*term.labels}:
                found[name][0] += value
                found[name][1] += both
        return {name: float(v / w) if w else 0.0 for name, (v, w) in found.items()}


def _real(x: Any) -> list[Shaped[np.ndarray, "..."]]:
    return [x.real, x.imag] if np.iscomplexobj(x) else [x]


def _weight(term: Term, seen: set[str], orders: Permutation) -> float:
    """How much a term counts while some orders are not known."""
    twice = any(term.twice(name) for name in seen)
    return FORGOTTEN if twice or set(term.labels) - {None, *seen, *orders} else 1.0
