"""Networks fine-tuned from one parent, merged by what each of them changed.

A task vector is a tuned network less its parent: float32 (float64 for such parameters),
for a difference in bfloat16 would lose what small steps have gained. Merged parameters
have the parent's dtype. Counters, random keys and the like have no vector and stay the
parent's; running statistics are merged as weights are, so recalibrate them afterwards.
All of it is plain array code that can be jitted; but jit hands a dict on in the order
of its keys, and where an order counts (`cabs`) it can be given.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, ScalarLike

from cutjax.errors import DataError, MismatchError, suggest
from cutjax.given import check_by_name, said
from cutjax.mirror import named_leaves, path_name
from cutjax.sparse.tree import filled

Vectors: TypeAlias = Mapping[str, Any]
"""By name, a pytree with the parent's paths; None where it has no weights."""

Scale: TypeAlias = ScalarLike | Mapping[str, ScalarLike]
"""One factor for all vectors, or one by name."""


def vectors(parent: Any, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """What each network changed of its parent's weights.

    Args:
        parent: parameters.
        tuned: by name, parameters of networks fine-tuned from it.

    Returns:
        By name, differences: the parent's structure, float32 or wider; None for leaves
        that hold no floating-point numbers.

    Raises:
        MismatchError: no network, or one with other paths, shapes or kinds of numbers;
            names the first. Complex weights.

    Example:
        >>> import jax.numpy as jnp
        >>> parent = {"w": jnp.ones(2), "step": 0}
        >>> vectors(parent, {"a": {"w": jnp.array([1.0, 3.0]), "step": 9}})
        {'a': {'step': None, 'w': Array([0., 2.], dtype=float32)}}

    Reference:
        Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, section 2.
    """
    before = _weights(parent)
    found = _aligned(parent, tuned, named_leaves(parent))
    return {
        name: filled(parent, {p: wide(leaves[p]) - wide(before[p]) for p in before})
        for name, leaves in found.items()
    }


def arithmetic(parent: Any, vectors: Vectors, scale: Scale) -> Any:
    """The parent plus the scaled sum of the vectors.

    Args:
        parent: parameters.
        vectors: by name; see `vectors`.
        scale: for all, or by name.

    Returns:
        Parameters of the parent's structure and dtypes.

    Raises:
        MismatchError: no vector, one that does not fit the parent, or scales that do
            not name the vectors.

    Example:
        >>> import jax.numpy as jnp
        >>> change = {"a": {"w": jnp.array([1.0, 0.0])}, "b": {"w": jnp.ones(2)}}
        >>> arithmetic({"w": jnp.zeros(2)}, change, {"a": 0.5, "b": 2.0})["w"].tolist()
        [2.5, 2.0]

    Reference:
        Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, section 2.
    """
    found, weights = _aligned(parent, vectors, _weights(parent)), _weights(parent)
    scales = _scales(scale, vectors)

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        if path_name(path) not in weights:
            return leaf
        total = wide(leaf)
        for name, leaves in found.items():
            total += jnp.asarray(scales[name], total.dtype) * leaves[path_name(path)]
        return total.astype(jnp.result_type(leaf))

    return jax.tree_util.tree_map_with_path(visit, parent)


def wide(leaf: Any) -> Float[Array, "..."]:
    """In float32, or in what is wider."""
    return jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def magnitude(name: str, path: str, leaf: Any) -> Float[Array | np.ndarray, "..."]:
    """Of the entries of one leaf of a vector; on the host, if they are known.

    Raises:
        DataError: NaN or infinite; names vector and leaf.
    """
    if isinstance(leaf, Tracer):
        return jnp.abs(leaf)
    out = np.asarray(np.abs(leaf))
    if not np.isfinite(out).all():
        raise DataError(f"the vector of {name!r} is NaN or infinite at {path!r}")
    return out


def _floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _weights(parent: Any) -> dict[str, Any]:
    """Leaves of floating-point numbers, by path."""
    leaves = named_leaves(parent)
    for path, leaf in leaves.items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise MismatchError(
                f"{path!r} is complex, and vectors are real; merge its real and "
                "imaginary parts as two leaves"
            )
    return {path: leaf for path, leaf in leaves.items() if _floating(leaf)}


def alike(vectors: Vectors) -> dict[str, dict[str, Any]]:
    """Weights by name and path, after checking that the vectors go together.

    Raises:
        MismatchError: no vector, or one that differs from the first.
    """
    first = next(iter(vectors.values()), None)
    return _aligned(first, vectors, _weights(first))


def _aligned(
    parent: Any, trees: Mapping[str, Any], needed: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Weights by name and path, after checking that leaves go with the parent's."""
    if isinstance(trees, Mapping) and not trees:
        raise MismatchError("nothing to merge; pass {name: ...}, one or more")
    check_by_name(trees, "networks or vectors", "{name: ..., ...}")
    leaves, out = named_leaves(parent), {}
    weights = [path for path, leaf in leaves.items() if _floating(leaf)]
    for name, tree in trees.items():
        found = named_leaves(tree)
        for path, leaf in leaves.items():
            if path in found:
                _check_same(name, path, leaf, found[path])
            elif path in needed:
                raise MismatchError(f"{name!r} lacks {path!r}; {suggest(path, found)}")
        for path in found:
            if path not in leaves:
                raise MismatchError(
                    f"{name!r} has {path!r}, which is no leaf of what it should match; "
                    f"{suggest(path, leaves)}"
                )
        out[name] = {path: found[path] for path in weights}
    return out


def _check_same(name: str, path: str, leaf: Any, other: Any) -> None:
    if jnp.shape(leaf) != jnp.shape(other):
        raise MismatchError(
            f"{path!r} of {name!r} is {list(jnp.shape(other))}, where "
            f"{list(jnp.shape(leaf))} is wanted"
        )
    if _floating(leaf) != _floating(other):
        raise MismatchError(
            f"{path!r} of {name!r} is {jnp.result_type(other)}, where "
            f"{jnp.result_type(leaf)} is wanted"
        )


def _scales(scale: Scale, names: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(scale, Mapping):
        if np.ndim(scale):
            raise MismatchError(
                f"scale is {said(scale)}; pass one number for all, or "
                f"{{{next(iter(names))!r}: ..., ...}}"
            )
        _check_number(scale)
        return dict.fromkeys(names, scale)
    if set(scale) != set(names):
        raise MismatchError(
            f"scale names {list(scale)}, the vectors are {list(names)}; one for each, "
            "or one number for all"
        )
    for value in scale.values():
        _check_number(value)
    return scale


def _check_number(scale: Any) -> None:
    if isinstance(scale, Tracer):
        return
    if np.ndim(scale) or np.asarray(scale).dtype.kind not in "fiu":
        raise MismatchError(f"scale={scale!r}: give a number for each vector, or one")
