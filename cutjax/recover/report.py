"""What every step of a recovery brought, per task, and how long it took."""

import json
import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import jax

from cutjax.errors import DataError


class Row(NamedTuple):
    """One step: percent per task after it, what the model then costs, the time."""

    name: str
    metrics: dict[str, float]
    seconds: float = 0.0
    params: int | None = None
    flops: int | None = None


class Report(NamedTuple):
    """Rows in order; the first is the parent's, by which losses are counted."""

    rows: tuple[Row, ...] = ()

    def __str__(self) -> str:
        return table(self)


def step(
    report: Report,
    name: str,
    metrics: Mapping[str, SupportsFloat],
    seconds: float = 0.0,
    params: int | None = None,
    flops: int | None = None,
) -> Report:
    """A report with one row more.

    Args:
        report: what there is; `Report()` at first.
        name: of the step: "parent", "cut", "compensated", "distilled", ...
        metrics: percent per task, from `cutjax.metrics.accuracy`.
        seconds: that the step took.
        params: of the model after it; the last row's, if not given.
        flops: the same.

    Returns:
        Another report.

    Raises:
        DataError: no metrics, a name that is taken, or a task that the first row lacks.

    Example:
        >>> report = step(Report(), "parent", {"a": 90.0, "b": 80.0}, params=1000)
        >>> report = step(report, "cut", {"a": 60.0, "b": 80.0}, 0.25, params=100)
        >>> print(report)
        step       a     b  mean  lost  params  seconds
        parent  90.0  80.0  85.0         1,000
        cut     60.0  80.0  70.0  15.0     100     0.25
    """
    given = {task: float(value) for task, value in metrics.items()}
    if not given:
        raise DataError(f"step {name!r} has no metrics; pass {{task: percent}}")
    if name in {row.name for row in report.rows}:
        raise DataError(f"there is a step {name!r} already; name this one otherwise")
    if report.rows:
        first, last = report.rows[0], report.rows[-1]
        if unknown := sorted(set(given) - set(first.metrics)):
            raise DataError(
                f"step {name!r} has tasks {unknown}; {first.name!r} has not"
            )
        params = last.params if params is None else params
        flops = last.flops if flops is None else flops
    return Report((*report.rows, Row(name, given, float(seconds), params, flops)))


def lost(report: Report, name: str) -> float:
    """Points lost at a step: the mean over its tasks of parent minus child.

    Args:
        report: the report.
        name: of the step.

    Returns:
        Percent points; negative where the child is better.

    Raises:
        DataError: no such step.
    """
    found = [row for row in report.rows if row.name == name]
    if not found:
        raise DataError(f"no step {name!r}; there are {[r.name for r in report.rows]}")
    parent, own = report.rows[0].metrics, found[0].metrics
    return sum(parent[task] - value for task, value in own.items()) / len(own)


def timed(name: str, fn: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Call a function and wait for what it returns.

    Args:
        name: of the step.
        fn: called without arguments.

    Returns:
        Its result, and `name` and `seconds`, for `step(report, metrics=..., **those)`.

    Example:
        >>> result, took = timed("sum", lambda: 1 + 1)
        >>> result, took["name"], took["seconds"] >= 0
        (2, 'sum', True)
    """
    began = time.perf_counter()
    result = jax.block_until_ready(fn())
    return result, {"name": name, "seconds": time.perf_counter() - began}


def table(report: Report) -> str:
    """The report as aligned text, one line per step.

    Args:
        report: the report.

    Returns:
        Lines without a final newline.
    """
    if not report.rows:
        return "no steps yet"
    tasks = list(report.rows[0].metrics)
    head = ["step", *tasks, "mean", "lost", "params", "seconds"]
    if any(row.flops is not None for row in report.rows):
        head.insert(-1, "MFLOPs")
    lines = [head, *(_cells(report, row, tasks, head) for row in report.rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(cells: list[str], widths: list[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    shown = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return "  ".join(shown).rstrip()


def _cells(report: Report, row: Row, tasks: list[str], head: list[str]) -> list[str]:
    values = [row.metrics.get(task) for task in tasks]
    mean = sum(row.metrics.values()) / len(row.metrics)
    begins = row is report.rows[0]
    cells = [
        row.name,
        *("" if v is None else f"{v:.1f}" for v in values),
        f"{mean:.1f}",
        "" if begins else f"{lost(report, row.name):.1f}",
        "" if row.params is None else f"{row.params:,}",
    ]
    if "MFLOPs" in head:
        cells.append("" if row.flops is None else f"{row.flops / 1e6:.2f}")
    return [*cells, f"{row.seconds:.2f}" if row.seconds else ""]


def write(report: Report, path: str | PathLike[str]) -> None:
    """Write a report as JSON lines, one object per step.

    Args:
        report: the report.
        path: the file; replaced if it is there.
    """
    lines = [json.dumps(row._asdict()) for row in report.rows]
    _ = Path(path).write_text("".join(f"{line}\n" for line in lines))


def read(path: str | PathLike[str]) -> Report:
    """The report that `write` wrote.

    Args:
        path: the file.

    Returns:
        An equal report.
    """
    lines = Path(path).read_text().splitlines()
    return Report(tuple(Row(**json.loads(line)) for line in lines))
