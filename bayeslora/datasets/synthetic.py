"""python -m bayeslora.datasets.synthetic FOLDER: images, sentence pairs and a tiny RoBERTa, to try every experiment on.

Writes FOLDER/cifar10, cifar100 and mrpc in the layouts that `dataset.path` takes, and FOLDER/roberta for
`model.name_or_path`. Classes can be told from the colour, paraphrases from shared words; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bayeslora.rng import derive_seed, seeded

TRAIN, TEST = 256, 64
"""Examples of each set: what `size=smoke` takes of them, and more."""
WORDS = (
    *("a", "the", "one", "red", "old", "cat", "dog", "bird", "sat", "ran", "saw", "ate", "on", "under"),
    *("mat", "tree", "house", "river", "and", "then", "twice", "quickly"),
)
LONGEST = 256
"""Tokens that the tiny RoBERTa takes."""


def images(folder: Path, classes: int, label: str) -> Path:
    """A folder of parquet shards in the hub's layout of CIFAR: 32x32 colour images, each class of its own colour."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(classes).integers(0, 256, (classes, 3))
    for split, count in (("train", TRAIN), ("test", TEST)):
        rng = np.random.default_rng(derive_seed(classes, 0, 0, f"synthetic/{split}"))
        labels = np.arange(count) % classes
        noise = rng.normal(0, 40, (count, 32, 32, 3))
        pixels = (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
        cells = pa.array(
            [{"bytes": _png(image), "path": None} for image in pixels],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        pq.write_table(pa.table({"img": cells, label: pa.array(labels)}), folder / f"{split}-00000-of-00001.parquet")
    return folder


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of 3 to 12 of the words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(count)]


def pairs(folder: Path) -> Path:
    """A folder in the hub's layout of GLUE MRPC: paraphrases are the same words turned round."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    classes = {"names": ["not_equivalent", "equivalent"], "_type": "ClassLabel"}
    note = {"huggingface": json.dumps({"info": {"features": {"label": classes}}})}
    for seed, (split, count) in enumerate({"train": TRAIN, "validation": TEST}.items()):
        first, other = sentences(count, seed), sentences(count, seed + 1000)
        labels = [row % 2 for row in range(count)]
        second = [" ".join(reversed(a.split())) if y else b for a, b, y in zip(first, other, labels, strict=True)]
        columns = {"sentence1": first, "sentence2": second, "label": labels, "idx": list(range(count))}
        table = pa.table(columns).replace_schema_metadata(note)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def roberta(folder: Path) -> Path:
    """A folder with an untrained RoBERTa of three layers of width 16, and a tokenizer of the words."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    tokenizer(folder)
    config = transformers.RobertaConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    with seeded(0, 0, 0, "synthetic/roberta"), torch.no_grad():
        transformers.RobertaModel(config).save_pretrained(folder)
    return folder


def tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer that encodes pairs as RoBERTa's does: `<s>a</s></s>b</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special.values()), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(sentences(200, seed=0), trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    named = {f"{name}_token": token for name, token in special.items()} | {"cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=LONGEST, model_input_names=["input_ids", "attention_mask"], **named
    ).save_pretrained(folder)
    return folder


def write_all(folder: Path) -> list[Path]:
    """All that the experiments need; returns the folders."""
    return [
        images(folder / "cifar10", 10, "label"),
        images(folder / "cifar100", 100, "fine_label"),
        pairs(folder / "mrpc"),
        roberta(folder / "roberta"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bayeslora.datasets.synthetic", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where to write; made if missing")
    folder = parser.parse_args(arguments).folder
    for written in write_all(folder):
        print(written)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
