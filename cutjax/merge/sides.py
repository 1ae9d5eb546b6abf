"""What is to be maximised for one network, given the orders of some others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.merge.correlated import Correlated, Cross, crossed
from cutjax.merge.listen import Unit
from cutjax.merge.moments import Moments
from cutjax.merge.permute import Permutation
from cutjax.merge.scaled import added, normalised
from cutjax.merge.structure import movable
from cutjax.merge.terms import Objective
from cutjax.merge.weights import Weights
from cutjax.mirror import named_leaves

Side = Callable[[Sequence[str], str, Mapping[str, Permutation]], Objective]
"""`side(others, name, orders)`: how alike the network `name` is to the others' sum."""


def by_weights(
    graph: Graph,
    networks: Mapping[str, Any],
    free: frozenset[str],
    asked: frozenset[str],
) -> Side:
    """Likeness of parameters.

    Args:
        graph: of all networks.
        networks: parameters by name.
        free: the groups that may be reordered.
        asked: those of them to be matched.

    Raises:
        DataError: a parameter that they are matched by is NaN or infinite.
    """
    held = {name: named_leaves(net) for name, net in networks.items()}
    for name, found in held.items():
        _check_finite(graph, found, name, asked)
    leaves = {name: normalised(found) for name, found in held.items()}

    def side(
        others: Sequence[str], name: str, orders: Mapping[str, Permutation]
    ) -> Objective:
        total = added(graph, {other: leaves[other] for other in others}, orders)
        return Weights(graph, total, leaves[name], free, asked)

    return side


def _check_finite(
    graph: Graph, leaves: Mapping[str, Any], name: str, asked: frozenset[str]
) -> None:
    for path, axes in graph.axes.items():
        leaf = leaves[path]
        if any(movable(axis, asked) for axis in axes) and _is_broken(leaf):
            raise DataError(f"{path!r} of network {name!r} is NaN or infinite")


def _is_broken(leaf: Any) -> bool:
    floats = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return floats and not np.isfinite(np.asarray(leaf)).all()


def by_activations(
    graph: Graph,
    found: Mapping[Unit, Moments],
    names: Sequence[str],
    free: frozenset[str],
) -> Side:
    """Correlation of activations.

    Args:
        graph: of all networks.
        found: moments over all networks, in the order of `names`.
        names: of the networks.
        free: the groups that may be reordered.
    """
    every = crossed(found, graph, len(names))
    at = {name: i for i, name in enumerate(names)}

    def side(
        others: Sequence[str], name: str, orders: Mapping[str, Permutation]
    ) -> Objective:
        cross = {}
        for unit, c in every.items():
            each = [_rows(c[at[o], at[name]], unit, orders[o]) for o in others]
            cross[unit] = np.mean(each, axis=0)
        return Correlated(graph, cross, free)

    return side


def _rows(cross: Cross, unit: Unit, orders: Permutation) -> Cross:
    """The channels of the first network in another order."""
    for i, group in enumerate(unit):
        if group in orders:
            cross = np.take(cross, orders[group], i)
    return cross
