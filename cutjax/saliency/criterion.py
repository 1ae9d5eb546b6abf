"""What a criterion is: additive measurements of a batch, and scores made of their sums.

A criterion is two pure functions. `measure` turns what a step sees of one batch into
numbers that add up over batches; `scores` turns their sums into scores per task.
Criteria asked for together share one pass over the data, and equal measurements are
made once. Criteria that need no data have no measurement.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cutjax.graph import Graph
from cutjax.saliency.stream import Batch, Loss

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
        import jax

        return jax.tree.map(
            lambda v: np.asarray(v, np.float64) / self.examples, self.total
        )


class Criterion(NamedTuple):
    """A criterion with its options, see the module.

    `scores(problem, sums)`: scores per task; `sums` are those of `measure`, None
    without one. `batch`: examples per step, where a batch is part of the definition.
    """

    name: str
    scores: Callable[[Problem, Any], dict[str, Scores]]
    measure: Measure | None = None
    batch: int | None = None


class Family:
    """A criterion by name, with options.

    Called with options alone it is a `Criterion` for `saliency`: `joint(damping=1e-2)`.
    Called with a function and its data it scores at once: `joint(apply, params, graph,
    losses, batches, damping=1e-2)` returns `{task: {group: f32[n]}}`.
    """

    def __init__(self, make: Callable[..., Criterion]) -> None:
        functools.update_wrapper(self, make)
        self.make = make

    def __call__(
        self,
        apply: Callable[..., Any] | None = None,
        params: Any = None,
        graph: Graph | None = None,
        losses: Mapping[str, Loss] | Iterable[str] | None = None,
        batches: Iterable[Batch] | None = None,
        *,
        progress: bool = True,
        **options: Any,
    ) -> Any:
        """A `Criterion` of these options, or scores at once; see the class."""
        criterion = self.make(**options)
        if graph is None:
            return criterion
        from cutjax.saliency.gather import score

        found = score(
            *(apply, params, graph, losses, batches),
            criteria={criterion.name: criterion},
            progress=progress,
        )
        return found[criterion.name]


def criterion(make: Callable[..., Criterion]) -> Family:
    """Make a family of a function from options to a `Criterion`."""
    return Family(make)
