"""A Hugging Face classifier with LoRA on lines of text. python examples/lora_on_text.py [FILE] [--model NAME]

FILE has a line an example, "LABEL<tab>TEXT". Without it a few lines are made up; without a model, a tiny random BERT.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import bayeslora
from bayeslora.datasets.text import load_tokenizer, tokenise
from bayeslora.models import lora_classifier

LINES = "\n".join(f"good\tthe {n} was great fun\nbad\tthe {n} was dull and late" for n in ("film", "book", "trip") * 8)


def tiny_bert(lines: str) -> Path:
    """A folder with a small untrained BERT and a tokenizer of the words in the lines."""
    folder = Path(tempfile.mkdtemp())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(lines.lower().split()))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    wide = BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, **size)
    BertModel(wide).save_pretrained(folder)  # random weights, wide enough that texts differ
    return folder


def main() -> bayeslora.Posterior:
    """Sample adapter and head, show predictions, and write each draw as a PEFT adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--model", help="a folder or a model of the hub; targets below are BERT's and RoBERTa's")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--burn-in", type=int, default=400)
    options = parser.parse_args()
    lines = options.path.read_text() if options.path else LINES
    model = options.model or str(tiny_bert(lines))
    labels, texts = zip(*(line.split("\t", 1) for line in lines.splitlines() if line.strip()), strict=True)
    names = tuple(sorted(set(labels)))
    tokens = tokenise(load_tokenizer(model), [(text,) for text in texts], "pair", max_length=64).tokens.long()
    posterior = bayeslora.sample(
        lambda: lora_classifier(len(names), model, targets=("query", "value"), rank=4, cache_prefix=False),
        (tokens, torch.tensor([names.index(label) for label in labels])),
        "sgld", prior=bayeslora.Prior(0.01, overrides={"*modules_to_save*": 0.1}), lr=0.04, chains=2, thin=5,
        draws=options.draws, burn_in=options.burn_in, warmup=options.burn_in, class_names=names, batch_size=16,
        parallel="stacked",
    )  # fmt: skip
    for text, p in zip(texts[:2], posterior.predict(tokens[:2]).exp(), strict=True):
        print(f"{text!r}: {names[p.argmax()]} ({p.max():.0%})")
    print("adapters:", posterior.adapters(tempfile.mkdtemp())[0].parent)
    return posterior


if __name__ == "__main__":
    main()
