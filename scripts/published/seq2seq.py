"""Encoders with decoders in transformers: text to text, speech to text."""

from __future__ import annotations

from typing import Any

import jax

from .base import Built, normal, path_of, published, tokens
from .hf import PACKAGE, build, config, sines

PAIR = {"input_ids": tokens(2, 6), "decoder_input_ids": tokens(2, 5, seed=1)}
T5: dict[str, Any] = {
    "vocab_size": 33,
    "d_model": (20, 10),
    "d_kv": 6,
    "d_ff": (40, 20),
    "num_layers": 2,
    "num_heads": (4, 2),
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": 33,
    "d_model": (24, 12),
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": (4, 2),
    "decoder_attention_heads": (4, 2),
    "encoder_ffn_dim": (40, 20),
    "decoder_ffn_dim": (44, 22),
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


@published("T5", PACKAGE)
def t5() -> Built:
    make = config("T5Config", **T5)
    return build("FlaxT5ForConditionalGeneration", make, PAIR, adapt=tied_scale)


def tied_scale(params: Any) -> Any:
    """A tied head divides by the root of the width; its LayerNorm comes before."""

    def scaled(path: Any, leaf: Any) -> Any:
        last = path_of(path) == "decoder/final_layer_norm/weight"
        return leaf / 2**0.5 if last else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


@published("T5 gated, untied", PACKAGE)
def t5_gated() -> Built:
    make = config(
        "T5Config", **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    return build("FlaxT5ForConditionalGeneration", make, PAIR)


@published("T5 encoder", PACKAGE)
def t5_encoder() -> Built:
    make = config("T5Config", **T5)
    inputs = {"input_ids": tokens(2, 6)}
    return build("FlaxT5EncoderModel", make, inputs, ("last_hidden_state",))


@published("mT5", PACKAGE)
def mt5() -> Built:
    make = config("MT5Config", **T5)
    return build("FlaxMT5ForConditionalGeneration", make, PAIR)


@published("LongT5 local", PACKAGE)
def longt5() -> Built:
    make = config("LongT5Config", **T5, local_radius=3)
    kind = "FlaxLongT5ForConditionalGeneration"
    return build(kind, make, PAIR, adapt=tied_scale)


@published("LongT5 transient global", PACKAGE)
def longt5_global() -> Built:
    make = config(
        "LongT5Config",
        **T5,
        local_radius=3,
        global_block_size=2,
        encoder_attention_type="transient-global",
    )
    kind = "FlaxLongT5ForConditionalGeneration"
    return build(kind, make, PAIR, adapt=tied_scale)


@published("BART", PACKAGE)
def bart() -> Built:
    make = config("BartConfig", **BART)
    return build("FlaxBartForConditionalGeneration", make, PAIR)


@published("BART classification", PACKAGE)
def bart_classes() -> Built:
    ids = tokens(2, 6).at[:, -1].set(2)
    make = config("BartConfig", **BART)
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    return build("FlaxBartForSequenceClassification", make, inputs)


@published("mBART", PACKAGE)
def mbart() -> Built:
    make = config("MBartConfig", **BART)
    return build("FlaxMBartForConditionalGeneration", make, PAIR)


@published("Marian", PACKAGE)
def marian() -> Built:
    make = config("MarianConfig", **BART, scale_embedding=False)
    return build("FlaxMarianMTModel", make, PAIR, constants=sine("FlaxMarianMTModel"))


def sine(kind: str) -> Any:
    """The positions of Marian and Pegasus."""
    return sines(kind, "create_sinusoidal_positions", "model/shared/embedding", 1)


@published("Pegasus", PACKAGE)
def pegasus() -> Built:
    make = config("PegasusConfig", **BART)
    kind = "FlaxPegasusForConditionalGeneration"
    return build(kind, make, PAIR, constants=sine(kind))


@published("Blenderbot", PACKAGE)
def blenderbot() -> Built:
    make = config("BlenderbotConfig", **BART)
    return build("FlaxBlenderbotForConditionalGeneration", make, PAIR)


@published("Blenderbot small", PACKAGE)
def blenderbot_small() -> Built:
    make = config("BlenderbotSmallConfig", **BART)
    return build("FlaxBlenderbotSmallForConditionalGeneration", make, PAIR)


@published("Whisper", PACKAGE)
def whisper() -> Built:
    fields = {k: v for k, v in BART.items() if k != "max_position_embeddings"}
    make = config(
        "WhisperConfig",
        **fields,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=12,
    )
    inputs = {
        "input_features": normal(2, 8, 20),
        "decoder_input_ids": tokens(2, 5, seed=1),
    }
    return build("FlaxWhisperForConditionalGeneration", make, inputs)
