"""Structured methods that score once and plan once: criterion, fusion, allocation."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cutjax import criteria
from cutjax.allocate import Allocate, greedy, threshold, uniform as share
from cutjax.budget import Budget
from cutjax.fuse import Fuse, Scores, mean, union, vote
from cutjax.graph import Graph
from cutjax.normalize import Normalize, none
from cutjax.plan import PlanInfo, plan
from cutjax.saliency import saliency
from cutjax.saliency.criterion import Criterion
from cutjax.saliency.stream import Batch, Loss


class Recipe(NamedTuple):
    """A method as a value: what to score, how to compare, fuse, and allocate."""

    name: str
    criterion: Criterion
    fuse: Fuse = mean
    normalize: Normalize = none
    allocate: Allocate = greedy
    reference: str = ""


def planned(
    recipe: Recipe,
    graph: Graph,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    *,
    budget: Budget,
    tasks: Sequence[str] | str | None = None,
) -> tuple[dict[str, np.ndarray], PlanInfo]:
    """The plan of a recipe, from scores that its criterion gave.

    Args:
        recipe: the method.
        graph: the graph.
        scores: per task and group, f32[n].
        budget: what may be left.
        tasks: the tasks that the device needs; all that have scores, if not given.

    Returns:
        `(keep, info)`, see `plan`.
    """
    return plan(
        graph,
        scores,
        tasks=tasks,
        budget=budget,
        fuse=recipe.fuse,
        normalize=recipe.normalize,
        allocate=recipe.allocate,
    )


def prune(
    recipe: Recipe,
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    budget: Budget,
    tasks: Sequence[str] | str | None = None,
    progress: bool = True,
) -> tuple[dict[str, np.ndarray], PlanInfo]:
    """Score and plan by a recipe.

    Args:
        recipe: the method.
        apply: the full function.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: calibration data.
        budget: what may be left.
        tasks: the tasks that the device needs; those with losses, if not given.
        progress: show a progress bar.

    Returns:
        `(keep, info)`, for `cut`.

    Example:
        >>> import jax.numpy as jnp, cutjax as cj
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.ones((2, 3)), "b": jnp.array([[1.0], [2.0], [0.0]])}
        >>> x, y = jnp.ones((4, 2)), {"output": jnp.zeros((4, 1))}
        >>> graph = cj.trace(apply, w, x)
        >>> loss = {"output": lambda out, y: ((out - y) ** 2).mean()}
        >>> keep, info = prune(taylor(), apply, w, graph, loss, [(x, y)],
        ...                    budget=cj.Budget(params=0.4), progress=False)
        >>> keep["a:1"].tolist()
        [False, True, False]
    """
    chosen = graph.check_tasks(tuple(losses) if tasks is None else tasks)
    full = (apply, params, graph, losses, batches)
    found = saliency(*full, criterion=recipe.criterion, progress=progress)
    return planned(recipe, graph, found, budget=budget, tasks=chosen)


def default() -> Recipe:
    """What `scripts/study` found best: the joint criterion, most score per cost."""
    return Recipe(
        "default",
        criteria.joint(),
        reference="joint activation-gradient criterion, see cutjax.saliency.joint",
    )


def taylor() -> Recipe:
    """First-order saliency, most score per cost."""
    return Recipe(
        "taylor",
        criteria.taylor(),
        reference="Molchanov et al., ICLR 2017, with a plan by marginal cost",
    )


def cut(votes: int | None = None) -> Recipe:
    """CUT, structured: the best channels of each task, kept where n tasks vote for it.

    Args:
        votes: n; half of the tasks, rounded up, if not given (2 in the authors' code,
            1 in their figure).

    Returns:
        A recipe; one global threshold, as theirs, is solved for the budget.
    """
    return Recipe(
        "cut",
        criteria.cut(),
        fuse=_voted if votes is None else partial(vote, k=votes),
        allocate=threshold,
        reference="CUT, 2504.09803",
    )


def _voted(scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    return vote(scores, math.ceil(len(scores) / 2))


def disparse() -> Recipe:
    """DiSparse, structured: connection sensitivity per task, union of the tasks."""
    return Recipe(
        "disparse",
        criteria.snip(),
        fuse=union,
        allocate=threshold,
        reference="Sun et al., DiSparse, CVPR 2022, on channels",
    )


def snip() -> Recipe:
    """SNIP, structured: connection sensitivity of all tasks together."""
    return Recipe(
        "snip",
        criteria.snip(),
        allocate=threshold,
        reference="Lee et al., ICLR 2019, on channels of the trained network",
    )


def lth() -> Recipe:
    """One-shot magnitude, as lottery tickets are drawn: one threshold for all."""
    return Recipe(
        "l1",
        criteria.l1(),
        allocate=threshold,
        reference="Frankle & Carbin, ICLR 2019; Li et al., ICLR 2017",
    )


def cosprune() -> Recipe:
    """CosPrune's score in one shot; for its rounds see `cosprune_rounds`."""
    return Recipe(
        "cosprune",
        criteria.cosprune(),
        allocate=threshold,
        reference="Garg, Zhang & Guan, 2023",
    )


def uniform() -> Recipe:
    """The same share of every group, channels by L1."""
    return Recipe(
        "uniform", criteria.l1(), allocate=share, reference="Li et al., ICLR 2017"
    )


def random(seed: int = 0) -> Recipe:
    """The same share of every group, channels by chance.

    Args:
        seed: of the draw.

    Returns:
        A recipe.
    """
    return Recipe(
        "random", criteria.random(seed=seed), allocate=share, reference="a control"
    )


ONE_SHOT: dict[str, Callable[..., Recipe]] = {
    f.__name__: f
    for f in (default, taylor, cut, disparse, snip, lth, cosprune, uniform, random)
}
"""Every one-shot recipe by name."""
