"""Flax models of diffusers: the U-Net, its control net, the autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from .base import Apply, Built, Kept, halved, normal, path_of, published

PACKAGE = "diffusers"


def build(
    kind: str, fields: Callable[[int], dict[str, Any]], *inputs: Any, **known: Any
) -> Built:
    """A Flax model of diffusers; `fields` are its settings."""

    def made(divisor: int) -> tuple[Apply, Any]:
        import diffusers

        diffusers.logging.set_verbosity_error()
        model = getattr(diffusers, kind)(**fields(divisor))
        shapes = jax.eval_shape(model.init_weights, jax.random.key(0))

        def apply(params: Any, *given: Any) -> Any:
            return tuple(model.apply({"params": params}, *given).values())

        return apply, shapes

    return halved(made, inputs, **known)


def unet(d: int) -> dict[str, Any]:
    """A U-Net of two levels, attention on the first."""
    return {
        "sample_size": 8,
        "in_channels": 4,
        "block_out_channels": (64 // d, 64 // d),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4 // d,  # the number of heads, in spite of its name
        "cross_attention_dim": 10,
    }


def time_table(kept: Kept) -> Any:
    """The sines of the time step are those of the full width."""
    from diffusers.models import embeddings_flax

    make = embeddings_flax.get_sinusoidal_embeddings
    where = kept("time_embedding/linear_1/kernel", 0)

    def narrow(timesteps: Any, embedding_dim: int, **rest: Any) -> Any:
        return make(timesteps, embedding_dim=2 * embedding_dim, **rest)[..., where]

    return mock.patch.object(embeddings_flax, "get_sinusoidal_embeddings", narrow)


NOISY = (normal(2, 4, 8, 8), jnp.asarray([3, 11], jnp.int32), normal(2, 5, 10, seed=1))


@published("U-Net with text", PACKAGE)
def unet_2d() -> Built:
    ups = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return build(
        "FlaxUNet2DConditionModel",
        lambda d: {"out_channels": 4, **unet(d), **ups},
        *NOISY,
        constants=time_table,
        groups=lambda width: 32,
    )


@published("ControlNet", PACKAGE)
def control_net() -> Built:
    return build(
        "FlaxControlNetModel",
        lambda d: {
            **unet(d),
            "conditioning_embedding_out_channels": tuple(n // d for n in (4, 6, 8, 10)),
        },
        *NOISY,
        normal(2, 3, 64, 64, seed=2),
        constants=time_table,
        groups=lambda width: 32,
    )


@published("Autoencoder KL", PACKAGE)
def autoencoder() -> Built:
    return build(
        "FlaxAutoencoderKL",
        lambda d: {
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
            "block_out_channels": (12 // d, 24 // d),
            "norm_num_groups": 4 // d,
            "latent_channels": 4,
            "sample_size": 8,
        },
        normal(2, 3, 8, 8),
        adapt=one_head,
    )


def one_head(params: Any) -> Any:
    """Its one head is as wide as the layer, and divides by the root of that width."""

    def scaled(path: Any, leaf: Any) -> Any:
        return leaf / 2**0.5 if "attentions_0/query" in path_of(path) else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)
