"""Texts from parquet and TSV: columns and classes looked up, pairs encoded as pairs, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from bayeslora.app.config import check_config, instantiate
from bayeslora.chain.batches import Batches
from bayeslora.datasets import Glue
from bayeslora.datasets.base import Data
from bayeslora.datasets.text import token_counts
from bayeslora.errors import ConfigError, DataError
from tests.cases import each
from tests.data.text_tools import (
    bert_tokenizer,
    check_against,
    mrpc,
    paraphrases,
    write_parquet,
    write_tsv,
)
from tests.run.tools import composed


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bert_tokenizer(tmp_path_factory.mktemp("bert")))


# Splits


def test_the_official_validation_set_is_our_test_set(tmp_path: Path, bert: str) -> None:
    data = Glue(mrpc(tmp_path), tokenizer=bert).load()
    for name, seed, count in (("train", 0, 20), ("test", 1, 8)):
        pairs, labels = paraphrases(count, seed)
        assert list(data.texts[name]) == pairs
        assert getattr(data, name).targets.tolist() == labels
    assert len(data.validation) == 0
    assert (data.name, data.num_classes, data.in_channels) == ("GLUE MRPC", 2, 0)
    assert data.class_names == ("not_equivalent", "equivalent")
    assert (data.augment, data.augmentation) == (None, "none")


def test_validation_and_limits_share_out_the_training_pairs_with_their_texts(tmp_path: Path, bert: str) -> None:
    data = Glue(mrpc(tmp_path, train=30), tokenizer=bert, validation_size=9, limit_train=12, limit_test=5).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 5, 5)
    check_against(AutoTokenizer.from_pretrained(bert), data, "pair")
    truth = dict(zip(*paraphrases(30, 0), strict=True))
    for split, texts in ((data.train, data.texts["train"]), (data.validation, data.texts["validation"])):
        assert split.targets.tolist() == [truth[pair] for pair in texts]
    assert not {*data.texts["train"]} & {*data.texts["validation"]}


def test_only_what_is_kept_is_tokenised_and_counted(tmp_path: Path, bert: str) -> None:
    columns = {"sentence": [""] * 30, "label": [0, 1] * 15}
    for split in ("train", "validation"):
        write_parquet(tmp_path, split, columns)
    data = Glue(tmp_path, tokenizer=bert, limit_train=4, limit_test=2).load()
    assert "6 empty sentences" in data.notes


# Columns and classes


def hub_layout(folder: Path, columns: dict[str, list[Any]], names: tuple[str, ...], test: str = "validation") -> Path:
    for split in ("train", test):
        write_parquet(folder, split, columns, names)
    return folder


WIC = {
    "word": ["cat", "dog"],
    "sentence1": ["a cat sat", "the dog ran"],
    "sentence2": ["one cat", "dog"],
    "start1": [2, 4],
    "idx": [{"word": 0}, {"word": 1}],
    "label": [0, 1],
}


@each(
    ("columns", "names", "first"),
    [
        ({"sentence": ["a cat", "b"], "label": [1, 0], "idx": [0, 1]}, ("negative", "positive"), ("a cat",)),
        ({"question": ["a", "b"], "sentence": ["c", "d"], "label": [1, 0], "idx": [0, 1]}, ("y", "n"), ("a", "c")),
        ({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0]}, ("e", "n", "c"), ("a", "c")),
        (
            {"question": ["q", "r"], "passage": ["p", "s"], "idx": [0, 1], "label": [1, 0]},
            ("False", "True"),
            ("q", "p"),
        ),
        ({"idx": ["x", "y"], "sentence": ["a", "b"], "label": [1, 0]}, ("0", "1"), ("a",)),
        (WIC, ("False", "True"), ("cat a cat sat", "one cat")),
    ],
)
def test_columns_and_classes_of_any_task_are_looked_up(
    tmp_path: Path, bert: str, columns: dict[str, list[Any]], names: tuple[str, ...], first: tuple[str, ...]
) -> None:
    data = Glue(hub_layout(tmp_path, columns, names), tokenizer=bert, task="rte", layout="separate").load()
    assert data.class_names == names
    assert data.train.targets.tolist() == columns["label"]
    assert data.texts["test"][0] == first
    assert data.train.inputs.shape[1] == len(first)


def test_what_is_joined_or_of_another_split_is_noted(tmp_path: Path, bert: str) -> None:
    wic = Glue(hub_layout(tmp_path / "wic", WIC, ("F", "T")), tokenizer=bert, task="wic", hub="aps/super_glue").load()
    assert wic.name == "SUPER GLUE WIC"
    assert "the columns word, sentence1 joined into the first text" in wic.notes
    columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [1, 0]}
    for split in ("validation_matched", "validation_mismatched"):
        folder = hub_layout(tmp_path / "mnli", columns, ("e", "n"), split)
    assert "tested on validation_matched" in Glue(folder, tokenizer=bert, task="mnli").load().notes


def test_classes_without_names_are_the_sorted_labels(tmp_path: Path, bert: str) -> None:
    write_parquet(tmp_path, "train", {"sentence": ["a", "b", "c"], "label": ["no", "maybe", "yes"]})
    write_parquet(tmp_path, "validation", {"sentence": ["a", "b"], "label": ["yes", "no"]})
    data = Glue(tmp_path, tokenizer=bert).load()
    assert data.class_names == ("maybe", "no", "yes")
    assert data.train.targets.tolist() == [1, 0, 2]
    assert data.test.targets.tolist() == [2, 1]


def test_examples_without_a_label_are_left_out_and_noted(tmp_path: Path, bert: str) -> None:
    write_parquet(tmp_path, "train", {"sentence": ["a", "b", "c", "d"], "label": [0, -1, None, 1]}, ("no", "yes"))
    write_parquet(tmp_path, "validation", {"sentence": ["a"], "label": [1]}, ("no", "yes"))
    data = Glue(tmp_path, tokenizer=bert).load()
    assert data.texts["train"] == [("a",), ("d",)]
    assert data.train.targets.tolist() == [0, 1]
    assert "2 train examples without a label left out" in data.notes


def test_a_folder_of_tasks_holds_the_task_by_name(tmp_path: Path, bert: str) -> None:
    mrpc(tmp_path / "glue" / "mrpc", train=20)
    mrpc(tmp_path / "glue" / "rte", train=30)
    for task, size in (("mrpc", 20), ("rte", 30)):
        assert len(Glue(tmp_path / "glue", tokenizer=bert, task=task).load().train) == size


# GLUE's own TSV


def check_tsv(folder: Path, bert: str, texts: list[tuple[str, ...]], names: tuple[str, ...]) -> Data:
    data = Glue(folder, tokenizer=bert).load()
    assert data.texts["train"] == texts
    assert data.class_names == names
    return data


def test_mrpcs_tsv_has_a_byte_order_mark_carriage_returns_and_lone_quotes(tmp_path: Path, bert: str) -> None:
    header = ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    rows = [("1", "11", "12", 'he said\r"a cat', "a cat"), ("0", "13", "14", "the dog", '"ran" twice')]
    for name in ("train", "dev"):
        write_tsv(tmp_path / f"{name}.tsv", header, rows, ending="\r\n")
    data = check_tsv(tmp_path, bert, [('he said\r"a cat', "a cat"), ("the dog", '"ran" twice')], ("0", "1"))
    assert data.train.targets.tolist() == [1, 0]


def test_rtes_tsv_has_names_for_labels(tmp_path: Path, bert: str) -> None:
    rows = [("0", "a cat", "a dog", "not_entailment"), ("1", "the cat", "cat", "entailment")]
    for name in ("train", "dev"):
        write_tsv(tmp_path / "RTE" / f"{name}.tsv", ("index", "sentence1", "sentence2", "label"), rows)
    data = Glue(tmp_path, tokenizer=bert, task="rte").load()
    assert data.class_names == ("entailment", "not_entailment")
    assert data.train.targets.tolist() == [1, 0]


def test_colas_tsv_has_no_header(tmp_path: Path, bert: str) -> None:
    rows = [("gj04", "1", "", "a cat sat"), ("gj04", "0", "*", "cat a sat")]
    for name in ("train", "dev"):
        write_tsv(tmp_path / f"{name}.tsv", (), rows)
    check_tsv(tmp_path, bert, [("a cat sat",), ("cat a sat",)], ("0", "1"))


def test_mnlis_tsv_has_parses_and_two_dev_sets(tmp_path: Path, bert: str) -> None:
    header = ("index", "genre", "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label")
    rows = [("0", "x", "( a )", "( b )", "a", "b", "neutral", "entailment"), ("1", "x", "p", "q", "c", "d", "n", "n")]
    for name in ("train", "dev_matched", "dev_mismatched"):
        write_tsv(tmp_path / f"{name}.tsv", header, rows)
    data = check_tsv(tmp_path, bert, [("a", "b"), ("c", "d")], ("entailment", "n"))
    assert "tested on dev_matched" in data.notes


def test_broken_lines_of_a_tsv_are_left_out_and_noted(tmp_path: Path, bert: str) -> None:
    header = ("id", "question1", "question2", "is_duplicate")
    rows = [("0", "a", "b", "1"), ("1", "a"), ("2", "c", "d", "0"), ("3", "c", "d", "0", "e")]
    for name in ("train", "dev"):
        write_tsv(tmp_path / f"{name}.tsv", header, rows)
    data = check_tsv(tmp_path, bert, [("a", "b"), ("c", "d")], ("0", "1"))
    assert "2 train lines with a wrong number of columns left out" in data.notes


# What can be wrong with a folder


def columns_of(split: str, **columns: Any) -> Callable[[Path], None]:
    """Replace columns of a split (None removes one)."""

    def write(folder: Path) -> None:
        file = folder / f"{split}-00000-of-00001.parquet"
        table = pq.read_table(file)
        kept = {name: table[name].to_pylist() for name in table.column_names} | columns
        kept = {name: values for name, values in kept.items() if values is not None}
        pq.write_table(pa.table(kept).replace_schema_metadata(table.schema.metadata), file)

    return write


def cut_short(folder: Path) -> None:
    file = folder / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-50])


def second_shard_missing(folder: Path) -> None:
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")


def no_rows(folder: Path) -> None:
    file = folder / "validation-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file)[:0], file)


def other_names(folder: Path) -> None:
    mrpc(folder / "other", names=("b", "a"))
    (folder / "other" / "validation-00000-of-00001.parquet").replace(folder / "validation-00000-of-00001.parquet")


def tsv(train: str, dev: str = "sentence\tlabel\na\t1\n") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        (folder / "train.tsv").write_text(train, encoding="latin-1")
        (folder / "dev.tsv").write_text(dev)

    return write


TRAIN, VALIDATION = r"train-00000-of-00001\.parquet", r"validation-00000-of-00001\.parquet"


@each(
    ("spoil", "message"),
    [
        (
            columns_of("train", label=[0] * 5 + [2] + [1] * 14),
            rf"{TRAIN}, row 5: the label is 2, outside the 2 classes",
        ),
        (columns_of("validation", label=[7] * 8), rf"{VALIDATION}, row 0: the label is 7, outside .*mend the row"),
        (columns_of("train", label=[0.5] * 20), r"is of a regression: its labels are numbers such as 0\.5"),
        (
            columns_of("validation", label=[-1] * 8),
            rf"{VALIDATION} has no labels \(GLUE hides those of its test",
        ),
        (columns_of("train", label=None), rf"{TRAIN} has no column of labels .*only sentence1, sentence2, idx"),
        (columns_of("train", sentence1=None, sentence2=None), rf"{TRAIN} has no column of texts, only label, idx"),
        (columns_of("validation", sentence2=None), f"{VALIDATION} is of another task.*no column sentence2"),
        (other_names, f"{VALIDATION} is of another task.*classes have other names"),
        (cut_short, f"{TRAIN} cannot be read.*fetch it again"),
        (second_shard_missing, r"train-00001-of-00002\.parquet is missing in"),
        (no_rows, f"{VALIDATION} holds no examples"),
        (lambda folder: (folder / "train-00000-of-00001.parquet").unlink(), r"holds no train-\*\.parquet, only valid"),
        (
            lambda folder: (folder / "validation-00000-of-00001.parquet").unlink(),
            r"holds no validation-\*\.parquet \(the test set of GLUE has no labels",
        ),
        (tsv("sentence\tscore\na\t2.5\nb\t3.0\n"), r"regression: its labels are numbers such as 2\.5"),
        (tsv("sentence\tlabel\na\t1\nb\t1\n"), r"train\.tsv has one class only"),
        (tsv("sentence\tlabel\n"), r"train\.tsv holds no examples"),
        (tsv(""), r"train\.tsv is empty"),
        (tsv("a\tb\n1\t2\n"), r"train\.tsv has no column of labels"),
        (columns_of("train", label=[[0], [0, 1]] * 10), r"the labels are lists, several an example"),
        (columns_of("train", sentence1=[None] * 11 + ["a"] * 9), r"column sentence1 has no text in 11 of 20"),
        (tsv("sentence\tlabel\n\xe9\t1\nb\t0\n"), r"train\.tsv is not text in UTF-8"),
        (
            tsv("sentence\tlabel\na\t1\nb\t0\n", "sentence\tlabel\na\t2\n"),
            r"dev\.tsv, row 0: the label is '2', outside",
        ),
    ],
)
def test_a_spoilt_folder_is_refused_with_the_fix(
    tmp_path: Path, bert: str, spoil: Callable[[Path], None], message: str
) -> None:
    folder = mrpc(tmp_path / "mrpc")
    spoil(folder)
    with pytest.raises(DataError, match=message):
        Glue(folder, tokenizer=bert).load()


def test_folders_without_the_task_are_refused_by_the_constructor(tmp_path: Path, bert: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    mrpc(tmp_path / "tasks" / "mrpc")
    for name, task, message in (
        ("nowhere", "mrpc", "does not exist"),
        ("file", "mrpc", "is a file"),
        ("empty", "mrpc", "holds nothing"),
        ("tasks", "rte", "holds mrpc"),
    ):
        with pytest.raises(DataError, match=rf"{name} {message}; dataset\.path must be a folder.*GLUE {task.upper()}"):
            Glue(tmp_path / name, tokenizer=bert, task=task)


def test_all_wrong_settings_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Glue(tmp_path / "no", tokenizer=None, task="", layout="joined", max_length=4, validation_size=-1, limit_test=0)
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "dataset.tokenizer",
        "dataset.task=''",
        "dataset.layout='joined'",
        "dataset.max_length",
        "dataset.validation_size",
        "dataset.limit_test",
        str(tmp_path / "no"),
    ]


def test_tokenizers_that_cannot_be_used_are_refused_with_the_fix(tmp_path: Path, bert: str) -> None:
    folder = mrpc(tmp_path / "mrpc")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"empty holds no tokenizer, only config\.json: put tokenizer\.json and"):
        Glue(folder, tokenizer=str(empty))
    (empty / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Glue(folder, tokenizer=str(empty)).load()
    short = bert_tokenizer(tmp_path / "short", max_length=32)
    with pytest.raises(DataError, match=r"max_length=64 is more than the 32 tokens that .*short takes; set it"):
        Glue(folder, tokenizer=str(short), max_length=64).load()
    without = bert_tokenizer(tmp_path / "without")
    settings = json.loads((without / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (without / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="has no padding token"):
        Glue(folder, tokenizer=str(without)).load()


# Configuration


@each(("option", "task"), [("mrpc", "mrpc"), ("glue", "rte")])
def test_the_configuration_takes_the_models_tokenizer(tmp_path: Path, bert: str, option: str, task: str) -> None:
    cfg = composed(f"dataset={option}", f"+model.name_or_path={bert}", f"dataset.path={mrpc(tmp_path)}")
    dataset = instantiate(cfg.dataset)
    assert isinstance(dataset, Glue)
    assert (dataset.tokenizer, dataset.task) == (bert, task)
    assert len(dataset.load().train) == 20


def test_a_model_without_a_tokenizer_is_refused_with_the_fix() -> None:
    cfg = composed("dataset=mrpc")
    assert check_config(cfg) == []
    with pytest.raises(ConfigError, match=r"dataset\.tokenizer must name a tokenizer.*choose a model of texts"):
        instantiate(cfg.dataset)


# The real texts


@pytest.mark.realdata
@each("layout", ["pair", "separate"])
def test_the_real_pairs_are_all_there(real_data: Path, minilm: str, layout: str) -> None:
    data = Glue(real_data / "mrpc", tokenizer=minilm, layout=layout).load()
    assert (len(data.train), len(data.test)) == (3668, 408)
    assert data.class_names == ("not_equivalent", "equivalent")
    assert data.test.targets.float().mean().item() == pytest.approx(0.684, abs=5e-4)
    assert not [note for note in data.notes if "cut" in note or "empty" in note]
    assert data.texts["train"][0][0].startswith("Amrozi accused his brother , whom he called")
    few = Glue(real_data / "mrpc", tokenizer=minilm, layout=layout, limit_train=50, limit_test=50).load()
    check_against(AutoTokenizer.from_pretrained(minilm), few, layout)


@pytest.mark.realdata
def test_buckets_spare_most_of_the_padding_of_the_real_pairs(real_data: Path, minilm: str) -> None:
    data = Glue(real_data / "mrpc", tokenizer=minilm).load()
    for chains in (range(1), range(4)):
        batches = [[Batches(data, 32, 0, chain, bucket=bucket) for chain in chains] for bucket in (1, 8)]
        plain, bucketed = (token_counts(each, range(each[0].steps_per_epoch)) for each in batches)
        assert bucketed.tokens == plain.tokens
        assert bucketed.padding < plain.padding / 3
