"""Arrays, tables, image folders and hub datasets of anyone's own: what they give, and every way they can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bayeslora.datasets import Csv, Hub, ImageFolder, Npz, from_examples
from bayeslora.errors import DataError
from tests.cases import each
from tests.data.text_tools import bert_tokenizer, mrpc, write_parquet

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8)
CLASSES = np.arange(30) % 3


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


FASHION = {"x_train": BYTES, "y_train": CLASSES, "x_test": BYTES[:9], "y_test": CLASSES[:9]}


# Arrays


@each(
    "form",
    [lambda x: x, lambda x: x[..., None], lambda x: x[:, None]],
)
def test_grey_images_become_one_channel_and_are_normalised(tmp_path: Path, form: Callable[..., Any]) -> None:
    arrays = FASHION | {"x_train": form(BYTES), "x_test": form(BYTES[:9])}
    data = Npz(npz(tmp_path, **arrays)).load()
    assert torch.equal(data.train.inputs, torch.from_numpy(BYTES)[:, None])
    assert (data.kind, data.in_channels, data.in_features) == ("images", 1, 64)
    assert data.class_names == ("0", "1", "2")
    assert data.train.targets.tolist() == CLASSES.tolist()
    seen = data.transform(data.train.inputs).double()
    assert abs(seen.mean()) < 1e-5
    assert abs(seen.std(unbiased=False) - 1) < 1e-5


def test_colour_images_keep_their_channels(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (30, 8, 9, 3), dtype=np.uint8)
    data = Npz(npz(tmp_path, x=colour, y=CLASSES)).load()
    assert data.train.inputs.shape == (24, 3, 8, 9)
    assert (len(data.test), data.notes) == (6, ("6 examples held out for the test set",))


def test_medmnists_names_are_known(tmp_path: Path) -> None:
    names = {
        "train_images": BYTES,
        "train_labels": CLASSES[:, None],
        "test_images": BYTES,
        "test_labels": CLASSES[:, None],
    }
    assert Npz(npz(tmp_path, **names), class_names=["a", "b", "c"]).load().class_names == ("a", "b", "c")


def test_numbers_are_standardised_by_the_training_set_alone(tmp_path: Path) -> None:
    x, y = RNG.normal(5, 2, (30, 4)), RNG.normal(100, 10, 30)
    data = Npz(npz(tmp_path, x_train=x, y_train=y, x_test=x + 9, y_test=y + 9), validation_size=10).load()
    assert data.real is not None
    assert data.train.targets.shape == (20, 1)
    for values in (data.train.inputs, data.train.targets):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(values.shape[1]))
    back = data.test.targets[:, 0].double() * data.real.std[0] + data.real.mean[0]
    np.testing.assert_allclose(back.numpy(), y + 9, rtol=1e-5)
    plain = Npz(npz(tmp_path, x=x, y=y), standardise=False).load()
    assert (plain.real.mean, plain.real.std) == ((0.0,), (1.0,))


BAD_NPZ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "holds a, and no x_train and y_train; save it by": ({"a": BYTES}, {}),
    "and no y_test": ({k: v for k, v in FASHION.items() if k != "y_test"}, {}),
    "30 inputs and 29 targets of train": (FASHION | {"y_train": CLASSES[:-1]}, {}),
    "no training example is of class 7": (FASHION | {"y_test": np.full(9, 7)}, {}),
    "x_train is \\[30, 1, 8, 8\\] and x_test": (FASHION | {"x_test": BYTES[:9, :4]}, {}),
    "all training examples are of class 1": (FASHION | {"y_train": CLASSES * 0 + 1}, {}),
    "values are NaN, infinite or above": (
        FASHION | {"x_train": np.full(BYTES.shape, np.inf), "x_test": BYTES[:9] / 1.0},
        {},
    ),
    "1 targets are empty or not finite": ({"x": BYTES / 1.0, "y": np.where(CLASSES.cumsum() == 1, np.nan, 0.5)}, {}),
    "class_names has 2 names and": (FASHION, {"class_names": ["a", "b"]}),
    "inputs must be images or numbers": ({"x": np.array(["a"] * 30), "y": CLASSES}, {}),
    "dataset.task=guess is unknown": (FASHION, {"task": "guess"}),
    "test_share=1.5 must lie between": (FASHION, {"test_share": 1.5}),
    "validation_size=30 leaves nothing": (FASHION, {"validation_size": 30}),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@each("message", BAD_NPZ)
def test_arrays_that_cannot_be_used_are_refused_with_the_fix(tmp_path: Path, message: str) -> None:
    arrays, settings = BAD_NPZ[message]
    with pytest.raises(ValueError, match=message):
        Npz(npz(tmp_path, **arrays), **settings).load()


@each("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as .npz of plain arrays"):
        Npz(tmp_path / "broken.npz").load()


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without objects"):
        Npz(npz(tmp_path, x=np.array([{}] * 9, dtype=object), y=CLASSES)).load()


@each("kind", [Npz, Csv, ImageFolder, Hub])
def test_a_path_that_is_not_there_is_refused_before_anything_is_read(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist" if kind in (Npz, Csv) else r"dataset\.path"):
        kind("" if kind is Hub else tmp_path / "none")


# Tables


TABLE = "id,size,colour,price\n" + "".join(
    f"{i},{i * 0.5},{'red' if i % 2 else 'blue'},{100 + 3.5 * i}\n" for i in range(20)
)


def csv(folder: Path, text: str = TABLE, name: str = "own.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_table_of_numbers_and_categories(tmp_path: Path) -> None:
    data = Csv(csv(tmp_path), leave_out=["id"], standardise=False).load()
    assert (data.kind, data.in_features, len(data.train), len(data.test)) == ("tables", 3, 16, 4)
    assert data.real is not None
    assert data.real.names == ("price",)
    size, blue, red = data.train.inputs.T
    torch.testing.assert_close(data.train.targets[:, 0], 100 + 7 * size)
    assert torch.equal(red, (size * 2) % 2)
    assert torch.equal(blue, 1 - red)


def test_text_and_few_whole_numbers_are_classes(tmp_path: Path) -> None:
    colour = Csv(csv(tmp_path), target="colour").load()
    assert (colour.class_names, colour.in_features) == (("blue", "red"), 3)
    counts = csv(tmp_path, "x,count\n" + "".join(f"{i / 7},{i % 3}\n" for i in range(30)))
    assert Csv(counts).load().class_names == ("0", "1", "2")
    assert Csv(counts, task="regression").load().real is not None


def test_a_test_file_of_its_own(tmp_path: Path) -> None:
    test = csv(tmp_path, "colour,price,id,size\nred,1.5,0,1\ngreen,2.5,0,2\n", "test.csv")
    data = Csv(csv(tmp_path), test_path=test, standardise=False, leave_out=["id"]).load()
    assert (len(data.train), len(data.test)) == (20, 2)
    assert data.notes == (
        "column colour holds words and became 2 columns of 0 and 1 (blue, red); 1 test row with a value that no"
        " training row has",
    )
    assert data.test.inputs.tolist() == [[1, 0, 1], [2, 0, 0]]  # a new category is none of the known


def test_rows_with_empty_cells_are_left_out_if_asked(tmp_path: Path) -> None:
    file = csv(tmp_path, TABLE + "20,,red,100\n")
    with pytest.raises(DataError, match=r"empty cells: size \(1\); fill them, or set dataset.missing=drop"):
        Csv(file).load()
    data = Csv(file, missing="drop").load()
    assert len(data.train) + len(data.test) == 20
    assert "1 row with an empty cell left out" in data.notes


def column(cells: Callable[[int], Any], header: str = "a,y", **settings: Any) -> tuple[str, dict[str, Any]]:
    """A table of one input column and two classes."""
    return f"{header}\n" + "".join(f"{cells(i)},{'pq'[i % 2]}\n" for i in range(40)), settings


READ_CSV: dict[str, tuple[tuple[str, dict[str, Any]], str, list[float]]] = {
    "signs, exponents and bare marks": (
        column(lambda i: ["+1", ".5", "5.", "-2e3"][i % 4]),
        "utf-8",
        [1, 0.5, 5, -2e3],
    ),
    "decimal comma in quotes": (("a,y\n" + '"0,5",p\n"1,5",q\n' * 9, {"decimal": ","}), "utf-8", [0.5, 1.5]),
    "decimal comma": (("a;y\n" + "0,5;p\n1,5;q\n" * 9, {"separator": ";", "decimal": ","}), "utf-8", [0.5, 1.5]),
    "Latin-1": (column(lambda i: i % 2, "größe,y", encoding="latin-1"), "latin-1", [0, 1]),
    "UTF-8 by another name": (column(lambda i: i % 2, "größe,y", encoding="U8"), "utf-8", [0, 1]),
    "UTF-16 with tabs": (("a\ty\n" + "1\tp\n2\tq\n" * 9, {"separator": "\t", "encoding": "utf-16"}), "utf-16", [1, 2]),
    "byte order mark": (("a,y\n" + "1,p\n2,q\n" * 9, {"leave_out": []}), "utf-8-sig", [1, 2]),
    "carriage returns": (("a,y\r" + "1,p\r2,q\r" * 9, {}), "utf-8", [1, 2]),
    "spaces": (("a, y\n" + " 1, p\n 2, q\n" * 9, {"target": "y"}), "utf-8", [1, 2]),
    "truth values": (column(lambda i: ["false", "True"][i % 2]), "utf-8", [0, 1]),
    "an array's column names": (("0,1,2\n" + "1,7,p\n2,7,q\n" * 9, {"leave_out": ["1"]}), "utf-8", [1, 2]),
}


@each("what", READ_CSV)
def test_numbers_are_read_as_they_are_written(tmp_path: Path, what: str) -> None:
    (text, settings), encoding, values = READ_CSV[what]
    (tmp_path / "own.csv").write_bytes(text.encode(encoding))
    data = Csv(tmp_path / "own.csv", standardise=False, **settings).load()
    assert data.train.inputs.unique().tolist() == sorted(values)
    assert data.class_names == ("p", "q")


WORDS_CSV: dict[str, tuple[str, dict[str, Any]]] = {
    "words and became 3 columns of 0 and 1 (NA, null, us)": column(lambda i: ["NA", "null", "us"][i % 3]),
    "words and became 2 columns of 0 and 1 (1st class, 2nd class)": column(lambda i: f"{['1st', '2nd'][i % 2]} class"),
    "words and became 4 columns of 0 and 1 (10, 12, M, S)": column(lambda i: ["S", "M", "10", "12"][i % 4]),
    "words and became 3 columns of 0 and 1 (1st, 2nd, 3rd)": column(lambda i: ["1st", "2nd", "3rd"][i % 3]),
    "words and became 2 columns of 0 and 1 (<5, >=5)": column(lambda i: ["<5", ">=5"][i % 2]),
    "words and became 3 columns of 0 and 1 (1, A, B)": column(lambda i: "1AB"[i % 3]),
    "words and became 2 columns of 0 and 1 (3, 5)": column(lambda i: "35"[i % 2], categories=["a"]),
    "words and became 2 columns of 0 and 1 (2d, 4d)": column(lambda i: ["2d", "4d"][i % 2], categories=["a"]),
    "dates and became 2 columns of 0 and 1 (01.02.2024, 24.12.2024)": column(
        lambda i: ["24.12.2024", "01.02.2024"][i % 2]
    ),
}


@each("note", WORDS_CSV)
def test_columns_that_become_categories_are_noted(tmp_path: Path, note: str) -> None:
    text, settings = WORDS_CSV[note]
    data = Csv(csv(tmp_path, text), **settings).load()
    assert f"column a holds {note}" in data.notes


def test_a_target_of_dates_becomes_classes_and_is_noted(tmp_path: Path) -> None:
    data = Csv(csv(tmp_path, "a,y\n" + "".join(f"{i},{i % 3 + 1}.2.2024\n" for i in range(40)))).load()
    assert data.class_names == ("1.2.2024", "2.2.2024", "3.2.2024")
    assert any(note.startswith("target y holds dates and became 3 classes") for note in data.notes)


def test_rows_of_a_test_file_that_are_training_rows_too_are_counted(tmp_path: Path) -> None:
    file = csv(tmp_path, column(lambda i: i)[0])
    assert Csv(file, test_path=file).load().notes == ("40 of 40 test rows also among the training rows",)


@each("name", [None, "x"])
def test_test_examples_in_memory_that_are_training_examples_too_are_counted(name: str | None) -> None:
    inputs, targets = torch.randn(6, 2), torch.arange(6) % 2
    given = [(inputs[:4], targets[:4]), (inputs[2:], targets[2:])]
    if name is not None:
        given = [({name: one, "same": torch.zeros(4, 3)}, labels) for one, labels in given]
    assert from_examples(*given).notes == ("2 of 4 test examples also among the training examples",)


def test_words_for_nothing_are_empty_cells_among_numbers_only(tmp_path: Path) -> None:
    text, _ = column(lambda i: "NA" if i == 3 else i)
    with pytest.raises(DataError, match=r"empty cells: a \(1\)"):
        Csv(csv(tmp_path, text)).load()
    data = Csv(csv(tmp_path, text), missing="drop", standardise=False).load()
    assert 3 not in torch.cat([data.train.inputs, data.test.inputs])
    assert len(data.train) + len(data.test) == 39


BAD_CSV: dict[str, tuple[str, dict[str, Any]]] = {
    "no such column, only id, size, colour, price": (TABLE, {"target": "cost"}),
    "leave_out: .* has no column name": (TABLE, {"leave_out": ["name"]}),
    "categories: .* has no column name": (TABLE, {"categories": ["name"]}),
    "set dataset.separator": (TABLE.replace(",", ";"), {}),
    "must be one character": (TABLE, {"separator": "ab"}),
    "missing=fill is unknown": (TABLE, {"missing": "fill"}),
    "decimal='x' is unknown; choose": (TABLE, {"decimal": "x"}),
    "decimal=',' is the separator, too": (TABLE, {"decimal": ","}),
    "encoding=klingon is unknown": (TABLE, {"encoding": "klingon"}),
    "cannot be read as CSV": (TABLE + "1,2\n", {}),
    "has 1 row without": ("a,b\n1,2\n", {}),
    "is empty; its first line must": ("", {}),
    "too many for a category; leave it out by dataset.leave_out=\\[name\\]": (
        "name,y\n" + "".join(f"n{i},{i / 3}\n" for i in range(90)), {},
    ),
    "89 different dates, .* or make numbers": (
        "a,y\n" + "".join(f"{i % 28 + 1}.{i // 28 + 1}.2024,{i / 3}\n" for i in range(112)), {},
    ),
    "the targets are no numbers": (TABLE, {"target": "colour", "task": "regression"}),
    "row 8 below the header, column a: '\\?' is no number.*write numbers only": column(lambda i: "?" if i == 7 else i),
    "row 1 .*column a: '0,5' is no number.*set dataset.decimal=','": column(lambda i: f'"{i},5"'),
    "column a: '0.5' is no number.*set dataset.decimal='\\.'": (
        "a;y\n" + "0.5;1\n1.5;0\n" * 9, {"separator": ";", "decimal": ","},
    ),
    "column a: '1,200' is no number.*thousands separators": column(lambda i: f'"{i + 1},200"'),
    "column a: '0 cm' is no number.*without units": column(lambda i: f"{i} cm"),
    "column a: '0%' is no number.*without units": column(lambda i: f"{i}%"),
    "column a: '€0.50' is no number": column(lambda i: f"€{i}.50"),
    "column a: '−0' is no number": column(lambda i: f"−{i}"),
    "column a: '0/7' is no number.*without units": column(lambda i: f"{i}/7"),
    "column a: '0d' is no number.*dataset.categories=\\[a\\]": column(lambda i: f"{i % 3}d"),
    "column y: '1,000' is no number": ("a,y\n" + "".join(f'{i},"{i + 1},000"\n' for i in range(40)), {}),
    "column a holds the number inf": column(lambda i: "1e999" if i == 3 else i),
    "'2 EUR' is no number, while most": column(lambda i: f"{i + 2} EUR"),
    "'1e3 m/s²' is no number": column(lambda i: f"{i + 1}e3 m/s²"),
    "'1 square metre' is no number": column(lambda i: f"{i + 1} square metre"),
    "'CHF 1,10,000' is no number": column(lambda i: f'"CHF {i + 1},10,000"'),
    "'R.1' is no number": column(lambda i: f"R${i + 1}"),
    "'\\(1\\)' is no number": column(lambda i: f"({i + 1})"),
    "'１' is no number": column(lambda i: f"{i + 1}".translate(str.maketrans("0123456789", "０１２３４５６７８９"))),
    "'-' is no number, while many cells .* look like numbers": column(lambda i: "-" if i % 3 else i),
    "'-' is no number, while many": column(lambda i: ["-", "unknown", i][i % 3]),
    "empty cells: a \\(1\\)": column(lambda i: "NA" if i == 3 else i % 2 == 0),
    "no cell of a is filled; fill it, or set dataset.leave_out=\\[a\\]": column(lambda i: "", missing="drop"),
    "encoding=rot13 is unknown": (TABLE, {"encoding": "rot13"}),
    "is no table in text but a zip archive, as files of Excel": ("PK\x03\x04\0\0", {}),
    "is no table in text but a web page": ("<!DOCTYPE html><p>a,b", {}),
    "holds bytes of 0": ("a,y\n1,\0\n", {}),
    "there are 32 classes in 32 training examples": ("a,y\n" + "".join(f"{i},w{i}\n" for i in range(40)), {}),
    "no header line: its first line is NA, 0.5": ("NA,0.5\n" + "1,2\n3,4\n" * 9, {}),
    "no header line: its first line is 0.5, p": column(lambda i: i / 3, "0.5,p"),
    "no header line: its first line is 1, 0": ("1,0\n" + "0,1\n1,0\n" * 9, {}),
    "no header line: its first line is 3, 3, q": ("3,3,q\n" + "3,7,p\n4,7,q\n" * 9, {}),
    "no header line: its first line is x, p": ("x,p\n" + "x,p\ny,q\n" * 9, {}),
    "2 columns are called a; give each": ("a,a,y\n" + "1,2,p\n3,4,q\n" * 9, {}),
    "column 1, 2 of 3 has no name": (",,y\n" + "1,2,p\n3,4,q\n" * 9, {}),
    "not text in UTF-8 but, it seems, in UTF-16": ("a,y\n".encode("utf-16").decode("latin-1"), {}),
    "not text in UTF-8 but, it seems, in UTF-32": ("a,y\n".encode("utf-32").decode("latin-1"), {}),
    "is text in UTF-8, which dataset.encoding=cp1252 would misread; leave the setting out": (
        "a,y\né,1\n".encode().decode("latin-1"), {"encoding": "cp1252"},
    ),
    "not text in UTF-8, byte 0xe9 in line 2; save it as UTF-8, or set dataset.encoding=latin-1": ("a,y\né,1\n", {}),
}  # fmt: skip


@each("message", BAD_CSV)
def test_tables_that_cannot_be_used_are_refused_with_the_fix(tmp_path: Path, message: str) -> None:
    text, settings = BAD_CSV[message]
    encoded = text.encode("latin-1" if "UTF-8" in message else "utf-8")
    (tmp_path / "own.csv").write_bytes(encoded)
    with pytest.raises(DataError, match=message):
        Csv(tmp_path / "own.csv", **settings).load()


def test_numbers_in_training_and_words_in_testing_are_refused(tmp_path: Path) -> None:
    file, test = (csv(tmp_path, column(cells)[0], f"{cells(0)}.csv") for cells in (lambda i: i, lambda i: "abc"[i % 3]))
    with pytest.raises(DataError, match="column a holds numbers, and words in the test set"):
        Csv(file, test_path=test).load()
    data = Csv(test, test_path=file).load()  # a category may look like a number
    assert not data.test.inputs.isnan().any()
    assert "40 test rows with a value that no training row has" in data.notes[0]


# Image folders


def folder(root: Path, parts: dict[str, int], mode: str = "RGB") -> Path:
    """Images of several sizes, `parts` of them by folder."""
    for number, (place, count) in enumerate(parts.items()):
        (root / place).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, (20 + i, 24), color=number * 40 if mode == "L" else (number * 40, 0, 0)).save(
                root / place / f"{i}.png"
            )
    return root


def test_a_folder_of_classes_is_split_class_by_class(tmp_path: Path) -> None:
    data = ImageFolder(folder(tmp_path / "pets", {"cats": 10, "dogs": 5}), size=16).load()
    assert data.train.inputs.shape == (12, 3, 16, 16)
    assert data.class_names == ("cats", "dogs")
    assert (data.train.targets.bincount().tolist(), data.test.targets.bincount().tolist()) == ([8, 4], [2, 1])
    reds = data.train.inputs[:, 0].float().mean((1, 2))
    torch.testing.assert_close(reds, 40.0 * data.train.targets)


@each("test", ["test", "val"])
def test_folders_for_training_and_testing(tmp_path: Path, test: str) -> None:
    parts = {"train/a": 3, "train/b": 2, f"{test}/a": 1, f"{test}/b": 2}
    data = ImageFolder(folder(tmp_path / "own", parts, "L"), size=8, channels=1).load()
    assert (data.train.inputs.shape, data.test.inputs.shape) == ((5, 1, 8, 8), (3, 1, 8, 8))
    assert data.test.targets.tolist() == [0, 1, 1]


def test_image_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    cases = {
        "a folder for each class, two at least": {"cats": 2},
        "holds no images": {"cats": 2, "dogs": 0},
        "has a class c, which": {"train/a": 1, "train/b": 1, "test/c": 1},
        "a holds one image, of which none can be held out": {"a": 1, "b": 3},
        "set dataset.path=.*cats if that holds them": {"cats/a": 1, "cats/b": 1},
    }
    for number, (message, parts) in enumerate(cases.items()):
        with pytest.raises(DataError, match=message):
            ImageFolder(folder(tmp_path / str(number), parts)).load()
    (folder(tmp_path / "gone", {"a": 2, "b": 2}) / "a" / "link.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataError, match=r"link\.png cannot be read .* it is a link to a file that is gone"):
        ImageFolder(tmp_path / "gone").load()
    broken = folder(tmp_path / "broken", {"a": 2, "b": 2})
    (broken / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0.png cannot be read as an image"):
        ImageFolder(broken).load()


# The hub's library


def test_a_folder_of_csv_files_of_texts(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 4)):
        rows = "".join(
            f"the cat sat on {'a mat' if i % 2 else 'one tree'},{'good' if i % 2 else 'bad'}\n" for i in range(count)
        )
        csv(tmp_path, "text,label\n" + rows, f"{split}.csv")
    data = Hub(str(tmp_path), tokenizer=str(bert_tokenizer(tmp_path / "bert"))).load()
    assert data.kind == "texts"
    assert data.class_names == ("bad", "good")
    assert (len(data.train), data.test.targets.tolist()) == (8, [0, 1, 0, 1])
    assert data.texts["test"][1] == ("the cat sat on a mat",)


def test_parquet_with_pairs_of_texts_and_named_classes(tmp_path: Path) -> None:
    data = Hub(str(mrpc(tmp_path / "mrpc")), tokenizer=str(bert_tokenizer(tmp_path / "bert"))).load()
    assert (len(data.train), len(data.test), data.num_classes) == (20, 8, 2)
    assert data.notes[0] == "tested on validation"
    assert len(data.texts["train"][0]) == 2


def test_parquet_of_images(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [Image.fromarray(BYTES[i]) for i in range(10)]
    made = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 5}, features=features)
    (tmp_path / "own").mkdir()
    made.to_parquet(str(tmp_path / "own" / "train-00000-of-00001.parquet"))
    data = Hub(str(tmp_path / "own")).load()
    assert (data.train.inputs.shape, data.class_names) == ((8, 1, 8, 8), ("cat", "dog"))
    assert data.notes == ("2 examples held out for the test set",)


def test_hub_datasets_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    csv(texts, "text,label\n" + "a b,x\nc d,y\n" * 4, "train.csv")
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    csv(numbers, "a,label\n" + "1,x\n2,y\n" * 4, "train.csv")
    cases: dict[str, tuple[Path, dict[str, Any]]] = {
        "cannot be read in the folder": (tmp_path / "empty", {}),
        "has no split train2, only train; set dataset.train": (texts, {"train": "train2"}),
        "has no such column, only text, label": (texts, {"label": "y"}),
        "has no column title": (texts, {"inputs": ["title"]}),
        "choose a model of texts": (texts, {}),
        "no column holds images or texts": (numbers, {}),
    }
    cases["does not exist; name a folder of files"] = (tmp_path / "nowhere", {})
    cases["train.csv is a file; name a folder"] = (texts / "train.csv", {})
    for message, (place, settings) in cases.items():
        with pytest.raises(DataError, match=message):
            Hub(str(place), **settings).load()


HUB_TEXTS = ["cat", "dog", "bird", "mat"] * 10

GAPS: dict[str, tuple[dict[str, list[Any]], tuple[str, ...], dict[str, int]]] = {
    "null texts": (
        {"text": ["cat", None, "dog", "mat"] * 10, "label": [0, 1] * 20}, ("0", "1"), {"a text in column text": 10},
    ),
    "null labels": ({"text": HUB_TEXTS, "label": [0, 1, None, 1] * 10}, ("0", "1"), {"a label": 10}),
    "classes -1 and 1": ({"text": HUB_TEXTS, "label": [-1, 1] * 20}, ("-1", "1"), {}),
    "classes + and -": ({"text": HUB_TEXTS, "label": ["+", "-"] * 20}, ("+", "-"), {}),
    "a column of nulls that is no text": (
        {"text": HUB_TEXTS, "other": [None] * 40, "label": [0, 1] * 20}, ("0", "1"), {},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bert_tokenizer(tmp_path_factory.mktemp("bert")))


@each("what", GAPS)
def test_rows_that_lack_something_are_left_out_and_counted(tmp_path: Path, bert: str, what: str) -> None:
    columns, classes, missing = GAPS[what]
    write_parquet(tmp_path / "own", "train", columns)
    data = Hub(str(tmp_path / "own"), tokenizer=bert).load()
    assert (len(data.train) + len(data.test), data.class_names) == (40 - sum(missing.values()), classes)
    assert "None" not in {text for pairs in data.texts.values() for (text,) in pairs}
    counted: dict[str, int] = {}
    for note in data.notes[1:]:
        number, _, lacking = re.fullmatch(r"(\d+) (train|test) examples? without (.*) left out", note).groups()
        counted[lacking] = counted.get(lacking, 0) + int(number)
    assert counted == missing


def test_named_classes_make_minus_one_no_label(tmp_path: Path, bert: str) -> None:
    write_parquet(tmp_path / "own", "train", {"text": HUB_TEXTS, "label": [0, 1, -1, 1] * 10}, ("no", "yes"))
    write_parquet(tmp_path / "own", "test", {"text": HUB_TEXTS, "label": [-1] * 40}, ("no", "yes"))
    data = Hub(str(tmp_path / "own"), tokenizer=bert).load()
    assert (len(data.train) + len(data.test), data.class_names) == (30, ("no", "yes"))
    assert "the split test has no labels and is not used" in data.notes
    with pytest.raises(DataError, match="the split test has no labels and is not used; set another dataset"):
        Hub(str(tmp_path / "own"), tokenizer=bert, test="test").load()


def test_words_of_a_csv_stay_words_and_gaps_among_numbers_are_gaps(tmp_path: Path, bert: str) -> None:
    (tmp_path / "own").mkdir()
    csv(tmp_path / "own", "text,label\n" + "null,0\nNA,1\nNone,0\n,1\ncat,NA\n" * 8, "train.csv")
    csv(tmp_path / "own", "text,label\nnull,\n" + "cat,1\n" * 5, "test.csv")
    data = Hub(str(tmp_path / "own"), tokenizer=bert).load()
    assert {text for (text,) in data.texts["train"]} == {"null", "NA", "None"}
    assert (len(data.train), len(data.test), data.class_names) == (24, 5, ("0", "1"))
    assert data.notes[:3] == (
        "8 train examples without a label left out",
        "8 train examples without a text in column text left out",
        "1 test example without a label left out",
    )


BAD_HUB: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "the label -1 may be a class or stand for no label": ({"text": HUB_TEXTS, "label": [0, 1, -1, 1] * 10}, {}),
    "column more has no text in 2. of 32 examples; .*dataset.inputs": (
        {"text": HUB_TEXTS, "more": [None, None, None, "cat"] * 10, "label": [0, 1] * 20}, {},
    ),
    "column n of .* holds neither images nor texts": (
        {"text": HUB_TEXTS, "n": list(range(40)), "label": [0, 1] * 20}, {"inputs": ["text", "n"]},
    ),
    "None is in a list of labels": ({"text": HUB_TEXTS, "label": [[0], [None]] * 20}, {}),
    "0.2 is in a list of labels": ({"text": HUB_TEXTS, "label": [[0.2, 0.8], [1.0, 0.0]] * 20}, {}),
    "\\[0\\] is in a list of labels": ({"text": HUB_TEXTS, "label": [[[0]], [[1]]] * 20}, {}),
    "-1 is in a list of labels and is none of them": ({"text": HUB_TEXTS, "label": [[0], [2], [-1], [0]] * 10}, {}),
    "the lists are one-hot": ({"text": HUB_TEXTS, "label": [[0, 1], [1, 0]] * 20}, {}),
    "text is empty": ({"text": [None] * 40, "label": [0, 1] * 20}, {}),
    "its labels are numbers such as 0.5, not classes": ({"text": HUB_TEXTS, "label": [0.5, 1.0] * 20}, {}),
}  # fmt: skip


@each("message", BAD_HUB)
def test_columns_that_no_classifier_of_texts_can_use_are_refused(tmp_path: Path, bert: str, message: str) -> None:
    columns, settings = BAD_HUB[message]
    write_parquet(tmp_path / "own", "train", columns)
    with pytest.raises(DataError, match=message):
        Hub(str(tmp_path / "own"), tokenizer=bert, **settings).load()


def test_ids_and_the_label_in_words_are_no_texts(tmp_path: Path, bert: str) -> None:
    words = {"label_text": ["no", "yes"] * 20, "id": [f"x{i}" for i in range(40)]}
    write_parquet(tmp_path / "own", "train", {"text": HUB_TEXTS, "label": [0, 1] * 20, **words})
    data = Hub(str(tmp_path / "own"), tokenizer=bert).load()
    assert {len(texts) for texts in data.texts["train"]} == {1}
    assert any(note.endswith("left out: label_text, id, an id or the label in words") for note in data.notes)


# Anyone's objects


def test_parts_of_different_form_are_refused() -> None:
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    with pytest.raises(DataError, match=r"inputs of test are \[4\].*all parts must be alike"):
        from_examples((x, y), (torch.randn(6, 4), y))
    with pytest.raises(DataError, match=r"targets of real numbers, those of train \[3\] with targets of classes"):
        from_examples((x, y), (x, y.float()))
    with pytest.raises(ValueError, match="there is no part called train"):
        from_examples({"training": (x, y), "train": None})
