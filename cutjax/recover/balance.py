"""Weights of tasks that move while training, so that no task is sacrificed.

A balance is a pure state machine: from the tasks' losses (and, if it asks, the norms of
their gradients at a shared kernel) to their weights and its next state. It runs within
a training step by `balanced`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.errors import DataError, suggest
from cutjax.given import several

Weights = Float[Array, " t"]

LEAST = 1e-3  # of the tasks' mean: a loss below weighs as if it were so much


class Balance(NamedTuple):
    """How the losses of tasks are weighed.

    Attributes:
        init: the state for tasks.
        step: `(state, losses[t], norms[t]) -> (weights[t], state)`.
        shared: path of the kernel at which `norms` are taken, "" for the last one that
            serves all tasks; None: norms are not looked at, and are zeros.
    """

    init: Callable[[Sequence[str]], Any]
    step: Callable[[Any, Weights, Weights], tuple[Weights, Any]]
    shared: str | None = None


def uniform() -> Balance:
    """Every task weighs one."""
    return Balance(
        lambda tasks: (), lambda state, losses, norms: (1.0 + 0 * losses, ())
    )


def static(weights: Mapping[str, float]) -> Balance:
    """Weights that stay; 1 for tasks not named.

    Args:
        weights: by task.

    Returns:
        The balance.

    Raises:
        DataError: a weight below zero or not finite; when called, one of another task.
    """
    if wrong := {t: w for t, w in weights.items() if not 0 <= w < math.inf}:
        raise DataError(f"static: weights {wrong}; expected numbers of 0 or more")

    def init(tasks: Sequence[str]) -> Weights:
        for task in set(weights) - set(tasks):
            raise DataError(f"static: a weight of {task!r}; {suggest(task, tasks)}")
        return jnp.array([weights.get(t, 1.0) for t in tasks], jnp.float32)

    return Balance(init, lambda state, losses, norms: (state, state))


class Uncertainty(NamedTuple):
    """Log variances s; the factor of each loss; steps made."""

    log_variance: Weights
    factor: Weights
    steps: Float[Array, ""]


def uncertainty(
    numbers: Sequence[str] | str = (), *, rate: float = 0.1, start: bool = True
) -> Balance:
    """Learned variances: sum of f exp(-s) L + s / 2, with f = 1, or 1/2 of a number.

    Args:
        numbers: the tasks that ask for a number.
        rate: of the gradient descent in s.
        start: begin at the s that is best for the first losses, instead of at 0, from
            where a short training would not arrive. A task that is exact then counts as
            a thousandth of the mean, not as infinitely dear.

    Returns:
        The balance.

    Reference:
        Kendall, Gal & Cipolla, Multi-Task Learning Using Uncertainty, CVPR 2018, eq. 7
        and 10, with s = log sigma^2.
    """

    def init(tasks: Sequence[str]) -> Uncertainty:
        asked = several(numbers)
        factor = jnp.array([0.5 if t in asked else 1.0 for t in tasks], jnp.float32)
        return Uncertainty(jnp.zeros(len(tasks)), factor, jnp.zeros(()))

    def step(state: Uncertainty, losses: Weights, norms: Weights) -> Any:
        s, f, steps = state
        if start:
            best = jnp.log(_floored(2 * f * losses))
            s = jnp.where(steps == 0, best, s)
        weights = f * jnp.exp(-s)
        return weights, Uncertainty(s - rate * (0.5 - weights * losses), f, steps + 1)

    return Balance(init, step)


class GradNorm(NamedTuple):
    """Logarithms of the weights; the first losses; steps made."""

    log_weights: Weights
    first: Weights
    steps: Float[Array, ""]


def gradnorm(
    shared: str = "", *, alpha: float = 1.5, rate: float = 0.05, start: bool = True
) -> Balance:
    """Weights that make the tasks learn at one pace, by the norms of their gradients.

    The norm G = |w dL/dW| of a task is pulled to the mean of all times r^alpha, where r
    is how much of its first loss is left, relative to the others. Descent is in log w
    and in units of the mean norm, so weights stay positive and losses may have any
    scale; they sum to the number of tasks.

    Args:
        shared: path of the kernel W that all tasks share; the last one, if not given.
        alpha: how strongly the slower tasks are preferred.
        rate: of the descent.
        start: begin where all norms are the same, instead of at ones; those below
            a ten thousandth of the mean count as a hundredth of it.

    Returns:
        The balance.

    Reference:
        Chen et al., GradNorm, ICML 2018, eq. 2 and algorithm 1.
    """

    def init(tasks: Sequence[str]) -> GradNorm:
        zeros = jnp.zeros(len(tasks))
        return GradNorm(zeros, zeros + 1.0, jnp.zeros(()))

    def step(state: GradNorm, losses: Weights, norms: Weights) -> Any:
        logs, first, steps = state
        begins = steps == 0
        first = jnp.where(begins, _begun(losses), first)
        if start:
            alike = -jnp.log(_begun(norms))
            logs = _summing_to_count(jnp.where(begins, alike, logs))
        weights = jnp.exp(logs)
        pulled = weights * jnp.maximum(norms, 1e-12)
        pace = losses / jnp.maximum(first, 1e-12)
        relative = pace / jnp.maximum(pace.mean(), 1e-12)
        wrong = pulled / pulled.mean() - relative**alpha
        # Where norms are as wanted, rounding must not choose a direction.
        slope = jnp.where(jnp.abs(wrong) > 1e-4, jnp.sign(wrong), 0.0)
        slope = slope * pulled / pulled.mean()
        return weights, GradNorm(
            _summing_to_count(logs - rate * slope), first, steps + 1
        )

    return Balance(init, step, shared)


def _floored(values: Weights) -> Weights:
    """Values of at least a share of their mean."""
    return jnp.maximum(values, jnp.maximum(LEAST * values.mean(), 1e-12))


def _begun(values: Weights) -> Weights:
    """The same where weights move slowly: what is exact begins nearer to the others."""
    mean = values.mean()
    begun = jnp.where(values <= 0.1 * LEAST * mean, 10 * LEAST * mean, values)
    return jnp.maximum(begun, 1e-12)


def _summing_to_count(logs: Weights) -> Weights:
    """Logarithms of weights, shifted so that the weights sum to their number."""
    return jax.nn.log_softmax(logs) + jnp.log(float(len(logs)))


class Famo(NamedTuple):
    """Logits xi of the tasks; logarithms of the last losses; steps made."""

    logits: Weights
    last: Weights
    steps: Float[Array, ""]


def famo(*, rate: float = 0.5, decay: float = 1e-3) -> Balance:
    """Weights c z / L, with z = softmax(xi) moved to what fell least of late.

    All losses are to fall by the same factor. The paper compares the losses of a batch
    before and after the update; here those of successive steps are compared, which
    costs nothing and adds the noise of the batches.

    Args:
        rate: beta, of the descent in xi.
        decay: gamma, which pulls xi to 0.

    Returns:
        The balance.

    Reference:
        Liu et al., FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023, alg. 1.
    """

    def init(tasks: Sequence[str]) -> Famo:
        return Famo(jnp.zeros(len(tasks)), jnp.zeros(len(tasks)), jnp.zeros(()))

    def step(state: Famo, losses: Weights, norms: Weights) -> Any:
        xi, last, steps = state
        losses = _floored(losses)
        now = jnp.log(losses)
        fell = jnp.where(steps == 0, 0.0, last - now)
        z = jax.nn.softmax(xi)
        delta = z * (fell - z @ fell)
        xi = xi - rate * (delta + decay * xi)
        weights = jax.nn.softmax(xi) / losses
        return weights / weights.sum(), Famo(xi, now, steps + 1)

    return Balance(init, step)


NAMED = {"uniform": uniform, "gradnorm": gradnorm, "famo": famo}


def named_balance(balance: str | Balance, numbers: Sequence[str] = ()) -> Balance:
    """A balance by its name.

    Args:
        balance: "uniform", "uncertainty", "gradnorm", "famo", or a balance.
        numbers: the tasks that ask for a number, see `uncertainty`.

    Returns:
        The balance.

    Raises:
        DataError: an unknown name.
    """
    if not isinstance(balance, str):
        return balance
    if balance == "uncertainty":
        return uncertainty(numbers)
    if balance not in NAMED:
        names = [*NAMED, "uncertainty"]
        raise DataError(f"no balance {balance!r}; {suggest(balance, names)}")
    return NAMED[balance]()
