"""Means and products of channels, batch by batch, and correlations from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CONSTANT = 1e-10
"""A variance of less than this times the mean square is rounding."""


class Moments(NamedTuple):
    """Of the channels of all networks: per reader rows and means; products about them.

    `square` is summed over readers, each about its own means.
    """

    count: Float[Array | np.ndarray, "readers 1"]
    mean: Float[Array | np.ndarray, "readers n"]
    square: Float[Array | np.ndarray, "n n"]


def of_batch(readers: list[Float[Array, "_ n"]]) -> Moments:
    """Moments of one batch, in float32; traced.

    Args:
        readers: what each reads, channels in columns.
    """
    means = [rows.mean(0) for rows in readers]
    off = [rows - mean for rows, mean in zip(readers, means, strict=True)]
    with jax.default_matmul_precision("highest"):
        square = sum(rows.T @ rows for rows in off)
    count = jnp.array([[len(rows)] for rows in readers], jnp.float32)
    return Moments(count, jnp.stack(means), jnp.asarray(square))


def double(m: Moments) -> Moments:
    """Moments on the host, in double precision."""
    return Moments(*(np.asarray(v, np.float64) for v in m))


def both(a: Moments, b: Moments) -> Moments:
    """Moments of all rows together.

    Args:
        a: of some.
        b: of others.

    Reference:
        Chan, Golub & LeVeque, Algorithms for Computing the Sample Variance, 1983, eq.
        2.1.
    """
    count, off = a.count + b.count, b.mean - a.mean
    between = (off * (a.count * b.count / count)).T @ off
    mean = a.mean + off * (b.count / count)
    return Moments(count, mean, a.square + b.square + between)


def correlation(m: Moments) -> Float[np.ndarray, "n n"]:
    """The correlation matrix; zero for channels that do not vary."""
    square = np.asarray(m.square)
    diagonal = np.diag(square)
    constant = diagonal <= CONSTANT * np.sum(np.asarray(m.count) * m.mean**2, 0)
    scale = np.where(constant, 0.0, 1 / np.sqrt(np.where(constant, 1.0, diagonal)))
    return (square * scale * scale[:, None]).clip(-1, 1).astype(np.float32)
