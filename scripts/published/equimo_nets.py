"""Models of equimo: Equinox modules, split into arrays and the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from .base import Apply, Built, halved, normal, published

PACKAGE = "equimo"


def build(
    kind: str,
    fields: Callable[[int], dict[str, Any]],
    size: int = 32,
    call: Callable[..., Any] = lambda net, x, **how: net(x, **how),
) -> Built:
    """An equimo model over a batch of two pictures; `fields` are its arguments."""
    import equimo.models
    import equinox as eqx

    def made(divisor: int) -> tuple[Apply, Any]:
        model_class = getattr(equimo.models, kind)
        model = eqx.filter_eval_shape(
            lambda: model_class(**fields(divisor), key=jax.random.PRNGKey(0))
        )
        shapes, rest = eqx.partition(model, lambda x: hasattr(x, "shape"))
        rest = eqx.nn.inference_mode(rest, True)
        structure = jax.tree.structure(shapes)

        def apply(params: Any, pictures: Any) -> Any:
            # Linear layers keep their sizes in the structure: take this model's own.
            own = jax.tree.unflatten(structure, jax.tree.leaves(params))
            net = eqx.combine(own, rest)
            key = jax.random.PRNGKey(0)
            return jax.vmap(lambda x: call(net, x, key=key, inference=True))(pictures)

        return apply, shapes

    pictures = normal(2, 3, size, size)
    return halved(made, (pictures,), groups=lambda width: math.gcd(32, width))


@published("ViT registers", PACKAGE)
def vit() -> Built:
    return build(
        "VisionTransformer",
        lambda d: {
            "img_size": 16,
            "in_channels": 3,
            "dim": 24 // d,
            "patch_size": 4,
            "num_heads": 4 // d,
            "depths": [2],
            "num_classes": 5,
            "mlp_ratio": 2.0,
            "init_values": 0.1,
        },
        16,
    )


@published("ViT rotary, SwiGLU", PACKAGE)
def vit_rope() -> Built:
    return build(
        "VisionTransformer",
        lambda d: {
            "img_size": 16,
            "in_channels": 3,
            "dim": 32 // d,
            "patch_size": 4,
            "num_heads": 4 // d,
            "depths": [2],
            "num_classes": 5,
            "mlp_ratio": 2.0,
            "use_global_pos_embed": False,
            "use_local_pos_embed": True,
            "ffn_layer": "swiglu",
            "qk_norm": True,
            "global_pool": "token",
        },
        16,
    )


@published("ConvNeXt", PACKAGE)
def convnext() -> Built:
    return build(
        "ConvNeXt",
        lambda d: {
            "in_channels": 3,
            "depths": [1, 1, 2, 1],
            "dims": [n // d for n in (8, 12, 16, 20)],
            "num_classes": 5,
        },
    )


@published("AttNet", PACKAGE)
def attnet() -> Built:
    return build(
        "AttNet",
        lambda d: {
            "in_channels": 3,
            "depths": [1, 2],
            "dims": [32 // d, 48 // d],
            "exp_rates": [2, 2],
            "kernel_sizes": [5, 3],
            "num_classes": 5,
        },
    )


@published("iFormer", PACKAGE)
def iformer() -> Built:
    return build(
        "IFormer",
        lambda d: {
            "in_channels": 3,
            "dims": [16 // d, 16 // d, 24, 24 // d],
            "depths": [1, 1, 2, 1],
            "modules": ["iformerblock", "iformerblock", "shmablock", "iformerblock"],
            "module_kwargs": [
                {"kernel_size": 3, "expand_ratio": 2.0},
                {"kernel_size": 3, "expand_ratio": 2.0},
                {"num_heads": 1, "head_dim_reduce_ratio": 2, "ffn_ratio": 2.0},
                {"kernel_size": 3, "expand_ratio": 2.0},
            ],
            "downsamplers": [
                "iformerstem",
                "convnormdownsampler",
                "convnormdownsampler",
                "convnormdownsampler",
            ],
            "num_classes": 5,
        },
    )


@published("MobileNet v3", PACKAGE)
def mobilenet() -> Built:
    return build(
        "MobileNetv3",
        lambda d: {
            "in_channels": 3,
            "layers_config": [
                (8 // d, 16 // d, 3, 1, False, "relu"),
                (12 // d, 24 // d, 3, 2, True, "hard_swish"),
                (12 // d, 28 // d, 5, 1, True, "hard_swish"),
            ],
            "last_channels": 24 // d,
            "num_classes": 5,
        },
    )


@published("SHViT", PACKAGE)
def shvit() -> Built:
    return build(
        "SHViT",
        lambda d: {
            "dim": [48 // d, 72 // d, 80 // d],
            "pdim": [12 // d, 36 // d, 20 // d],
            "qk_dim": [6, 6, 6],
            "depths": [1, 1, 1],
            "block_type": ["s", "s", "s"],
            "num_classes": 5,
        },
        64,
        # Its own __call__ normalises the wrong axis and raises.
        lambda net, x, **how: net.head(net.features(x, **how).mean((1, 2))),
    )


@published("LowFormer", PACKAGE)
def lowformer() -> Built:
    return build(
        "LowFormer",
        lambda d: {
            "in_channels": 3,
            # It has a head for every 30 channels.
            "widths": [n // d for n in (24, 24, 60, 60)],
            "depths": [1, 1, 1, 1],
            "att_strides": [1, 1, 2, 1],
            "block_types": ["conv", "conv", "attention", "attention"],
            "attention_type": "softmax",
            "num_classes": 5,
        },
        64,
    )


@published("ReduceFormer", PACKAGE)
def reduceformer() -> Built:
    return build(
        "ReduceFormer",
        lambda d: {
            "in_channels": 3,
            "widths": [n // d for n in (24, 24, 48, 40)],
            "depths": [1, 1, 1, 1],
            "block_types": ["conv", "conv", "attention", "attention"],
            "head_dim": 8,
            "num_classes": 5,
        },
        64,
    )


@published("PartialFormer", PACKAGE)
def partialformer() -> Built:
    return build(
        "PartialFormer",
        lambda d: {
            "img_size": 64,
            "in_channels": 3,
            "dim": 16 // d,
            "num_heads": [2 // d, 4 // d],
            "depths": [1, 1],
            "foreground_ratios": (0.25, 0.75),
            "patch_size": 4,
            "mlp_ratio": 2.0,
            "num_classes": 5,
        },
        64,
    )


@published("MLLA", PACKAGE)
def mlla() -> Built:
    return build(
        "Mlla",
        lambda d: {
            "img_size": 32,
            "in_channels": 3,
            "dim": 24 // d,
            "depths": [1, 1],
            "num_heads": [2 // d, 4 // d],
            "mlp_ratio": 2.0,
            "num_classes": 5,
        },
    )


@published("VSSD", PACKAGE)
def vssd() -> Built:
    return build(
        "Vssd",
        lambda d: {
            "img_size": 32,
            "in_channels": 3,
            "dim": 24 // d,
            "d_state": 6,
            "depths": [1, 1],
            "num_heads": [2 // d, 4 // d],
            "attentions_layers": ("mamba2mixer", "attention"),
            "mlp_ratio": 2.0,
            "num_classes": 5,
        },
    )
