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
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, UInt32

from cutjax.saliency.stream import Loss

Flat = Float[Array, "n"]
Number = UInt32[Array, ""]
SIZE = math.sqrt(1 + 1 / 12)
"""The root mean square of numbers from 0.5 to 1.5."""


def number_of(inputs: Any) -> Number:
    """A number made of the bits of an example: the same in whatever order they come.

    Args:
        inputs: of one example, a pytree of arrays.
    """
    total = jnp.uint32(0)
    for leaf in map(jnp.asarray, jax.tree.leaves(inputs)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            # The same in half precision as in single.
            leaf = jnp.stack([leaf.real, leaf.imag]).astype(jnp.bfloat16)
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.uint16)
        bits = leaf.astype(jnp.uint32).ravel()
        odd = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | 1
        total = total * jnp.uint32(31) + jnp.sum(bits * odd, dtype=jnp.uint32)
    return total


def curved_sums(
    losses: Mapping[str, Loss],
    outputs: Any,
    targets: Mapping[str, Any],
    number: Number,
) -> Float[Array, "t"]:
    """Per task, a sum over its output whose gradient there is its `cotangent`.

    Args:
        losses: per task.
        outputs: of one example.
        targets: of one example, by task.
        number: of the example.
    """
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    found = []
    for task, loss in losses.items():
        out, target = outputs[task], targets[task]
        fixed = jax.lax.stop_gradient(out)
        slopes = cotangent(lambda o, f=loss, y=target: f(o, y), fixed, number)
        pairs = zip(jax.tree.leaves(slopes), _floats(out), strict=True)
        parts = [jnp.sum(z * v.astype(jnp.float32)) for z, v in pairs]
        found.append(sum(parts, jnp.float32(0)))
    return jnp.stack(found)


def cotangent(
    loss: Callable[[Any], Float[Array, ""]], out: Any, number: Number | int
) -> Any:
    """A draw z with E[z z^T] = H; the gradient, where a loss has no curvature at all.

    That is so of absolute differences. Directions along which the loss is concave
    count for nothing.

    Args:
        loss: of an output, a scalar.
        out: the output of one example; leaves other than floats stay as they are.
        number: for the signs.

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
    try:
        gradient, product = jax.linearize(slope, flat)
        root, bends = _root(product, _start(number, flat.size))
    except (NotImplementedError, TypeError, ValueError):
        return shaped(slope(flat))  # JAX has no rule for a second derivative of it.
    return shaped(jnp.where(bends, root, gradient))


def _start(number: Number | int, size: int) -> Flat:
    """Random signs, of sizes around one.

    Signs alone may lie where nothing bends, as all of one sign do for a softmax. They
    are hashed: a generator of JAX's takes longer to compile than all else here.

    Reference:
        Appleby, MurmurHash3, its finaliser.
    """
    bits = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    bits = bits + jnp.asarray(number, jnp.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    bits = bits ^ (bits >> 16)
    sizes = 0.5 + (bits & 0xFFFF).astype(jnp.float32) / 0x10000
    return jnp.where(bits >> 31, sizes, -sizes) / SIZE


def _floats(tree: Any) -> list[Any]:
    """The leaves that can be differentiated by."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [v for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)]


def _root(product: Callable[[Flat], Flat], start: Flat) -> tuple[Flat, Array]:
    """H^(1/2) v by two steps of Lanczos, and whether H v is anything.

    Exact where H has two different eigenvalues, as of squares or of two classes; of ten
    classes, the second moment is a few percent off. More steps cost more to compile
    than they tell.

    Reference:
        Golub & Van Loan, Matrix Computations, 4th ed., 10.1 and 9.1: f(H) v as
        |v| Q f(T) e_1.
    """
    length = jnp.linalg.norm(start)
    first = start / length
    bent = product(first)
    a = jnp.vdot(first, bent)
    rest = bent - a * first
    b = jnp.linalg.norm(rest)
    # Nothing is left but rounding where the start is an eigenvector.
    whole = b <= 1e-5 * jnp.abs(a)
    b = jnp.where(whole, 0.0, b)
    second = jnp.where(whole, 0.0, rest / jnp.where(whole, 1.0, b))
    d = jnp.where(whole, a, jnp.vdot(second, product(second)))
    # T = [[a, b], [b, d]] has eigenvalues m - r and m + r.
    m, r = (a + d) / 2, jnp.hypot((a - d) / 2, b)
    low, high = (jnp.sqrt(jnp.maximum(value, 0.0)) for value in (m - r, m + r))
    slope = (high - low) / jnp.where(r > 0, 2 * r, 1.0)
    root = ((high + low) / 2 + slope * (a - m)) * first + slope * b * second
    return length * root, jnp.any(bent != 0)
