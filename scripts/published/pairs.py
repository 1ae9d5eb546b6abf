"""Models of transformers that join two others, and those that listen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .base import Built, normal, published, tokens
from .encoders import SIZES
from .hf import PACKAGE, build, config, module
from .vision import PIXELS, VIT

WAV: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": (24, 12),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "intermediate_size": (40, 20),
    "conv_dim": ([8, 10], [4, 5]),
    "conv_kernel": [4, 3],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": (4, 2),
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "mask_time_prob": 0.0,
}
SOUND = {"input_values": normal(2, 60)}


@published("Wav2Vec2 CTC", PACKAGE)
def wav2vec2() -> Built:
    return build("FlaxWav2Vec2ForCTC", config("Wav2Vec2Config", **WAV), SOUND)


@published("Wav2Vec2 pre-training", PACKAGE)
def wav2vec2_training() -> Built:
    make = config(
        "Wav2Vec2Config",
        **WAV,
        codevector_dim=(12, 6),
        num_codevector_groups=(2, 1),
        num_codevectors_per_group=5,
        proj_codevector_dim=7,
    )
    outputs = ("projected_states", "projected_quantized_states")
    return build("FlaxWav2Vec2ForPreTraining", make, SOUND, outputs)


def both(name: str, one: Any, two: Any) -> Callable[[int], Any]:
    """The configuration of a pair from those of its parts."""

    def make(divisor: int) -> Any:
        join = module(name).from_encoder_decoder_configs
        return join(one(divisor), two(divisor))

    return make


def gpt2(positions: int = 20) -> Callable[[int], Any]:
    """A decoder that looks at an encoder."""
    return config(
        "GPT2Config",
        vocab_size=33,
        n_embd=(28, 14),
        n_layer=2,
        n_head=(4, 2),
        n_positions=positions,
        is_decoder=True,
        add_cross_attention=True,
    )


@published("BERT to GPT-2", PACKAGE)
def encoder_decoder() -> Built:
    make = both("EncoderDecoderConfig", config("BertConfig", **SIZES), gpt2())
    inputs = {"input_ids": tokens(2, 6), "decoder_input_ids": tokens(2, 5, seed=1)}
    return build("FlaxEncoderDecoderModel", make, inputs)


@published("BERT to BERT", PACKAGE)
def bert_to_bert() -> Built:
    decoder = config("BertConfig", **SIZES, is_decoder=True, add_cross_attention=True)
    make = both("EncoderDecoderConfig", config("BertConfig", **SIZES), decoder)
    inputs = {"input_ids": tokens(2, 6), "decoder_input_ids": tokens(2, 5, seed=1)}
    return build("FlaxEncoderDecoderModel", make, inputs)


@published("ViT to GPT-2", PACKAGE)
def vision_encoder_decoder() -> Built:
    make = both("VisionEncoderDecoderConfig", config("ViTConfig", **VIT), gpt2())
    inputs = PIXELS | {"decoder_input_ids": tokens(2, 5, seed=1)}
    return build("FlaxVisionEncoderDecoderModel", make, inputs)


@published("Wav2Vec2 to GPT-2", PACKAGE)
def speech_encoder_decoder() -> Built:
    make = both(
        "SpeechEncoderDecoderConfig", config("Wav2Vec2Config", **WAV), gpt2(260)
    )
    inputs = {
        "inputs": normal(2, 60),
        "attention_mask": jnp.ones((2, 60), jnp.int32),
        "decoder_input_ids": tokens(2, 5, seed=1),
    }
    return build("FlaxSpeechEncoderDecoderModel", make, inputs)


@published("ViT with BERT", PACKAGE)
def dual_encoder() -> Built:
    def make(divisor: int) -> Any:
        image = config("ViTConfig", **VIT)(divisor)
        text = config("BertConfig", **SIZES)(divisor)
        join = module("VisionTextDualEncoderConfig").from_vision_text_configs
        return join(image, text, projection_dim=14)

    inputs = {"input_ids": tokens(2, 6), **PIXELS}
    outputs = ("logits_per_text", "logits_per_image")
    return build("FlaxVisionTextDualEncoderModel", make, inputs, outputs)
