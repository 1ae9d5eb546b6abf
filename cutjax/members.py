"""Changing the parameters of a graph, or whatever mirrors them, leaf by leaf."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cutjax.errors import MismatchError
from cutjax.graph import Graph
from cutjax.held import top_level
from cutjax.mirror import namesake, path_name
from cutjax.resize import Axes


def map_mirrored(
    change: Callable[[Any, Axes], Any],
    params: Any,
    graph: Graph,
    *,
    check: Callable[[Any, Graph], None],
    fits: Callable[[tuple[int, ...], Graph, str], bool],
    remedy: str = "",
) -> Any:
    """Change every leaf that is a parameter of the graph, or mirrors one.

    Args:
        change: from a leaf and its axes to what takes its place.
        params: the parameters, or a pytree that mirrors them.
        graph: their graph.
        check: raises if these are not the parameters.
        fits: whether a leaf of this shape goes with a parameter, by its path.
        remedy: what to do where one does not, for the error.

    Raises:
        MismatchError: a leaf that does not fit, or none that mirrors a parameter.
    """
    itself = jax.tree.structure(params) == graph.treedef
    if itself:
        check(params, graph)
    hits = []

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        own, shape = path_name(path), tuple(jnp.shape(leaf))
        name = own if itself else namesake(own, graph.shapes)
        # A number kept per parameter (a step, a norm) has no channels.
        if name is None or (shape == () and not itself):
            return leaf
        if not fits(shape, graph, name):
            raise MismatchError(
                f"{own!r} is {list(shape)}, but the parameter {name!r} that it goes "
                f"with is {list(graph.shapes[name].shape)}{remedy}"
            )
        hits.append(name)
        return change(leaf, graph.axes[name])

    out = jax.tree_util.tree_map_with_path(visit, params)
    if graph.shapes and not hits:
        check(params, graph)
    return out


def pruned(tree: Any, gone: Callable[[str, Any], bool]) -> Any:
    """A pytree without some leaves: keys of dicts go, in other nodes they are None."""

    def visit(node: Any, prefix: str) -> Any:
        if isinstance(node, Mapping):
            held = top_level(node)
            inner = {k: visit(v, f"{prefix}{k}/") for k, v in held.items()}
            full = {
                k: v
                for k, v in inner.items()
                if jax.tree.leaves(v) or not jax.tree.leaves(held[k])
            }
            return type(node)(full)  # pyright: ignore[reportCallIssue]
        leaves, structure = jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda inner: inner is not node and isinstance(inner, Mapping)
        )
        values = []
        for path, leaf in leaves:
            name = prefix + path_name(path) if path else prefix[:-1]
            if isinstance(leaf, Mapping):
                values.append(visit(leaf, f"{name}/"))
            else:
                values.append(None if gone(name, leaf) else leaf)
        return jax.tree.unflatten(structure, values)

    return visit(tree, "")
