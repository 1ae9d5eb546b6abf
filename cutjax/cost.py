"""Parameters, multiply-adds and bytes as exact functions of the kept widths."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from cutjax.dims import Axis, count


class Cost(NamedTuple):
    """What a model costs for one call of the traced batch.

    `flops`: multiply-adds of contractions, each counted as two; a scan counts all its
    steps, a `cond` the branch that is dearest at full size, a `while` one turn.
    `bytes`: of the parameters. `trunk_params`: of those that serve several tasks of
    the parent.
    """

    params: int
    flops: int
    bytes: int
    trunk_params: int


class Term(NamedTuple):
    """One contraction: `times` multiply-adds per element of the product of its axes.

    It reads the groups `reads` and makes the groups `makes`, by the kernel at `path`
    (None: computed), at the user's `line`.
    """

    times: int
    axes: tuple[Axis, ...]
    tasks: tuple[str, ...]
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    path: str | None = None
    line: str = ""


def cost_of(
    graph: Any, widths: Mapping[str, int], tasks: tuple[str, ...] | None
) -> Cost:
    """The cost of a graph at these widths, of these tasks alone or of all there is."""
    params = trunk = size = 0
    shared = len(graph.tasks) > 1
    for path, axes in graph.axes.items():
        reach = graph.reach[path]
        if tasks is not None and not set(reach) & set(tasks):
            continue
        n = math.prod(count(axis, widths) for axis in axes)
        params += n
        size += n * graph.shapes[path].dtype.itemsize
        trunk += n if len(reach) > 1 or not shared else 0
    flops = sum(
        2 * term.times * math.prod(count(axis, widths) for axis in term.axes)
        for term in graph.terms
        if set(term.tasks) & set(graph.tasks if tasks is None else tasks)
    )
    return Cost(params, flops, size, trunk)
