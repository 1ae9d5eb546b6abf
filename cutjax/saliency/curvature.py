"""The curvature of a loss in the outputs, as cotangents to pull back.

To second order a loss L(o) of an output o = f(g) rises by 1/2 d^T J^T H J d, where H is
the Hessian of L in o (Gauss-Newton: what bends f itself is left out). With a random
sign per entry of o, e, the cotangent z = H^(1/2) e has E[z z^T] = H, so that what z is
pulled back to has the second moment J^T H J. It needs no gradient: where a network
answers its own targets, that is zero, and the curvature is not.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cutjax.saliency.stream import Loss

STEPS = 8
"""Of Lanczos: exact up to so many different eigenvalues, of one example. Even."""
SWEEPS = 6
"""Of rotations over all pairs: more change nothing in float32."""

Flat = Float[Array, "n"]


def key_of(inputs: Any) -> PRNGKeyArray:
    """A key made of the bits of an example: the same in whatever order they come.

    Args:
        inputs: of one example, a pytree of arrays.
    """
    total = jnp.uint32(0)
    for leaf in map(jnp.asarray, jax.tree.leaves(inputs)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            leaf = jnp.stack([leaf.real, leaf.imag]).astype(jnp.float32)
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        bits = leaf.astype(jnp.uint32).ravel()
        odd = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | 1
        total = total * jnp.uint32(31) + jnp.sum(bits * odd, dtype=jnp.uint32)
    return jax.random.fold_in(jax.random.key(0), total)


def curved_sums(
    losses: Mapping[str, Loss],
    outputs: Any,
    targets: Mapping[str, Any],
    key: PRNGKeyArray,
) -> Float[Array, "t"]:
    """Per task, a sum over its output whose gradient there is its `cotangent`.

    Args:
        losses: per task.
        outputs: of one example.
        targets: of one example, by task.
        key: of the example.
    """
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    found = []
    for task, loss in losses.items():
        out, target = outputs[task], targets[task]
        fixed = jax.lax.stop_gradient(out)
        slopes = cotangent(lambda o, f=loss, y=target: f(o, y), fixed, key)
        pairs = zip(jax.tree.leaves(slopes), _floats(out), strict=True)
        parts = [jnp.sum(z * v.astype(jnp.float32)) for z, v in pairs]
        found.append(sum(parts, jnp.float32(0)))
    return jnp.stack(found)


def cotangent(
    loss: Callable[[Any], Float[Array, ""]], out: Any, key: PRNGKeyArray
) -> Any:
    """A draw z with E[z z^T] = H; the gradient, where a loss has no curvature at all.

    That is so of absolute differences. Directions along which the loss is concave
    count for nothing.

    Args:
        loss: of an output, a scalar.
        out: the output of one example; leaves other than floats stay as they are.
        key: for the signs.

    Returns:
        f32, one for each leaf of `out` of floats.
    """
    leaves, tree = jax.tree.flatten(out)
    flat, shaped = ravel_pytree([v.astype(jnp.float32) for v in _floats(out)])

    def of(vector: Flat) -> Float[Array, ""]:
        given = iter(shaped(vector))
        filled = [next(given).astype(v.dtype) if _floats(v) else v for v in leaves]
        return loss(jax.tree.unflatten(tree, filled)).astype(jnp.float32)

    slope = jax.grad(of)
    signs = jax.random.rademacher(key, flat.shape, jnp.float32)
    # Signs may lie where nothing bends, as all of one sign do for a softmax.
    anywhere = jax.random.normal(key, flat.shape)
    try:
        gradient, bent = jax.jvp(slope, (flat,), (anywhere,))
        root = _root(lambda v: jax.jvp(slope, (flat,), (v,))[1], signs)
    except (NotImplementedError, TypeError, ValueError):
        return shaped(slope(flat))  # JAX has no rule for a second derivative of it.
    return shaped(jnp.where(jnp.any(bent != 0), root, gradient))


def _floats(tree: Any) -> list[Any]:
    """The leaves that can be differentiated by."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [v for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)]


def _root(product: Callable[[Flat], Flat], start: Flat) -> Flat:
    """H^(1/2) v by Lanczos, run twice so that no basis is kept.

    Reference:
        Golub & Van Loan, Matrix Computations, 4th ed., 10.1 and 9.1; f(A) v as
        |v| Q f(T) e_1.
    """
    length = math.sqrt(start.size)  # of signs
    first = start / length

    def step(carry: Any, _: None) -> Any:
        before, now, beta = carry
        new = product(now) - beta * before
        alpha = jnp.vdot(now, new)
        new = new - alpha * now
        after = jnp.linalg.norm(new)
        # The basis is complete where nothing is left but rounding.
        over = after <= 1e-5 * jnp.abs(alpha)
        after = jnp.where(over, 0.0, after)
        new = jnp.where(over, 0.0, new / jnp.where(over, 1.0, after))
        return (now, new, after), (alpha, after, now)

    def numbers(carry: Any, _: None) -> Any:
        carry, (alpha, beta, _vector) = step(carry, None)
        return carry, (alpha, beta)

    begin = jnp.zeros_like(first), first, jnp.float32(0)
    _, (alpha, beta) = jax.lax.scan(numbers, begin, None, STEPS)
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = _eigen(tridiagonal)
    shares = vectors @ (jnp.sqrt(jnp.maximum(values, 0.0)) * vectors[0])

    def gathered(carry: Any, share: Any) -> Any:
        total, carry = carry
        carry, (_, _, vector) = step(carry, None)
        return (total + share * vector, carry), None

    (total, _), _ = jax.lax.scan(gathered, (jnp.zeros_like(first), begin), shares)
    return length * total


def _eigen(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, "n"], Float[Array, "n n"]]:
    """Eigenvalues and vectors of a small symmetric matrix, by rotations side by side.

    Two of LAPACK's batched `eigh` at a time wait for each other forever where XLA has
    two threads (jaxlib 0.10.2).

    Reference:
        Brent & Luk, The Solution of Singular-Value and Symmetric Eigenvalue Problems
        on Multiprocessor Arrays, 1985.
    """
    size = len(matrix)
    pairs = jnp.asarray(np.tile(_rounds(size), (SWEEPS, 1, 1)))

    def rotate(carry: Any, pair: Any) -> Any:
        (a, vectors), (p, q) = carry, pair
        tau = (a[q, q] - a[p, p]) / 2
        long = jnp.abs(tau) + jnp.hypot(tau, a[p, q])
        tangent = jnp.where(tau < 0, -1, 1) * a[p, q] / jnp.where(long > 0, long, 1)
        cosine = jax.lax.rsqrt(1 + tangent**2)
        sine = tangent * cosine
        turn = jnp.zeros_like(a).at[p, p].set(cosine).at[q, q].set(cosine)
        turn = turn.at[p, q].set(sine).at[q, p].set(-sine)
        return (turn.T @ a @ turn, vectors @ turn), None

    with jax.default_matmul_precision("highest"):
        begin = matrix, jnp.eye(size, dtype=matrix.dtype)
        (diagonal, vectors), _ = jax.lax.scan(rotate, begin, pairs)
    return jnp.diag(diagonal), vectors


def _rounds(size: int) -> Int[np.ndarray, "r 2 h"]:
    """Every pair of an even number once, each number once a round: a tournament."""
    half, ring, found = size // 2, list(range(1, size)), []
    for _ in ring:
        row = [0, *ring]
        found.append([row[:half], row[: half - 1 : -1]])
        ring = [*ring[1:], ring[0]]
    return np.array(found)
