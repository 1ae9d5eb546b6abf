"""Models of transformers that look or listen."""

from __future__ import annotations

from typing import Any

from .base import Built, normal, published, tokens
from .hf import PACKAGE, build, config

PIXELS = {"pixel_values": normal(2, 3, 16, 16)}
VIT: dict[str, Any] = {
    "hidden_size": (24, 12),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "intermediate_size": (40, 20),
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": (24, 12),
    "intermediate_size": (40, 20),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "max_position_embeddings": 20,
    "projection_dim": 14,
    "eos_token_id": 2,
}
CLIP_VISION: dict[str, Any] = {
    "hidden_size": (28, 14),
    "intermediate_size": (44, 22),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 14,
}


@published("ViT", PACKAGE)
def vit() -> Built:
    return build("FlaxViTForImageClassification", config("ViTConfig", **VIT), PIXELS)


@published("BEiT", PACKAGE)
def beit() -> Built:
    make = config(
        "BeitConfig",
        **VIT,
        use_relative_position_bias=True,
        use_absolute_position_embeddings=True,
    )
    return build("FlaxBeitForImageClassification", make, PIXELS)


@published("BEiT masked image model", PACKAGE)
def beit_masked() -> Built:
    make = config(
        "BeitConfig", **VIT, vocab_size=9, use_shared_relative_position_bias=True
    )
    return build("FlaxBeitForMaskedImageModeling", make, PIXELS)


@published("DINOv2", PACKAGE)
def dinov2() -> Built:
    fields = {k: v for k, v in VIT.items() if k != "intermediate_size"}
    make = config("Dinov2Config", **fields, mlp_ratio=2)
    return build("FlaxDinov2ForImageClassification", make, PIXELS)


@published("DINOv2 SwiGLU", PACKAGE)
def dinov2_swiglu() -> Built:
    fields = {k: v for k, v in VIT.items() if k != "intermediate_size"}
    make = config("Dinov2Config", **fields, mlp_ratio=2, use_swiglu_ffn=True)
    return build("FlaxDinov2ForImageClassification", make, PIXELS)


@published("ResNet bottleneck", PACKAGE)
def resnet() -> Built:
    make = config(
        "ResNetConfig",
        embedding_size=(12, 6),
        hidden_sizes=([16, 24, 32], [8, 12, 16]),
        depths=[1, 2, 1],
        num_labels=5,
    )
    return build("FlaxResNetForImageClassification", make, PIXELS)


@published("ResNet basic", PACKAGE)
def resnet_basic() -> Built:
    make = config(
        "ResNetConfig",
        embedding_size=(8, 4),
        hidden_sizes=([8, 12], [4, 6]),
        depths=[2, 1],
        layer_type="basic",
        num_labels=5,
    )
    return build("FlaxResNetForImageClassification", make, PIXELS)


# RegNet X cannot be built: transformers 4.57.6 hands its layers a wrong argument.
@published("RegNet Y", PACKAGE)
def regnet_y() -> Built:
    make = config(
        "RegNetConfig",
        embedding_size=(8, 4),
        hidden_sizes=([16, 24], [8, 12]),
        depths=[1, 2],
        groups_width=4,
        layer_type="y",
        num_labels=5,
    )
    return build("FlaxRegNetForImageClassification", make, PIXELS)


@published("CLIP", PACKAGE)
def clip() -> Built:
    make = clip_config(CLIP_TEXT, CLIP_VISION)
    inputs = {"input_ids": tokens(2, 6).at[:, -1].set(2), **PIXELS}
    outputs = ("logits_per_text", "logits_per_image")
    return build("FlaxCLIPModel", make, inputs, outputs)


def clip_config(text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """CLIP's two configurations in one."""

    def make(divisor: int) -> Any:
        both = config("CLIPTextConfig", **text), config("CLIPVisionConfig", **vision)
        words, image = (part(divisor).to_dict() for part in both)
        whole = config(
            "CLIPConfig", text_config=words, vision_config=image, projection_dim=14
        )
        return whole(divisor)

    return make


@published("CLIP text", PACKAGE)
def clip_text() -> Built:
    inputs = {"input_ids": tokens(2, 6).at[:, -1].set(2)}
    make = config("CLIPTextConfig", **CLIP_TEXT)
    return build("FlaxCLIPTextModelWithProjection", make, inputs, ("text_embeds",))


@published("CLIP vision", PACKAGE)
def clip_vision() -> Built:
    make = config("CLIPVisionConfig", **CLIP_VISION)
    outputs = ("last_hidden_state", "pooler_output")
    return build("FlaxCLIPVisionModel", make, PIXELS, outputs)
