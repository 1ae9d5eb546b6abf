"""The greedy way down alone: a larger budget keeps a superset."""

from collections.abc import Mapping

import numpy as np

from cutjax.allocate.base import Widths, problem
from cutjax.allocate.steps import Steps, down
from cutjax.budget import Budget
from cutjax.errors import BudgetError
from cutjax.graph import Graph


def nested(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """Give up the channels that cost the least score per unit saved; take none back.

    A unit is a share of the full model, summed over all limited resources. The order in
    which channels go then depends on which resources are limited, but not on how much
    of them is left: a budget decides where on this one way to stop. So a budget that is
    larger in every limit keeps a superset of the channels, which `greedy` gives up for
    a better use of what is left.

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
    steps = Steps(p)
    if not down(steps, fixed_unit=True):
        # The way down may have dropped other groups than those that save the most.
        raise BudgetError(
            "the way down ends before all limits are met together; "
            "try allocate=cutjax.greedy, or a larger budget"
        )
    return steps.widths
