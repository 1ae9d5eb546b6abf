"""Criteria on weights and their gradients, summed over each channel's slices.

One gradient of the parameters per task and batch, none per example. A channel's slices
are all that goes with it: filters, the rows that read it, biases, BatchNorm's scale.
"""

import jax
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
from cutjax.saliency.members import Reduce, per_channel, total
from cutjax.saliency.seen import WEIGHTS, Seen, floats

Weights = dict[str, np.ndarray]


def _gradients(seen: Seen, problem: Problem):
    return seen.slopes


GRADIENTS = Measure("weights: gradients", frozenset({WEIGHTS}), _gradients)
"""Per parameter, the gradient of the summed losses, `[tasks, ...]`."""


def _batch_products(seen: Seen, problem: Problem):
    """|w dL/dw| of this batch's mean loss, times its examples."""
    weights = floats(problem.params)
    return {p: jnp.abs(g * weights[p]) for p, g in seen.slopes.items()}


BATCH_PRODUCTS = Measure("weights: |w g|", frozenset({WEIGHTS}), _batch_products)


def weight_scores(
    problem: Problem, values: Weights, reduce: Reduce
) -> dict[str, Scores]:
    """From `[tasks, ...]` per parameter to scores per task and channel."""
    return {
        task: per_channel({p: v[i] for p, v in values.items()}, problem.graph, reduce)
        for i, task in enumerate(problem.tasks)
    }


@criterion
def cut(batch: int = 32, reduce: Reduce = total) -> Criterion:
    """CUT's importance, |w dL/dw| of batch after batch, over all weights of a channel.

    Args:
        batch: examples per batch: absolute values are taken batch by batch, so their
            size is part of the definition. The stream is divided anew to fit.
        reduce: from a channel's slices to one number.

    Returns:
        A criterion.

    Reference:
        CUT (2504.09803): s_t,j = sum over batches |theta_j dL_t/dtheta_j|; its code
        leaves out biases and normalisations, here they count.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return weight_scores(problem, sums.mean(), reduce)

    return Criterion("cut", scores, BATCH_PRODUCTS, batch)


@criterion
def snip(reduce: Reduce = total) -> Criterion:
    """Connection sensitivity: |w dL/dw| of the mean loss, over a channel's weights.

    Args:
        reduce: from a channel's slices to one number.

    Returns:
        A criterion.

    Reference:
        Lee, Ajanthan & Torr, SNIP, ICLR 2019, eq. 5 (before its normalisation).
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        weights = floats(problem.params)
        found = sums.mean()
        products = {
            p: np.abs(g * np.asarray(weights[p], np.float64)) for p, g in found.items()
        }
        return weight_scores(problem, products, reduce)

    return Criterion("snip", scores, GRADIENTS)


@criterion
def grasp(batch: int = 32, reduce: Reduce = total) -> Criterion:
    """What a channel adds to the flow of gradients: the sum of w Hg over its weights.

    Args:
        batch: examples whose mean loss gives the gradient g and the Hessian H.
        reduce: from a channel's slices to one number.

    Returns:
        A criterion: high where removing the channel would reduce the norm of the
        gradient; may be negative.

    Reference:
        Wang, Zhang & Grosse, GraSP, ICLR 2020, eq. 8, whose S = -w Hg is high
        for what should go; here the sign is turned.
    """

    def of(seen: Seen, problem: Problem):
        weights = floats(problem.params)
        count = jnp.maximum(seen.weights.sum(), 1.0)

        def slopes(task, w):
            return jax.grad(lambda w: seen.of_weights(w)[task] / count)(w)

        def flow(task):
            g = slopes(task, weights)
            return jax.jvp(lambda w: slopes(task, w), (weights,), (g,))[1]

        each = [flow(task) for task in range(len(problem.losses))]
        stacked = jax.tree.map(lambda *v: jnp.stack(v), *each)
        return {p: v * weights[p] * count for p, v in stacked.items()}

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return weight_scores(problem, sums.mean(), reduce)

    measure = Measure("weights: w Hg", frozenset(), of)
    return Criterion("grasp", scores, measure, batch)
