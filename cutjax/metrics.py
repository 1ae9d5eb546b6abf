"""Accuracy per task. A prediction is the class of the largest logit."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from cutjax.data.base import Split, batches, check_split


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
    """Percent of labels predicted right, per task.

    Compiles once per `apply` and shape: the last batch is padded, and repeated calls
    with the same `apply` object (every epoch of a training run, say) reuse the program.

    Args:
        apply: `apply(params, x) -> {task: logits}`, classes on the last axis.
        params: its parameters.
        split: images and labels by task.
        tasks: which tasks; default: all that have both an output and labels.
        batch_size: examples per call.

    Returns:
        `{task: percent}`. Where a task has a label per position, every position counts
        alike.

    Raises:
        ValueError: an empty split, or a task without labels or without an output.
    """
    n = check_split(split)
    size = min(batch_size, n)
    shape = jax.ShapeDtypeStruct((size, *split.x.shape[1:]), split.x.dtype)
    outputs = named(jax.eval_shape(apply, params, shape))
    chosen = _choose(tasks, outputs, split.y)
    right = dict.fromkeys(chosen, 0.0)
    for x, y in batches(split, size):
        rows = len(x)
        pad = partial(_pad, size=size)
        labels = {task: pad(y[task]) for task in chosen}
        counts = _right(apply, params, pad(x), labels, np.arange(size) < rows)
        right = {task: right[task] + float(counts[task]) for task in chosen}
    return {task: 100 * right[task] / n for task in chosen}


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


def _pad(rows: np.ndarray, *, size: int) -> np.ndarray:
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


@partial(jax.jit, static_argnums=0)
def _right(
    apply: Callable[..., Any],
    params: Any,
    x: Array,
    labels: dict[str, Array],
    valid: Bool[Array, " n"],
) -> dict[str, Array]:
    outputs = named(apply(params, x))
    hits = {t: outputs[t].argmax(-1) == y for t, y in labels.items()}
    shares = {t: h.reshape(len(h), -1).mean(1) for t, h in hits.items()}
    return {t: jnp.where(valid, share, 0).sum() for t, share in shares.items()}
