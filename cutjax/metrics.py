"""Accuracy per task, in percent, whether it asks for a class or for a number.

A class is that of the largest logit, and counts if it is right. A number (float labels)
counts by the share of the labels' variance that it explains: R^2, 0 for an answer no
better than the labels' mean.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from cutjax.data.base import Split, batches, check_split
from cutjax.data.examples import count, inputs_in, padded, shapes


def named(outputs: Any) -> dict[str, Any]:
    """Outputs by task: a result that is not a dict is the one task `output`."""
    return outputs if isinstance(outputs, dict) else {"output": outputs}


def accuracy(
    apply: Callable[..., Any],
    params: Any,
    split: Split,
    *,
    tasks: Iterable[str] | None = None,
    batch_size: int = 500,
) -> dict[str, float]:
    """Percent of labels predicted right, or of variance explained, per task.

    Compiles once per `apply` and shape: the last batch is padded, and repeated calls
    with the same `apply` object (every epoch of a training run, say) reuse the program.

    Args:
        apply: `apply(params, x) -> {task: logits}`, classes on the last axis; a number
            may have a last axis of one. Of a tuple `x`, `apply(params, *x)`.
        params: its parameters.
        split: images and labels by task; integers are classes, floats numbers.
        tasks: which tasks; default: all that have both an output and labels.
        batch_size: examples per call.

    Returns:
        `{task: percent}`. Where a task has a label per position, every position counts
        alike. For a number 100 R^2 = 100 (1 - squared error / squared deviation of the
        split's labels from their mean), and 0 where that is negative or not finite.

    Raises:
        ValueError: an empty split, a task without labels or without an output, or
            labels of a number that are all the same.
    """
    n = check_split(split)
    size = min(batch_size, n)
    outputs = named(jax.eval_shape(apply, params, *inputs_in(shapes(split.x, size))))
    chosen = _choose(tasks, outputs, split.y)
    whole = {task: _whole(split.y[task], task) for task in chosen}
    sums = dict.fromkeys(chosen, 0.0)
    for x, y in batches(split, size):
        valid = np.arange(size) < count(x, "accuracy")
        x, labels = padded((x, {task: y[task] for task in chosen}), size)
        more = _sums(apply, params, x, labels, valid)
        sums = {task: sums[task] + float(more[task]) for task in chosen}
    shares = {t: sums[t] / whole[t] for t in chosen}
    return {t: _percent(v, _is_number(split.y[t])) for t, v in shares.items()}


def _is_number(labels: Any) -> bool:
    return labels.dtype.kind == "f"


def _whole(labels: np.ndarray, task: str) -> float:
    """What sums are a share of: the number of examples, or the labels' deviation."""
    if not _is_number(labels):
        return float(len(labels))
    exact = labels.astype(np.float64)
    if not (deviation := float(((exact - exact.mean()) ** 2).sum())):
        raise ValueError(
            f"accuracy: all labels of {task!r} are {exact.flat[0]:g}, so there is no "
            "variance to explain; leave the task out with tasks=..."
        )
    return deviation


def _percent(share: float, number: bool) -> float:
    if not number:
        return 100 * share
    return 100 * max(1 - share, 0.0) if np.isfinite(share) else 0.0


def _choose(
    tasks: Iterable[str] | None, outputs: dict[str, Any], labels: dict[str, Any]
) -> tuple[str, ...]:
    chosen = tuple(t for t in outputs if t in labels) if tasks is None else tuple(tasks)
    missing = [t for t in chosen if t not in outputs or t not in labels]
    if missing or not chosen:
        raise ValueError(
            f"accuracy: needs an output and labels for {missing or 'some task'}; the "
            f"model answers {sorted(outputs)}, the split labels {sorted(labels)}"
        )
    return chosen


@partial(jax.jit, static_argnums=0)
def _sums(
    apply: Callable[..., Any],
    params: Any,
    x: Any,
    labels: dict[str, Array],
    valid: Bool[Array, " n"],
) -> dict[str, Array]:
    """Labels that are right (a mean over positions), or squared errors of numbers."""
    outputs, found = named(apply(params, *inputs_in(x))), {}
    for task, y in labels.items():
        if _is_number(y):
            each = (outputs[task].reshape(y.shape) - y).reshape(len(y), -1) ** 2
            of_row = each.sum(1)
        else:
            hits = outputs[task].argmax(-1) == y
            of_row = hits.reshape(len(y), -1).mean(1)
        found[task] = jnp.where(valid, of_row, 0).sum()
    return found
