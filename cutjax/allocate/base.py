"""What all allocations start from: limits, ladders of widths, scores of widths."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cutjax.budget import Budget
from cutjax.errors import BudgetError
from cutjax.feasible import (
    Feasibility,
    Ladders,
    answers,
    droppable,
    feasible,
    ladders_of,
)
from cutjax.graph import Graph

Widths = dict[str, int]
Allocate = Callable[[Graph, Mapping[str, np.ndarray], tuple[str, ...], Budget], Widths]


class Problem(NamedTuple):
    """A budget in numbers.

    `ladders`: the widths that each group may have, falling; 0 where it may go. `gain`:
    per group, the score of its best w channels at index w. `limits` and `full`: what
    may be left of what there is, in the order of `keys`. `safe`: groups that may all go
    at once.
    """

    graph: Graph
    tasks: tuple[str, ...]
    keys: tuple[str, ...]
    limits: list[float]
    full: list[int]
    ladders: Ladders
    gain: dict[str, list[float]]
    safe: frozenset[str]

    def score(self, widths: Mapping[str, int]) -> float:
        """The score that these widths keep."""
        return sum((gain[widths[name]] for name, gain in self.gain.items()), 0.0)

    def may_go(self, gone: frozenset[str]) -> bool:
        """Whether these groups may all go: each task still answers to the inputs."""
        return gone <= self.safe or answers(self.graph, gone, self.tasks)


def problem(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Problem:
    """A budget in numbers, found feasible.

    Args:
        graph: the graph.
        scores: per group that may be cut, f32[n].
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The problem.

    Raises:
        BudgetError: a limit that cannot be met, with the least that can.
    """
    names = [g.name for g in graph.free if g.name in scores]
    table = feasible(graph, budget, tasks, names=names)
    check_least(table, graph, budget, len(names))
    ladders = ladders_of(graph, names, tasks, budget)
    gain = {n: _gain(scores[n]) for n in names}
    worst_first = sorted(names, key=lambda n: gain[n][-1])
    limits = {k: r.asked for k, r in table.rows.items() if r.asked is not None}
    return Problem(
        graph=graph,
        tasks=tasks,
        keys=tuple(limits),
        limits=list(limits.values()),
        full=[table.rows[k].full for k in limits],
        ladders=ladders,
        gain=gain,
        safe=droppable(graph, ladders, tasks, worst_first),
    )


def _gain(scores: np.ndarray) -> list[float]:
    best = -np.sort(-np.asarray(scores, np.float64))
    return [0.0, *np.cumsum(best).tolist()]


def check_least(table: Feasibility, graph: Graph, budget: Budget, names: int) -> None:
    """Check that the narrowest model allowed meets each limit.

    Raises:
        BudgetError: says the least that can be reached.
    """
    for key, row in table.rows.items():
        if not row.met:
            share = row.least / row.full
            resource, _, scope = key.rstrip("]").partition("[")
            value = math.ceil(share * 1000) / 1000
            call = f"{{{scope!r}: {value}}}" if scope else value
            raise BudgetError(
                f"{key} <= {row.asked:,.0f} cannot be met: the least is {row.least:,} "
                f"({share:.3g} of {row.full:,}) with floor={budget.floor}, "
                f"multiple={budget.multiple}, max_ratio={budget.max_ratio} and "
                f"{len(graph.groups) - names} pinned groups; "
                f"try Budget({resource}={call})\n{table}"
            )
