"""What any subset of a merged network's tasks costs, beside separate networks."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cutjax.cost import pieces
from cutjax.errors import DataError, suggest
from cutjax.graph import Graph
from cutjax.plot import style

_ALONE = 5  # subsets of more tasks than this are drawn by their number of tasks
_WIDE = 15  # bars for which there is no room for a second decimal
_SIDE = 0.21  # of the middle, where the two bars of a subset stand
_MOST = 12  # subsets of more tasks are too many to count


class _Costs(NamedTuple):
    """Multiply-adds of subsets of tasks, over those of one network.

    `shared` is what several tasks need, of which a subset may need a part; `own` what
    each task of a subset needs alone, zero for the others. `one`: of one network.
    """

    subsets: list[tuple[str, ...]]
    shared: Float[np.ndarray, "m"]
    own: dict[str, Float[np.ndarray, "m"]]
    separate: Float[np.ndarray, "m"]
    one: float


def subset_costs(graph: Graph, alone: Mapping[str, Graph]) -> Figure:
    """What any subset of the tasks costs: merged, and as separate networks.

    Args:
        graph: of the merged network.
        alone: by network, its graph before the merge, in the order to draw. Tasks of
            the merged one are called as these, or `network/task`. All are to be traced
            with inputs of the same shapes.

    Returns:
        A figure: per subset a bar of what several tasks need and what each needs alone,
        beside the sum of the separate networks, in multiply-adds of one of these (their
        mean). Dots below name the subset. Of six tasks or more, means over all subsets
        of one size, whiskers from the least to the most.

    Raises:
        DataError: fewer than two tasks, more than twelve, or a task of no network.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w, x = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}, jnp.ones((1, 2))
        >>> net = cj.merge.Network(apply, w, cj.trace(apply, w, x))
        >>> merged = cj.merge.average({"one": net, "two": net}, {}, x)
        >>> both = cj.trace(merged.apply, merged.params, x)
        >>> alone = {"one": net.graph, "two": net.graph}
        >>> [text.get_text() for text in subset_costs(both, alone).axes[0].texts]
        ['1.00', '1.00', '1.33']
    """
    if not 2 <= len(graph.tasks) <= _MOST:
        raise DataError(
            f"subset_costs draws 2 to {_MOST} tasks, the graph has {len(graph.tasks)}"
        )
    costs = _costs(graph, alone)
    return _by_size(costs) if len(graph.tasks) > _ALONE else _one_by_one(costs)


def _costs(graph: Graph, alone: Mapping[str, Graph]) -> _Costs:
    owners = {task: _owner(task, alone) for task in graph.tasks}
    tasks = [task for name in alone for task, owner in owners.items() if owner == name]
    one = float(np.mean([alone[n].cost().flops for n in set(owners.values())]))
    subsets = [s for k in range(1, len(tasks) + 1) for s in combinations(tasks, k)]
    needed = _needed(graph)
    shared = np.zeros(len(subsets))
    for whose, n in needed.items():
        if len(whose) > 1:
            shared += [n / one * (not whose.isdisjoint(s)) for s in subsets]
    only = {t: needed.get(frozenset({t}), 0) / one for t in tasks}
    own = {t: np.array([only[t] * (t in s) for s in subsets]) for t in tasks}
    run = cache(lambda name, which: alone[name].cost(tasks=which or None).flops)
    runs = [sum(run(*pair) for pair in _asked(s, owners)) for s in subsets]
    return _Costs(subsets, shared, own, np.array(runs) / one, one / 2)


def _owner(task: str, alone: Mapping[str, Graph]) -> str:
    """The network that a task is of: its name, or `network/task` if it has several."""
    for name in alone:
        if task == name or task.startswith(f"{name}/"):
            return name
    raise DataError(f"task {task!r} is of no network; {suggest(task, alone)}")


def _asked(subset: Sequence[str], owners: Mapping[str, str]) -> list[tuple]:
    """Networks and what is wanted of each; one that has several tasks runs once."""
    out: dict[str, tuple[str, ...]] = {}
    for task in subset:
        name = owners[task]
        out[name] = out.get(name, ()) + (task[len(name) + 1 :],) * (task != name)
    return list(out.items())


def _needed(graph: Graph) -> dict[frozenset[str], int]:
    """FLOPs by the tasks that need them; what nobody needs is not computed."""
    out: dict[frozenset[str], int] = {}
    for piece in pieces(graph):
        if piece.tasks and "flops" in piece.units:
            n = piece.units["flops"] * math.prod(axis.size for axis in piece.axes)
            whose = frozenset(piece.tasks)
            out[whose] = out.get(whose, 0) + n
    return out


def _one_by_one(costs: _Costs) -> Figure:
    tasks, m = list(costs.own), len(costs.subsets)
    high = 0.17 * len(tasks)
    fig = style.figure(max(4.6, 0.29 * m + 1.5), 3.1 + high)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(2.3, high))
    colours = style.task_colours(tasks)
    parts = [("merged, several tasks", style.SHARED, costs.shared)]
    parts += [(f"merged, {t} alone", colours[t], costs.own[t]) for t in tasks]
    _bars(upper, parts, costs, costs.shared + sum(costs.own.values()))
    for row, task in enumerate(tasks):
        dots = [colours[task] if task in s else style.NOBODY for s in costs.subsets]
        lower.scatter(np.arange(m), np.full(m, row), 34, dots)
    lower.set_yticks(range(len(tasks)), [style.cropped(task, 18) for task in tasks])
    lower.set_ylim(len(tasks) - 0.4, -0.6)
    style.bare(lower)
    _legend(fig)
    return fig


def _by_size(costs: _Costs) -> Figure:
    sizes = np.array([len(s) for s in costs.subsets])
    each = [sizes == k + 1 for k in range(sizes.max())]
    own = np.sum(list(costs.own.values()), 0)
    total = costs.shared + own
    shared, alone, separate = (
        np.array([values[mine].mean() for mine in each])
        for values in (costs.shared, own, costs.separate)
    )
    fig = style.figure(max(4.6, 0.62 * len(each) + 1.5), 3.3)
    ax = fig.subplots()
    parts = [("merged, several tasks", style.SHARED, shared)]
    parts += [("merged, one task alone", style.GROUPS[0], alone)]
    most = np.array([total[mine].max() for mine in each])
    _bars(ax, parts, costs._replace(separate=separate), most)
    for at, values in ((-_SIDE, total), (_SIDE, costs.separate)):
        ends = np.array([(values[mine].min(), values[mine].max()) for mine in each])
        ax.vlines(np.arange(len(each)) + at, *ends.T, color=style.INK, lw=1)
    ax.set_xticks(range(len(each)), [str(k + 1) for k in range(len(each))])
    text = "tasks in a subset; bars, numbers: mean; lines: least to most"
    ax.set_xlabel(text, fontsize=8)
    _legend(fig)
    return fig


def _bars(
    ax: Axes,
    parts: Sequence[tuple[str, str, Float[np.ndarray, "m"]]],
    costs: _Costs,
    tops: Float[np.ndarray, "m"],
) -> None:
    """Merged, stacked, its height in words at `tops`; separate networks beside it."""
    at, height = np.arange(len(tops)), np.zeros(len(tops))
    for label, colour, values in parts:
        where: dict[str, Any] = dict(bottom=height, color=colour, label=label)
        ax.bar(at - _SIDE, values, 0.4, **where)
        height = height + values
    ax.bar(at + _SIDE, costs.separate, 0.4, color=style.PINNED, label="separate")
    digits = 1 if len(at) > _WIDE else 2
    for x, y, n in zip(at - _SIDE, tops, height, strict=True):
        ax.text(x, y, f"{n:.{digits}f}", ha="center", va="bottom", fontsize=7)
    style.bare(ax)
    ax.set(xlim=(-0.7, len(at) - 0.3), xticks=[])
    ax.set_ylim(0, 1.06 * max(tops.max(), costs.separate.max()))
    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.grid(axis="y", color=style.NOBODY, lw=0.6)
    ax.set_axisbelow(True)
    unit = EngFormatter(places=1)(costs.one)
    ax.set_ylabel(f"multiply-adds\n(1 = one network, {unit})", fontsize=8)
    title = "subsets of tasks: merged, and separate networks"
    ax.set_title(title, fontsize=9.5, loc="left")


def _legend(fig: Figure) -> None:
    """As many columns as fit."""
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fit = int(fig.get_figwidth() / (0.6 + 0.07 * max(map(len, labels))))
    where: dict[str, Any] = dict(loc="outside lower center", ncols=max(1, fit))
    fig.legend(handles, labels, frameon=False, fontsize=8, **where)
