"""Named entities in a text: a class a word. python examples/ner_on_text.py [FILE]

FILE is in CoNLL's form: a line a word, "WORD TAG", an empty line between sentences. Without it a few are made up.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import bayeslora

PAIRS = [(name, place) for name in ("Ada", "Karl", "Emmy", "Alan") for place in ("Paris", "Rome", "Oslo", "Cairo")]
MADE = "\n\n".join(
    f"{a} B-PER\nwent O\nto O\n{b} B-LOC\n\nIn O\n{b} B-LOC\n{a} B-PER\nmet O\na O\nfriend O" for a, b in PAIRS
)


class Tagger(nn.Module):
    """Words and their form (capital or not), each with its neighbours -> logits [B, C, words]."""

    def __init__(self, words: int, tags: int) -> None:
        super().__init__()
        self.word, self.form = nn.Embedding(words, 16, padding_idx=0), nn.Embedding(3, 4, padding_idx=0)
        self.hidden, self.out = nn.Conv1d(20, 32, 3, padding=1), nn.Conv1d(32, tags, 1)

    def forward(self, words: Tensor, form: Tensor) -> Tensor:
        x = torch.cat([self.word(words), self.form(form)], -1).transpose(1, 2)
        return self.out(torch.tanh(self.hidden(x)))


def main() -> bayeslora.Posterior:
    """Sample, and tag the first sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--burn-in", type=int, default=600)
    options = parser.parse_args()
    text = options.path.read_text() if options.path else MADE
    sentences = [[line.split() for line in part.splitlines()] for part in text.strip().split("\n\n")]
    words, tags = (sorted({pair[at] for sentence in sentences for pair in sentence}) for at in (0, 1))
    rows = {
        "words": [torch.tensor([1 + words.index(word) for word, _ in sentence]) for sentence in sentences],
        "form": [torch.tensor([1 + word[0].isupper() for word, _ in sentence]) for sentence in sentences],
    }
    inputs = {name: pad_sequence(row, batch_first=True) for name, row in rows.items()}  # the model's keywords
    classes = [torch.tensor([tags.index(tag) for _, tag in sentence]) for sentence in sentences]
    targets = pad_sequence(classes, batch_first=True, padding_value=-100)  # padding is left out of the likelihood
    posterior = bayeslora.sample(
        lambda: Tagger(1 + len(words), len(tags)), (inputs, targets), prior=0.3, lr=0.005, chains=2,
        draws=options.draws, burn_in=options.burn_in, thin=5, warmup=options.burn_in, class_names=tuple(tags),
        parallel="stacked", batch_size=16,
    )  # fmt: skip
    p = posterior.predict({name: held[:1] for name, held in inputs.items()}).exp()[0]  # [C, words]
    for (word, tag), of_word in zip(sentences[0], p.T, strict=False):
        print(f"{word}: {tags[of_word.argmax()]} ({of_word.max():.0%}), true {tag}")
    return posterior


if __name__ == "__main__":
    main()
