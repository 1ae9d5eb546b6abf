"""Task vectors that share out the entries: conflict-aware, balanced sparsification.

Each vector in turn has n of every m neighbours, those it changed most among what the
vectors before it left. The merged network is neither smaller nor faster for it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cutjax.errors import BudgetError, MismatchError
from cutjax.merge.vectors import Scale, Vectors, alike, arithmetic, magnitude
from cutjax.sparse import apply_masks, best, n_m
from cutjax.sparse.tree import Masks, filled


def cabs(
    parent: Any,
    vectors: Vectors,
    scale: Scale,
    n: int,
    m: int,
    *,
    axis: int = -2,
    order: Sequence[str] | None = None,
) -> Any:
    """The parent plus the scaled vectors, each pruned to entries of its own.

    To try several scales, take `cabs_masks` once and add by `arithmetic`.

    Args:
        parent: parameters.
        vectors: by name; see `vectors`.
        scale: for all, or by name.
        n: how many entries of a vector stay.
        m: of how many.
        axis: along which; see `cabs_masks`.
        order: the names, first choice first; by default as in `vectors`.

    Returns:
        Parameters of the parent's structure and dtypes.

    Raises:
        BudgetError: n is not in 1 .. m, or the vectors do not fit beside each other.
        DataError: a vector that holds NaN.
        MismatchError: no vector, or one, or scales, or an order that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> change = {"a": {"w": jnp.array([3.0, 1.0])}, "b": {"w": jnp.ones(2)}}
        >>> cabs({"w": jnp.zeros(2)}, change, 1.0, 1, 2)["w"].tolist()
        [3.0, 1.0]

    Reference:
        CABS: Conflict-Aware and Balanced Sparsification for Enhancing Model Merging,
        ICML 2025.
    """
    masks = cabs_masks(vectors, n, m, axis=axis, order=order)
    kept = {name: apply_masks(v, masks[name]) for name, v in vectors.items()}
    return arithmetic(parent, kept, scale)


def cabs_masks(
    vectors: Vectors,
    n: int,
    m: int,
    *,
    axis: int = -2,
    order: Sequence[str] | None = None,
) -> dict[str, Masks]:
    """Masks of the vectors, one after another: n of m, where none before took its.

    By magnitude, the first among equals. Blocks run along the input axis as those of
    `sparse.n_m`, and along the only axis of a bias. Where m does not divide the axis a
    block runs on into its next row, so that one block per leaf is short, at its end: of
    its r entries each vector has `min(ceil(n r / m), r // vectors)`. A leaf of fewer
    entries than there are vectors stays the parent's.

    Args:
        vectors: by name; see `vectors`.
        n: how many entries of a vector stay.
        m: of how many.
        axis: along which neighbours are counted; every array has it that has several.
        order: the names, first choice first; by default as in `vectors`. Under jit a
            dict is sorted by its keys, so give the order there.

    Returns:
        By name, masks that never overlap.

    Raises:
        BudgetError: n is not in 1 .. m, or the vectors do not fit beside each other.
        DataError: a vector that holds NaN.
        MismatchError: no vector, vectors that differ, an order of other names, or an
            axis that there is not.

    Example:
        >>> import jax.numpy as jnp
        >>> change = {"a": {"w": jnp.arange(4.0)}, "b": {"w": jnp.arange(4.0)}}
        >>> for name, mask in cabs_masks(change, 1, 4).items():
        ...     print(name, mask["w"].tolist())
        a [False, False, False, True]
        b [False, False, True, False]

    Reference:
        CABS: Conflict-Aware and Balanced Sparsification for Enhancing Model Merging,
        ICML 2025. The authors' code counts along the flattened leaf of PyTorch, whose
        last axis is the input axis too, and prunes a short block away.
    """
    found = alike(vectors)
    order = list(vectors) if order is None else list(order)
    if sorted(order) != sorted(vectors):
        raise MismatchError(f"order={order}; give each of {list(vectors)} once")
    _check_room(len(order), n, m)
    out: dict[str, dict[str, Any]] = {name: {} for name in vectors}
    for path in found[order[0]]:
        values = [magnitude(name, path, found[name][path]) for name in order]
        _check_axis(path, values[0].ndim, axis)
        for name, mask in zip(order, _divided(values, n, m, axis), strict=True):
            out[name][path] = mask
    return {name: filled(v, out[name]) for name, v in vectors.items()}


def _check_room(count: int, n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise BudgetError(f"n={n} of m={m}; n is between 1 and m, as in 1 of 4")
    if count * n > m:
        less = f"n={m // count} or " if m >= count else ""
        raise BudgetError(
            f"{count} vectors of n={n} in m={m} take {count * n} entries of a block; "
            f"{less}m={count * n} would do"
        )


def _check_axis(path: str, ndim: int, axis: int) -> None:
    if ndim > 1 and not -ndim <= axis < ndim:
        raise MismatchError(
            f"axis={axis}: {path!r} has {ndim} axes; -2 is the input axis of kernels"
        )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _divided(
    values: list[Float[Array, "*s"]], n: int, m: int, axis: int
) -> list[Bool[Array, "*s"]]:
    """Masks of one leaf of each vector, one after another."""
    free, masks = jnp.ones(values[0].shape, bool), []
    for value in values:
        scores = jnp.where(free, value, -1)
        masks.append(_blocks(scores, n, m, axis, len(values)))
        free &= ~masks[-1]
    return masks


def _blocks(
    scores: Float[Array, "*s"], n: int, m: int, axis: int, count: int
) -> Bool[Array, "*s"]:
    """The n best of every m neighbours; in a short block what all can have."""
    at = axis if -scores.ndim <= axis < scores.ndim else -1
    moved = jnp.moveaxis(scores, at, -1) if scores.ndim else scores
    flat = moved.ravel()
    short = flat.size % m
    ends = flat.size - short
    few = min(-(-n * short // m), short // count)
    whole = jnp.asarray(n_m(flat[:ends].reshape(ends // m, m), n, m, axis=-1))
    mask = jnp.concatenate([whole.ravel(), best(flat[ends:], few)]).reshape(moved.shape)
    return jnp.moveaxis(mask, -1, at) if scores.ndim else mask
