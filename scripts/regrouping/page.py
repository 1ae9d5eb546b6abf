"""docs/merging-subsets.md, from the results."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PAGE = """# Every subset of tasks: pruned apart, all shared, regrouped

Single-task networks of one architecture, one per task, trained apart. `scripts/regroup`
makes this page. Three ways to bring them all to a device:

- **apart**: every network for itself;
- **all shared**: aligned by activations, merged into one network of the same size;
- **regrouped** (Pruning-Aware Merging, `cutjax.merge.pam`): at least so large a share
  of the aligned channels is exclusive to one task, the rest shared by all, or dropped.

What is merged is fitted in closed form (`least_squares`) and distilled from the
original networks, without labels. Then all are pruned alike: rounds of scoring (the
library's default criterion, with labels of the calibration split), cutting by a budget
of multiply-adds for all tasks together, and compensation; at the budgets of the second
table distilled from the originals. The first table shows, of the budgets whose loss of
validation accuracy (percent of labels; of variance explained for numbers) in the mean
over tasks is at most {limit:g} point, the smallest: points lost on test, mean and worst
task; multiply-adds of a subset in those of one original network, the mean over subsets
of one size; and how much less that is than apart with all tasks, and than all shared
with one.
"""

LIMIT = 1.0
ABOUT = {
    "morpho": "Morpho-MNIST, five tasks, VGG-like (16, 32, 64, 64 channels)",
    "set_cards": "SET cards, four tasks, ResNet-like (24, 48, 96 channels)",
}

Row = Mapping[str, Any]


def page(rows: Sequence[Row], timings: Sequence[Row] = ()) -> str:
    """The page.

    Args:
        rows: of networks.
        timings: of those in the first tables.
    """
    parts = [PAGE.format(limit=LIMIT)]
    for name, about in ABOUT.items():
        its = [row for row in rows if row.get("data") == name]
        for seed in sorted({row["seed"] for row in its}):
            found = [row for row in its if row["seed"] == seed]
            parts += [f"## {about}, seed {seed}\n", summary(found)]
            parts += [
                latency(t) for t in timings if (t["data"], t["seed"]) == (name, seed)
            ]
            parts.append(every_budget(found))
    return "\n".join(parts)


def lost(row: Row, parents: Row, split: str) -> float:
    """Points lost, the mean over tasks."""
    return float(np.mean([parents[split][t] - row[split][t] for t in parents[split]]))


def chosen(rows: Sequence[Row]) -> dict[str, Row | None]:
    """Of each system the cheapest network that loses little enough, by validation."""
    parents = _parents(rows)
    found: dict[str, Row | None] = {}
    for system in dict.fromkeys(row["system"] for row in rows if row["system"]):
        its = [row for row in rows if row["system"] == system]
        good = [row for row in its if lost(row, parents, "validation") <= LIMIT]
        found[system] = min(good, key=lambda row: row["budget"], default=None)
    return found


def summary(rows: Sequence[Row]) -> str:
    """A line per system."""
    parents, found = _parents(rows), chosen(rows)
    tasks = list(parents["test"])
    sizes = [f"{k} of {len(tasks)}" for k in range(1, len(tasks) + 1)]
    head = ("", "lost", "worst", *sizes, "apart / it, all", "shared / it, one")
    lines = [_row(*head), "|---" * len(head) + "|"]
    costs = {s: by_size(row) for s, row in found.items() if row is not None}
    for system, row in found.items():
        if row is None:
            lines.append(_row(system, "too much", *["-"] * (len(head) - 2)))
            continue
        worst = max(parents["test"][t] - row["test"][t] for t in tasks)
        points = f"{lost(row, parents, 'test'):.2f}", f"{worst:.2f}"
        ratios = [
            f"{costs[other][at] / costs[system][at]:.2f}x" if other in costs else "-"
            for other, at in (("apart", -1), ("all shared", 0))
        ]
        lines.append(_row(system, *points, *map(_cost, costs[system]), *ratios))
    return "\n".join(lines) + "\n"


def latency(timing: Row) -> str:
    """A line per system: milliseconds for all tasks, for each alone."""
    ms = timing["ms"]
    head = (f"ms of {timing['batch']} images", *next(iter(ms.values())), "one, mean")
    lines = [
        "Measured by `cutjax.bench` (a fresh process each, one thread, the best of its "
        "settings):\n",
        _row(*head),
        "|---" * len(head) + "|",
    ]
    for system, found in ms.items():
        alone = np.mean([value for name, value in found.items() if name != "all"])
        said = [f"{value:.2f}" for value in (*found.values(), alone)]
        lines.append(_row(system, *said))
    return "\n".join(lines) + "\n"


def by_size(row: Row) -> list[float]:
    """Mean cost of the subsets of one task, of two, ..."""
    sizes = range(max(name.count("+") for name in row["flops"]) + 1)
    return [
        float(np.mean([c for name, c in row["flops"].items() if name.count("+") == k]))
        for k in sizes
    ]


def every_budget(rows: Sequence[Row]) -> str:
    """All that was run."""
    parents = _parents(rows)
    tasks = list(parents["test"])
    head = ("on test", "cost, all", "cost, one", *tasks, "lost")
    first = ("originals", _cost(len(tasks)), _cost(1), *_said(parents, tasks), "-")
    lines = ["All that was run:\n", _row(*head), "|---" * len(head) + "|", _row(*first)]
    for row in rows:
        if row["system"]:
            costs = by_size(row)
            name = row["system"] + ("" if "seconds" in row else ", not pruned")
            points = f"{lost(row, parents, 'test'):.2f}"
            ends = _cost(costs[-1]), _cost(costs[0])
            lines.append(_row(name, *ends, *_said(row, tasks), points))
    return "\n".join(lines) + "\n"


def _parents(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if not row["system"])


def _cost(value: float) -> str:
    return f"{value:.3f}"


def _said(row: Row, tasks: Sequence[str]) -> list[str]:
    return [f"{row['test'][task]:.1f}" for task in tasks]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
