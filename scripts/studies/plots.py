"""Pictures: points lost by budget and criterion; what recovery gives back."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from cutjax.plot.style import INK, TASKS, figure
from studies.figures import Figure, Level, Tasks, level, mean_lost
from studies.methods import AT_STAKE, BASELINES, CONTROL, DEFAULT, Method, label

SHOWN = ("joint", "taylor", "fisher", "snip", "l1", "random")
STAGES = {"cut": "cut only", "compensated": "compensated", "distilled": "fine-tuned"}


def draw(figures: list[Figure], docs: Path) -> dict[str, list[str]]:
    """Write the pictures of every data set.

    Returns:
        Names of the files by data set.
    """
    out: dict[str, list[str]] = {}
    for data in dict.fromkeys(f.data for f in figures):
        here = [f for f in figures if f.data == data]
        whole = max((f.tasks for f in here), key=len)
        fig = figure(11.0, 4.6)
        left, right = fig.subplots(1, 2, width_ratios=(1.15, 1))
        by_budget(left, [f for f in here if f.tasks == whole])
        recovered(right, [f for f in here if f.tasks == whole], data)
        fig.suptitle(f"{data}: {', '.join(whole)}", fontsize=11, color=INK)
        name = f"study-{data}.png"
        fig.savefig(docs / name)
        out[data] = [name]
    return out


def by_budget(ax: Axes, figures: list[Figure]) -> None:
    """A line per criterion, a band for its spread; those not named are grey."""
    cut = [f for f in figures if f.stage == "cut"]
    plain = [f for f in cut if f.method == Method(f.method.criterion)]
    names = list(dict.fromkeys(f.method.criterion for f in plain))
    tops = [0.0]
    for name in sorted(names, key=lambda n: n in SHOWN):
        points = _levels([f for f in plain if f.method.criterion == name])
        x, y = np.array(list(points)), np.array([p.mean for p in points.values()])
        spread = np.array([p.spread for p in points.values()])
        tops.extend(y)
        if name not in SHOWN:
            ax.plot(x, y, color="#C9C9C9", lw=0.8, zorder=1)
            continue
        colour = INK if name == "random" else TASKS[SHOWN.index(name)]
        dashes = "--" if name == "random" else "-"
        ax.plot(x, y, dashes, color=colour, lw=1.8, marker="o", ms=3.5, label=name)
        ax.fill_between(x, y - spread, y + spread, color=colour, alpha=0.15, lw=0)
    if set(names) - set(SHOWN):
        ax.plot([], [], color="#C9C9C9", lw=0.8, label="other criteria")
    ax.set_xscale("log")
    ticks = sorted({f.budget for f in plain}, reverse=True)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=8)
    ax.minorticks_off()
    ax.set_xlabel("share of parameters kept", fontsize=9)
    ax.set_ylabel("points lost, mean over tasks", fontsize=9)
    ax.set_ylim(min(0, *tops) - 2, max(tops) * 1.05 + 1)
    ax.set_title("cut only, by criterion", fontsize=10)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False)
    _plain(ax)


def recovered(ax: Axes, figures: list[Figure], data: str) -> None:
    """A row per method: points lost at the budgets at stake, stage by stage."""
    budgets = AT_STAKE[data]
    rows = [*BASELINES.values(), CONTROL, DEFAULT]
    marks = {"cut": "o", "compensated": "s", "distilled": "D"}
    ticks = []
    for i, method in enumerate(rows):
        for stage, mark in marks.items():
            wanted = method._replace(compensate=stage != "cut")
            if stage == "distilled" or method.fresh:
                wanted = method
            if stage == "cut" and method == DEFAULT:
                wanted = Method(DEFAULT.criterion)
            for j, budget in enumerate(budgets):
                found = _levels(
                    [
                        f
                        for f in figures
                        if (f.stage, f.method, f.budget) == (stage, wanted, budget)
                    ]
                ).get(budget)
                if found:
                    at = i + (0.16 if j else -0.16)
                    colour = TASKS[0] if j == 0 else TASKS[4]
                    ax.errorbar(
                        found.mean, at, xerr=found.spread, fmt=mark, ms=5,
                        color=colour, mfc=colour if stage != "cut" else "white",
                        lw=1,
                    )  # fmt: skip
        ticks.append(label(method).replace("**", ""))
    ax.set_yticks(range(len(rows)), ticks, fontsize=8)
    ax.invert_yaxis()
    for stage, mark in marks.items():
        fill = "white" if stage == "cut" else INK
        ax.plot([], [], mark, color=INK, mfc=fill, ms=5, label=STAGES[stage])
    for j, budget in enumerate(budgets):
        colour = TASKS[0] if j == 0 else TASKS[4]
        ax.plot([], [], lw=3, color=colour, label=f"{budget:g} of parameters")
    ax.set_xlabel("points lost, mean over tasks", fontsize=9)
    ax.set_title("recovery, at the two budgets at stake", fontsize=10)
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))
    ax.legend(
        fontsize=7.5, frameon=False, ncols=3, loc="upper center",
        bbox_to_anchor=(0.4, -0.14),
    )  # fmt: skip
    ax.grid(axis="y", color="#EEEEEE", lw=0.6)
    _plain(ax)


def _levels(figures: list[Figure]) -> dict[float, Level]:
    """By budget, largest first."""
    found = {}
    for budget in sorted({f.budget for f in figures}, reverse=True):
        here = [f for f in figures if f.budget == budget]
        subsets: list[Tasks] = list(dict.fromkeys(f.tasks for f in here))
        at = level(here, subsets, mean_lost)
        if at:
            found[budget] = at
    return found


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, colors=INK)
