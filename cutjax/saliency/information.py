"""What a channel's activation tells about a label: mutual information by kernels."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from cutjax.errors import DataError
from cutjax.saliency.activation import check_read
from cutjax.saliency.criterion import (
    Criterion,
    Measure,
    Problem,
    Scores,
    Sums,
    double,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.seen import ACTIVATIONS, Seen


@criterion
def mutual_information(
    examples: int = 128, variance: float = 0.1, bins: int = 8
) -> Criterion:
    """Mutual information of a channel's mean activation with the labels of a task.

    Args:
        examples: how many to look at, the first of the stream: memory and time grow
            with it and with its square.
        variance: sigma^2 of the kernels; activations are standardised per channel.
        bins: quantiles that labels which are not whole numbers are divided into.

    Returns:
        A criterion, in nats: H(h) - sum over labels of p(y) H(h | y), with H(h) =
        -mean_i log mean_j exp(-|h_i - h_j|^2 / 2 sigma^2).

    Reference:
        PAM (1905.09676), section 4.2, with the bound of Kolchinsky & Tracey, Entropy
        2017; per channel, not per set.
    """

    def of(seen: Seen, problem: Problem):
        check_read(seen, problem.graph, "mutual_information")
        rank = seen.first + jnp.cumsum(seen.weights).astype(jnp.int32) - 1
        row = jnp.where(seen.weights > 0, rank, examples)

        def noted(values):
            empty = jnp.zeros((examples, *values.shape[1:]))
            return empty.at[row].set(values, mode="drop")

        activity = {
            name: noted(sum(_real(v).mean(1) for v in found) / len(found))
            for name, found in seen.activations.items()
        }
        labels = {t: noted(_labels(t, seen.targets[t])) for t in problem.tasks}
        return activity, labels

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        n = min(sums.examples, examples)
        activity, labels = sums.total
        classes = {t: _classes(np.asarray(v)[:n], bins) for t, v in labels.items()}
        out: dict[str, Scores] = {t: {} for t in problem.tasks}
        for name, values in activity.items():
            # Kernels of some channels at a time: all at once can be gigabytes.
            parts = np.array_split(values[:n], -(-values.shape[1] // 64), axis=1)
            kernels = (_kernel(double(p), variance) for p in parts)
            found = [[_information(k, c) for c in classes.values()] for k in kernels]
            for task, pieces in zip(classes, zip(*found, strict=True), strict=True):
                out[task][name] = np.concatenate(pieces)
        return out

    name = f"activations: first {examples}, with labels"
    return Criterion(
        "mutual_information", scores, Measure(name, frozenset({ACTIVATIONS}), of)
    )


def _real(values: Inexact[Array, "..."]) -> Float[Array, "..."]:
    return jnp.abs(values) if jnp.iscomplexobj(values) else values


def _labels(task: str, target) -> Float[jnp.ndarray, "b"]:
    """One number per example: of one-hot vectors, their place."""
    target = jnp.asarray(target)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim == 2 and jnp.issubdtype(target.dtype, jnp.floating):
        target = target.argmax(1)
    if target.ndim != 1:
        raise DataError(
            f"mutual_information: targets of {task!r} have shape {target.shape}; it "
            "needs one label per example"
        )
    return target.astype(jnp.float32)


def _classes(labels: np.ndarray, bins: int) -> list[np.ndarray]:
    """Masks of the examples of each class."""
    if not np.array_equal(labels, np.round(labels)):
        edges = np.quantile(labels, np.linspace(0, 1, bins + 1)[1:-1])
        labels = np.searchsorted(edges, labels)
    return [labels == value for value in np.unique(labels)]


def _kernel(
    values: Float[np.ndarray, "n c"], variance: float
) -> Float[np.ndarray, "c n n"]:
    spread = values.std(0)
    scaled = (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
    apart = scaled.T[:, :, None] - scaled.T[:, None, :]
    return np.exp(-(apart**2) / (2 * variance))


def _information(
    kernel: Float[np.ndarray, "c n n"], classes: list[np.ndarray]
) -> Float[np.ndarray, "c"]:
    def entropy(part: np.ndarray) -> np.ndarray:
        return -np.log(part.mean(2, dtype=np.float64)).mean(1)

    found = entropy(kernel)
    for mask in classes:
        found = found - mask.mean() * entropy(kernel[:, mask][:, :, mask])
    return found.astype(np.float32)
