"""The demo's table: one line per recipe, means and spreads over seeds."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
WIDTH = 140  # of the table in a pipe or a log


def show(rows: list[Row], console: Console | None = None) -> None:
    """Print a table per subset of tasks, a block per budget."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for tasks in dict.fromkeys(tuple(row["tasks"]) for row in rows):
        console.print(table([row for row in rows if tuple(row["tasks"]) == tasks]))


def table(rows: list[Row]) -> Table:
    """The rows of one subset of tasks, beside the parent's."""
    (parent,) = [row for row in rows if row["recipe"] == "parent"]
    tasks = parent["tasks"]
    out = Table(title=f"tasks: {', '.join(tasks)}  (test accuracy, %; mean ± spread)")
    for name in (
        "recipe",
        *tasks,
        "mean",
        "lost",
        "params",
        "kept",
        "trunk",
        "heads",
        "FLOPs",
        "ms",
        "faster",
    ):
        out.add_column(name, justify="left" if name == "recipe" else "right")
    out.add_row(*_cells("parent", [parent], parent))
    others = [row for row in rows if row["recipe"] != "parent"]
    for budget in sorted({row["budget"] for row in others}, reverse=True):
        out.add_section()
        block = [row for row in others if row["budget"] == budget]
        for recipe in dict.fromkeys(row["recipe"] for row in block):
            chosen = [row for row in block if row["recipe"] == recipe]
            style = "bold" if recipe == "cutjax" else None
            out.add_row(*_cells(recipe, chosen, parent), style=style)
    return out


def _cells(recipe: str, rows: list[Row], parent: Row) -> list[str]:
    tasks = parent["tasks"]
    each = {task: [row["metrics"][task] for row in rows] for task in tasks}
    means = np.mean(list(each.values()), axis=0)
    whole = np.mean([parent["metrics"][task] for task in tasks])
    params = np.mean([row["params"] for row in rows])
    trunk = np.mean([row["trunk_params"] for row in rows])
    latency = np.median([row["latency_ms"] for row in rows])
    return [
        recipe,
        *(_spread(values) for values in each.values()),
        _spread(means),
        f"{whole - np.mean(means):.2f}",
        f"{params:,.0f}",
        f"{params / parent['params']:.3f}",
        f"{trunk:,.0f}",
        f"{params - trunk:,.0f}",
        f"{np.mean([row['flops'] for row in rows]) / 1e6:.2f} M",
        f"{latency:.3f}",
        f"{parent['latency_ms'] / latency:.2f}x",
    ]


def _spread(values: Any) -> str:
    values = np.asarray(values)
    if len(values) == 1 or np.ptp(values) == 0:
        return f"{np.mean(values):.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
