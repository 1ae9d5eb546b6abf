"""Masks as values: pytrees of booleans that follow the paths of the parameters.

A mask tree has a boolean array where weights may be pruned, and None (or nothing at
all) where they never are: biases, norms, state. A flat `{path: mask}` is one as well.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Shaped

from cutjax.errors import MismatchError, suggest
from cutjax.mirror import named_leaves, path_name

Masks: TypeAlias = Any
"""A pytree of bool[...] that follows the parameters; None or missing: never pruned."""


def apply_masks(params: Any, masks: Masks) -> Any:
    """The parameters with zeros where the mask says so; nothing gets smaller or faster.

    Args:
        params: parameters, gradients, anything with the same paths.
        masks: what stays, by path.

    Returns:
        A pytree of the same shapes and dtypes. Zero even where a value was NaN.

    Raises:
        MismatchError: a mask that goes with no parameter, or has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0])}
        >>> apply_masks(params, {"kernel": jnp.array([[True, False]])})["kernel"]
        Array([[1., 0.]], dtype=float32)
    """
    return map_masked(zeroed, params, masks)


def zeroed(
    leaf: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Shaped[Array, "*shape"]:
    """Zero where the mask is False."""
    return jnp.where(mask, leaf, jnp.zeros((), jnp.result_type(leaf)))


def map_masked(
    change: Callable[..., Any], tree: Any, masks: Masks, *others: Any
) -> Any:
    """`change(leaf, mask, *others)` where there is a mask; other leaves as they are.

    Args:
        change: of one leaf.
        tree: the parameters, or a tree with their paths.
        masks: by path.
        others: more trees with their paths, or with masks.

    Returns:
        A pytree of the structure of `tree`.

    Raises:
        MismatchError: a mask that goes with no leaf, or has another shape.
    """
    found, rest = named_leaves(masks), [named_leaves(other) for other in others]
    check_masks(found, tree)

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(path)
        if name not in found:
            return leaf
        return change(
            jnp.asarray(leaf), jnp.asarray(found[name]), *(r[name] for r in rest)
        )

    return jax.tree_util.tree_map_with_path(visit, tree)


def check_masks(masks: Mapping[str, Any], tree: Any) -> None:
    """Check that every mask goes with a leaf of `tree`.

    Raises:
        MismatchError: unknown path, or another shape.
    """
    leaves = named_leaves(tree)
    nodes = jax.tree.leaves(tree, is_leaf=_outside)
    partial = any(_outside(node) for node in nodes)
    for name, mask in masks.items():
        if name not in leaves:
            # Under optax.masked or multi_transform some parameters are taken out.
            if partial:
                continue
            raise MismatchError(
                f"a mask for {name!r}, which is no parameter; {suggest(name, leaves)}"
            )
        if jnp.shape(mask) != jnp.shape(leaves[name]):
            raise MismatchError(
                f"the mask of {name!r} is {list(jnp.shape(mask))}, the parameter "
                f"{list(jnp.shape(leaves[name]))}"
            )


def _outside(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def filled(tree: Any, values: Mapping[str, Any]) -> Any:
    """A pytree like `tree` with these values by path; None for all others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: values.get(path_name(path)), tree
    )


def map_like(change: Callable[[Any], Any], state: Any, params: Any) -> Any:
    """Changes every part of a state that has the structure of the parameters.

    Args:
        change: from such a part (momenta, averages) to what takes its place.
        state: of an optimiser.
        params: the parameters it was made for.

    Returns:
        The state; counts, schedules and parts of another structure are as they were.
    """
    wanted, want = jax.tree.flatten(params, is_leaf=_outside)

    def alike(node: Any) -> bool:
        found, structure = jax.tree.flatten(node, is_leaf=_outside)
        return structure == want and all(
            _outside(a) or _outside(b) or jnp.shape(a) == jnp.shape(b)
            for a, b in zip(found, wanted, strict=True)
        )

    if not wanted:
        return state
    return jax.tree.map(lambda n: change(n) if alike(n) else n, state, is_leaf=alike)
