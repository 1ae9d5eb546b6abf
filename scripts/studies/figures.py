"""What the page says in numbers: points lost, over subsets of tasks and over seeds."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from studies.methods import Method

Tasks = tuple[str, ...]


class Figure(NamedTuple):
    """A cell of the study, finished: points lost per task against the parent."""

    data: str
    stage: str
    method: Method
    tasks: Tasks
    budget: float
    seed: int
    lost: dict[str, float]
    params: float
    flops: float
    seconds: float

    @property
    def mean(self) -> float:
        """Points lost, mean over the tasks."""
        return float(np.mean(list(self.lost.values())))

    @property
    def worst(self) -> float:
        """Points lost by the task that loses the most."""
        return max(self.lost.values())


class Level(NamedTuple):
    """Mean and spread (standard deviation) over seeds."""

    mean: float
    spread: float
    seeds: tuple[int, ...]


def read(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], list[Figure]]:
    """The parents' rows by data set, and all figures; what is not met is left out.

    Raises:
        ValueError: figures of a data set whose parent has no row.
    """
    rows = list(rows)
    parents = {row["data"]: row for row in rows if row.get("stage") == "parent"}
    found = []
    for row in rows:
        if "method" not in row or "infeasible" in row:
            continue
        if row["data"] not in parents:
            raise ValueError(f"no row of the parent of {row['data']!r}")
        parent = parents[row["data"]]
        # Masked models are tested on some of the images: so is what they are held to.
        whole = parent["some" if row["stage"] == "cut" else "metrics"]
        lost = {task: whole[task] - value for task, value in row["metrics"].items()}
        found.append(
            Figure(
                *(row["data"], row["stage"], Method(**row["method"])),
                *(tuple(row["tasks"]), row["budget"], row["seed"], lost),
                row["params"] / row["full_params"],
                row["flops"] / row["full_flops"],
                row["seconds"],
            )
        )
    return parents, found


def level(
    figures: Iterable[Figure],
    subsets: Iterable[Tasks],
    value: Callable[[Figure], float],
) -> Level | None:
    """A value's mean over subsets, then mean and spread over seeds.

    Args:
        figures: of one method at one budget.
        subsets: a seed counts if it has all of them.
        value: of a figure.

    Returns:
        None where no seed has all subsets.
    """
    wanted = set(subsets)
    of_seed: dict[int, dict[Tasks, float]] = {}
    for f in figures:
        if f.tasks in wanted:
            of_seed.setdefault(f.seed, {})[f.tasks] = value(f)
    whole = {s: v for s, v in sorted(of_seed.items()) if set(v) == wanted}
    if not whole:
        return None
    means = [float(np.mean(list(v.values()))) for v in whole.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
    return Level(float(np.mean(means)), spread, tuple(whole))


def mean_lost(figure: Figure) -> float:
    """Points lost, mean over tasks."""
    return figure.mean


def worst_lost(figure: Figure) -> float:
    """Points lost by the worst task."""
    return figure.worst


def subsets_of(figures: Iterable[Figure]) -> list[Tasks]:
    """Subsets that every method among the figures has, in order."""
    by_method: dict[Method, set[Tasks]] = {}
    order: dict[Tasks, None] = {}
    for f in figures:
        by_method.setdefault(f.method, set()).add(f.tasks)
        order[f.tasks] = None
    if not by_method:
        return []
    common = set.intersection(*by_method.values())
    return [tasks for tasks in order if tasks in common]
