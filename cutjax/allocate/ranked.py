"""One share for every class of groups, ranked within: uniform, threshold, isomorphic.

Of each class the best `share` of the channels stay, whatever they cost; the largest
share that meets the budget is found by bisection. The classes make the method: every
group its own, all groups in one, or those of the same structure together.

A larger budget keeps a superset: the ranking does not depend on it, and the width
nearest to a larger count is no smaller. Groups may vanish only where all that may do so
can vanish at once, so that neither does this depend on the budget.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cutjax.allocate.base import Problem, Widths, problem
from cutjax.allocate.meter import Meter
from cutjax.budget import Budget
from cutjax.errors import BudgetError
from cutjax.feasible import closest
from cutjax.graph import Graph
from cutjax.isomorphic import classes


def uniform(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """The same share of every group: the largest that meets the budget.

    Args:
        graph: the graph.
        scores: not used for widths, except for their names.
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The width of every group that has scores.

    Raises:
        BudgetError: the budget cannot be met.
    """
    p = problem(graph, scores, tasks, budget)
    return _largest(p, scores, [(name,) for name in p.ladders])


def threshold(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """One threshold on the scores of all channels, whatever they cost.

    Args:
        graph: the graph.
        scores: per group, f32[n], comparable between groups.
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The width of every group that has scores.

    Raises:
        BudgetError: the budget cannot be met.

    Reference:
        Global ranking as in CUT (2504.09803) and DiSparse (CVPR 2022, section 3.2).
    """
    p = problem(graph, scores, tasks, budget)
    return _largest(p, scores, [tuple(p.ladders)])


def isomorphic(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """The same share of every class of isomorphic groups, ranked within the class.

    Args:
        graph: the graph.
        scores: per group, f32[n], comparable between groups of the same structure.
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The width of every group that has scores.

    Raises:
        BudgetError: the budget cannot be met.

    Reference:
        Fang et al., Isomorphic Pruning for Vision Models (ECCV 2024), section 3.3.
    """
    p = problem(graph, scores, tasks, budget)
    known = [tuple(n for n in names if n in p.ladders) for names in classes(graph)]
    return _largest(p, scores, known)


def _largest(
    p: Problem, scores: Mapping[str, np.ndarray], divided: Sequence[Sequence[str]]
) -> Widths:
    divided = [names for names in divided if names]
    ranks = [_ranks(scores, names) for names in divided]
    meter = Meter(p.graph, p.tasks, p.keys)

    def widths(share: float) -> Widths:
        found: Widths = {}
        for names, owners in zip(divided, ranks, strict=True):
            exact = share * len(owners)
            counts = np.bincount(owners[: round(exact)], minlength=len(names))
            # A group alone need not round twice.
            wanted = [exact] if len(names) == 1 else counts.tolist()
            for name, count in zip(names, wanted, strict=True):
                found[name] = nearest(p, name, count)
        return found

    def fits(share: float) -> bool:
        for name, width in widths(share).items():
            meter.set(name, width)
        pairs = zip(meter.amounts, p.limits, strict=True)
        return all(amount <= most for amount, most in pairs)

    low, high = 0.0, 1.0
    if fits(high):
        return widths(high)
    if not fits(low):
        raise BudgetError("the limits cannot be met together; see cutjax.feasible")
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return widths(low)


def _ranks(scores: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """For each channel of a class, best first, the group that it belongs to."""
    values = np.concatenate([np.asarray(scores[n], np.float64) for n in names])
    owners = np.repeat(np.arange(len(names)), [len(scores[n]) for n in names])
    return owners[np.argsort(-values, kind="stable")]


def nearest(p: Problem, name: str, count: float | int) -> int:
    """The allowed width nearest to a count; 0 only for what is safe to go."""
    rungs = p.ladders[name]
    if rungs[-1] == 0 and name not in p.safe:
        rungs = rungs[:-1]
    return closest(rungs, count)
