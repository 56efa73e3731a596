"""Tiny texts, files and tokenizers made on the spot: what text datasets and models of text are tested with."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bayeslora.datasets import Data
from bayeslora.datasets.text import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS

WORDS = (
    *("a", "the", "one", "red", "old", "cat", "dog", "bird", "sat", "ran", "saw", "ate", "on", "under"),
    *("mat", "tree", "house", "river", "and", "then", "twice", "quickly"),
)
Pair = tuple[str, str]


def sentences(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Sentences of 2 to `longest` of the words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, longest))) for _ in range(count)]


def paraphrases(count: int, seed: int = 0) -> tuple[list[Pair], list[int]]:
    """Pairs and whether the second is the first with its words turned round (1) or another sentence (0)."""
    first, other = sentences(count, seed), sentences(count, seed + 1000)
    labels = [row % 2 for row in range(count)]
    turned = [" ".join(reversed(sentence.split())) for sentence in first]
    return [(a, t if y else b) for a, t, b, y in zip(first, turned, other, labels, strict=True)], labels


def write_parquet(
    folder: Path,
    split: str,
    columns: Mapping[str, Sequence[Any]],
    names: Sequence[str] = (),
    shard: str = "00000-of-00001",
) -> Path:
    """A shard with the columns, and the hub's note of the classes' `names` of the column `label`, if any."""
    table = pa.table(dict(columns))
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{split}-{shard}.parquet")
    return folder


def mrpc(folder: Path, train: int = 20, test: int = 8, names: Sequence[str] = ("not_equivalent", "equivalent")) -> Path:
    """A folder in the hub's layout of MRPC, of `paraphrases`."""
    for seed, (split, count) in enumerate({"train": train, "validation": test}.items()):
        pairs, labels = paraphrases(count, seed)
        first, second = ([pair[i] for pair in pairs] for i in (0, 1))
        columns = {"sentence1": first, "sentence2": second, "label": labels, "idx": list(range(count))}
        write_parquet(folder, split, columns, names)
    return folder


def write_tsv(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]], ending: str = "\n") -> None:
    """A TSV as GLUE has it: no quoting; no header line if the header is empty."""
    lines = [*([header] if header else []), *rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join("\t".join(line) + ending for line in lines).encode())


def bert_tokenizer(folder: Path, words: Iterable[str] = WORDS, max_length: int = 512) -> Path:
    """A folder with a tokenizer of whole words that encodes pairs as BERT's: `[CLS] a [SEP] b [SEP]`, types 0 and 1."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(folder)
    return folder


def roberta_tokenizer(folder: Path, max_length: int = 512, padding_side: str = "right") -> Path:
    """A folder with a byte-level BPE tokenizer that encodes pairs as RoBERTa's: `<s>a</s></s>b</s>`, without types."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)
    return folder


def tokens(sequence: Tensor) -> list[int]:
    """The token ids of one stored sequence [F, L] that are not padding."""
    return sequence[INPUT_IDS][sequence[ATTENTION_MASK].bool()].tolist()


def check_against(tokenizer: PreTrainedTokenizerBase, data: Data, layout: str) -> None:
    """Every stored sequence is what the tokenizer makes of its texts one by one, padded right."""
    for name in ("train", "validation", "test"):
        inputs = getattr(data, name).inputs
        assert inputs.dtype == torch.int32
        assert len(inputs) == len(data.texts[name])
        for example, texts in zip(inputs, data.texts[name], strict=True):
            wanted = [texts] if layout == "pair" else [(text,) for text in texts]
            for sequence, parts in zip(example, wanted, strict=True):
                encoded = tokenizer(*parts)
                assert tokens(sequence) == encoded["input_ids"]
                length = len(encoded["input_ids"])
                assert sequence[ATTENTION_MASK].tolist() == [1] * length + [0] * (len(sequence[0]) - length)
                assert set(sequence[INPUT_IDS, length:].tolist()) <= {tokenizer.pad_token_id}
                types = encoded.get("token_type_ids", [0] * length)
                assert sequence[TOKEN_TYPE_IDS].tolist() == types + [0] * (len(sequence[0]) - length)
