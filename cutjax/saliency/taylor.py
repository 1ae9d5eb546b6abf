"""First-order criteria: what the loss owes to a channel, activation times gradient.

dL/dgate of a channel is the sum over positions and readers of activation times
gradient: minus the first-order change of the loss when the channel goes. It covers a
whole group: what scales a channel, BatchNorm too, lies on the way to its readers.
"""

import jax.numpy as jnp
import numpy as np

from cutjax.saliency.criterion import (
    Criterion,
    Measure,
    Problem,
    Scores,
    Sums,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.seen import GATES, Seen


def _sum(fn):
    def of(seen: Seen, problem: Problem):
        return {
            g: jnp.einsum("btn,b->tn", fn(v), seen.weights)
            for g, v in seen.gates.items()
        }

    return of


ABSOLUTE = Measure("gates: sum of absolute values", frozenset({GATES}), _sum(jnp.abs))
SIGNED = Measure("gates: sum", frozenset({GATES}), _sum(lambda g: g))
SQUARE = Measure("gates: sum of squares", frozenset({GATES}), _sum(jnp.square))


def by_task(problem: Problem, values: dict[str, np.ndarray]) -> dict[str, Scores]:
    """From `[tasks, n]` per group to scores per task."""
    return {
        task: {g: v[i].astype(np.float32) for g, v in values.items()}
        for i, task in enumerate(problem.tasks)
    }


@criterion
def taylor() -> Criterion:
    """Mean absolute first-order change of the loss when a channel is removed.

    Returns:
        A criterion: mean over examples of |dL/dgate|, in units of the loss.

    Reference:
        Molchanov et al., Pruning CNNs for Resource Efficient Inference, ICLR 2017, eq.
        8 (the absolute value per example, positions summed before).
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return by_task(problem, sums.mean())

    return Criterion("taylor", scores, ABSOLUTE)


@criterion
def taylor_squared() -> Criterion:
    """The square of the first-order change of the mean loss.

    Returns:
        A criterion: (mean over examples of dL/dgate)^2.

    Reference:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019,
        eq. 7, for gates, over all of the data.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return by_task(problem, {g: v**2 for g, v in sums.mean().items()})

    return Criterion("taylor_squared", scores, SIGNED)


@criterion
def taylor_signed() -> Criterion:
    """The first-order change of the mean loss, with its sign.

    Returns:
        A criterion: minus the mean over examples of dL/dgate; below zero where the loss
        is expected to fall when the channel goes.

    Reference:
        Molchanov et al., ICLR 2017, eq. 6, without the absolute value.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return by_task(problem, {g: -v for g, v in sums.mean().items()})

    return Criterion("taylor_signed", scores, SIGNED)
