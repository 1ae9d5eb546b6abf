"""What a task is trained on: classes by cross entropy, numbers by squared error.

A task with 0 classes is a regression of one number, and its labels are floats. Squared
errors are counted in units of the labels' standard deviation, so that numbers of any
size weigh alike beside classes, and the mean answer costs 1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from cutjax.data.base import Dataset
from cutjax.metrics import named

TaskLoss = Callable[[Any, Any], Float[Array, ""]]
Summed = Callable[[Any, Mapping[str, Any]], tuple[Float[Array, ""], dict[str, Array]]]


def of_classes(logits: Any, labels: Any) -> Float[Array, ""]:
    """Mean softmax cross entropy with integer labels."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def of_numbers(spread: float = 1.0) -> TaskLoss:
    """Mean squared error in units of `spread`, the labels' standard deviation.

    Args:
        spread: what counts as an error of one.

    Returns:
        `loss(answers, labels) -> scalar`; the answers may have a last axis of one.

    Example:
        >>> loss = of_numbers(2.0)
        >>> float(loss(np.array([[3.0], [1.0]]), np.array([1.0, 1.0])))
        0.5
    """

    def loss(answers: Any, labels: Any) -> Float[Array, ""]:
        error = jnp.reshape(answers, jnp.shape(labels)) - labels
        return jnp.mean((error / spread) ** 2)

    return loss


def spreads(data: Dataset) -> dict[str, float]:
    """Standard deviation of each regression's training labels; 1 where they are one."""
    numbers = [task for task, classes in data.tasks.items() if classes == 0]
    found = {task: float(np.std(data.train.y[task])) for task in numbers}
    return {task: spread or 1.0 for task, spread in found.items()}


def losses_for(
    data: Dataset, tasks: Sequence[str] | None = None
) -> dict[str, TaskLoss]:
    """The loss of every task, as `saliency` takes it.

    Each is a mean over the examples it is given: called with one example, as criteria
    do, it is that example's loss.

    Args:
        data: its `tasks` tell classes from numbers.
        tasks: which tasks; all, if not given.

    Returns:
        Per task, `loss(output, labels) -> scalar`.

    Raises:
        ValueError: a task that the data do not have.
    """
    chosen = tuple(data.tasks) if tasks is None else tuple(tasks)
    unknown = [task for task in chosen if task not in data.tasks]
    if unknown or not chosen:
        raise ValueError(
            f"losses_for: {data.name} has the tasks {sorted(data.tasks)}, not {unknown}"
        )
    scale = spreads(data)
    return {t: of_numbers(scale[t]) if t in scale else of_classes for t in chosen}


def summed(
    losses: Mapping[str, TaskLoss], weights: Mapping[str, float] | None = None
) -> Summed:
    """The weighted sum of the tasks' losses, as `cutjax.fit.fit` takes it.

    Args:
        losses: per task, `loss(output, labels) -> scalar`.
        weights: of some tasks; 1 for the others.

    Returns:
        `loss(outputs, y) -> (scalar, {task: scalar})`.

    Raises:
        ValueError: no task, or weights of other tasks.
    """
    weights = dict(weights or {})
    if not losses or set(weights) - set(losses):
        raise ValueError(
            f"summed: tasks are {tuple(losses)}, weights name {sorted(weights)}; give "
            "at least one task and weights for these only"
        )

    def loss(outputs: Any, y: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        answers = named(outputs)
        each = {task: fn(answers[task], y[task]) for task, fn in losses.items()}
        total = jnp.stack([weights.get(t, 1.0) * v for t, v in each.items()]).sum()
        return total, each

    return loss
