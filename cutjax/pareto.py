"""Plans that weigh tasks against each other: the worst case, and the Pareto front.

What a task loses by a plan is predicted from its own scores: the sum over the channels
that go, relative to the task's loss where that is given, else to the sum over all.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cutjax import fuse
from cutjax.budget import Budget
from cutjax.dims import Keep
from cutjax.errors import KeepError
from cutjax.given import check_scores
from cutjax.graph import Graph
from cutjax.plan import PlanInfo, plan

Scores = Mapping[str, Mapping[str, np.ndarray]]


class Point(NamedTuple):
    """A plan for one weighting of the tasks, and what each task loses by it."""

    weights: dict[str, float]
    losses: dict[str, float]
    keep: dict[str, np.ndarray]
    info: PlanInfo


def predicted(
    scores: Scores, keep: Keep, baseline: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What each task loses by a keep, as its scores predict.

    Args:
        scores: per task and group, f32[n], in units of the loss or any other.
        keep: the channels to keep; groups that are not named stay whole.
        baseline: per task, its loss before, in the units of the scores.

    Returns:
        Per task, the sum of scores that go over the baseline, or over all scores.
    """
    out = {}
    for task, groups in scores.items():
        gone = sum(float(np.sum(v[~keep[n]])) for n, v in groups.items() if n in keep)
        whole = sum(float(np.abs(v).sum()) for v in groups.values())
        scale = whole if baseline is None else baseline[task]
        out[task] = gone / (scale or 1.0)
    return out


def worst_case(
    graph: Graph,
    scores: Scores,
    *,
    budget: Budget,
    tasks: Sequence[str] | str | None = None,
    baseline: Mapping[str, float] | None = None,
    rounds: int = 16,
    **planning: Any,
) -> tuple[dict[str, np.ndarray], PlanInfo]:
    """The plan with the smallest largest loss of a task.

    Weights of tasks that lose much grow from round to round (multiplicative weights);
    the best plan seen is returned, equal weights among the candidates.

    Args:
        graph: the graph.
        scores: per task and group, f32[n].
        budget: what may be left.
        tasks: the tasks that the device needs.
        baseline: see `predicted`.
        rounds: plans to try.
        **planning: further arguments of `plan`, but `fuse`.

    Returns:
        `(keep, info)`, see `plan`.

    Raises:
        BudgetError: the budget cannot be met.

    Reference:
        Freund & Schapire, Adaptive game playing using multiplicative weights, 1999.
    """
    check_scores(scores)
    chosen = graph.check_tasks(tuple(scores) if tasks is None else tasks)
    weights = dict.fromkeys(chosen, 1 / len(chosen))
    best: Point | None = None
    for number in range(1 if len(chosen) == 1 else rounds):
        at = point(graph, scores, weights, budget, baseline, **planning)
        if best is None or max(at.losses.values()) < max(best.losses.values()):
            best = at
        top = max(max(at.losses.values()), 1e-30)
        rate = 2.0 / np.sqrt(number + 1)
        raised = {t: w * np.exp(rate * at.losses[t] / top) for t, w in weights.items()}
        weights = {t: float(w / sum(raised.values())) for t, w in raised.items()}
    if best is None:
        raise KeepError(f"rounds={rounds}: it takes one round at least")
    return best.keep, best.info


def front(
    graph: Graph,
    scores: Scores,
    *,
    budget: Budget,
    tasks: Sequence[str] | str | None = None,
    weights: Sequence[Mapping[str, float]] | None = None,
    baseline: Mapping[str, float] | None = None,
    **planning: Any,
) -> list[Point]:
    """Plans of one budget of which none is better than another for all tasks.

    Args:
        graph: the graph.
        scores: per task and group, f32[n].
        budget: what may be left.
        tasks: the tasks that the device needs.
        weights: the weightings to try; not given, every pair of tasks in steps of an
            eighth, and all tasks alike.
        baseline: see `predicted`.
        **planning: further arguments of `plan`, but `fuse`.

    Returns:
        The points of the front, in the order of `weights`.
    """
    check_scores(scores)
    chosen = graph.check_tasks(tuple(scores) if tasks is None else tasks)
    tried = _grid(chosen) if weights is None else list(weights)
    points = [point(graph, scores, w, budget, baseline, **planning) for w in tried]
    values = np.array([[p.losses[t] for t in chosen] for p in points])
    stays = [
        not any(
            (other <= mine).all() and ((other < mine).any() or i < j)
            for i, other in enumerate(values)
            if i != j
        )
        for j, mine in enumerate(values)
    ]
    return [p for p, good in zip(points, stays, strict=True) if good]


def point(
    graph: Graph,
    scores: Scores,
    weights: Mapping[str, float],
    budget: Budget,
    baseline: Mapping[str, float] | None = None,
    **planning: Any,
) -> Point:
    """The plan for one weighting of the tasks.

    Args:
        graph: the graph.
        scores: per task and group, f32[n].
        weights: per chosen task.
        budget: what may be left.
        baseline: see `predicted`.
        **planning: further arguments of `plan`, but `fuse`.

    Returns:
        The point.
    """
    fused = partial(fuse.mean, weights=weights)
    tasks = tuple(weights)
    keep, info = plan(graph, scores, tasks=tasks, budget=budget, fuse=fused, **planning)
    losses = predicted({t: scores[t] for t in tasks}, keep, baseline)
    return Point(dict(weights), losses, keep, info)


def _grid(tasks: tuple[str, ...]) -> list[dict[str, float]]:
    """All tasks alike, then every pair from one task to the other."""
    out = [dict.fromkeys(tasks, 1 / len(tasks))]
    for a, b in itertools.combinations(tasks, 2):
        for share in np.linspace(0, 1, 9):
            out.append({**dict.fromkeys(tasks, 0.0), a: 1 - share, b: share})
    return [{t: float(w) for t, w in weights.items()} for weights in out]
