"""Tiny transformers with random weights, saved as folders with their tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.data.text_tools import bert_tokenizer, roberta_tokenizer

FAMILIES = ("roberta", "bert", "llama", "qwen2")
TARGETS = {
    "roberta": ("query", "key", "value", "attention.output.dense"),
    "bert": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "k_proj", "o_proj"),
}
SIZE = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip


SHAPES: dict[str, tuple[dict, list[str] | str]] = {
    "albert": (SIZE | {"embedding_size": 8}, ["query", "value"]),
    "bart": (
        {"d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        | {"decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_position_embeddings": 64},
        ["q_proj", "v_proj"],
    ),
    "bert": (SIZE, "all-linear"),
    "bloom": ({"hidden_size": 16, "n_layer": 3, "n_head": 2}, ["query_key_value"]),
    "deberta-v2": (SIZE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, ["query_proj"]),
    "distilbert": (
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64},
        ["q_lin"],
    ),
    "electra": (SIZE | {"embedding_size": 8}, "all-linear"),
    "gpt2": ({"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "eos_token_id": 2}, ["c_attn"]),
    "gpt_neo": (
        {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "max_position_embeddings": 64, "eos_token_id": 2}
        | {"attention_types": [[["global"], 3]]},
        ["q_proj"],
    ),
    "modernbert": (SIZE | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}, ["Wqkv", "Wo"]),
    "mpnet": (SIZE, ["q", "v"]),
    "t5": (
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2, "eos_token_id": 2}
        | {"decoder_start_token_id": 0},
        ["q", "v"],
    ),
    "xlm": ({"emb_dim": 16, "n_layers": 3, "n_heads": 2, "max_position_embeddings": 64, "n_words": 99}, ["q_lin"]),
    "xlnet": ({"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 32}, ["layer_1"]),
}
"""Configurations of further families with three layers, and what to adapt in each."""


def tiny_checkpoint(folder: Path, family: str, classifier: int = 0, seed: int = 0, **settings: object) -> Path:
    """A folder with a tiny random model of one of `SHAPES`, with a head of so many classes or none; no tokenizer."""
    return save_tiny(folder, family, classifier, seed, **(SHAPES[family][0] | settings))


def save_tiny(folder: Path, family: str, classifier: int = 0, seed: int = 0, **settings: object) -> Path:
    """The same, of any family."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    config = AutoConfig.for_model(family, **({"vocab_size": 99, "pad_token_id": 0} | settings))
    config.num_labels = classifier or 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        (AutoModelForSequenceClassification if classifier else AutoModel).from_config(config).save_pretrained(folder)
    return folder


def tiny_model(folder: Path, family: str, seed: int = 0) -> Path:
    """A folder with a tiny random encoder or decoder and a tokenizer that fits it; decoders have no padding token."""
    import transformers

    if family == "bert":
        bert_tokenizer(folder, max_length=64)
        config = transformers.BertConfig(vocab_size=40, pad_token_id=0, **SIZE)
        kind = transformers.BertModel
    elif family == "roberta":
        roberta_tokenizer(folder, max_length=62)
        config = transformers.RobertaConfig(vocab_size=400, type_vocab_size=1, pad_token_id=1, **SIZE)
        kind = transformers.RobertaModel
    else:
        roberta_tokenizer(folder, max_length=64)
        settings = SIZE | {"num_key_value_heads": 1, "vocab_size": 400, "pad_token_id": None, "eos_token_id": 2}
        config, kind = {
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        }[family]
        config = config(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        for p in model.parameters():
            if p.ndim > 1:
                p.data.mul_(5.0)  # so that attention is not flat
    model.save_pretrained(folder)
    return folder
