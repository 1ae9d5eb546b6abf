"""Marginal score per unit of cost, refined by exchanges."""

from collections.abc import Mapping

import numpy as np

from cutjax.allocate.base import Problem, Widths, problem
from cutjax.allocate.steps import Steps, down, up
from cutjax.budget import Budget
from cutjax.errors import BudgetError
from cutjax.feasible import Ladders, droppable
from cutjax.graph import Graph

EFFORT = 30_000
"""Prices that the refinement may look at: a quarter of a second."""

SHORT = 25
"""Of a ladder with fewer rungs, all are tried."""


def greedy(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """Always give up the channels that cost the least score per unit saved.

    A unit is a share of the full model, summed over the resources still above their
    limits. At the end what fits again is taken back, and groups are exchanged: one goes
    some rungs down or up, the others take back what then fits or give up what then is
    too much, as long as that wins score. Within 2 % of the exact optimum on small
    instances (tests/test_plan_optimum.py).

    Args:
        graph: the graph.
        scores: per group, f32[n]; the score of a width is the sum of its best channels.
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The width of every group that has scores.

    Raises:
        BudgetError: the budget cannot be met.
    """
    p = problem(graph, scores, tasks, budget)
    return exchanged(_start(p)).widths


def _start(p: Problem) -> Steps:
    steps = Steps(p)
    # What went first may stand in the way of what would have saved more.
    for safe in (p.safe, droppable(p.graph, p.ladders, p.tasks)):
        if down(steps):
            up(steps)
            return steps
        steps = Steps(p._replace(ladders=_without_zero(p, safe)))
    if not down(steps):
        missed = ", ".join(p.keys[i] for i in steps.above())
        raise BudgetError(
            f"nothing that is left to cut saves {missed}: the limits cannot be met "
            "together; cutjax.feasible(graph, budget) shows what each alone allows"
        )
    up(steps)
    return steps


def _without_zero(p: Problem, safe: frozenset[str]) -> Ladders:
    """Ladders on which only these groups may go whole."""
    return {
        name: rungs if name in safe else [w for w in rungs if w]
        for name, rungs in p.ladders.items()
    }


def exchanged(steps: Steps, effort: int = EFFORT) -> Steps:
    """Better steps by exchanging what one group gives up for what others take.

    Args:
        steps: steps that meet all limits; not changed.
        effort: how many prices may be looked at.

    Returns:
        Steps that keep no less score and meet all limits.
    """
    best, spent, better = steps, 0, True
    while better:
        better = False
        for stride, name in _moves(steps):
            for rung in (best.at[name] + stride, best.at[name] - stride):
                if spent >= effort:
                    return best
                trial = Steps(best.p, best)
                if _exchange(trial, name, rung) and _more(trial.score, best.score):
                    best, better = trial, True
                spent += trial.looked
    return best


def _moves(steps: Steps) -> list[tuple[int, str]]:
    """How far to move which group: near moves of all groups first."""
    strides = {
        name: range(1, n) if n <= SHORT else [4**i for i in range(8) if 4**i < n]
        for name, n in ((name, len(rungs)) for name, rungs in steps.p.ladders.items())
    }
    found = [(stride, name) for name, some in strides.items() for stride in some]
    return sorted(found, key=lambda move: move[0])


def _exchange(steps: Steps, name: str, rung: int) -> bool:
    """Move one group, and let the others make up for it; whether that fits."""
    if not steps.allowed(name, rung):
        return False
    steps.move(name, rung)
    if not down(steps, locked={name}):
        return False
    up(steps, locked={name})
    up(steps, locked=steps.at.keys() - {name})
    return True


def _more(a: float, b: float) -> bool:
    return a > b + 1e-12 * max(abs(a), abs(b))
