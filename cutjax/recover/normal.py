"""Least squares from moments: sums that merge, a ridge towards what was there before.

`blocks` of independent problems are solved side by side: rows [g, p, f] @ W [g, f, m].
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

from cutjax.errors import DataError

Blocks = Float[np.ndarray, "g f m"]

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

ROUNDING = 1e-5
"""A standard deviation that float32 cannot tell from none, of the root mean square."""


def check_damping(damping: float | None, name: str = "damping") -> None:
    """Check a ridge that someone asked for.

    Args:
        damping: as a share of the mean square of the features; None to have it chosen.
        name: what the error calls it.

    Raises:
        DataError: it is not a number above 0.
    """
    number = isinstance(damping, float | int | np.number)
    if damping is not None and not (number and 0 < damping < np.inf):
        raise DataError(
            f"{name}={damping}: give a number above 0, or none to have it chosen"
        )


MANY = 512
"""Features from which on a gram matrix is worked out in blocks."""


class Moments(NamedTuple):
    """Rows b and targets y in numbers: means, and sums of products about the means.

    `count` rows; `read` [g, f] and `made` [g, m] are means, `gram` [g, f, f], `cross`
    [g, f, m] and `square` [g, m] sums of (b - mean)(b - mean)^T and so on.
    """

    count: Any
    read: Any
    made: Any
    gram: Any
    cross: Any
    square: Any


def moments(
    b: Float[jax.Array, "g p f"],
    y: Float[jax.Array, "g p m"],
    of: Bool[jax.Array, "p"] | None = None,
) -> Moments:
    """Moments of one batch, in float32, or of some of its rows; traced."""
    b, y = b.astype(jnp.float32), y.astype(jnp.float32)
    if of is None:
        count = jnp.asarray(b.shape[1], jnp.float32)
        read, made = b.mean(1), y.mean(1)
        b, y = b - read[:, None], y - made[:, None]
    else:
        count = jnp.sum(of, dtype=jnp.float32)
        some = of[:, None]
        read, made = (v.sum(1, where=some) / jnp.maximum(count, 1) for v in (b, y))
        b = jnp.where(some, b - read[:, None], 0)
        y = jnp.where(some, y - made[:, None], 0)
    with jax.default_matmul_precision("highest"):
        gram = _gram(b)
        cross = jnp.einsum("gpf,gpm->gfm", b, y)
    return Moments(count, read, made, gram, cross, jnp.sum(y**2, 1))


def _gram(b: Float[jax.Array, "g p f"]) -> Float[jax.Array, "g f f"]:
    """b^T b; of many features what lies below the diagonal is copied, not computed."""
    features = b.shape[-1]
    if features < MANY:
        return jnp.einsum("gpf,gpe->gfe", b, b)
    left, right = b[..., : features // 2], b[..., features // 2 :]
    corner = jnp.einsum("gpf,gpe->gfe", left, right)
    above = jnp.concatenate([_gram(left), corner], -1)
    below = jnp.concatenate([corner.swapaxes(1, 2), _gram(right)], -1)
    return jnp.concatenate([above, below], -2)


def merged(parts: Iterable[Moments]) -> Moments:
    """Moments of all rows together, in double precision.

    Reference:
        Chan, Golub & LeVeque, Algorithms for Computing the Sample Variance,
        1983, eq. 2.1.
    """
    first, *others = parts
    total = Moments(*(np.asarray(v, np.float64) for v in first))
    for part in others:
        total = _both(total, Moments(*(np.asarray(v, np.float64) for v in part)))
    return total


def sound(part: Any) -> bool:
    """Whether all that was measured is finite; NaN in a row shows in the means."""
    if isinstance(part, Moments):
        part = (part.read, part.made, part.square)
    return all(np.isfinite(value).all() for value in part)


def _both(a: Moments, b: Moments) -> Moments:
    n = a.count + b.count
    read, made = b.read - a.read, b.made - a.made
    share = a.count * b.count / n
    return Moments(
        n,
        a.read + read * b.count / n,
        a.made + made * b.count / n,
        a.gram + b.gram + share * read[:, :, None] * read[:, None, :],
        a.cross + b.cross + share * read[:, :, None] * made[:, None, :],
        a.square + b.square + share * made**2,
    )


joined = jax.jit(_both, donate_argnums=0)
"""Moments of two sets of rows on the device, in float32; the first is given up."""


def about_zero(m: Moments) -> Moments:
    """The same rows with products about zero: for a fit without an intercept."""
    if not (m.read.any() or m.made.any()):
        return m
    origin = m._replace(read=0 * m.read, made=0 * m.made)
    return origin._replace(
        gram=m.gram + m.count * m.read[:, :, None] * m.read[:, None, :],
        cross=m.cross + m.count * m.read[:, :, None] * m.made[:, None, :],
        square=m.square + m.count * m.made**2,
    )


def some_targets(
    m: Moments, prior: Blocks, most: int
) -> tuple[Moments, Float[np.ndarray, "g f few"]]:
    """The same problem with at most so many of its targets, evenly spread."""
    columns = np.linspace(0, prior.shape[-1] - 1, min(most, prior.shape[-1]))
    at = columns.round().astype(int)
    few = m._replace(made=m.made[:, at], cross=m.cross[..., at], square=m.square[:, at])
    return few, prior[..., at]


class Solution(NamedTuple):
    """A kernel [g, f, m], and what is added to what it makes [g, m]."""

    kernel: Blocks
    shift: Float[np.ndarray, "g m"]


def solve(
    m: Moments,
    prior: Blocks,
    damping: float,
    *,
    intercept: bool = False,
    strict: bool = False,
) -> Solution:
    """The W (and c) that minimise |b W + c - y|^2 + lambda |W - prior|^2.

    lambda is `damping` times the mean square of a feature (its variance, where there
    is an intercept), see `_sizes`. Without one, c is zero. `strict` refuses what is
    singular but for rounding: else a decomposition takes twenty times the time.
    """
    m = m if intercept else about_zero(m)
    ridge = damping * _sizes(np.diagonal(m.gram, axis1=1, axis2=2))
    left = _ridged(m.gram, ridge)
    right = m.cross + ridge[..., None] * prior
    kernel = _solved(left, right, strict=strict)
    return Solution(kernel, shift(m, kernel))


def rescaled(m: Moments, prior: Blocks, *, intercept: bool = False) -> Solution:
    """The kernel with each channel's results as wide as the target's.

    Channels that never move stay as they are, and so do those that move by rounding
    only, or should: next to how large they are.
    """
    zero = about_zero(m)
    m = m if intercept else zero
    wide = np.einsum("gfm,gfe,gem->gm", prior, m.gram, prior, optimize=True)
    whole = np.einsum("gfm,gfe,gem->gm", prior, zero.gram, prior, optimize=True)
    moves = (wide > 1e-12 * np.max(wide, initial=1e-30)) & (m.square > 0)
    moves &= (wide > ROUNDING**2 * whole) & (m.square > ROUNDING**2 * zero.square)
    scale = np.sqrt(np.where(moves, m.square / np.where(moves, wide, 1), 1))
    kernel = prior * scale[:, None]
    return Solution(kernel, shift(m, kernel))


def _sizes(squares: Float[np.ndarray, "g f"]) -> Float[np.ndarray, "g f"]:
    """What a ridge is measured by: a feature's own square, the median's at least.

    One feature in large units does not hold back the others; one that hardly ever moves
    is not trusted to make up for much.
    """
    moving = np.where(squares > 0, squares, np.nan)
    still = np.isnan(moving).all(-1, keepdims=True)
    least = np.nanmedian(np.where(still, 1.0, moving), -1, keepdims=True)
    return np.maximum(squares, least)


def _ridged(gram: Float[np.ndarray, "g n n"], ridge: Float[np.ndarray, "g n"]) -> Any:
    left = np.array(gram, np.float64)
    n = left.shape[-1]
    left[:, range(n), range(n)] += ridge
    return left


def _solved(
    left: Float[np.ndarray, "g f f"], right: Blocks, *, strict: bool = False
) -> Blocks:
    if len(left) > 1:
        return np.linalg.solve(left, right)
    try:
        # `scipy.linalg.solve` also estimates a condition number: twice the time.
        # Symmetric: its transpose is what LAPACK needs, without a copy.
        factor = scipy.linalg.cho_factor(
            left[0].T, overwrite_a=strict, check_finite=False
        )
        return scipy.linalg.cho_solve(factor, right[0], check_finite=False)[None]
    except np.linalg.LinAlgError:
        if strict:
            raise
        return np.linalg.lstsq(left[0], right[0], rcond=None)[0][None]


def shift(m: Moments, kernel: Blocks) -> Float[np.ndarray, "g m"]:
    """The intercept that goes with a kernel: means agree."""
    return m.made - np.einsum("gf,gfm->gm", m.read, kernel)


def error(m: Moments, fit: Solution, *, intercept: bool = False) -> float:
    """Squared error of a fit over the squared target."""
    total = np.sum(m.square + m.count * m.made**2)
    m = m if intercept else about_zero(m)
    w = fit.kernel
    wrong = np.sum(w * (m.gram @ w)) - 2 * np.sum(w * m.cross) + np.sum(m.square)
    if intercept:
        wrong += m.count * np.sum((shift(m, w) - fit.shift) ** 2)
    return float(max(wrong, 0.0) / max(float(total), 1e-30))


class Rows(NamedTuple):
    """Rows b [g, p, f] and targets y [g, p, m] themselves."""

    read: Any
    made: Any


def solve_rows(
    rows: Rows, prior: Blocks, damping: float, *, intercept: bool = False
) -> Solution:
    """As `solve`, by a system as large as there are rows, if features are more."""
    b, y = (np.asarray(v, np.float64) for v in rows)
    means = b.mean(1), y.mean(1)
    if intercept:
        b, y = b - means[0][:, None], y - means[1][:, None]
    scales = np.sqrt(_sizes(np.sum(b**2, 1)))[:, None]
    even = b / scales
    left = _ridged(even @ even.swapaxes(1, 2), np.full(b.shape[:2], damping))
    gain = even.swapaxes(1, 2) @ _solved(left, y - b @ prior)
    kernel = prior + gain / scales.swapaxes(1, 2)
    c = means[1] - np.einsum("gf,gfm->gm", means[0], kernel)
    return Solution(kernel, c if intercept else 0 * c)


def error_rows(rows: Rows, fit: Solution) -> float:
    """Squared error of a fit over the squared target."""
    wrong = rows.read @ fit.kernel + fit.shift[:, None] - rows.made
    return float(np.sum(wrong**2) / max(np.sum(np.square(rows.made)), 1e-30))


def chosen(loss: Callable[[float], float], least: float = 0.0) -> float:
    """The damping of the least loss, by going down or up from 1e-3 while that helps.

    Args:
        loss: of a damping.
        least: less is not tried.
    """
    tried = [damping for damping in DAMPINGS if damping >= least]
    at, seen = tried.index(1e-3), functools.cache(loss)
    for step in (-1, 1):
        while 0 <= at + step < len(tried) and seen(tried[at + step]) < seen(tried[at]):
            at += step
    return tried[at]
