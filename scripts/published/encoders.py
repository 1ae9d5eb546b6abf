"""Encoders of text in transformers, with the heads that people put on them."""

from __future__ import annotations

from typing import Any

from .base import Built, published, tokens
from .hf import PACKAGE, build, config, sines

# 4 heads of 6, halved to 2 heads of 6.
SIZES: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": (24, 12),
    "num_hidden_layers": 2,
    "num_attention_heads": (4, 2),
    "intermediate_size": (40, 20),
    "max_position_embeddings": 20,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 33,
    "dim": (24, 12),
    "n_layers": 2,
    "n_heads": (4, 2),
    "hidden_dim": (40, 20),
    "max_position_embeddings": 20,
}
TEXT = {"input_ids": tokens(2, 6)}


@published("BERT masked LM", PACKAGE)
def bert() -> Built:
    return build("FlaxBertForMaskedLM", config("BertConfig", **SIZES), TEXT)


@published("BERT hidden states", PACKAGE)
def bert_model() -> Built:
    outputs = ("last_hidden_state", "pooler_output")
    return build("FlaxBertModel", config("BertConfig", **SIZES), TEXT, outputs)


@published("BERT question answering", PACKAGE)
def bert_qa() -> Built:
    outputs = ("start_logits", "end_logits")
    make = config("BertConfig", **SIZES)
    return build("FlaxBertForQuestionAnswering", make, TEXT, outputs)


@published("BERT pre-training", PACKAGE)
def bert_two_tasks() -> Built:
    outputs = ("prediction_logits", "seq_relationship_logits")
    return build("FlaxBertForPreTraining", config("BertConfig", **SIZES), TEXT, outputs)


@published("BERT token classification", PACKAGE)
def bert_tokens() -> Built:
    return build("FlaxBertForTokenClassification", config("BertConfig", **SIZES), TEXT)


@published("BERT multiple choice", PACKAGE)
def bert_choice() -> Built:
    make = config("BertConfig", **SIZES)
    return build("FlaxBertForMultipleChoice", make, {"input_ids": tokens(2, 3, 6)})


@published("BERT causal LM", PACKAGE)
def bert_causal() -> Built:
    make = config("BertConfig", **SIZES, is_decoder=True)
    return build("FlaxBertForCausalLM", make, TEXT)


@published("ALBERT masked LM", PACKAGE)
def albert() -> Built:
    make = config("AlbertConfig", **SIZES, embedding_size=(10, 5))
    return build("FlaxAlbertForMaskedLM", make, TEXT)


@published("RoBERTa classification", PACKAGE)
def roberta() -> Built:
    make = config("RobertaConfig", **SIZES)
    return build("FlaxRobertaForSequenceClassification", make, TEXT)


@published("RoBERTa masked LM", PACKAGE)
def roberta_lm() -> Built:
    return build("FlaxRobertaForMaskedLM", config("RobertaConfig", **SIZES), TEXT)


@published("RoBERTa pre-LayerNorm", PACKAGE)
def roberta_pre() -> Built:
    make = config("RobertaPreLayerNormConfig", **SIZES)
    return build("FlaxRobertaPreLayerNormForMaskedLM", make, TEXT)


@published("XLM-RoBERTa masked LM", PACKAGE)
def xlm_roberta() -> Built:
    return build("FlaxXLMRobertaForMaskedLM", config("XLMRobertaConfig", **SIZES), TEXT)


@published("DistilBERT masked LM", PACKAGE)
def distilbert() -> Built:
    make = config("DistilBertConfig", **DISTILBERT)
    return build("FlaxDistilBertForMaskedLM", make, TEXT)


@published("DistilBERT sinusoidal QA", PACKAGE)
def distilbert_qa() -> Built:
    make = config("DistilBertConfig", **DISTILBERT, sinusoidal_pos_embds=True)
    outputs = ("start_logits", "end_logits")
    kind = "FlaxDistilBertForQuestionAnswering"
    path = "distilbert/embeddings/word_embeddings/embedding"
    table = sines(kind, "positional_encoding", path, 1)
    return build(kind, make, TEXT, outputs, constants=table)


@published("ELECTRA masked LM", PACKAGE)
def electra() -> Built:
    make = config("ElectraConfig", **SIZES, embedding_size=(10, 5))
    return build("FlaxElectraForMaskedLM", make, TEXT)


@published("ELECTRA discriminator", PACKAGE)
def electra_discriminator() -> Built:
    make = config("ElectraConfig", **SIZES, embedding_size=(24, 12))
    return build("FlaxElectraForPreTraining", make, TEXT)


@published("BigBird full attention", PACKAGE)
def big_bird() -> Built:
    make = config("BigBirdConfig", **SIZES, attention_type="original_full")
    return build("FlaxBigBirdForMaskedLM", make, TEXT)


@published("BigBird block sparse", PACKAGE)
def big_bird_sparse() -> Built:
    sizes = SIZES | {"max_position_embeddings": 32}
    make = config("BigBirdConfig", **sizes, block_size=2, num_random_blocks=1)
    return build("FlaxBigBirdForMaskedLM", make, {"input_ids": tokens(2, 16)})


@published("RoFormer masked LM", PACKAGE)
def roformer() -> Built:
    make = config("RoFormerConfig", **SIZES, embedding_size=(24, 12))
    return build("FlaxRoFormerForMaskedLM", make, TEXT)


@published("RoFormer rotary values", PACKAGE)
def roformer_values() -> Built:
    make = config("RoFormerConfig", **SIZES, embedding_size=10, rotary_value=True)
    return build("FlaxRoFormerForTokenClassification", make, TEXT)
