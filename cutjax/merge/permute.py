"""Putting the channels of groups in another order, in every member at once."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from cutjax.dims import Axis, Concat, Leaf, Product
from cutjax.errors import KeepError
from cutjax.graph import Graph
from cutjax.members import map_mirrored
from cutjax.merge.structure import check_structure, fits
from cutjax.shrink import take

Permutation: TypeAlias = Mapping[str, Int[np.ndarray, "_"]]
"""By group: which channel of the input each channel of the result is."""


def permute(params: Any, graph: Graph, permutation: Permutation) -> Any:
    """The same network with its channels in another order.

    The function stays the same. Where a constant in it tells channels apart (a position
    embedding of sines, the angles of rotary ones) it would not: these cannot move.

    Args:
        params: the parameters, or a pytree that mirrors them (momenta, averages).
        graph: their graph.
        permutation: channel `i` of the result is channel `permutation[group][i]` of the
            input; groups not named keep their order.

    Returns:
        A pytree of the same structure; leaves that do not change are the same arrays.

    Raises:
        KeepError: an unknown group, one that cannot move, or what is no permutation.
        MismatchError: the parameters do not match the graph.

    Example:
        >>> import jax.numpy as jnp, numpy as np, cutjax as cj
        >>> from cutjax.merge.permute import permute
        >>> apply = lambda w, x: x @ w["a"] @ w["b"]
        >>> w = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0], [4.0]])}
        >>> graph = cj.trace(apply, w, jnp.ones((1, 1)))
        >>> swapped = permute(w, graph, {"a:1": np.array([1, 0])})
        >>> {path: leaf.tolist() for path, leaf in swapped.items()}
        {'a': [[2.0, 1.0]], 'b': [[4.0], [3.0]]}
    """
    moves = check_permutation(graph, permutation)
    return map_mirrored(
        lambda leaf, axes: reordered(leaf, axes, moves),
        *(params, graph),
        check=partial(check_structure, who="params"),
        fits=fits,
    )


def reordered(leaf: Any, axes: tuple[Axis, ...], moves: Permutation) -> Any:
    """An array with these axes, its channels in another order."""
    for i, axis in enumerate(axes):
        order = places(axis, moves)
        if (order != np.arange(order.size)).any():
            leaf = take(leaf, order, i)
    return leaf


def places(axis: Axis, moves: Permutation) -> Int[np.ndarray, "_"]:
    """Where each position of an axis is told to be by its channels; -1 for nowhere.

    Args:
        axis: the layout.
        moves: by group, a position for each channel; negative ones are nowhere.

    Example:
        >>> axis = Product((Leaf("heads", 2), Leaf("width", 2)))
        >>> places(axis, {"heads": np.array([1, 0])}).tolist()
        [2, 3, 0, 1]
        >>> places(axis, {"heads": np.array([1, -2])}).tolist()
        [2, 3, -1, -1]
    """
    match axis:
        case Leaf(name, _) if name in moves:
            return np.maximum(moves[name], -1)
        case Product(parts):
            out = np.zeros(1, int)
            for part in parts:
                outer, inner = out[:, None], places(part, moves)
                whole = outer * part.size + inner
                out = np.where((outer < 0) | (inner < 0), -1, whole).reshape(-1)
            return out
        case Concat(parts):
            starts = np.cumsum([0, *(part.size for part in parts)])[:-1]
            each = [(places(p, moves), at) for p, at in zip(parts, starts, strict=True)]
            return np.concatenate([np.where(p < 0, -1, p + at) for p, at in each])
        case _:
            return np.arange(axis.size)


def compose(first: Permutation, then: Permutation) -> dict[str, Int[np.ndarray, "_"]]:
    """One permutation that does what two do, one after the other.

    Args:
        first: is applied first.
        then: is applied to the result.

    Returns:
        `permute(x, graph, compose(first, then))` is `permute(permute(x, graph, first),
        graph, then)`.

    Example:
        >>> a, b = {"g": np.array([1, 2, 0])}, {"g": np.array([0, 2, 1])}
        >>> compose(a, b)["g"].tolist()
        [1, 0, 2]
    """
    out = {name: np.asarray(order) for name, order in {**then, **first}.items()}
    return out | {n: np.asarray(first[n])[then[n]] for n in first if n in then}


def inverse(permutation: Permutation) -> dict[str, Int[np.ndarray, "_"]]:
    """The permutation that undoes another.

    Args:
        permutation: the other.

    Returns:
        By group, where each channel went.

    Example:
        >>> inverse({"g": np.array([1, 2, 0])})["g"].tolist()
        [2, 0, 1]
    """
    return {name: np.argsort(order) for name, order in permutation.items()}


def check_permutation(
    graph: Graph, permutation: Permutation
) -> dict[str, Int[np.ndarray, "_"]]:
    """A permutation as arrays of the host.

    Args:
        graph: the graph.
        permutation: what should fit it.

    Returns:
        By group, those that move something.

    Raises:
        KeepError: an unknown group, one that cannot move, or what is no permutation.
    """
    moves = {}
    for name, given in permutation.items():
        group, order = graph[name], np.asarray(given)
        if order.shape != (group.size,) or order.dtype.kind not in "iu":
            raise KeepError(
                f"permutation[{name!r}] is {order.dtype}{list(order.shape)}, not "
                f"int[{group.size}]"
            )
        if not np.array_equal(np.sort(order), np.arange(group.size)):
            raise KeepError(
                f"permutation[{name!r}] does not hold each of 0 ... {group.size - 1} "
                "once"
            )
        if np.array_equal(order, np.arange(group.size)):
            continue
        if group.pinned is not None:
            raise KeepError(f"{name!r} is pinned: {group.pinned}")
        if group.ordered is not None:
            raise KeepError(
                f"the channels of {name!r} cannot change places: a constant tells them "
                f"apart at {group.ordered}"
            )
        moves[name] = order
    return moves
