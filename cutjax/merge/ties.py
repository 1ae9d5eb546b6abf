"""Task vectors that vote on the sign of every entry: TIES-Merging."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from cutjax.merge.vectors import Vectors, alike, arithmetic, magnitude, wide
from cutjax.sparse import topk
from cutjax.sparse.tree import filled, zeroed


def ties(parent: Any, vectors: Vectors, scale: ScalarLike, density: float = 0.2) -> Any:
    """The parent plus the scaled `ties_vector` of the vectors.

    Args:
        parent: parameters.
        vectors: by name; see `vectors`.
        scale: of what is added; the paper's default is 1.
        density: the share of each vector that is not trimmed away.

    Returns:
        Parameters of the parent's structure and dtypes.

    Raises:
        BudgetError: a density outside of 0 .. 1.
        DataError: a vector that holds NaN.
        MismatchError: no vector, or one that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> change = {"a": {"w": jnp.array([3.0, 1.0])}, "b": {"w": -jnp.ones(2)}}
        >>> ties({"w": jnp.zeros(2)}, change, 1.0, density=1.0)["w"].tolist()
        [3.0, 0.0]

    Reference:
        Yadav et al., TIES-Merging, NeurIPS 2023, algorithm 1.
    """
    return arithmetic(parent, {"ties": ties_vector(vectors, density)}, scale)


def ties_vector(vectors: Vectors, density: float = 0.2) -> Any:
    """One vector of several: trimmed, the signs elected, the mean of those that agree.

    Exactly `density * size` entries of each vector stay (halves go up), of all its
    leaves together, the first among equals. The sign of an entry is that of its sum;
    where the sum is zero nothing changes. No order of the vectors changes a bit.

    Args:
        vectors: by name; see `vectors`.
        density: the share of each vector that is not trimmed away.

    Returns:
        A vector, to be added by `arithmetic`.

    Raises:
        BudgetError: a density outside of 0 .. 1.
        DataError: a vector that holds NaN.
        MismatchError: no vector, or vectors that differ in paths or shapes.

    Reference:
        Yadav et al., TIES-Merging, NeurIPS 2023, algorithm 1.
    """
    found = alike(vectors)
    masks = [
        topk({p: magnitude(name, p, v) for p, v in leaves.items()}, density)
        for name, leaves in found.items()
    ]
    first = next(iter(vectors))
    merged = {
        path: _elected([v[path] for v in found.values()], [k[path] for k in masks])
        for path in found[first]
    }
    return filled(vectors[first], merged)


@jax.jit
def _elected(
    values: list[Float[Array, "*s"]], masks: list[Bool[Array, "*s"]]
) -> Float[Array, "*s"]:
    kept = [zeroed(wide(v), mask) for v, mask in zip(values, masks, strict=True)]
    # Sorted, for else rounding would let the order of the tasks decide near-zero sums.
    stack = jnp.sort(jnp.stack(kept), axis=0)
    sign = jnp.sign(stack.sum(0))
    agree = (jnp.sign(stack) == sign) & (sign != 0)
    return jnp.where(agree, stack, 0).sum(0) / jnp.maximum(agree.sum(0), 1)
