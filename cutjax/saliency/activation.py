"""Criteria on what readers read: how large activations are, and how often zero."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.saliency.criterion import (
    Criterion,
    Measure,
    Problem,
    Scores,
    Sums,
    double,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.seen import ACTIVATIONS, READERS, Seen


def check_read(seen: Seen, graph: Graph, what: str) -> None:
    """Check that every group is read where its values can be seen.

    Raises:
        DataError: names a group that no kernel reads, or only inside of a loop.
    """
    for group in graph.free:
        if group.name not in seen.activations:
            raise DataError(
                f"{what}: what is read of group {group.name!r} cannot be seen (no "
                "kernel reads it, or only inside of a loop or branch); use taylor or "
                "fisher, or keep it: "
                f"trace(..., pin=({group.name!r},))"
            )


def _means(what: str, fn: Callable[[Any], Any]) -> Measure:
    """Mean of fn(activation) over positions and readers, summed over examples."""

    def of(seen: Seen, problem: Problem):
        check_read(seen, problem.graph, what)
        return {
            name: sum(
                jnp.einsum("bqn,b->n", fn(v), seen.weights) / v.shape[1] for v in found
            )
            / len(found)
            for name, found in seen.activations.items()
        }

    return Measure(f"activations: {what}", frozenset({ACTIVATIONS}), of)


MAGNITUDE = _means("mean_activation", jnp.abs)
ZEROS = _means("zero_rate", lambda a: (a == 0).astype(jnp.float32))


def _float32(values: dict[str, np.ndarray]) -> Scores:
    return {g: v.astype(np.float32) for g, v in values.items()}


@criterion
def mean_activation() -> Criterion:
    """Mean absolute activation of a channel where it is read.

    Returns:
        A criterion; the same for all tasks.

    Reference:
        Molchanov et al., ICLR 2017, section 2.2 (mean activation).
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return problem.alike(_float32(sums.mean()))

    return Criterion("mean_activation", scores, MAGNITUDE)


@criterion
def zero_rate() -> Criterion:
    """Share of examples and positions at which a channel is not zero.

    Returns:
        A criterion: one minus the average percentage of zeros; the same for all tasks.
        It says nothing (1 everywhere) where no activation function makes zeros.

    Reference:
        Hu et al., Network Trimming, 2016, eq. 1 (APoZ).
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return problem.alike(_float32({g: 1 - v for g, v in sums.mean().items()}))

    return Criterion("zero_rate", scores, ZEROS)


def _read_sizes(seen: Seen, problem: Problem):
    check_kernels(seen, problem.graph, "wanda")
    return {
        key: jnp.einsum("bpn,b->n", jnp.abs(v) ** 2, seen.weights)
        for key, v in seen.inputs.items()
    }


def check_kernels(seen: Seen, graph: Graph, what: str) -> None:
    """Check that every group has a reader with a kernel.

    Raises:
        DataError: names a group that has none.
    """
    for group in graph.free:
        if all(name != group.name for _, name in seen.inputs):
            raise DataError(
                f"{what}: group {group.name!r} is read by no kernel of its own "
                "(products of activations, loops); use taylor or joint, or keep it: "
                f"trace(..., pin=({group.name!r},))"
            )


READ_SIZES = Measure(
    "readers: mean squares",
    frozenset({READERS}),
    _read_sizes,
    lambda seen, problem: seen.kernels,
)


@criterion
def wanda() -> Criterion:
    """Absolute weights that read a channel, times the norm of what they read.

    Returns:
        A criterion: the sum over readers and what they make of |w| * ||a||, the norm a
        root mean square over examples; the same for all tasks.

    Reference:
        Sun et al., A Simple and Effective Pruning Approach for LLMs, ICLR 2024, eq. 1,
        summed over a channel's weights.
    """

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        out: Scores = {g.name: np.zeros(g.size, np.float32) for g in problem.graph.free}
        for key, square in sums.mean().items():
            weight = np.abs(double(sums.once[key])).sum((0, 2))
            out[key[1]] += (weight * np.sqrt(square)).astype(np.float32)
        return problem.alike(out)

    return Criterion("wanda", scores, READ_SIZES)
