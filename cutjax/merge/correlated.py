"""How alike two networks are by what their channels do: see `terms.Objective`."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from cutjax.graph import Graph
from cutjax.merge.assign import best_within
from cutjax.merge.listen import Unit
from cutjax.merge.moments import Moments, correlation
from cutjax.merge.permute import Permutation
from cutjax.merge.terms import Square, total

Cross = Float[np.ndarray, "..."]
"""Correlations of one network's channels with another's: [n, n]; of a grid
[n, m, n, m]."""


def crossed(
    found: Mapping[Unit, Moments], graph: Graph, networks: int
) -> dict[Unit, Float[np.ndarray, "t t ..."]]:
    """Correlations by pair of networks: per unit [t, t, n, n] or [t, t, n, m, n, m]."""
    out = {}
    for unit, m in found.items():
        sizes = [graph[name].size for name in unit]
        grid = correlation(m).reshape(networks, *sizes, networks, *sizes)
        out[unit] = np.moveaxis(grid, 1 + len(unit), 1)
    return out


class Correlated:
    """The sum of correlations of matched channels.

    Args:
        graph: of both networks.
        cross: by unit, rows of the first network, columns of the second.
        free: the groups that may be reordered.
    """

    def __init__(
        self, graph: Graph, cross: Mapping[Unit, Cross], free: frozenset[str]
    ) -> None:
        known = {n for unit in cross for n in unit}
        names = [g.name for g in graph.groups if g.name in free & known]
        self.sizes = {name: graph[name].size for name in names}
        self.order = {g.name: i for i, g in enumerate(graph.groups)}
        self.alone = {u[0]: c for u, c in cross.items() if len(u) == 1}
        self.grids: dict[str, list[tuple[str, Cross]]] = defaultdict(list)
        for unit, c in cross.items():
            if len(unit) == 2:
                self.grids[unit[0]].append((unit[1], c))
                self.grids[unit[1]].append((unit[0], c.transpose(1, 0, 3, 2)))

    def known(self, group: str, orders: Permutation) -> float:
        """How often it is read alone, or with a group whose order is known.

        Of two groups that only meet each other the first in the graph goes first.
        """
        others = [name for name, _ in self.grids[group]]
        known = sum(n in orders or n not in self.sizes for n in others)
        return (group in self.alone) + known + 1 / (2 + self.order[group])

    def guess(self, group: str, orders: Permutation) -> Square:
        """Where another group's order is not known, channels are compared at best."""
        found = [self._grid(c, name, orders) for name, c in self.grids[group]]
        own = [self.alone[group]] if group in self.alone else []
        return total([*own, *found], self.sizes[group])

    def _grid(self, c: Cross, inner: str, orders: Permutation) -> Square:
        if inner in self.sizes and inner not in orders:
            return best_within(c)
        at = np.arange(c.shape[1])
        # numpy puts the axis that two indices share in front.
        return c[:, at, :, orders.get(inner, at)].sum(0)

    def similarity(self, group: str, orders: Permutation) -> Square:
        """Correlations, summed over what is read alone and in grids."""
        return self.guess(group, orders)

    def value(self, group: str, orders: Permutation) -> float:
        """The sum of correlations of the group's matched channels."""
        at = np.arange(self.sizes[group])
        return float(self.similarity(group, orders)[at, orders[group]].sum())

    def neighbours(self, group: str) -> set[str]:
        """The groups that it meets in a grid."""
        return {name for name, _ in self.grids[group] if name in self.sizes}

    def score(self, orders: Permutation) -> dict[str, float]:
        """By group, the mean correlation of matched channels."""
        out = {}
        for name, n in self.sizes.items():
            number = n * (name in self.alone)
            number += sum(n * c.shape[1] for _, c in self.grids[name])
            out[name] = float(self.value(name, orders) / max(number, 1))
        return out
