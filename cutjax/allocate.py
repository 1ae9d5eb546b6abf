"""How many channels each group keeps: the widths that make the most of a budget."""

import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cutjax.budget import Budget
from cutjax.cost import cost_of
from cutjax.dims import count, leaves
from cutjax.errors import BudgetError
from cutjax.graph import Graph

Widths = dict[str, int]
Allocate = Callable[[Graph, Mapping[str, np.ndarray], tuple[str, ...], Budget], Widths]


class Meter:
    """The cost polynomial at widths that change one group at a time.

    Each resource is a sum of products of axes; a change of one group recomputes only
    the products in which it stands.
    """

    def __init__(
        self, graph: Graph, tasks: tuple[str, ...], resources: tuple[str, ...]
    ):
        self.widths = {g.name: g.size for g in graph.groups}
        self._products: list[tuple[tuple, dict[str, int]]] = []
        self._of: dict[str, list[int]] = {}
        chosen = set(tasks)
        for path, axes in graph.axes.items():
            if chosen & set(graph.reach[path]):
                size = graph.shapes[path].dtype.itemsize
                self._add(axes, {"params": 1, "bytes": size}, resources)
        for term in graph.terms:
            if chosen & set(term.tasks):
                self._add(term.axes, {"flops": 2 * term.times}, resources)
        self._values = [self._product(i) for i in range(len(self._products))]
        self.totals = dict.fromkeys(resources, 0)
        for (_, factors), value in zip(self._products, self._values, strict=True):
            for resource, factor in factors.items():
                self.totals[resource] += factor * value

    def _add(self, axes: tuple, factors: dict[str, int], resources) -> None:
        factors = {r: f for r, f in factors.items() if r in resources}
        names = {leaf.name for axis in axes for leaf in leaves(axis)}
        if factors:
            for name in names:
                self._of.setdefault(name, []).append(len(self._products))
            self._products.append((axes, factors))

    def _product(self, i: int) -> int:
        return math.prod(count(axis, self.widths) for axis in self._products[i][0])

    def saving(self, name: str, width: int) -> dict[str, int]:
        """What each resource loses if the group falls to this width."""
        before, self.widths[name] = self.widths[name], width
        saved = dict.fromkeys(self.totals, 0)
        for i in self._of.get(name, ()):
            less = self._values[i] - self._product(i)
            for resource, factor in self._products[i][1].items():
                saved[resource] += factor * less
        self.widths[name] = before
        return saved

    def set(self, name: str, width: int) -> None:
        """Give a group another width."""
        for resource, less in self.saving(name, width).items():
            self.totals[resource] -= less
        self.widths[name] = width
        for i in self._of.get(name, ()):
            self._values[i] = self._product(i)


def check_least(
    graph: Graph, tasks: tuple[str, ...], budget: Budget, limits: Mapping[str, float]
) -> None:
    """Check that the narrowest model allowed meets the limits.

    Raises:
        BudgetError: says the least that can be reached.
    """
    least = cost_of(graph, {g.name: budget.least(g.size) for g in graph.free}, tasks)
    full = cost_of(graph, {}, tasks)
    for name, limit in limits.items():
        reached, whole = getattr(least, name), getattr(full, name)
        if reached > limit:
            share = reached / whole if whole else 1.0
            raise BudgetError(
                f"{name} <= {limit:,.0f} cannot be met: the least is {reached:,} "
                f"({share:.3g} of {whole:,}) with floor={budget.floor}, "
                f"multiple={budget.multiple}, max_ratio={budget.max_ratio} and "
                f"{len(graph.groups) - len(graph.free)} pinned groups; "
                f"try Budget({name}={math.ceil(share * 1000) / 1000})"
            )


def greedy(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """Always give up the channels that cost the least score per unit saved.

    A unit is a share of the full model, summed over the resources still above their
    limits. Savings only shrink as other groups narrow, so a price once computed is a
    lower bound: a heap with lazy updates finds the true minimum at every step. At the
    end, what fits again is given back, dearest first.

    Args:
        graph: the graph.
        scores: per group, f32[n]; the score of a width is the sum of its best channels.
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The width of every free group.

    Raises:
        BudgetError: the budget cannot be met.
    """
    full = cost_of(graph, {}, tasks)
    limits = budget.limits(full)
    check_least(graph, tasks, budget, limits)
    meter = Meter(graph, tasks, tuple(limits))
    ladder = {g.name: budget.widths(g.size) for g in graph.free}
    lost = {g.name: _lost(scores[g.name]) for g in graph.free}
    names = list(ladder)

    def price(i: int) -> float:
        name = names[i]
        here, below = meter.widths[name], ladder[name][step[name] + 1]
        size = len(lost[name]) - 1
        loss = lost[name][size - below] - lost[name][size - here]
        saved = meter.saving(name, below)
        unit = sum(
            saved[r] / getattr(full, r) for r in limits if meter.totals[r] > limits[r]
        )
        return loss / unit if unit > 0 else math.inf

    step = dict.fromkeys(names, 0)
    heap = [(price(i), i) for i, name in enumerate(names) if len(ladder[name]) > 1]
    heapq.heapify(heap)
    above = _above(meter, limits)
    while above:
        if not heap:
            raise BudgetError(f"nothing that is left to cut saves {', '.join(above)}")
        _, i = heapq.heappop(heap)
        now = price(i)
        if heap and now > heap[0][0]:
            heapq.heappush(heap, (now, i))
            continue
        if math.isinf(now):
            raise BudgetError(f"nothing that is left to cut saves {', '.join(above)}")
        name = names[i]
        step[name] += 1
        meter.set(name, ladder[name][step[name]])
        if step[name] + 1 < len(ladder[name]):
            heapq.heappush(heap, (price(i), i))
        if _above(meter, limits) != above:
            # Units changed: prices of the old ones are bounds no more.
            above = _above(meter, limits)
            heap = [(price(j), j) for _, j in heap]
            heapq.heapify(heap)
    _give_back(meter, limits, ladder, step, lost)
    return {name: meter.widths[name] for name in names}


def _lost(scores: np.ndarray) -> np.ndarray:
    """Score lost when the k worst channels go, for k = 0 ... n."""
    return np.concatenate([[0.0], np.cumsum(np.sort(np.asarray(scores, np.float64)))])


def _above(meter: Meter, limits: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(r for r, limit in limits.items() if meter.totals[r] > limit)


def _give_back(meter: Meter, limits, ladder, step, lost) -> None:
    """Undo steps that still fit, the one that returns the most score first."""
    while True:
        best, gain = None, 0.0
        for name, at in step.items():
            if at == 0:
                continue
            here, above = meter.widths[name], ladder[name][at - 1]
            saved = meter.saving(name, above)
            fits = all(meter.totals[r] - saved[r] <= limits[r] for r in limits)
            size = len(lost[name]) - 1
            more = lost[name][size - here] - lost[name][size - above]
            if fits and more > gain:
                best, gain = name, more
        if best is None:
            return
        step[best] -= 1
        meter.set(best, ladder[best][step[best]])


def uniform(
    graph: Graph,
    scores: Mapping[str, Any],
    tasks: tuple[str, ...],
    budget: Budget,
) -> Widths:
    """The same share of every group: the largest that meets the budget.

    Args:
        graph: the graph.
        scores: not used for widths.
        tasks: whose cost counts.
        budget: limits and rules for widths.

    Returns:
        The width of every free group.

    Raises:
        BudgetError: the budget cannot be met.
    """
    limits = budget.limits(cost_of(graph, {}, tasks))
    check_least(graph, tasks, budget, limits)

    def widths(share: float) -> Widths:
        return {
            g.name: min(
                budget.widths(g.size), key=lambda w, n=g.size: (abs(w - share * n), w)
            )
            for g in graph.free
        }

    def fits(share: float) -> bool:
        cost = cost_of(graph, widths(share), tasks)
        return all(getattr(cost, r) <= limit for r, limit in limits.items())

    low, high = 0.0, 1.0
    if fits(high):
        return widths(high)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return widths(low)
