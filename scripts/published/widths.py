"""Which keep gives the parameters exactly the shapes of a narrower configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from cutjax.dims import Axis, Fixed, Leaf, Product, count, leaves

from .base import path_of

Equation = tuple[Axis, int, str]
"""An axis, the size that it is to have, and where it is."""


def same_widths(
    graph: Any, shapes: Any, groups: Callable[[int], int] | None = None
) -> dict[str, int] | str:
    """How many channels of every group give `shapes`; else what stands in the way.

    Args:
        graph: that of the full model.
        shapes: of the narrow model's parameters, a pytree of the same structure.
        groups: see `Narrow`.
    """
    found = jax.tree_util.tree_flatten_with_path(shapes)[0]
    wanted = {path_of(path): leaf.shape for path, leaf in found}
    if set(wanted) != set(graph.shapes):
        other = min(set(wanted) ^ set(graph.shapes))
        return f"the narrow model has other parameters, such as {other}"
    for path, axes in graph.axes.items():
        if len(axes) != len(wanted[path]):
            return f"{path} has other axes in the narrow model"
    return _widths(graph, [*_equations(graph, wanted, groups)], groups)


def _equations(graph: Any, wanted: Any, groups: Any) -> Iterator[Equation]:
    """The sizes that axes are to have, of parameters that something reads."""
    for path, axes in graph.axes.items():
        if graph.reach[path]:
            for i, (axis, size) in enumerate(zip(axes, wanted[path], strict=True)):
                yield axis, size, f"{path}:{i}"
                # What is known of the outer part of an axis that a GroupNorm divides.
                outer = _outer(axis, groups)
                if outer is not None:
                    yield outer, groups(size), f"{path}:{i}"


def _widths(graph: Any, equations: list[Equation], groups: Any) -> Any:
    """The first solution; else what stands in the way."""
    free = {g.name for g in graph.free}
    known = {g.name: g.size for g in graph.groups if g.pinned is not None}
    for axis, size, where in equations:
        if not any(leaf.name in free for leaf in leaves(axis)) and axis.size != size:
            return f"{where} stays whole, the narrow model has {size} of {axis.size}"
    out = next(_solve(equations, known, _order(graph, groups)), None)
    if out is None:
        return "no keep has the narrow model's shapes"
    if all(out[g.name] == g.size for g in graph.free):
        return "the narrow model is as wide as the full one"
    return {name: width for name, width in out.items() if name in free}


def _outer(axis: Axis, groups: Any) -> Axis | None:
    """The groups of a GroupNorm over `axis`, if one seems to divide it."""
    if groups is None or not isinstance(axis, Product):
        return None
    for n in range(1, len(axis.parts)):
        outer = Product(axis.parts[:n])
        if outer.size == groups(axis.size):
            return outer
    return None


def _order(graph: Any, groups: Any) -> dict[str, tuple[int, ...]]:
    """Candidate widths per free group, the likeliest first.

    A group that varies within another one (the width of a head) stays whole, for a
    narrow model has fewer heads of the same width.
    """
    free = {g.name for g in graph.free}
    inner = {
        leaf.name
        for axes in graph.axes.values()
        for axis in axes
        for leaf in _inner(axis, groups, free)
    }
    out = {}
    for g in graph.free:
        half = g.size // 2
        rest = tuple(n for n in range(g.size - 1, 0, -1) if n != half)
        out[g.name] = (g.size,) if g.name in inner else (half, g.size, *rest)
    return out


def _inner(axis: Axis, groups: Any, free: set[str]) -> Iterator[Leaf]:
    """The groups that vary within a free one, other than within a GroupNorm's."""
    if isinstance(axis, Leaf | Fixed) or _outer(axis, groups) is not None:
        return
    outer = False
    for part in axis.parts:
        if outer and isinstance(axis, Product):
            yield from leaves(part)
        outer = outer or any(leaf.name in free for leaf in leaves(part))
        yield from _inner(part, groups, free)


def _solve(
    equations: list[Equation], known: dict[str, int], order: Mapping[str, Any]
) -> Iterator[dict[str, int]]:
    known = dict(known)
    equations = _propagate(equations, known, order)
    if equations is None:
        return
    missing = {leaf.name for axis, _, _ in equations for leaf in leaves(axis)}
    name = next((n for n in order if n in missing and n not in known), None)
    if name is None:
        yield known | {n: order[n][0] for n in order if n not in known}
        return
    for width in order[name]:
        if width > 0:
            yield from _solve(equations, known | {name: width}, order)


def _propagate(
    equations: list[Equation], known: dict[str, int], order: Mapping[str, Any]
) -> list[Equation] | None:
    """Settles what has one unknown; None where an equation cannot hold."""
    changed = True
    while changed:
        changed, left = False, []
        for axis, size, where in equations:
            unknown = {leaf.name for leaf in leaves(axis)} - set(known)
            if not unknown:
                if count(axis, known) != size:
                    return None
            elif len(unknown) == 1:
                (name,) = unknown
                width = next(
                    (w for w in order[name] if count(axis, known | {name: w}) == size),
                    None,
                )
                if width is None:
                    return None
                known[name], changed = width, True
            else:
                left.append((axis, size, where))
        equations = left
    return equations
