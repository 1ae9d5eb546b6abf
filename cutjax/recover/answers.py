"""How far an answer is from the parent's, and from a true label, by kind of task."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.losses import TaskLoss, of_classes, of_labels, of_numbers, wide
from cutjax.recover.kinds import LABELS, NUMBERS


def losses_of(
    kind: str, *, temperature: float, spread: float
) -> tuple[TaskLoss, TaskLoss]:
    """The losses of a task.

    Args:
        kind: of it, see `cutjax.recover.kinds`.
        temperature: of softmax and sigmoid.
        spread: what counts as an error of one, of numbers.

    Returns:
        `loss(answers, taught)` and `loss(answers, labels)`.
    """
    if kind == NUMBERS:
        return partial(_squared, spread=spread), of_numbers(spread)
    if kind == LABELS:
        return partial(divergence_of_each, temperature=temperature), of_labels
    return partial(divergence, temperature=temperature), of_classes


def _squared(answers: Any, taught: Any, *, spread: float) -> Float[Array, ""]:
    # Not `of_numbers`: where the parent's number is NaN, that must not pass unnoticed.
    error = jnp.reshape(wide(answers), jnp.shape(taught)) - taught
    return jnp.mean((error / spread) ** 2)


def divergence(logits: Any, taught: Any, temperature: float) -> Float[Array, ""]:
    """Kullback-Leibler divergence at a temperature, times its square.

    Args:
        logits: of the child, classes last.
        taught: of the parent.
        temperature: of both.

    Returns:
        The mean over examples and positions.
    """
    logits, taught = wide(logits), wide(taught)
    teacher = jax.nn.log_softmax(taught / temperature)
    student = jax.nn.log_softmax(logits / temperature)
    # Masked classes have no chance: -inf - -inf is no number, nor is its slope.
    gap = jnp.where(taught == -jnp.inf, 0.0, teacher - student)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * gap, -1).mean()


def divergence_of_each(
    logits: Any, taught: Any, temperature: float
) -> Float[Array, ""]:
    """The same of several labels, each of which is there or not: sigmoids.

    Args:
        logits: of the child, one per label.
        taught: of the parent.
        temperature: of both.

    Returns:
        The mean over examples and labels.
    """
    # The sigmoid of a logit is the softmax of it and of 0.
    logits = jnp.reshape(logits, jnp.shape(taught))
    child, parent = (jnp.stack([v, jnp.zeros_like(v)], -1) for v in (logits, taught))
    return divergence(child, parent, temperature)
