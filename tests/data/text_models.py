"""Tiny transformers with random weights, saved as folders with their tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch
from data.text_tools import bert_tokenizer, roberta_tokenizer

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
