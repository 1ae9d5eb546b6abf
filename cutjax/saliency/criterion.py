"""What a criterion is: additive measurements of a batch, and scores made of their sums.

A criterion is two pure functions. `measure` turns what a step sees of one batch into
numbers that add up over batches; `scores` turns their sums into scores per task.
Criteria asked for together share one pass over the data, and equal measurements are
made once. Criteria that need no data have no measurement.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Inexact

from cutjax.graph import Graph

Scores = dict[str, Float[np.ndarray, "_"]]


class Problem(NamedTuple):
    """What all criteria know: the function, its parameters, its graph, the losses."""

    apply: Callable[..., Any] | None
    params: Any
    graph: Graph
    losses: Mapping[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks to give scores for."""
        return tuple(self.losses)

    def alike(self, scores: Scores) -> dict[str, Scores]:
        """The same scores for every task."""
        return dict.fromkeys(self.tasks, scores)


class Measure(NamedTuple):
    """Numbers that add up over batches.

    `needs`: parts of `Seen` to compute, of "gates", "readers", "activations",
    "weights". `of(seen, problem)`: the sums over a batch, weighted by `seen.weights`.
    `once(seen, problem)`: what is the same in every batch (kernels).
    """

    name: str
    needs: frozenset[str]
    of: Callable[[Any, Problem], Any]
    once: Callable[[Any, Problem], Any] | None = None


class Sums(NamedTuple):
    """Sums of a measurement over `examples` examples; `once` is not summed."""

    total: Any
    once: Any
    examples: int

    def mean(self) -> Any:
        """The measurement per example, on the host in double precision."""
        return jax.tree.map(lambda v: double(v) / self.examples, self.total)


def double(values: Any) -> Inexact[np.ndarray, "..."]:
    """On the host in double precision; complex values stay complex."""
    values = np.asarray(values)
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


class Criterion(NamedTuple):
    """A criterion with its options, see the module.

    `scores(problem, sums)`: scores per task; `sums` are those of `measure`, None
    without one. `batch`: examples per step, where a batch is part of the definition.
    """

    name: str
    scores: Callable[[Problem, Any], dict[str, Scores]]
    measure: Measure | None = None
    batch: int | None = None
