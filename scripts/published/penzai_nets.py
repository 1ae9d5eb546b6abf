"""Penzai's transformers, and its multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .base import Apply, Built, halved, normal, published, tokens

PACKAGE = "penzai"


def build(
    model: Callable[[int], Any],
    call: Callable[[Any, Any], Any],
    *inputs: Any,
    **known: Any,
) -> Built:
    """A Penzai model: its parameters by name, bound again at every call."""

    def made(divisor: int) -> tuple[Apply, Any]:
        from penzai import pz

        unbound, found = pz.unbind_params(model(divisor), freeze=True)

        def apply(params: Any, *given: Any) -> Any:
            return call(pz.bind_variables(unbound, named(params)), *given)

        def named(params: Any) -> Any:
            return [
                jax.tree.unflatten(jax.tree.structure(p), [params[p.label]])
                for p in found
            ]

        return apply, {p.label: jax.tree.leaves(p)[0] for p in found}

    return halved(made, inputs, **known)


LLAMA: dict[str, Any] = {
    "projection_dim": 6,
    "num_decoder_blocks": 2,
    "vocab_size": 33,
    "mlp_variant": "swiglu",
    "tie_embedder_and_logits": False,
}


def llamalike(d: int, **fields: Any) -> Any:
    """A transformer of the family of LLaMA: 4 heads of keys for 8 of queries."""
    from penzai.models.transformer.variants import llamalike_common as common

    sizes = {
        "num_kv_heads": 4 // d,
        "query_head_multiplier": 2,
        "embedding_dim": 24 // d,
        "mlp_hidden_dim": 40 // d,
    }
    made = common.LlamalikeTransformerConfig(**LLAMA | sizes | fields)
    return common.build_llamalike_transformer(made, jax.random.key(0))


def logits(model: Any, ids: Any) -> Any:
    """The logits of a batch of tokens, as a plain array."""
    from penzai import pz

    out = model(pz.nx.wrap(ids).tag("batch", "seq"))
    return out.unwrap("batch", "seq", "vocabulary")


@published("LLaMA", PACKAGE)
def llama() -> Built:
    return build(llamalike, logits, tokens(2, 6))


@published("LLaMA stacked layers", PACKAGE)
def llama_stacked() -> Built:
    return build(lambda d: llamalike(d, use_layer_stack=True), logits, tokens(2, 6))


@published("Mistral sliding window", PACKAGE)
def mistral() -> Built:
    def model(d: int) -> Any:
        from penzai.models.transformer.variants import llamalike_common as common

        window = common.AttentionTypeSlidingWindowCausal(window_size=3)
        return llamalike(d, attention_type=window)

    return build(model, logits, tokens(2, 6))


@published("Gemma 2", PACKAGE)
def gemma() -> Built:
    def model(d: int) -> Any:
        from penzai.models.transformer.variants import llamalike_common as common

        kinds = (
            common.AttentionTypeSlidingWindowCausal(window_size=3),
            common.AttentionTypeGlobalCausal(),
        )
        return llamalike(
            d,
            mlp_variant="geglu_approx",
            tie_embedder_and_logits=True,
            attention_type=kinds,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
            final_logit_softcap=30.0,
            attn_logits_soft_cap=50.0,
        )

    return build(model, logits, tokens(2, 6), adapt=tied_scale)


def tied_scale(params: Any) -> Any:
    """Embeddings are multiplied by the root of the width; the head reads them too."""
    table, norm = (
        "transformer/embedder.embeddings",
        "transformer/final_norm/scale.weights",
    )
    return params | {table: params[table] * 2**0.5, norm: params[norm] / 2**0.5}


@published("Multi-query", PACKAGE)
def multi_query() -> Built:
    def model(d: int) -> Any:
        return llamalike(d, num_kv_heads=1, query_head_multiplier=4 // d)

    return build(model, logits, tokens(2, 6))


@published("GPT-NeoX", PACKAGE)
def neox() -> Built:
    return build(lambda d: gpt_neox(d), logits, tokens(2, 6))


@published("GPT-NeoX stacked layers", PACKAGE)
def neox_stacked() -> Built:
    return build(lambda d: gpt_neox(d, True), logits, tokens(2, 6))


def gpt_neox(d: int, stacked: bool = False) -> Any:
    """A GPT-NeoX: rotary on a part of a head, attention and MLP side by side."""
    import jax.numpy as jnp
    from penzai.models.transformer.variants import gpt_neox as variant

    fields = variant.GPTNeoXTransformerConfig(
        num_attention_heads=4 // d,
        embedding_dim=24 // d,
        projection_dim=6,
        mlp_hidden_dim=40 // d,
        num_decoder_blocks=2,
        vocab_size=33,
        activation_fn="gelu_exact",
        rope_subset_size=4,
        rope_wavelength=10_000,
        layernorm_epsilon=1e-5,
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
        use_layer_stack=stacked,
    )
    return variant.build_gpt_neox_transformer(fields, jax.random.key(0))


@published("MLP", PACKAGE)
def mlp() -> Built:
    def model(d: int) -> Any:
        from penzai.models import simple_mlp

        sizes = [7, 20 // d, 14 // d, 3]
        return simple_mlp.MLP.from_config(jax.random.key(0), sizes)

    def call(net: Any, x: Any) -> Any:
        from penzai import pz

        out = net(pz.nx.wrap(x).tag("batch", "features"))
        return out.unwrap("batch", "features")

    return build(model, call, normal(4, 7))
