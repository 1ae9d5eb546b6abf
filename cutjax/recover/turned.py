"""Parameters whose channels of a group are turned."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from cutjax.dims import Axis, Concat, Leaf, Product, leaves
from cutjax.graph import Graph
from cutjax.recover.turns import Turn

Change = Callable[[Shaped[np.ndarray, "... n"]], Shaped[np.ndarray, "... n"]]


def turned(
    graph: Graph,
    turn: Turn,
    params: Sequence[Any],
    matrix: Float[np.ndarray, "n n"],
) -> list[Any]:
    """Parameters whose channels of a group are turned; the same function.

    Args:
        graph: of the parameters.
        turn: what to do.
        params: the leaves.
        matrix: orthogonal.
    """
    layouts, new = list(graph.axes.values()), {}

    def value(number: int) -> Any:
        if number not in new:
            new[number] = np.asarray(params[number], np.float64)
        return new[number]

    def alter(number: int, change: Change) -> None:
        new[number] = _each(layouts[number], turn.name, value(number), change)

    ones = {scale.number for scale in (*turn.scales, *turn.branches)}
    for scale in turn.scales:
        factor = value(scale.number).ravel() + scale.offset
        new[scale.number] = np.full_like(value(scale.number), 1 - scale.offset)
        if scale.shift is not None:
            shift = value(scale.shift)
            new[scale.shift] = shift / factor.reshape(shift.shape)
        for number in {turn.kernels[index] for index in scale.readers}:
            alter(number, lambda a, f=factor: a * f)
    for branch in turn.branches:
        factor = value(branch.number).ravel()
        new[branch.number] = np.ones_like(value(branch.number))
        for number in branch.makers:
            alter(number, lambda a, f=factor: a * f)
    for number, axes in enumerate(layouts):
        if number not in ones and any(_holds(axis, turn.name) for axis in axes):
            alter(number, lambda a: a @ matrix)
    return [
        jnp.asarray(new[i], leaf.dtype) if i in new else leaf
        for i, leaf in enumerate(params)
    ]


def _holds(axis: Axis, name: str) -> bool:
    return any(leaf.name == name for leaf in leaves(axis))


def _each(axes: Sequence[Axis], name: str, leaf: Any, change: Change) -> Any:
    """A parameter changed along each of its axes that hold channels of a group."""
    for at, axis in enumerate(axes):
        moved = _along(np.moveaxis(leaf, at, -1), axis, name, change)
        leaf = np.moveaxis(moved, -1, at)
    return leaf


def _along(values: Any, axis: Axis, name: str, change: Change) -> Any:
    """The last axis, laid out as `axis`, changed where the group's channels lie."""
    match axis:
        case Leaf(found, _) if found == name:
            return change(values)
        case Product(parts) if _holds(axis, name):
            split = values.reshape(*values.shape[:-1], *(p.size for p in parts))
            for at, part in enumerate(parts, start=values.ndim - 1):
                moved = _along(np.moveaxis(split, at, -1), part, name, change)
                split = np.moveaxis(moved, -1, at)
            return split.reshape(values.shape)
        case Concat(parts) if _holds(axis, name):
            ends = np.cumsum([part.size for part in parts])[:-1]
            pieces = zip(np.split(values, ends, -1), parts, strict=True)
            return np.concatenate(
                [_along(piece, part, name, change) for piece, part in pieces], -1
            )
        case _:
            return values
