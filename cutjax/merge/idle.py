"""Channels that never move on the data, told apart by weights.

Activations say nothing of them: they correlate with none, so any order of them is as
good as another. Only they change places here, among themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from cutjax.graph import Graph
from cutjax.merge.listen import Unit
from cutjax.merge.moments import Moments, correlation
from cutjax.merge.permute import Permutation
from cutjax.merge.sides import Side, by_weights
from cutjax.merge.terms import Objective, Square

Idle = Mapping[str, Bool[np.ndarray, "t n"]]
"""By group, of each network, the channels that never move."""


def idle_channels(found: Mapping[Unit, Moments], graph: Graph, networks: int) -> Idle:
    """The channels that never move wherever they are read.

    Args:
        found: moments over all networks.
        graph: of the networks.
        networks: how many.
    """
    out: dict[str, np.ndarray] = {}
    for unit, m in found.items():
        still = np.diag(correlation(m)) == 0
        still = still.reshape(networks, *(graph[name].size for name in unit))
        for i, name in enumerate(unit):
            others = tuple(a + 1 for a in range(len(unit)) if a != i)
            out[name] = out.get(name, True) & still.all(others)
    return out


def among_idle(
    graph: Graph, networks: Mapping[str, Any], free: frozenset[str], idle: Idle
) -> list[Side]:
    """Likeness of parameters, of channels that never move in either network, if any.

    Args:
        graph: of all networks.
        networks: parameters by name.
        free: the groups that may be reordered.
        idle: in the order of `networks`.
    """
    asked = free & {n for n, still in idle.items() if (still.sum(1) > 1).sum() > 1}
    if not asked:
        return []
    at = {name: i for i, name in enumerate(networks)}
    weights = by_weights(graph, networks, free, asked)

    def side(
        others: Sequence[str], name: str, orders: Mapping[str, Permutation]
    ) -> Objective:
        rows = {
            group: np.all([idle[group][at[o]][orders[o][group]] for o in others], 0)
            for group in asked
        }
        columns = {group: idle[group][at[name]] for group in rows}
        return AmongIdle(weights(others, name, orders), rows, columns)

    return [side]


class AmongIdle:
    """An objective by which only idle channels change places, see `terms.Objective`.

    Args:
        weights: the objective.
        rows: by group, the channels of the first network that never move.
        columns: of the second network.
    """

    def __init__(
        self,
        weights: Objective,
        rows: Mapping[str, Bool[np.ndarray, "n"]],
        columns: Mapping[str, Bool[np.ndarray, "n"]],
    ) -> None:
        self.weights, self.rows, self.columns = weights, rows, columns
        self.sizes = weights.sizes

    def known(self, group: str, orders: Permutation) -> float:
        """As by weights."""
        return self.weights.known(group, orders)

    def guess(self, group: str, orders: Permutation) -> Square:
        """The orders are known: what activations found."""
        return self.similarity(group, orders)

    def similarity(self, group: str, orders: Permutation) -> Square:
        """By weights where both are idle; what else is matched stays as it is."""
        order, by = orders[group], self.weights.similarity(group, orders)
        pairs = self.rows[group] & self.columns[group][order]
        free = np.zeros_like(by, dtype=bool)
        free[np.ix_(pairs, np.isin(np.arange(order.size), order[pairs]))] = True
        out = np.where(free, by, -1.0 - 2 * np.abs(by).sum())
        out[np.flatnonzero(~pairs), order[~pairs]] = 0
        return out

    def value(self, group: str, orders: Permutation) -> float:
        """As by weights."""
        return self.weights.value(group, orders)

    def neighbours(self, group: str) -> set[str]:
        """As by weights."""
        return self.weights.neighbours(group)

    def score(self, orders: Permutation) -> dict[str, float]:
        """None: how alike networks are, the activations tell."""
        return {}
