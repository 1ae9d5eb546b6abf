"""Gates that are zero or one forwards, and scores backwards (straight-through)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from cutjax.errors import BudgetError
from cutjax.graph import Graph
from cutjax.sparse.choose import best
from cutjax.sparse.counts import exact
from cutjax.stochastic.base import Gates, State, at_least_one, each

Vector = Float[Array, "n"]


def through(hard: Bool[Array, "n"], score: Vector) -> Vector:
    """The value of `hard` with the derivative of `score`.

    Reference:
        Bengio, Leonard & Courville, Estimating or Propagating Gradients Through
        Stochastic Neurons, 2013, section 4.
    """
    value = hard.astype(score.dtype)
    # Not value + (score - score): that rounds where the score is large.
    return jax.lax.stop_gradient(value) + _nothing(score)


@jax.custom_jvp
def _nothing(score: Vector) -> Vector:
    """Zero, with the derivative of the identity."""
    return jnp.zeros_like(score)


@_nothing.defjvp
def _nothing_jvp(primals: Any, tangents: Any) -> Any:
    return jnp.zeros_like(primals[0]), tangents[0]


def straight_threshold(*, threshold: float = 0.5) -> Gates:
    """A gate is open where its score is above the threshold; scores start at one.

    There is no chance in it. The penalty is the gate itself, with the score's
    derivative: its sum counts channels, its gradient lowers every score alike.

    Args:
        threshold: of the scores.

    Returns:
        The gates; their state is `{group: {"score"}}`.

    Reference:
        Bengio et al., 2013, section 4; Mallya et al., Piggyback, ECCV 2018.
    """

    def gates(state: State) -> dict[str, Vector]:
        return each(state, lambda score: through(score > threshold, score))

    def keep(state: State) -> dict[str, Any]:
        scores = {name: s["score"] for name, s in state.items()}
        return at_least_one({n: s > threshold for n, s in scores.items()}, scores)

    return Gates(_ones, lambda key, state: gates(state), gates, gates, keep)


def straight_topk(density: float) -> Gates:
    """The gates of the highest scores, over all groups, are open; one at least in each.

    The penalty is zero, since the number of open gates is given. Ties go to the lower
    index, in the order of the groups.

    Args:
        density: the share of all channels that stay.

    Returns:
        The gates; their state is `{group: {"score"}}`.

    Raises:
        BudgetError: a density outside of 0 .. 1.

    Reference:
        Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, CVPR
        2020 (edge-popup), section 3.
    """
    if not 0 <= density <= 1:
        raise BudgetError(f"density={density!r}; the share that stays, between 0 and 1")

    def chosen(state: State) -> dict[str, Bool[Array, "_"]]:
        scores = {name: s["score"] for name, s in state.items()}
        flat = jnp.concatenate([jnp.zeros(0), *scores.values()])
        parts = jnp.split(best(flat, exact(density, flat.size)), _ends(scores))
        return {
            name: part | (jnp.arange(len(part)) == jnp.argmax(scores[name]))
            for name, part in zip(scores, parts, strict=False)
        }

    def gates(state: State) -> dict[str, Vector]:
        on = chosen(state)
        return {name: through(on[name], s["score"]) for name, s in state.items()}

    def penalty(state: State) -> dict[str, Vector]:
        return each(state, lambda score: jnp.zeros_like(score))

    def keep(state: State) -> dict[str, Any]:
        return {name: np.array(mask) for name, mask in chosen(state).items()}

    return Gates(_ones, lambda key, state: gates(state), gates, penalty, keep)


def _ones(key: Any, graph: Graph) -> dict[str, dict[str, Any]]:
    return {g.name: {"score": jnp.ones(g.size)} for g in graph.free}


def _ends(scores: Mapping[str, Any]) -> list[int]:
    return np.cumsum([len(s) for s in scores.values()])[:-1].tolist()
