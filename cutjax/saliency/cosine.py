"""Agreement between tasks: the cosine of their gradients on a channel's weights."""

import numpy as np

from cutjax.errors import DataError
from cutjax.saliency.criterion import (
    Criterion,
    Problem,
    Scores,
    Sums,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.members import per_channel
from cutjax.saliency.slopes import GRADIENTS


@criterion
def cosprune() -> Criterion:
    """Mean cosine of a task's gradient on a channel's weights with the other tasks'.

    Returns:
        A criterion, between -1 and 1: low where tasks pull a channel apart. A channel
        that a task's loss does not reach has cosine 0 with it.

    Raises:
        DataError: fewer than two losses.

    Reference:
        Garg, Zhang & Guan, Structured Pruning for Multi-Task Deep Neural Networks,
        2023: mean over task pairs; `fuse.mean` over all tasks gives it.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        tasks, found, graph = problem.tasks, sums.mean(), problem.graph
        if len(tasks) < 2:
            raise DataError(
                f"cosprune compares tasks, but there is a loss for {list(tasks)} only; "
                "give two losses or more, or use taylor"
            )

        def product(i: int, j: int) -> Scores:
            return per_channel({p: g[i] * g[j] for p, g in found.items()}, graph)

        size = [product(i, i) for i in range(len(tasks))]
        out: dict[str, Scores] = {}
        for i, task in enumerate(tasks):
            others = [j for j in range(len(tasks)) if j != i]
            cosines = [_cosine(product(i, j), size[i], size[j]) for j in others]
            out[task] = {
                g.name: np.mean([c[g.name] for c in cosines], 0) for g in graph.free
            }
        return out

    return Criterion("cosprune", scores, GRADIENTS)


def _cosine(both: Scores, one: Scores, other: Scores) -> Scores:
    out = {}
    for name, value in both.items():
        scale = np.sqrt(one[name].astype(np.float64) * other[name])
        out[name] = np.where(scale > 0, value / np.maximum(scale, 1e-30), 0.0)
    return {name: v.astype(np.float32) for name, v in out.items()}
