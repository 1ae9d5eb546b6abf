"""Choosing which weights stay: exact numbers, ties by index."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Num

from cutjax.errors import BudgetError, DataError
from cutjax.mirror import named_leaves
from cutjax.sparse.counts import exact
from cutjax.sparse.tree import Masks, filled

Counts: TypeAlias = Callable[[Mapping[str, tuple[int, ...]], float], Mapping[str, int]]
"""From shapes by path and a density to the number of weights that each leaf keeps."""


def best(values: Num[Array, "n"], k: int | Int[Array, ""]) -> Bool[Array, "n"]:
    """The `k` highest values, the lower index first among equals; `k` may be traced.

    Example:
        >>> import jax.numpy as jnp
        >>> best(jnp.array([1, 3, 3, 3]), 2).tolist()
        [False, True, True, False]
    """
    n = values.shape[0]
    least = jnp.sort(values)[jnp.clip(n - k, 0, n - 1)] if n else values
    return _above(values, least, k)


def best_on_host(values: Num[np.ndarray, "n"], k: int) -> Bool[np.ndarray, "n"]:
    """`best` of known values: a partition, where XLA has only a sort."""
    n = values.shape[0]
    if k <= 0 or k >= n:
        return np.full(n, k > 0)
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)  # numpy cannot partition bfloat16
    return _above(values, np.partition(values, n - k)[n - k], k)


def _above(values: Any, least: Any, k: Any) -> Any:
    """What is above the k-th value, and the first of those that equal it."""
    above, level = values > least, values == least
    return above | (level & (level.cumsum() <= k - above.sum()))


def topk(scores: Any, density: float, *, counts: Counts | None = None) -> Masks:
    """Keep the weights of the highest scores.

    Args:
        scores: a pytree of scores, higher is kept; None where nothing is pruned.
        density: the share of the scored weights that stay, 0 .. 1.
        counts: how many each leaf keeps (`uniform`, `erk`); without it all leaves
            compete, and one may lose everything.

    Returns:
        Masks of the structure of `scores`; exactly `density * n` weights
        stay (halves go up).

    Raises:
        BudgetError: a density outside of 0 .. 1.
        DataError: scores that are NaN; names the leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> topk({"a": jnp.array([[1.0, 5.0]]), "b": jnp.array([[2.0, 3.0]])}, 0.5)["b"]
        Array([[False,  True]], dtype=bool)
    """
    named = checked(scores, density)
    shapes = {name: tuple(jnp.shape(v)) for name, v in named.items()}
    xp = np if all(isinstance(v, np.ndarray) for v in named.values()) else jnp
    pick: Any = best_on_host if xp is np else best
    flat = {name: xp.ravel(v) for name, v in named.items()}
    if counts is not None:
        kept = counts(shapes, density)
        chosen = {name: pick(v, int(kept[name])) for name, v in flat.items()}
    elif flat:
        whole = xp.concatenate(list(flat.values()))
        mask = pick(whole, exact(density, whole.size))
        ends = np.cumsum([v.size for v in flat.values()])[:-1]
        chosen = dict(zip(flat, xp.split(mask, ends), strict=True))
    else:
        chosen = {}
    masks = {n: jnp.asarray(m.reshape(shapes[n])) for n, m in chosen.items()}
    return filled(scores, masks)


def n_m(scores: Any, n: int, m: int, axis: int = -2) -> Masks:
    """N:M sparsity: of every `m` neighbours along the input axis `n` stay.

    Args:
        scores: a pytree of scores; None where nothing is pruned.
        n: how many stay.
        m: of how many.
        axis: the input axis; the last but one is that of JAX's dense and convolution
            kernels, `[in, out]` and `[height, width, in, out]`.

    Returns:
        Masks. Only hardware with N:M units, and a kernel written for it, gains speed.

    Raises:
        BudgetError: n is not in 1 .. m, or `m` does not divide the axis; names the
        leaf.
        DataError: scores that are NaN.

    Reference:
        Zhou et al., Learning N:M Fine-grained Structured Sparse Networks, ICLR 2021.
    """
    if not 1 <= n <= m:
        raise BudgetError(f"n={n} of m={m}; n is between 1 and m, as in n_m(s, 2, 4)")
    out = {}
    for name, values in checked(scores, 1.0).items():
        size = jnp.shape(values)[axis]
        if size % m:
            raise BudgetError(
                f"axis {axis} of {name!r} holds {size}, which {m} does not divide; "
                "give None for its score, and it stays whole"
            )
        moved = jnp.moveaxis(values, axis, -1)
        blocks = moved.reshape(*moved.shape[:-1], size // m, m)
        rank = jnp.zeros(blocks.shape, jnp.int32)
        for j in range(m):  # how many come before; for few it is quicker than to sort
            other = blocks[..., j : j + 1]
            rank += (other > blocks) | ((other == blocks) & (j < jnp.arange(m)))
        out[name] = jnp.moveaxis((rank < n).reshape(moved.shape), -1, axis)
    return filled(scores, out)


def block(scores: Any, shape: tuple[int, ...], density: float) -> Masks:
    """Keep whole blocks: those of the highest sum of scores, over all leaves.

    Args:
        scores: a pytree of scores; None where nothing is pruned.
        shape: of a block, along the last axes of each leaf.
        density: the share of the blocks that stay.

    Returns:
        Masks; exactly `density * blocks` stay (halves go up).

    Raises:
        BudgetError: a density outside of 0 .. 1, or a leaf that does not divide into
            blocks; names it.
        DataError: scores that are NaN.
    """
    sums = {}
    for name, values in checked(scores, density).items():
        tail = jnp.shape(values)[-len(shape) :]
        if len(tail) < len(shape) or any(
            a % b for a, b in zip(tail, shape, strict=True)
        ):
            raise BudgetError(
                f"{name!r} of shape {list(jnp.shape(values))} is not made of blocks "
                f"{list(shape)}; give None for its score, and it stays whole"
            )
        lead = jnp.ndim(values) - len(shape)
        pairs = [p for a, b in zip(tail, shape, strict=True) for p in (a // b, b)]
        split = values.reshape(*values.shape[:lead], *pairs)
        inner = tuple(range(lead + 1, split.ndim, 2))
        sums[name] = split.sum(axis=inner)
    out = named_leaves(topk(filled(scores, sums), density))
    for name in out:
        for i, size in enumerate(shape):
            out[name] = jnp.repeat(
                out[name], size, axis=out[name].ndim - len(shape) + i
            )
    return filled(scores, out)


def checked(scores: Any, density: float) -> dict[str, Any]:
    """Scores by path, none of them NaN; on the host, if they are known.

    Raises:
        BudgetError: a density outside of 0 .. 1.
        DataError: NaN; names the leaf.
    """
    if not 0 <= density <= 1:
        raise BudgetError(f"density={density!r}; the share that stays, between 0 and 1")
    named = named_leaves(scores)
    for name, values in named.items():
        if not isinstance(values, Tracer):
            named[name] = np.asarray(values)
            if np.isnan(named[name]).any():
                raise DataError(f"the scores of {name!r} hold NaN")
    return named
