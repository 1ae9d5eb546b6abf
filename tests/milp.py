"""The exact optimum of a small budget problem: scipy's MILP, or every width tried.

The score is what the best channels of each width sum to, the cost that of `cost_of`,
which is asked point by point: nothing of the planner's own polynomial is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import optimize, sparse

from cutjax.budget import Budget
from cutjax.cost import Cost, cost_of


def gains(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per group, the score that the best w channels keep, at index w."""
    return {
        name: np.concatenate([[0], np.cumsum(np.sort(s.astype(np.float64))[::-1])])
        for name, s in scores.items()
    }


def kept_score(scores: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> float:
    return float(sum(gain[widths[name]] for name, gain in gains(scores).items()))


def limits_of(graph: Any, budget: Budget) -> dict[str, float]:
    return budget.limits(graph.cost()._asdict())


def by_trying(graph: Any, scores: Mapping[str, np.ndarray], budget: Budget) -> float:
    """The best of all widths."""
    names, limits = list(scores), limits_of(graph, budget)
    best = 0.0
    ladders = (budget.widths(graph[name].size, name) for name in names)
    for combination in itertools.product(*ladders):
        widths = dict(zip(names, combination, strict=True))
        cost = cost_of(graph, widths, graph.tasks)
        if all(getattr(cost, r) <= most for r, most in limits.items()):
            best = max(best, kept_score(scores, widths))
    return best


def by_milp(graph: Any, scores: Mapping[str, np.ndarray], budget: Budget) -> float:
    """The optimum with a binary variable per group and width.

    The cost is a sum over groups and over pairs of groups; a product of two binaries is
    a variable whose sums over either width are the other binary.
    """
    limits, gain = limits_of(graph, budget), gains(scores)
    nodes = [
        (name, w) for name in scores for w in budget.widths(graph[name].size, name)
    ]
    at = {node: i for i, node in enumerate(nodes)}
    pairs = [
        (a, b)
        for a, b in itertools.combinations(nodes, 2)
        if a[0] != b[0] and _meet(graph, a[0], b[0], tuple(scores))
    ]
    n = len(nodes)
    score = np.zeros(n + len(pairs))
    score[:n] = [gain[name][w] for name, w in nodes]
    rows, low, high = [], [], []

    def state(row: dict[int, float], least: float, most: float) -> None:
        rows.append(row)
        low.append(least)
        high.append(most)

    for name in scores:
        state({i: 1.0 for (g, _), i in at.items() if g == name}, 1, 1)
    sums: dict[tuple[Any, str], dict[int, float]] = {}
    for j, (a, b) in enumerate(pairs):
        sums.setdefault((a, b[0]), {})[n + j] = 1.0
        sums.setdefault((b, a[0]), {})[n + j] = 1.0
    for (node, _), row in sums.items():
        state({**row, at[node]: -1.0}, 0, 0)
    zero = dict.fromkeys(scores, 0)
    none = _cost(graph, zero)
    single = [_cost(graph, {**zero, name: w}) for name, w in nodes]
    double = [_cost(graph, {**zero, a[0]: a[1], b[0]: b[1]}) for a, b in pairs]
    for resource, most in limits.items():
        base = getattr(none, resource)
        one = [getattr(c, resource) - base for c in single]
        row = dict(enumerate(map(float, one)))
        for j, (a, b) in enumerate(pairs):
            both = getattr(double[j], resource) - base - one[at[a]] - one[at[b]]
            row[n + j] = float(both)
        state(row, -np.inf, most - base)
    entries = [(i, j, v) for i, row in enumerate(rows) for j, v in row.items()]
    i, j, v = zip(*entries, strict=True)
    matrix = sparse.coo_matrix((v, (i, j)), shape=(len(rows), len(score)))
    integral = np.concatenate([np.ones(n), np.zeros(len(pairs))])
    found = optimize.milp(
        -score,
        constraints=optimize.LinearConstraint(matrix.tocsr(), low, high),
        integrality=integral,
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 1e-4},
    )
    return -found.fun if found.success else 0.0


def _cost(graph: Any, widths: Mapping[str, int]) -> Cost:
    return cost_of(graph, widths, graph.tasks)


def _meet(graph: Any, a: str, b: str, names: tuple[str, ...]) -> bool:
    """Whether two groups stand in one product of the cost."""
    zero = dict.fromkeys(names, 0)
    two = (_cost(graph, {**zero, **dict.fromkeys(some, 1)}) for some in _subsets(a, b))
    none, first, second, both = two
    return any(
        both[i] - first[i] - second[i] + none[i]
        for i in range(4)
        if none[i] is not None
    )


def _subsets(a: str, b: str) -> list[tuple[str, ...]]:
    return [(), (a,), (b,), (a, b)]
