"""Sentences as tensors: what a tokenizer makes of them, padded, trimmed, cut and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bayeslora.chain.batches import Batches, evaluation_batches
from bayeslora.datasets import Glue
from bayeslora.datasets.text import ATTENTION_MASK, FIELDS, TOKEN_TYPE_IDS, TrimPadding, token_counts
from tests.data.text_tools import (
    bert_tokenizer,
    check_against,
    mrpc,
    roberta_tokenizer,
    tokens,
    write_parquet,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bert_tokenizer(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(roberta_tokenizer(tmp_path_factory.mktemp("roberta")))


@pytest.mark.parametrize("layout", ["pair", "separate"])
@pytest.mark.parametrize("which", ["bert", "roberta"])
def test_texts_are_encoded_as_the_tokenizer_does(
    tmp_path: Path, request: pytest.FixtureRequest, which: str, layout: str
) -> None:
    folder = request.getfixturevalue(which)
    data = Glue(mrpc(tmp_path), tokenizer=folder, layout=layout, validation_size=6).load()
    assert data.train.inputs.shape[:3] == (14, 1 if layout == "pair" else 2, len(FIELDS))
    assert FIELDS == ("input_ids", "attention_mask", "token_type_ids")
    check_against(AutoTokenizer.from_pretrained(folder), data, layout)


def test_a_pair_is_no_text_with_a_separator_in_it(tmp_path: Path, bert: str, roberta: str) -> None:
    columns = {"sentence1": ["a red cat", "a"], "sentence2": ["the dog ran", "b"], "label": [1, 0]}
    for split in ("train", "validation"):
        write_parquet(tmp_path, split, columns)
    for folder, wanted in (
        (bert, "[CLS] a red cat [SEP] the dog ran [SEP]"),
        (roberta, "<s>a red cat</s></s>the dog ran</s>"),
    ):
        data = Glue(tmp_path, tokenizer=folder).load()
        assert AutoTokenizer.from_pretrained(folder).decode(tokens(data.train.inputs[0, 0])) == wanted
    types = Glue(tmp_path, tokenizer=bert).load().train.inputs[0, 0, TOKEN_TYPE_IDS]
    assert types.tolist() == [0] * 5 + [1] * 4


def test_a_tokenizer_that_pads_on_the_left_is_padded_on_the_right(tmp_path: Path, roberta: str) -> None:
    left = roberta_tokenizer(tmp_path / "left", padding_side="left")
    assert AutoTokenizer.from_pretrained(left).padding_side == "left"
    folder = mrpc(tmp_path / "mrpc")
    inputs = [Glue(folder, tokenizer=name).load().train.inputs for name in (str(left), roberta)]
    assert torch.equal(*inputs)


def test_padding_and_truncation_kept_in_a_tokenizers_file_are_not_used(tmp_path: Path, bert: str) -> None:
    """As in all-MiniLM-L6-v2, whose tokenizer.json pads to 128."""
    tokenizer = bert_tokenizer(tmp_path / "fixed")
    file = tokenizer / "tokenizer.json"
    contents = json.loads(file.read_text())
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    contents["padding"] = padding | {"pad_to_multiple_of": None}
    contents["truncation"] = {"max_length": 6, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    file.write_text(json.dumps(contents))
    folder = mrpc(tmp_path / "mrpc")
    inputs = [Glue(folder, tokenizer=name).load().train.inputs for name in (str(tokenizer), bert)]
    assert torch.equal(*inputs)


def test_batches_are_trimmed_to_their_longest_sequence(tmp_path: Path, bert: str) -> None:
    data = Glue(mrpc(tmp_path, train=40), tokenizer=bert, layout="separate").load()
    assert data.transform == TrimPadding()
    batches = Batches(data, 4, seed=0, chain=0)
    stored = data.train.inputs.shape[-1]
    widths = set()
    for step in range(10):
        inputs, targets = batches(step)
        index = batches.indices(step)
        assert inputs.dtype == torch.int64
        width = inputs.shape[-1]
        assert inputs.equal(data.train.inputs[index][..., :width].long())
        assert int(data.train.inputs[index][..., ATTENTION_MASK, width:].sum()) == 0
        assert inputs[..., ATTENTION_MASK, -1].any()
        assert targets.equal(data.train.targets[index])
        widths.add(width)
    assert len(widths) > 1
    assert max(widths) <= stored
    for inputs, _ in evaluation_batches(data.test, data.transform, 3):
        assert inputs[..., ATTENTION_MASK, -1].any()


def test_tokens_and_padding_are_counted(tmp_path: Path, bert: str) -> None:
    columns = {"sentence": ["a", "a red cat sat", "the dog"], "label": [0, 1, 0]}
    for split in ("train", "validation"):
        write_parquet(tmp_path, split, columns)
    data = Glue(tmp_path, tokenizer=bert).load()
    assert data.lengths is not None
    assert data.lengths.tolist() == [3, 6, 4]
    counts = token_counts([Batches(data, None, 0, 0)], range(2))
    assert (counts.batches, counts.tokens, counts.places) == (2, 26, 36)
    assert counts.per_batch == 13
    assert counts.padding == pytest.approx(10 / 36)
    assert token_counts([Batches(data, 1, 0, 0)], range(3)).padding == 0
    assert "28 % of the stored tokens are padding" in data.notes


def test_lengths_are_those_of_the_longest_sequence_of_an_example(tmp_path: Path, bert: str) -> None:
    folder = mrpc(tmp_path)
    for layout in ("pair", "separate"):
        data = Glue(folder, tokenizer=bert, layout=layout, validation_size=3, limit_train=10).load()
        assert data.lengths is not None
        longest = data.train.inputs[:, :, ATTENTION_MASK].sum(-1).amax(1)
        assert data.lengths.tolist() == longest.tolist()


def test_long_sequences_are_cut_counted_and_reported(tmp_path: Path, bert: str) -> None:
    long, short = " ".join(["cat"] * 20), "a dog"
    columns = {"sentence1": [long, "cat " * 7, long], "sentence2": [short, short, long], "label": [0, 1, 1]}
    for split in ("train", "validation"):
        write_parquet(tmp_path, split, columns)
    whole = Glue(tmp_path, tokenizer=bert).load()
    assert not [note for note in whole.notes if "cut" in note]
    data = Glue(tmp_path, tokenizer=bert, max_length=12).load()
    assert "4 of 6 sequences cut to 12 tokens" in data.notes
    assert data.train.inputs.shape[-1] == 12
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert tokenizer.decode(tokens(data.train.inputs[0, 0])) == f"[CLS] {'cat ' * 7}[SEP] a dog [SEP]"
    assert data.train.inputs[0, 0, TOKEN_TYPE_IDS].tolist() == [0] * 9 + [1] * 3
    separate = Glue(tmp_path, tokenizer=bert, max_length=12, layout="separate").load()
    assert "6 of 12 sequences cut to 12 tokens" in separate.notes


def test_empty_sentences_are_kept_and_missing_ones_left_out_and_both_are_counted(tmp_path: Path, bert: str) -> None:
    columns = {"sentence1": ["", "  ", None, "a"], "sentence2": ["", "a", "a", "a"], "label": [0, 1, 1, 0]}
    write_parquet(tmp_path, "train", columns)
    write_parquet(tmp_path, "validation", {"sentence1": ["a"], "sentence2": ["a"], "label": [1]})
    data = Glue(tmp_path, tokenizer=bert).load()
    assert {"3 empty sentences", "1 train example without a text in column sentence1 left out"} < {*data.notes}
    assert len(data.train) == 3
    assert tokens(data.train.inputs[0, 0]) == [2, 3, 3]


def test_a_large_set_is_tokenised_in_pieces(tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mrpc(tmp_path)
    whole = Glue(folder, tokenizer=bert, max_length=20).load()
    monkeypatch.setattr("bayeslora.datasets.text.CHUNK", 3)
    pieces = Glue(folder, tokenizer=bert, max_length=20).load()
    assert whole.notes == pieces.notes
    assert torch.equal(whole.train.inputs, pieces.train.inputs)
