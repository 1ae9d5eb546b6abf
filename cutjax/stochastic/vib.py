"""Gates of the variational information bottleneck: noise that useless channels keep."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cutjax.graph import Graph
from cutjax.stochastic.base import Gates, State, at_least_one, each

Vector = Float[Array, "n"]


def vib(
    *, threshold: float = 0.0, log_var: float = -9.0, spread: float = 0.01
) -> Gates:
    """VIBNet: a channel is read times `mu + sigma eps`, eps standard normal.

    The penalty is `0.5 log(1 + mu^2 / sigma^2)`, the KL divergence of the gate to the
    best normal around zero, up to the input's own scale. A channel stays where
    `log alpha = log(sigma^2 / mu^2)` is below the threshold.

    Args:
        threshold: of log alpha.
        log_var: log sigma^2 at the start; mu starts at one.
        spread: standard deviation of mu at the start.

    Returns:
        The gates; their state is `{group: {"mu", "log_var"}}`.

    Reference:
        Dai et al., Compressing Neural Networks using the Variational Information
        Bottleneck, ICML 2018, equation 10; PAM (1905.09676), P1.
    """

    def init(key: Any, graph: Graph) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, max(len(graph.free), 1))
        return {
            g.name: {
                "mu": 1 + spread * jax.random.normal(k, (g.size,)),
                "log_var": jnp.full(g.size, log_var),
            }
            for g, k in zip(graph.free, keys, strict=False)
        }

    def sample(key: Any, state: State) -> dict[str, Vector]:
        keys = jax.random.split(key, max(len(state), 1))
        out = {}
        for k, (name, s) in zip(keys, state.items(), strict=False):
            noise = jax.random.normal(k, s["mu"].shape)
            out[name] = s["mu"] + jnp.exp(s["log_var"] / 2) * noise
        return out

    def mean(state: State) -> dict[str, Vector]:
        return each(state, lambda mu, log_var: mu)

    def penalty(state: State) -> dict[str, Vector]:
        return each(state, divergence)

    def keep(state: State) -> dict[str, Any]:
        alpha = each(state, log_alpha)
        on = {name: a < threshold for name, a in alpha.items()}
        return at_least_one(on, {name: -a for name, a in alpha.items()})

    return Gates(init, sample, mean, penalty, keep)


def divergence(mu: Vector, log_var: Vector) -> Vector:
    """`0.5 log(1 + mu^2 / sigma^2)`: from N(mu, sigma^2) to N(0, mu^2 + sigma^2).

    Of all normals around zero that one is nearest.
    """
    # log1p of the ratio overflows where sigma is tiny; softplus of its log does not.
    return 0.5 * jax.nn.softplus(-log_alpha(mu, log_var))


def log_alpha(mu: Vector, log_var: Vector) -> Vector:
    """`log(sigma^2 / mu^2)`: noise over signal."""
    return log_var - jnp.log(jnp.square(mu) + 1e-12)
