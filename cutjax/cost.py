"""Parameters, multiply-adds, bytes and activations: exact functions of the widths."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from cutjax.dims import Axis, count

RESOURCES = ("params", "flops", "bytes", "activations")
SCOPES = ("all", "trunk", "heads")


class Cost(NamedTuple):
    """What a model costs for one call of the traced batch.

    `flops`: multiply-adds of contractions, each counted as two; a scan counts all its
    steps, a `cond` the branch that is dearest at full size, a `while` one turn.
    `bytes`: of the parameters. `trunk_params`: of those that serve several tasks of
    the parent. `activations`: bytes of the distinct arrays that depend on the inputs,
    the inputs included, and that a contraction reads: what a training step has to
    remember for the gradients of kernels, and what inference moves at most. In a scan
    those of all its steps count. None for a graph that was stored before this was
    counted.
    """

    params: int
    flops: int
    bytes: int
    trunk_params: int
    activations: int | None = None


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


class Activation(NamedTuple):
    """An array that contractions read: `bytes` per element of the product of its axes.

    In a scan `bytes` counts every step. `tasks` are those that it serves.
    """

    bytes: int
    axes: tuple[Axis, ...]
    tasks: tuple[str, ...]


class Piece(NamedTuple):
    """A product of axes; a unit of it costs `units` per resource, for `tasks`."""

    axes: tuple[Axis, ...]
    units: Mapping[str, int]
    tasks: tuple[str, ...]


def pieces(graph: Any) -> Iterator[Piece]:
    """All that a model costs: parameters, contractions, activations."""
    for path, axes in graph.axes.items():
        units = {"params": 1, "bytes": graph.shapes[path].dtype.itemsize}
        yield Piece(axes, units, graph.reach[path])
    for term in graph.terms:
        yield Piece(term.axes, {"flops": 2 * term.times}, term.tasks)
    for array in graph.activations or ():
        yield Piece(array.axes, {"activations": array.bytes}, array.tasks)


def counts(piece: Piece, graph: Any, tasks: Collection[str]) -> bool:
    """Whether a piece is part of what some tasks leave."""
    if "params" in piece.units:
        return stays(piece.tasks, graph, tasks)
    return not set(tasks).isdisjoint(piece.tasks)


def stays(reach: Collection[str], graph: Any, tasks: Collection[str]) -> bool:
    """Whether a parameter that serves the tasks of `reach` is left with some tasks.

    One that serves no task at all stays, unless some task goes.
    """
    if reach:
        return not set(tasks).isdisjoint(reach)
    return set(tasks) >= set(graph.tasks)


def key_of(resource: str, scope: str = "all") -> str:
    """What a limit on a resource within a scope is called: `params[trunk]`."""
    return resource if scope == "all" else f"{resource}[{scope}]"


def keys_of(piece: Piece, shared: bool) -> tuple[str, ...]:
    """The sums, by `key_of`, that a piece counts for; `shared`: with several tasks.

    The trunk is what serves several tasks of the parent; all there is, if it has one.
    """
    if len(piece.tasks) > 1 or not shared:
        scopes: tuple[str, ...] = ("all", "trunk")
    else:
        scopes = ("all", "heads", *piece.tasks)
    return tuple(key_of(r, scope) for r in piece.units for scope in scopes)


def amounts(
    graph: Any, widths: Mapping[str, int], tasks: tuple[str, ...]
) -> dict[str, int]:
    """Every resource in every scope at these widths, for the chosen tasks.

    Args:
        graph: the graph.
        widths: kept channels per group; whole, if not named.
        tasks: what goes with the others does not count; see `stays`.

    Returns:
        By name: `params`, `params[trunk]`, `params[heads]`, `params[age]`, `flops`, ...
    """
    heads = tasks if len(graph.tasks) > 1 else ()
    out = {
        key_of(resource, scope): 0
        for resource in RESOURCES
        if resource != "activations" or graph.activations is not None
        for scope in (*SCOPES, *heads)
    }
    for piece in pieces(graph):
        if counts(piece, graph, tasks):
            n = math.prod(count(axis, widths) for axis in piece.axes)
            for key in keys_of(piece, len(graph.tasks) > 1):
                resource = key.partition("[")[0]
                out[key] += n * piece.units[resource]
    return out


def cost_of(
    graph: Any, widths: Mapping[str, int], tasks: tuple[str, ...] | None
) -> Cost:
    """The cost of a graph at these widths, of these tasks alone or of all there is."""
    totals: dict[str, int] = dict.fromkeys(RESOURCES, 0)
    trunk, shared = 0, len(graph.tasks) > 1
    for piece in pieces(graph):
        leaf = "params" in piece.units
        if not counts(piece, graph, graph.tasks if tasks is None else tasks):
            continue
        n = math.prod(count(axis, widths) for axis in piece.axes)
        for resource, unit in piece.units.items():
            totals[resource] += n * unit
        trunk += n if leaf and (len(piece.tasks) > 1 or not shared) else 0
    known = graph.activations is not None
    return Cost(
        params=totals["params"],
        flops=totals["flops"],
        bytes=totals["bytes"],
        trunk_params=trunk,
        activations=totals["activations"] if known else None,
    )
