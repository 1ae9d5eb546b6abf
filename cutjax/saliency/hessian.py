"""The diagonal of the loss's Hessian with respect to the gates."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cutjax.gate import ones
from cutjax.saliency.criterion import (
    Criterion,
    Measure,
    Problem,
    Scores,
    Sums,
)
from cutjax.saliency.family import criterion
from cutjax.saliency.seen import Seen
from cutjax.saliency.taylor import by_task


@criterion
def hessian(samples: int | None = 8, seed: int = 0, chunk: int = 16) -> Criterion:
    """Second-order change of the loss when a channel is scaled away, H_cc / 2.

    Args:
        samples: Hutchinson's estimate from so many Rademacher vectors v, the mean of v
            * Hv, whose variance is the sum over d != c of H_cd^2, divided by `samples`.
            The vectors are the same for all batches. None for the exact diagonal by
            forward over reverse, one product per channel: for tiny networks.
        seed: of the vectors.
        chunk: products of the exact diagonal taken side by side.

    Returns:
        A criterion, in units of the loss; may be negative.

    Reference:
        LeCun, Denker & Solla, Optimal Brain Damage, NIPS 1989, eq. 5; Hutchinson, 1989.
    """

    def of(seen: Seen, problem: Problem):
        gates = ones(problem.graph)
        flat, back = ravel_pytree(gates)
        tasks = jnp.eye(len(problem.losses), dtype=jnp.float32)

        def slopes(flat):
            _, pull = jax.vjp(lambda f: seen.of_gates(back(f)), flat)
            return jax.vmap(lambda e: pull(e)[0])(tasks)

        def product(v):
            return jax.jvp(slopes, (flat,), (v,))[1]

        def entry(c):
            return product(jax.nn.one_hot(c, flat.size, dtype=flat.dtype))[:, c]

        def estimate(key):
            v = jax.random.rademacher(key, (flat.size,), flat.dtype)
            return v * product(v)

        if samples is None:
            found = jax.lax.map(entry, jnp.arange(flat.size), batch_size=chunk).T
        else:
            keys = jax.random.split(jax.random.key(seed), samples)
            found = jax.vmap(estimate)(keys).mean(0)
        return jax.vmap(back)(found)

    def scores(problem: Problem, sums: Sums) -> dict[str, Scores]:
        return by_task(problem, {g: v / 2 for g, v in sums.mean().items()})

    how = "exact" if samples is None else f"{samples} samples, seed {seed}"
    measure = Measure(f"gates: Hessian diagonal, {how}", frozenset(), of)
    return Criterion("hessian", scores, measure)
