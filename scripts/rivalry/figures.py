"""What the page says in numbers: test accuracies of a moment, over seeds."""

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from rivalry.book import Row

SIDES = {"ours": "cutjax", "theirs": "Torch-Pruning"}
BEFORE = ("cut", "re_estimated", "compensated")
AFTER = ("distil", "both", "labels")


class Figure(NamedTuple):
    """One side's test accuracy at a moment, by seed.

    `when`: one of `BEFORE`, or of `AFTER` for a loss of fine-tuning. `fewer`: how many
    times fewer multiply-adds it really has. `how`: rate and statistics of fine-tuning.
    """

    net: str
    factor: float
    side: str
    method: str
    when: str
    values: tuple[float, ...]
    fewer: float
    params: float
    steps: int
    how: str

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds; not a number for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def said(self) -> str:
        """Mean and spread; how many seeds, if only one."""
        one = math.isnan(self.spread)
        return (
            f"{self.mean:.2f} (one seed)"
            if one
            else (f"{self.mean:.2f} ± {self.spread:.2f}")
        )


def read(rows: Iterable[Row]) -> list[Figure]:
    """All moments of all methods that were tested, seeds together."""
    found: dict[tuple[Any, ...], list[tuple[float, Row]]] = {}
    for row in rows:
        same = tuple(row.get(k) for k in ("net", "factor", "side", "method"))
        if row["stage"] == "start":
            for when in BEFORE:
                if when in row:
                    found.setdefault((*same, when, 0, ""), []).append((row[when], row))
        elif row["stage"] == "final":
            how = ", ".join([f"{row['rate']:g}", *_statistics(row)])
            key = (*same, row["loss"], row["steps"], how)
            found.setdefault(key, []).append((row["test"], row))
    return [_figure(key, measured) for key, measured in found.items()]


def _statistics(row: Row) -> list[str]:
    return [f"{row['statistics']} statistics"] if "statistics" in row else []


def _figure(key: tuple[Any, ...], measured: list[tuple[float, Row]]) -> Figure:
    net, factor, side, method, when, steps, how = key
    rows = [row for _, row in measured]
    macs = statistics.fmean(row["macs"] for row in rows)
    params = statistics.fmean(row["params"] for row in rows)
    values = tuple(value for value, _ in measured)
    fewer = rows[0]["full_macs"] / macs
    return Figure(net, factor, side, method, when, values, fewer, params, steps, how)


def of(figures: Iterable[Figure], **names: Any) -> list[Figure]:
    """Those that have these names."""
    return [f for f in figures if names.items() <= f._asdict().items()]
