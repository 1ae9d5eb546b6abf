"""Bars: who claims which channels, how wide the groups were and are, accuracies."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cutjax.errors import DataError
from cutjax.plan import PlanInfo
from cutjax.plot import style


def claims(info: PlanInfo) -> Figure:
    """Per group, how many channels the tasks claim: together, alone, or not at all.

    Args:
        info: the explanation that came with a plan.

    Returns:
        A figure: a stacked bar per group, as shares of its channels. A task claims the
        best channels by its own scores, as many as the group keeps.
    """
    fig, ax, names = _rows(info)
    found = list(info.claims.values())
    colours = style.task_colours(info.tasks)
    parts = [("several tasks", style.SHARED, [c.shared for c in found])]
    parts += [(f"{t} alone", colours[t], [c.alone[t] for c in found]) for t in colours]
    parts += [("nobody", style.NOBODY, [c.nobody for c in found])]
    kept, full = np.array(list(info.widths.values())).T
    left = np.zeros(len(full))
    for label, colour, counts in parts:
        share = np.array(counts) / full
        bars = ax.barh(names, share, left=left, color=colour, label=label, height=0.72)
        shown = [
            str(n) if s > 0.035 else "" for n, s in zip(counts, share, strict=True)
        ]
        ink = style.ink_on(colour)
        ax.bar_label(bars, shown, label_type="center", color=ink, fontsize=7.5)
        left += share
    for row, (k, n) in enumerate(zip(kept, full, strict=True)):
        ax.text(1.01, row, f"keeps {k} of {n}", va="center", fontsize=8)
    ax.set_xlim(0, 1)
    ax.set_xticks([])
    ax.set_title("channels claimed at the kept width", fontsize=9.5, loc="left")
    _legend(fig)
    return fig


def widths(info: PlanInfo) -> Figure:
    """Per group, its width before and after the cut.

    Args:
        info: the explanation that came with a plan.

    Returns:
        A figure: a pale bar for the full width, a solid one for what is kept.
    """
    fig, ax, names = _rows(info)
    kept, full = np.array(list(info.widths.values())).T
    colours = list(style.group_colours(info.widths).values())
    ax.barh(names, full, color=style.NOBODY, height=0.72)
    ax.barh(names, kept, color=colours, height=0.72)
    for row, (k, n) in enumerate(zip(kept, full, strict=True)):
        ax.text(n + full.max() / 90, row, f"{k} of {n}", va="center", fontsize=8)
    ax.set_xlim(0, full.max() * 1.12)
    share = info.cost.params / max(info.full.params, 1)
    ax.set_title(
        f"channels kept: {info.cost.params:,} of {info.full.params:,} parameters "
        f"({100 * share:.1f} %)",
        fontsize=9.5,
        loc="left",
    )
    return fig


def accuracies(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy per task of several models, side by side.

    Args:
        rows: per model, percent per task, as `cutjax.metrics.accuracy` returns them; a
            model may answer fewer tasks than another.

    Returns:
        A figure: a cluster per task, a bar per model in the given order.

    Raises:
        DataError: no model, or none with a task.
    """
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row))
    if not tasks:
        raise DataError("nothing to draw; pass {model: {task: percent}}")
    answering = {t: [name for name, row in rows.items() if t in row] for t in tasks}
    bars = sum(map(len, answering.values()))
    fig = style.figure(max(4.0, 0.5 * (bars + len(tasks))), 3.0)
    ax = fig.subplots()
    centre, ticks = 0.0, []
    places: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for task, names in answering.items():
        for i, name in enumerate(names):
            places[name].append((centre + i, rows[name][task]))
        ticks.append(centre + (len(names) - 1) / 2)
        centre += len(names) + 0.8
    for i, (name, found) in enumerate(places.items()):
        colour = style.GROUPS[(i - 1) % len(style.GROUPS)] if i else style.PINNED
        x, height = np.array(found).reshape(-1, 2).T
        shown = ax.bar(x, height, 0.9, color=colour, label=name)
        ax.bar_label(shown, fmt="%.1f", fontsize=7.5, padding=1)
    ax.set_xticks(ticks, tasks)
    ax.set_ylim(0, 108)
    ax.set_yticks([])
    ax.set_title("accuracy, percent", fontsize=9.5, loc="left")
    style.bare(ax)
    _legend(fig)
    return fig


def _rows(info: PlanInfo) -> tuple[Figure, Axes, list[str]]:
    """A figure with one row per group, the first on top."""
    if not info.widths:
        raise DataError("the plan has no group to draw")
    fig = style.figure(7.5, 1.1 + 0.3 * len(info.widths))
    ax = fig.subplots()
    ax.set_ylim(len(info.widths) - 0.4, -0.6)
    style.bare(ax)
    return fig, ax, [style.cropped(name) for name in style.short(info.widths).values()]


def _legend(fig: Figure) -> None:
    fig.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
