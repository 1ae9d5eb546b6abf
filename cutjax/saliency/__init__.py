"""Criteria: each maps a function, its parameters, graph and data to scores per task."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cutjax.graph import Graph
from cutjax.saliency.gradient import Scores, fisher as fisher, taylor as taylor
from cutjax.saliency.joint import joint as joint
from cutjax.saliency.stream import Batch, Loss
from cutjax.saliency.weight import l1 as l1, random as random


def saliency(
    apply: Callable[..., Any],
    params: Any,
    graph: Graph,
    losses: Mapping[str, Loss],
    batches: Iterable[Batch],
    *,
    criterion: Callable[..., dict[str, Scores]] = taylor,
    progress: bool = True,
) -> dict[str, Scores]:
    """Score every channel for every task, in one pass over the data.

    Args:
        apply: the full function, `apply(params, x) -> {task: output}`.
        params: its parameters.
        graph: its graph.
        losses: per task, `loss(output, target) -> scalar`.
        batches: `(x, {task: target})`, of calibration data.
        criterion: `taylor`, `fisher`, `joint`, `l1`, `random`, or your own.
        progress: show a progress bar.

    Returns:
        Per task and group, f32[n]; higher is kept.

    Raises:
        DataError: empty data, a missing target, NaN scores.
    """
    return criterion(apply, params, graph, losses, batches, progress=progress)
