"""What can be reached at all, before any search: the least, half and all there is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cutjax.budget import Budget
from cutjax.cost import amounts
from cutjax.errors import BudgetError
from cutjax.graph import Graph

Ladders = dict[str, list[int]]


class Row(NamedTuple):
    """Amounts of a resource: at least, at half of every group, in all, and asked."""

    least: int
    half: int
    full: int
    asked: float | None = None

    @property
    def met(self) -> bool:
        """Whether what is asked can be reached, all other limits aside."""
        return self.asked is None or self.least <= self.asked


class Feasibility(NamedTuple):
    """A `Row` per resource and scope; `print` it before you ask for too much."""

    rows: dict[str, Row]
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=5)
        head = f"{'':<{width}}  {'least':>23}  {'half':>23}  {'full':>15}  asked"
        lines = [f"tasks: {', '.join(self.tasks)}", head]
        for name, row in self.rows.items():
            cells = [f"{n:>15,} {n / row.full:7.4f}" for n in (row.least, row.half)]
            asked = "" if row.asked is None else f"{row.asked:,.0f}"
            mark = "" if row.met else "  cannot be met"
            lines.append(
                f"{name:<{width}}  {'  '.join(cells)}  {row.full:>15,}  {asked}{mark}"
            )
        return "\n".join(lines)


def feasible(
    graph: Graph,
    budget: Budget | None = None,
    tasks: Sequence[str] | str | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Feasibility:
    """What each resource can come down to, for every scope in which there is some.

    Args:
        graph: the graph.
        budget: its rules for widths count for the least and the half, and what it asks
            is shown; one channel per group, if not given.
        tasks: whose cost counts; all, if not given.
        names: the groups that may be cut; all free ones, if not given.

    Returns:
        A table; a budget of which every line can be met may still fail as a whole.

    Raises:
        BudgetError: a scope or a pattern of the budget means nothing here.
        KeepError: an unknown task.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((2, 30)), "b": jnp.ones((30, 1))}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 2)))
        >>> feasible(graph, cj.Budget(params=0.3)).rows["params"]
        Row(least=6, half=45, full=90, asked=27.0)
    """
    chosen = graph.check_tasks(tasks)
    rules = Budget(params=1.0, max_ratio=1.0) if budget is None else budget
    rules.check(graph, chosen)
    names = [g.name for g in graph.free] if names is None else names
    ladders = ladders_of(graph, names, chosen, rules)
    safe = droppable(graph, ladders, chosen)
    least = {n: _end(ladder, n in safe) for n, ladder in ladders.items()}
    half = {n: closest(ladder, ladder[0] / 2) for n, ladder in ladders.items()}
    full = amounts(graph, {}, chosen)
    asked = {} if budget is None else budget.limits(_known(budget, full))
    low, middle = (amounts(graph, widths, chosen) for widths in (least, half))
    return Feasibility(
        {
            key: Row(low[key], middle[key], whole, asked.get(key))
            for key, whole in full.items()
            if whole
        },
        chosen,
    )


def _known(budget: Budget, full: Mapping[str, int]) -> Mapping[str, int]:
    for key in budget.asked:
        if not full[key]:
            known = ", ".join(k for k, n in full.items() if n)
            raise BudgetError(f"there is no {key} to limit; there are {known}")
    return full


def ladders_of(
    graph: Graph, names: Sequence[str], tasks: tuple[str, ...], budget: Budget
) -> Ladders:
    """Per group, the widths it may have, falling; 0 only where it alone may go."""
    out = {}
    for name in names:
        rungs = budget.widths(graph[name].size, name)
        out[name] = rungs if rungs[-1] or answers(graph, [name], tasks) else rungs[:-1]
    return out


def droppable(
    graph: Graph,
    ladders: Ladders,
    tasks: tuple[str, ...],
    order: Sequence[str] | None = None,
) -> frozenset[str]:
    """Groups that may all go at once: of the first that may, more, in order."""
    gone: frozenset[str] = frozenset()
    for name in ladders if order is None else order:
        if ladders[name][-1] == 0 and answers(graph, gone | {name}, tasks):
            gone |= {name}
    return gone


def answers(graph: Graph, gone: Iterable[str], tasks: tuple[str, ...]) -> bool:
    """Whether all these tasks still depend on the inputs without these groups."""
    return graph.answering(gone, tasks) == tasks


def _end(ladder: list[int], may_go: bool) -> int:
    return ladder[-1] if may_go or ladder[-1] else ladder[-2]


def closest(ladder: Sequence[int], width: float | int) -> int:
    """The rung nearest to a width; the lower one of two as near."""
    return min(ladder, key=lambda w: (abs(w - width), w))
