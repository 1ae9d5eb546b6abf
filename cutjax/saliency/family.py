"""Criteria by name: called with options, or with a function and its data."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cutjax.errors import DataError
from cutjax.graph import Graph
from cutjax.saliency.criterion import Criterion
from cutjax.saliency.gather import score
from cutjax.saliency.stream import Batch, Loss


class Family:
    """A criterion by name, with options.

    Called with options alone it is a `Criterion` for `saliency`: `joint(damping=1e-2)`.
    Called with a function and its data it scores at once: `joint(apply, params, graph,
    losses, batches, damping=1e-2)` returns `{task: {group: f32[n]}}`.
    """

    def __init__(self, make: Callable[..., Criterion]) -> None:
        functools.update_wrapper(self, make)
        self.make, self.name = make, make.__name__

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
        criterion, given = self.make(**options), (apply, params, losses, batches)
        if graph is None and any(value is not None for value in given):
            raise DataError(
                f"{self.name}: no graph given; pass the function, its parameters and "
                f"their graph, {self.name}(apply, params, graph, losses, batches) "
                "(None for what the criterion does not need), or options alone, by name"
            )
        if graph is None:
            return criterion
        found = score(
            *(apply, params, graph, losses, batches),
            criteria={criterion.name: criterion},
            progress=progress,
        )
        return found[criterion.name]


def criterion(make: Callable[..., Criterion]) -> Family:
    """Make a family of a function from options to a `Criterion`."""
    return Family(make)
