"""Whether parameters are of the architecture of a graph, heads of any width apart."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from cutjax.dims import Axis, Fixed, leaves
from cutjax.errors import MismatchError
from cutjax.graph import Graph
from cutjax.mirror import named_leaves


def movable(axis: Axis, free: frozenset[str]) -> bool:
    """Whether an axis holds channels of one of these groups."""
    return any(leaf.name in free for leaf in leaves(axis))


def free_names(graph: Graph) -> frozenset[str]:
    """The groups that are not pinned."""
    return frozenset(group.name for group in graph.free)


def fits(shape: tuple[int, ...], graph: Graph, path: str) -> bool:
    """Whether a leaf has the shape of a parameter wherever that holds free channels."""
    axes, free = graph.axes[path], free_names(graph)
    return len(shape) == len(axes) and all(
        size == axis.size or not movable(axis, free)
        for size, axis in zip(shape, axes, strict=True)
    )


def check_structure(params: Any, graph: Graph, who: str) -> None:
    """Check that parameters are of the architecture of a graph.

    Axes without a free channel may have another size: heads that tell apart another
    number of classes.

    Args:
        params: the parameters.
        graph: the graph.
        who: what the error calls them.

    Raises:
        MismatchError: names the first difference.
    """
    found = next(_differences(named_leaves(params), graph), None)
    if found is None and jax.tree.structure(params) != graph.treedef:
        found = "the containers differ (dict, list, tuple, ...)"
    if found is not None:
        raise MismatchError(
            f"{who} is not of the architecture of the graph; the first difference: "
            f"{found}"
        )


def _differences(named: dict[str, Any], graph: Graph) -> Iterator[str]:
    for path, want in graph.shapes.items():
        if path not in named:
            yield f"{path!r} {list(want.shape)} is missing"
        elif not fits(tuple(jnp.shape(named[path])), graph, path):
            yield f"{path!r} is {list(jnp.shape(named[path]))}, not {list(want.shape)}"
    for path, leaf in named.items():
        if path not in graph.shapes:
            yield f"{path!r} {list(jnp.shape(leaf))} is not in the graph"


def fitted(graph: Graph, params: Any) -> Graph:
    """The graph with the sizes that parameters have where no free channel sits."""
    named = named_leaves(params)
    axes, shapes = {}, {}
    for path, known in graph.axes.items():
        shape = tuple(jnp.shape(named[path]))
        shapes[path] = jax.ShapeDtypeStruct(shape, graph.shapes[path].dtype)
        axes[path] = tuple(
            axis if axis.size == size else Fixed(size, "not the graph's own size")
            for axis, size in zip(known, shape, strict=True)
        )
    return dataclasses.replace(graph, axes=axes, shapes=shapes)
