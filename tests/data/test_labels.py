"""Labels that hold or do not, from tables and from the hub's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bayeslora.datasets import Csv, Hub, Npz
from bayeslora.errors import DataError
from tests.cases import each
from tests.data.text_tools import bert_tokenizer

ROWS = [(a / 10, b / 10, int(a > 5), "" if a % 4 == 0 else int(b > 3)) for a in range(10) for b in range(8)]


def table(folder: Path, rows: list[tuple[Any, ...]], header: str = "a,b,red,round") -> Path:
    file = folder / "table.csv"
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    return file


def test_several_columns_of_0_and_1_are_labels_with_gaps(tmp_path: Path) -> None:
    data = Csv(table(tmp_path, ROWS), target=["red", "round"]).load()
    assert data.labels == ("red", "round")
    assert (data.class_names, data.real) == ((), None)
    assert data.train.inputs.shape[1] == 2
    whole = torch.cat([data.train.targets, data.test.targets])
    assert whole.dtype == torch.int64
    assert (whole == -1).sum(0).tolist() == [0, 24]
    assert (whole[:, 0] == 1).sum() == 32


def test_one_column_is_a_label_where_the_task_says_so(tmp_path: Path) -> None:
    data = Csv(table(tmp_path, ROWS), target="round", leave_out=["red"], task="labels", missing="drop").load()
    assert data.labels == ("round",)
    assert len(data.train) + len(data.test) == 56  # an example of which nothing is known is left out
    assert data.train.targets.shape == (len(data.train), 1)


def test_several_columns_of_numbers_are_a_regression(tmp_path: Path) -> None:
    rows = [(a, b, a * 2.5, b - a / 2) for a in range(10) for b in range(4)]
    data = Csv(table(tmp_path, rows), target=["red", "round"]).load()
    assert data.real is not None
    assert data.real.names == ("red", "round")
    assert data.train.targets.shape[1] == 2


BAD: dict[str, tuple[dict[str, Any], Any]] = {
    "labels must be 1, 0, or -1 or empty": ({"target": ["red", "a"], "leave_out": ["round"], "task": "labels"}, ROWS),
    "has no such column": ({"target": ["red", "blue"]}, ROWS),
    "has empty cells: all of red, round": ({"target": ["red", "round"]}, [*ROWS, (1, 2, "", "")]),
    "has empty cells: a": ({"target": ["red", "round"]}, [*ROWS, ("", 2, 0, 0)]),
    "has no other column": ({"target": ["red", "round"], "leave_out": ["a", "b"]}, ROWS),
}


@each("message", BAD)
def test_a_table_that_has_no_such_labels_is_refused(message: str, tmp_path: Path) -> None:
    settings, rows = BAD[message]
    with pytest.raises(DataError, match=message):
        Csv(table(tmp_path, rows), **settings).load()


def test_arrays_of_labels(tmp_path: Path) -> None:
    y = np.array([[1.0, 0.0, 1.0], [0.0, np.nan, 1.0], [1.0, 1.0, 0.0]] * 5)
    np.savez(tmp_path / "a.npz", x_train=np.random.rand(15, 2), y_train=y)
    data = Npz(tmp_path / "a.npz").load()
    assert data.labels == ("label 0", "label 1", "label 2")
    assert set(data.train.targets.unique().tolist()) == {-1, 0, 1}


LISTS: dict[str, tuple[list[Any], tuple[str, ...], list[list[int]]]] = {
    "names": ([["b"], [], ["a", "b"], ["c"]], ("a", "b", "c"), [[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]),
    "numbers": ([[1], [0, 2], [], [2]], ("0", "1", "2"), [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]),
    "flags": ([[1, 0, 0], [0, -1, 1], [0, 0, 0], [1, 1, 1]], ("label 0", "label 1", "label 2"),
              [[1, 0, 0], [0, -1, 1], [0, 0, 0], [1, 1, 1]]),
}  # fmt: skip


@each("form", LISTS)
def test_lists_of_labels_in_the_hubs_form(form: str, tmp_path: Path) -> None:
    lists, names, expected = LISTS[form]
    for split in ("train", "test"):
        rows = [{"text": f"{word} words here", "labels": labels} for word, labels in zip("abcd", lists, strict=True)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Hub(str(tmp_path), tokenizer=str(bert_tokenizer(tmp_path / "bert"))).load()
    assert data.labels == names
    assert data.class_names == ()
    assert data.test.targets.tolist() == data.train.targets.tolist() == expected
    assert len(data.texts["train"]) == 4


def test_a_number_that_is_none_of_the_named_labels_is_refused(tmp_path: Path) -> None:
    kinds = datasets.Features({"text": datasets.Value("string"), "labels": datasets.Sequence(datasets.Value("int64"))})
    named = datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))
    rows = datasets.Dataset.from_dict({"text": ["w"] * 9, "labels": [[0], [1], [-1]] * 3}, features=kinds)
    rows.cast_column("labels", named).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="-1 is in a list of labels and is none of them"):
        Hub(str(tmp_path), tokenizer=str(bert_tokenizer(tmp_path / "bert"))).load()


def test_a_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    for split, label in (("train", "a"), ("test", "z")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": "some words", "labels": ["b", label]}) + "\n")
    with pytest.raises(DataError, match="no training example has the label z"):
        Hub(str(tmp_path), tokenizer=str(bert_tokenizer(tmp_path / "bert"))).load()


def test_images_with_lists_of_named_labels(tmp_path: Path) -> None:
    kinds = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "sun"]))}
    )
    pixels = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    rows = {"image": list(map(Image.fromarray, pixels)), "labels": [[0], [1, 2], [], [2, 0]]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / f"{split}.parquet")
    data = Hub(str(tmp_path)).load()
    assert (data.labels, data.kind) == (("cat", "dog", "sun"), "images")
    assert data.train.targets.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]]
