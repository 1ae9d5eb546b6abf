"""What a task is trained on: classes by cross entropy, numbers by squared error.

A task with 0 classes is a regression of one number, and its labels are floats. Squared
errors are counted in units of the labels' standard deviation, so that numbers of any
size weigh alike beside classes, and the mean answer costs 1. What has no label (a
negative class, a number that is NaN) costs nothing: a mean is over all examples.
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
    """Mean softmax cross entropy with integer labels; negative ones are none."""
    there = jnp.asarray(labels) >= 0
    known = jnp.where(there, labels, 0)
    each = optax.softmax_cross_entropy_with_integer_labels(wide(logits), known)
    return jnp.where(there, each, 0).mean()


def of_labels(logits: Any, labels: Any) -> Float[Array, ""]:
    """Mean sigmoid cross entropy with labels 0 to 1 of each; negative or NaN is none.

    Args:
        logits: one per label.
        labels: as many; the logits may have a last axis of one more.

    Returns:
        The mean over examples and labels.

    Example:
        >>> round(float(of_labels(np.zeros((2, 3)), np.eye(3)[:2])), 4)
        0.6931
    """
    there = jnp.asarray(labels) >= 0  # false for NaN
    known = jnp.where(there, labels, 0)
    logits = jnp.reshape(wide(logits), jnp.shape(labels))
    each = optax.sigmoid_binary_cross_entropy(logits, known)
    return jnp.where(there, each, 0).mean()


def of_numbers(spread: float = 1.0) -> TaskLoss:
    """Mean squared error in units of `spread`, the labels' standard deviation.

    Args:
        spread: what counts as an error of one.

    Returns:
        `loss(answers, labels) -> scalar`; the answers may have a last axis of one.
        Labels that are NaN are none.

    Example:
        >>> loss = of_numbers(2.0)
        >>> float(loss(np.array([[3.0], [1.0]]), np.array([1.0, 1.0])))
        0.5
    """

    def loss(answers: Any, labels: Any) -> Float[Array, ""]:
        there = ~jnp.isnan(labels)
        error = jnp.reshape(wide(answers), jnp.shape(labels)) - labels
        return jnp.mean((jnp.where(there, error, 0) / spread) ** 2)

    return loss


def wide(answers: Any) -> Any:
    """Answers in float32 at least: losses of half precision are mostly rounding."""
    answers = jnp.asarray(answers)
    return answers.astype(jnp.promote_types(answers.dtype, jnp.float32))


def spreads(data: Dataset) -> dict[str, float]:
    """Standard deviation of each regression's training labels; 1 where they are one."""
    numbers = [task for task, classes in data.tasks.items() if classes == 0]
    return {task: spread_of(data.train.y[task]) for task in numbers}


def spread_of(values: Any, *, each: bool = False) -> float:
    """The standard deviation of numbers; 1 where they are one but for rounding.

    Args:
        values: numbers; those that are not finite are left out.
        each: count from the mean of every position of the last axis, not of all.

    Example:
        >>> spread_of(np.full(256, 0.1, np.float32)), spread_of([1.0, 3.0])
        (1.0, 1.0)
    """
    exact = np.ma.masked_invalid(np.asarray(values, np.float64))
    if not exact.count():
        return 1.0
    over = tuple(range(exact.ndim - 1)) if each else None
    spread = np.sqrt(((exact - exact.mean(over)) ** 2).mean())
    return float(spread) if spread > 1e-6 * np.abs(exact).max() else 1.0


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
