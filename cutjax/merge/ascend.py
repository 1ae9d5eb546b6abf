"""From the known to the unknown, then coordinate ascent: one group after another."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cutjax.merge.assign import Assign, Assigned, hungarian
from cutjax.merge.permute import Permutation
from cutjax.merge.terms import Objective

MOST_SWEEPS = 100


class Ascent(NamedTuple):
    """Orders that no change of one group improves, after so many sweeps."""

    orders: dict[str, Int[np.ndarray, "_"]]
    sweeps: int
    soft: dict[str, Float[np.ndarray, "_ _"]]


def started(
    objective: Objective, orders: Permutation
) -> dict[str, Int[np.ndarray, "_"]]:
    """Match every group once, that of which most is known first.

    What is compared does not depend on the orders that are not known yet, so that a
    reordered copy is found whole.

    Args:
        objective: what to maximise.
        orders: the orders that are known; those of other groups are found.
    """
    found = {name: np.asarray(order) for name, order in orders.items()}
    while left := [name for name in objective.sizes if name not in found]:
        group = max(left, key=lambda name: objective.known(name, found))
        found[group] = hungarian(objective.guess(group, found)).order
    return found


def ascend(
    objective: Objective,
    orders: Permutation,
    *,
    assign: Assign = hungarian,
    seed: int = 0,
) -> Ascent:
    """Coordinate ascent: match a group given all others, until nothing rises.

    Args:
        objective: what to maximise.
        orders: where to start.
        assign: how a group is matched.
        seed: of the order in which groups are visited.

    Returns:
        The orders; a step that does not raise the sum is not taken.
    """
    rng, sweeps = np.random.default_rng(seed), 0
    found = {name: np.asarray(order) for name, order in orders.items()}
    soft: dict[str, np.ndarray] = {}
    stale = set(objective.sizes)
    while stale and sweeps < MOST_SWEEPS:
        sweeps += 1
        for group in rng.permutation([*objective.sizes]).tolist():
            if group not in stale:
                continue
            stale.remove(group)
            step = _step(objective, group, found, assign)
            if step.soft is not None:
                soft[group] = step.soft
            if not np.array_equal(step.order, found[group]):
                found[group] = step.order
                stale |= objective.neighbours(group)
    return Ascent(found, sweeps, soft)


def _step(
    objective: Objective, group: str, orders: Permutation, assign: Assign
) -> Assigned:
    similarity = objective.similarity(group, orders)
    step, old = assign(similarity), orders[group]
    at = np.arange(old.size)
    before, after = similarity[at, old].sum(), similarity[at, step.order].sum()
    if group in objective.neighbours(group):
        # Where it is held twice, similarities are a slope: the step may be too long.
        before = objective.value(group, orders)
        after = objective.value(group, {**orders, group: step.order})
    # Rounding must not make two equal orders take turns.
    rises = after - before > 1e-6 * np.abs(similarity[at, old]).sum()
    return step if rises else step._replace(order=old)
