"""Gates of L0 regularisation: exactly zero, exactly one, or in between."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.graph import Graph
from cutjax.stochastic.base import Gates, State, at_least_one, each

Vector = Float[Array, "n"]


def hard_concrete(
    *,
    open_: float = 0.9,
    beta: float = 2 / 3,
    low: float = -0.1,
    high: float = 1.1,
    spread: float = 0.01,
) -> Gates:
    """L0: a binary concrete variable, stretched to (low, high) and clipped to [0, 1].

    The penalty is the probability that a gate is not zero, so that its sum is the
    expected number of channels. A channel stays where its gate for use is above zero.

    Args:
        open_: about the probability of an open gate at the start, before stretching.
        beta: temperature.
        low: the lower end of the stretch, below 0.
        high: the upper end, above 1.
        spread: standard deviation of the logits at the start.

    Returns:
        The gates; their state is `{group: {"logit"}}`.

    Reference:
        Louizos, Welling & Kingma, Learning Sparse Neural Networks through L0
        Regularization, ICLR 2018, equations 10 to 13.
    """
    start = math.log(open_ / (1 - open_))
    shift = beta * math.log(-low / high)

    def stretch(s: Vector) -> Vector:
        return jnp.clip(s * (high - low) + low, 0.0, 1.0)

    def init(key: Any, graph: Graph) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, max(len(graph.free), 1))
        return {
            g.name: {"logit": start + spread * jax.random.normal(k, (g.size,))}
            for g, k in zip(graph.free, keys, strict=False)
        }

    def sample(key: Any, state: State) -> dict[str, Vector]:
        keys = jax.random.split(key, max(len(state), 1))
        out = {}
        for k, (name, s) in zip(keys, state.items(), strict=False):
            u = jax.random.uniform(k, s["logit"].shape, minval=1e-6, maxval=1 - 1e-6)
            noise = jnp.log(u) - jnp.log1p(-u)
            out[name] = stretch(jax.nn.sigmoid((noise + s["logit"]) / beta))
        return out

    def mean(state: State) -> dict[str, Vector]:
        return each(state, lambda logit: stretch(jax.nn.sigmoid(logit)))

    def penalty(state: State) -> dict[str, Vector]:
        return each(state, lambda logit: jax.nn.sigmoid(logit - shift))

    def keep(state: State) -> dict[str, Any]:
        on = {name: value > 0 for name, value in mean(state).items()}
        return at_least_one(on, {name: s["logit"] for name, s in state.items()})

    return Gates(init, sample, mean, penalty, keep)
