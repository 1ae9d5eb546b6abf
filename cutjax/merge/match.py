"""Matching one network with another, or each of several with all others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cutjax.graph import Graph
from cutjax.merge.ascend import MOST_SWEEPS, ascend, started
from cutjax.merge.assign import Assign, hungarian
from cutjax.merge.idle import AmongIdle
from cutjax.merge.permute import Permutation, compose, inverse
from cutjax.merge.sides import Side
from cutjax.merge.terms import Objective, identity

Orders = dict[str, Int[np.ndarray, "_"]]


class Alignment(NamedTuple):
    """How alike two networks were and are, by group matched, at most one.

    By weights, the cosine of what both have of a group, each parameter divided by its
    root mean square; by activations, the mean correlation of matched channels. `sweeps`
    of coordinate ascent were made. `soft`: where asked for, the last soft assignments.
    """

    before: dict[str, float]
    after: dict[str, float]
    sweeps: int
    soft: dict[str, Float[np.ndarray, "_ _"]]


def matched(
    graph: Graph,
    objectives: Sequence[Objective],
    orders: Permutation,
    assign: Assign,
    seed: int,
) -> tuple[Orders, Alignment]:
    """A permutation of all free groups.

    Args:
        graph: of the networks.
        objectives: what to maximise, one after the other.
        orders: where to start; groups that are not named are matched first.
        assign: how a group is matched.
        seed: of the order in which groups are visited.
    """
    found = {**orders}
    info = Alignment({}, {}, 0, {})
    for objective in objectives:
        how = hungarian if isinstance(objective, AmongIdle) else assign
        step = ascend(objective, started(objective, found), assign=how, seed=seed)
        found = step.orders
        unmoved = {**found, **identity(objective.sizes)}
        info = Alignment(
            {**info.before, **objective.score(unmoved)},
            {**info.after, **objective.score(found)},
            info.sweeps + step.sweeps,
            {**info.soft, **step.soft},
        )
    return {**identity({g.name: g.size for g in graph.free}), **found}, info


def in_turn(
    graph: Graph,
    sides: Sequence[Side],
    orders: dict[str, Orders],
    reference: str,
    assign: Assign,
    seed: int,
) -> tuple[dict[str, Orders], dict[str, Alignment]]:
    """Each network to the sum of the others, until none changes.

    Args:
        graph: of all networks.
        sides: what to maximise.
        orders: where to start, by network.
        reference: the network that stays as it is.
        assign: how a group is matched.
        seed: of the order in which groups are visited.
    """
    infos: dict[str, Alignment] = {}
    orders, changed, rounds = dict(orders), True, 0
    while changed and rounds < MOST_SWEEPS:
        changed, rounds = False, rounds + 1
        for name, old in list(orders.items()):
            others = [other for other in orders if other != name]
            objectives = [side(others, name, orders) for side in sides]
            orders[name], info = matched(graph, objectives, old, assign, seed)
            changed |= any((orders[name][g] != old[g]).any() for g in old)
            before = infos[name].before if name in infos else info.before
            infos[name] = info._replace(before=before)
    back = inverse(orders[reference])
    return {name: compose(found, back) for name, found in orders.items()}, infos
