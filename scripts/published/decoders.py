"""Decoders of text in transformers."""

from __future__ import annotations

from typing import Any

from .base import Built, published, tokens
from .hf import PACKAGE, build, config, sines

TEXT = {"input_ids": tokens(2, 6)}
LLAMA: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": (24, 12),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "intermediate_size": (40, 20),
    "max_position_embeddings": 20,
}


OPT: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": (24, 12),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "ffn_dim": (40, 20),
    "max_position_embeddings": 20,
}


@published("GPT-2", PACKAGE)
def gpt2() -> Built:
    make = config(
        "GPT2Config",
        vocab_size=33,
        n_embd=(24, 12),
        n_layer=2,
        n_head=(4, 2),
        n_positions=20,
    )
    return build("FlaxGPT2LMHeadModel", make, TEXT)


@published("GPT-2 hidden states", PACKAGE)
def gpt2_model() -> Built:
    make = config(
        "GPT2Config",
        vocab_size=33,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_inner=(40, 20),
        n_positions=20,
    )
    return build("FlaxGPT2Model", make, TEXT, ("last_hidden_state",))


@published("GPT-J", PACKAGE)
def gptj() -> Built:
    make = config(
        "GPTJConfig",
        vocab_size=33,
        n_embd=(32, 16),
        n_layer=2,
        n_head=(4, 2),
        n_inner=(40, 20),
        rotary_dim=4,
        n_positions=20,
    )
    return build("FlaxGPTJForCausalLM", make, TEXT)


@published("GPT-Neo", PACKAGE)
def gpt_neo() -> Built:
    make = config(
        "GPTNeoConfig",
        vocab_size=33,
        hidden_size=(24, 12),
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=(4, 2),
        intermediate_size=(40, 20),
        window_size=3,
        max_position_embeddings=20,
    )
    return build("FlaxGPTNeoForCausalLM", make, TEXT)


@published("OPT", PACKAGE)
def opt() -> Built:
    make = config("OPTConfig", **OPT, word_embed_proj_dim=(24, 12))
    return build("FlaxOPTForCausalLM", make, TEXT)


@published("OPT projected embeddings", PACKAGE)
def opt_projected() -> Built:
    known = {"word_embed_proj_dim": (14, 7), "do_layer_norm_before": False}
    make = config("OPTConfig", **OPT, **known)
    return build("FlaxOPTForCausalLM", make, TEXT)


@published("XGLM", PACKAGE)
def xglm() -> Built:
    make = config(
        "XGLMConfig",
        vocab_size=33,
        d_model=(24, 12),
        num_layers=2,
        attention_heads=(4, 2),
        ffn_dim=(40, 20),
        max_position_embeddings=20,
        scale_embedding=False,
    )
    kind, path = "FlaxXGLMForCausalLM", "model/embed_tokens/embedding"
    table = sines(kind, "create_sinusoidal_positions", path, 1)
    return build(kind, make, TEXT, constants=table)


@published("BLOOM", PACKAGE)
def bloom() -> Built:
    make = config(
        "BloomConfig", vocab_size=33, hidden_size=(32, 16), n_layer=2, n_head=(4, 2)
    )
    inputs = TEXT | {"attention_mask": tokens(2, 6) * 0 + 1}
    return build("FlaxBloomForCausalLM", make, inputs)


@published("LLaMA", PACKAGE)
def llama() -> Built:
    return build("FlaxLlamaForCausalLM", config("LlamaConfig", **LLAMA), TEXT)


@published("LLaMA grouped queries", PACKAGE)
def llama_gqa() -> Built:
    make = config("LlamaConfig", **LLAMA, num_key_value_heads=(2, 1))
    return build("FlaxLlamaForCausalLM", make, TEXT)


@published("LLaMA multi-query", PACKAGE)
def llama_mqa() -> Built:
    make = config("LlamaConfig", **LLAMA, num_key_value_heads=1)
    return build("FlaxLlamaForCausalLM", make, TEXT)


@published("Mistral", PACKAGE)
def mistral() -> Built:
    make = config(
        "MistralConfig", **LLAMA, num_key_value_heads=(2, 1), sliding_window=3
    )
    return build("FlaxMistralForCausalLM", make, TEXT)


@published("Gemma", PACKAGE)
def gemma() -> Built:
    make = config("GemmaConfig", **LLAMA, num_key_value_heads=(2, 1), head_dim=6)
    return build("FlaxGemmaForCausalLM", make, TEXT, adapt=gemma_scale)


def gemma_scale(params: Any) -> Any:
    """Embeddings are multiplied by the root of the width; the head reads them too."""
    model = dict(params["model"])
    table = model["embed_tokens"]["embedding"]
    model["embed_tokens"] = {"embedding": table * 2**0.5}
    # RMSNorm multiplies by one plus its weight; the head reads the same table.
    model["norm"] = {"weight": (1 + model["norm"]["weight"]) / 2**0.5 - 1}
    return {**params, "model": model}
