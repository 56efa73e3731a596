"""Datasets of the Hugging Face hub, and folders of the same form: images or texts with classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bayeslora.counts import counted
from bayeslora.datasets.base import Data
from bayeslora.datasets.image_folder import ImageFolder, holds_classes_of_images
from bayeslora.datasets.images import decode_images, decoding_notes, shared_notes
from bayeslora.datasets.sentences import Sentences, TextSettings, sentence_data
from bayeslora.datasets.tabular import (
    Targets,
    assemble,
    held_out,
    labels_or_none,
    read_targets,
    setting_problems,
    several_labels,
)
from bayeslora.errors import DataError

if TYPE_CHECKING:
    import datasets

LABELS = ("label", "labels", "fine_label", "class", "target", "category", "intent", "sentiment")
"""What the column of labels is called: the first that is there, after a column of the hub's type `ClassLabel`."""
IDS = ("id", "idx", "index", "guid", "uid", "uuid")
"""What columns of words are called that number the rows."""
STRINGS = ("string", "large_string")
"""The hub's types of texts."""
TESTS = ("test", "validation", "valid", "val", "dev")
"""What the test set is called: the first that is there and has labels."""


@dataclass
class Hub(TextSettings):
    """A dataset by its name on the hub, or a folder of parquet, csv or json files, read by the library `datasets`.

    Attributes:
        path: `owner/name` on the hub, or a folder whose files are called after their split (`train.csv`, `test.csv`).
        subset: of the hub's dataset, where it has several.
        train, test: names of the splits; None: `train`, and the first of `TESTS`, or a share of the training set.
        inputs: the columns to predict from, one of images, or one or two of texts; None: the images, or all texts that
            are neither ids nor the label in words.
        label: the column of classes, or of lists of labels; None: found by type and name.
        size: of images: height and width in pixels; None: those of the first image.
        test_share: share held out where there is no test set.

    Raises:
        DataError: a setting is impossible; all problems at once.
    """

    path: str | None
    _: KW_ONLY
    subset: str | None = None
    train: str | None = None
    test: str | None = None
    inputs: list[str] | None = None
    label: str | None = None
    size: int | None = None
    test_share: float = 0.2

    def __post_init__(self) -> None:
        problems = setting_problems(self, "auto", self.test_share)
        if not self.path:
            problems.add(
                "dataset.path must name a dataset of the hub (owner/name), or a folder of parquet, csv or json"
            )
        if self.size is not None and self.size < 1:
            problems.add(f"dataset.size={self.size} must be at least 1 (pixels)")
        problems.add(*self.text_problems().messages)
        problems.raise_if_any(DataError)

    @property
    def name(self) -> str:
        """What reports call the dataset."""
        return str(self.path).rstrip("/").rpartition("/")[2]

    def load(self) -> Data:
        """Read (or download) the data into memory: images uint8 [N, C, H, W], or texts as tokens.

        Raises:
            DataError: it cannot be had, or holds neither images nor texts with classes.
        """
        folder = Path(str(self.path)).expanduser()
        if folder.is_dir() and self.train is None and self.test is None and holds_classes_of_images(folder):
            return ImageFolder(
                folder, size=self.size, channels=None, test_share=self.test_share, limit_train=self.limit_train,
                limit_test=self.limit_test, validation_size=self.validation_size,
            ).load()  # fmt: skip
        train, test, notes = self._splits()
        label = self._label(train)
        columns = self._inputs(train, label)
        missing = [name for name in (*columns, label) if name not in test.column_names]
        if missing:
            raise DataError(f"{self.path}: the test set has no column {', '.join(missing)}, which the training set has")
        import datasets

        if isinstance(train.features[columns[0]], datasets.Image):
            return self._images(train, test, columns[0], label, notes)
        return self._texts(train, test, columns, label, notes)

    def _splits(self) -> tuple[datasets.Dataset, datasets.Dataset, list[str]]:
        """Training and test set, and what to say of them."""
        splits = load(str(self.path), self.subset)
        name = self.train or "train"
        if name not in splits:
            raise DataError(f"{self.path} has no split {name}, only {', '.join(splits)}; set dataset.train")
        train = splits[name]
        if self.test is not None and self.test not in splits:
            raise DataError(f"{self.path} has no split {self.test}, only {', '.join(splits)}; set dataset.test")
        candidates = [self.test] if self.test else [one for one in TESTS if one in splits and one != name]
        label = self._label(train)
        classes = set(self._labels(train, label)) - {None}
        labelled = [one for one in candidates if set(self._labels(splits[one], label, classes)) - {None}]
        hidden = [f"the split {one} has no labels and is not used" for one in candidates if one not in labelled]
        if hidden and self.test:
            raise DataError(f"{self.path}: {hidden[0]}; set another dataset.test, or none to hold out a share")
        if labelled:
            first = labelled[0]
            return train, splits[first], [f"tested on {first}"] * (first != "test") + hidden
        ours, theirs = held_out(len(train), self.test_share)
        notes = [f"{counted(len(theirs), 'example')} held out for the test set", *hidden]
        return train.select(ours), train.select(theirs), notes

    def _label(self, split: datasets.Dataset) -> str:
        import datasets

        if self.label is not None:
            if self.label not in split.column_names:
                raise DataError(
                    f"dataset.label={self.label}: {self.path} has no such column, only {', '.join(split.column_names)}"
                )
            return self.label
        typed = [name for name, kind in split.features.items() if isinstance(kind, datasets.ClassLabel)]
        named = [name for name in LABELS if name in split.column_names]
        if not typed and not named:
            raise DataError(
                f"{self.path}: no column looks like classes among {', '.join(split.column_names)}; set dataset.label"
            )
        return next((name for name in named if name in typed), (typed or named)[0])

    def _are_lists(self, split: datasets.Dataset, label: str) -> bool:
        """Whether a column has several labels an example."""
        return hasattr(split.features[label], "feature")

    def _label_lists(self, train: datasets.Dataset, test: datasets.Dataset, label: str) -> Any:
        """The labels of both splits, one number a label, and their names (see `several_labels`)."""
        names = getattr(train.features[label].feature, "names", None)
        lists = self._labels(train, label), self._labels(test, label)
        return several_labels(*lists, names, f"{self.path}, column {label}")

    def _labels(self, split: datasets.Dataset, label: str, classes: Set[Any] = frozenset()) -> list[Any]:
        """The labels of a split, None where there is none; of a test set given those of the training set."""
        if label not in split.column_names:
            return []
        if self._are_lists(split, label):
            rows = [None if row is None else tuple(row) for row in split[label]]
            for value in (value for row in rows for value in row or ()):
                if not isinstance(value, str | int) and value not in (-1.0, 0.0, 1.0):
                    raise DataError(
                        f"{self.path}, column {label}: {value!r} is in a list of labels; give the numbers or names of"
                        " those that hold, or 1, 0 and -1 (not known) for each label"
                    )
            return rows
        named = bool(getattr(split.features[label], "names", None))
        return labels_or_none(list(split[label]), named, f"{self.path}, column {label}", classes)

    def _inputs(self, split: datasets.Dataset, label: str) -> list[str]:
        import datasets

        if self.inputs:
            unknown = [name for name in self.inputs if name not in split.column_names]
            if unknown:
                raise DataError(f"dataset.inputs: {self.path} has no column {', '.join(unknown)}")
            for name in self.inputs:
                kind = split.features[name]
                if not isinstance(kind, datasets.Image) and getattr(kind, "dtype", "") not in STRINGS:
                    raise DataError(f"dataset.inputs: column {name} of {self.path} holds neither images nor texts")
            return list(self.inputs)
        images = [name for name, kind in split.features.items() if isinstance(kind, datasets.Image)]
        texts = [n for n, kind in split.features.items() if n != label and getattr(kind, "dtype", "") in STRINGS]
        if not images and not texts:
            empty = [
                f"{name} is empty" for name, kind in split.features.items() if getattr(kind, "dtype", "") == "null"
            ]
            raise DataError(
                f"{self.path}: no column holds images or texts, only {', '.join(split.column_names)}"
                + f" ({', '.join(empty)})" * bool(empty)
            )
        told = [name for name in texts if name.lower() in IDS or self._tells_label(split, name, label)]
        return images[:1] or [name for name in texts if name not in told] or texts

    def _tells_label(self, split: datasets.Dataset, name: str, label: str) -> bool:
        """Whether a column of texts is the label in words: one text a class, always the same."""
        if self._are_lists(split, label):
            return False
        texts, labels = split[name], split[label]
        return len(set(zip(texts, labels, strict=True))) == len(set(texts)) == len(set(labels)) < len(texts) / 2

    def _images(
        self, train: datasets.Dataset, test: datasets.Dataset, column: str, label: str, notes: Sequence[str]
    ) -> Data:
        names = tuple(getattr(train.features[label], "names", None) or ())
        several = self._are_lists(train, label)
        if several:
            *labels, names = self._label_lists(train, test, label)
        else:
            ours = self._labels(train, label)
            labels = [ours, self._labels(test, label, set(ours) - {None})]
        parts, dropped = zip(*map(_complete_rows, (train, test), (column, column), labels), strict=True)
        if not all(parts):
            raise DataError(f"{self.path}: no example has both an image (column {column}) and a label (column {label})")
        decoded = decode_images(
            (
                (Path(cell["path"]) if cell["bytes"] is None else cell["bytes"], f"{self.path}, {name} set, row {row}")
                for name, cells in zip(("training", "test"), parts, strict=True)
                for row, cell, _ in cells
            ),
            self.size,
            channels=None,
        )
        stored = [np.asarray([target for *_, target in cells]) for cells in parts]
        if several:
            targets = Targets(torch.from_numpy(stored[0]), torch.from_numpy(stored[1]), are_labels=True)
        elif names:
            targets = Targets(torch.from_numpy(stored[0]), torch.from_numpy(stored[1]), names)
        else:
            if stored[0].dtype.kind == "f":
                raise DataError(
                    f"{self.path}, column {label}: the labels are numbers such as {stored[0][0]:g}, not classes; set"
                    " dataset.label to a column of classes"
                )
            targets = read_targets(stored[0], stored[1], "classification", str(self.path))
        inputs = decoded["images"][: len(parts[0])], decoded["images"][len(parts[0]) :]
        classes = None if several else targets.train
        left_out = [f"{count:,} {reason} left out" for reason, count in sum(dropped, Counter()).items()]
        return assemble(
            self.name, inputs, targets, target_names=names if several else (),
            notes=[*notes, *left_out, *decoding_notes(decoded), *shared_notes(*inputs, classes)], sizes=self,
        )  # fmt: skip

    def _texts(
        self, train: datasets.Dataset, test: datasets.Dataset, columns: list[str], label: str, notes: Sequence[str]
    ) -> Data:
        if self.tokenizer is None:
            raise DataError(
                f"{self.path} holds texts (columns {', '.join(columns)}): choose a model of texts, e.g."
                " model=roberta_lora, or set dataset.tokenizer"
            )
        others = [n for n, kind in train.features.items() if getattr(kind, "dtype", "") in STRINGS and n != label]
        if len(others) > 1 and not self.inputs:
            unread = [name for name in others if name not in columns]
            left_out = f"; left out: {', '.join(unread)}, an id or the label in words" * bool(unread)
            notes = [*notes, f"the texts are those of {', '.join(columns)}{left_out}"]
        names = tuple(getattr(train.features[label], "names", None) or ())
        labels, several = [list(train[label]), list(test[label])], self._are_lists(train, label)
        if several:
            *labels, names = self._label_lists(train, test, label)
        parts = [
            Sentences(
                f"{self.path}, {part} set", {name: list(split[name]) for name in columns}, own, names, several=several
            )
            for part, split, own in (("training", train, labels[0]), ("test", test, labels[1]))
        ]
        return sentence_data(self.name, parts[0], parts[1], self, notes)


def load(path: str, subset: str | None) -> Any:
    """All splits of a dataset, by name.

    Raises:
        DataError: it cannot be had or read.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    datasets.disable_progress_bars()
    folder = Path(path).expanduser()
    if folder.is_file() or (not folder.is_dir() and (path.startswith(("/", "~", ".")) or path.count("/") > 1)):
        raise DataError(
            f"dataset.path={path} {'is a file' if folder.is_file() else 'does not exist'}; name a folder of files such"
            " as train.csv and test.csv, or owner/name of a dataset of the hub"
        )
    try:
        name = str(folder) if folder.is_dir() else path
        words = {}
        if hasattr(datasets.load_dataset_builder(name, name=subset).config, "keep_default_na"):
            words = {"keep_default_na": False, "na_values": [""]}  # of CSV: null, NA and None are words, too
        return datasets.load_dataset(name, name=subset, **words)
    except (DatasetsError, OSError, ValueError, RuntimeError, HTTPError) as error:  # Runtime: a script to be run
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        where = "in the folder" if folder.is_dir() else "from the hub"
        if "codec can't decode" in reason:
            reason += "; save it as UTF-8"
        raise DataError(
            f"dataset.path={path} cannot be read {where} ({reason}). Give owner/name of a dataset of the hub (without a"
            " network: fetch its parquet files into a folder), or a folder of files such as train.csv and test.csv"
        ) from error


def _complete_rows(
    split: datasets.Dataset, column: str, labels: Sequence[Any]
) -> tuple[list[tuple[int, dict[str, Any], Any]], Counter[str]]:
    """Row, encoded image and label of the examples that have both, and how many were left out for what."""
    import datasets

    rows, dropped = [], Counter[str]()
    cells = split.cast_column(column, datasets.Image(decode=False))[column]
    for row, (cell, target) in enumerate(zip(cells, labels, strict=True)):
        if target is None:
            dropped["examples without a label"] += 1
        elif cell is None or cell["bytes"] is cell["path"] is None:
            dropped["examples without an image"] += 1
        else:
            rows.append((row, cell, target))
    return rows, dropped
