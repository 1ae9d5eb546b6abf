"""Policies and critics of brax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .base import Apply, Built, halved, normal, published

PACKAGE = "brax"
HIDDEN = (20, 14)


def build(
    kind: str, fields: Callable[[int], dict[str, Any]], sizes: tuple, *inputs: Any
) -> Built:
    """A network of brax.training.networks; its observations are not normalised."""

    def made(divisor: int) -> tuple[Apply, Any]:
        from brax.training import networks

        net = getattr(networks, kind)(*sizes, **fields(divisor))
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        return lambda params, *given: net.apply(None, params, *given), shapes

    return halved(made, inputs)


def hidden(d: int) -> dict[str, Any]:
    """The widths of the hidden layers."""
    return {"hidden_layer_sizes": [n // d for n in HIDDEN]}


@published("Policy", PACKAGE)
def policy() -> Built:
    return build("make_policy_network", hidden, (6, 9), normal(4, 9))


@published("Policy with LayerNorm", PACKAGE)
def policy_norm() -> Built:
    return build(
        "make_policy_network",
        lambda d: hidden(d) | {"layer_norm": True},
        (6, 9),
        normal(4, 9),
    )


@published("Policy with deviations", PACKAGE)
def policy_deviations() -> Built:
    return build(
        "make_policy_network",
        lambda d: (
            hidden(d) | {"distribution_type": "normal", "state_dependent_std": True}
        ),
        (6, 9),
        normal(4, 9),
    )


@published("Value", PACKAGE)
def value() -> Built:
    return build("make_value_network", hidden, (9,), normal(4, 9))


@published("Distributional critic", PACKAGE)
def critic() -> Built:
    return build(
        "make_value_network",
        lambda d: hidden(d) | {"use_distributional_critic": True, "num_quantiles": 8},
        (9,),
        normal(4, 9),
    )


@published("Twin Q", PACKAGE)
def twin_q() -> Built:
    return build(
        "make_q_network",
        lambda d: hidden(d) | {"layer_norm": True},
        (9, 3),
        normal(4, 9),
        normal(4, 3, seed=1),
    )


@published("Vision policy", PACKAGE)
def vision() -> Built:
    def made(divisor: int) -> tuple[Apply, Any]:
        from brax.training import networks

        net = networks.make_policy_network_vision(
            {"pixels/front": (16, 16, 3)},
            6,
            hidden_layer_sizes=[20 // divisor, 14 // divisor],
            layer_norm=True,
            cnn_output_channels=[n // divisor for n in (8, 12, 16)],
            cnn_kernel_size=(4, 3, 3),
            cnn_stride=(2, 2, 1),
        )

        def apply(params: Any, picture: Any) -> Any:
            return net.apply(None, params, {"pixels/front": picture})

        return apply, jax.eval_shape(net.init, jax.random.key(0))

    return halved(made, (normal(2, 16, 16, 3),))
