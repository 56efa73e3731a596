"""GLUE and other sets of sentences or sentence pairs with classes: from the hub, or from a folder on disk.

Sources: Wang et al. 2019, "GLUE" (https://gluebenchmark.com); Dolan & Brockett 2005 for MRPC.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora.datasets.base import Data, Split, carve, size_problems
from bayeslora.datasets.sources import class_names, readable, shard_problems
from bayeslora.datasets.text import (
    LAYOUTS,
    TrimPadding,
    check_tokenizer_folder,
    encode,
    hub_folder,
    load_tokenizer,
    local_folder,
)
from bayeslora.errors import DataError, Problems

SPLITS = {"train": ("train",), "test": ("validation", "validation_matched", "dev", "dev_matched")}
"""How the files of our splits are called: GLUE's own test sets have no labels, so its validation set is our `test`."""

LABELS = ("label", "gold_label", "Quality", "is_duplicate", "score")
"""What the column of labels is called: the first that is there."""
TSV_TEXT = re.compile(r"sentence\d?|question\d?|premise|hypothesis|passage|text|#\d String")
"""Columns of texts in a TSV, where every column is text."""
TSV_WITHOUT_HEADER = ("source", "label", "mark", "sentence")
"""CoLA's columns."""

UNLABELLED = (None, -1, "-1", "", "-")
FRACTION = re.compile(r"-?\d*\.\d+")
MIN_LENGTH = 8
"""Tokens: room for what a tokenizer adds to a pair."""

Files = dict[str, tuple[Path, ...]]
"""The files of each split, `"train"` and `"test"`."""


@dataclass
class Glue:
    """One task of GLUE, or another of its form: one or two texts and a class an example.

    Columns and classes are looked up in the data: the labels are in `label`, the texts in the other columns of strings,
    in their order. Of three or more (WiC: word, sentence1, sentence2) all but the last are joined by spaces into the
    first of a pair. Classes of a file that does not name them are the sorted values of its labels.

    Attributes:
        task: a task of the hub's repository, e.g. `"mrpc"`.
        path: a folder of `train-*.parquet` and `validation-*.parquet` with the hub's columns, or of GLUE's own
            `train.tsv` and `dev.tsv`, or one with such a folder named like the task. None: the hub.
        hub: the hub's dataset, which holds each task's parquet files in a folder of its name, e.g. `"aps/super_glue"`.
        tokenizer: a folder with a tokenizer, or the hub's name of a model.
        max_length: a sequence of more tokens is cut, of a pair the longer text first.
        layout: `"pair"`: a pair is one sequence, `[CLS] a [SEP] b [SEP]` or as the tokenizer has it; `"separate"`: each
            text is its own sequence, for a bi-encoder.
        validation_size: examples moved from the training set to a validation set.
        limit_train, limit_test: keep at most so many; None keeps all.

    Raises:
        DataError: a setting is impossible, or a folder lacks files; all problems at once.
    """

    path: str | Path | None = None
    _: KW_ONLY
    tokenizer: str | None
    task: str = "mrpc"
    hub: str = "nyu-mll/glue"
    max_length: int = 256
    layout: str = "pair"
    validation_size: int = 0
    limit_train: int | None = None
    limit_test: int | None = None
    files: Files | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        problems = Problems()
        problems.add(*self._setting_problems())
        with problems.collect():
            self.files = None if self.path is None else self._find(Path(self.path).expanduser())
        with problems.collect():
            if self.tokenizer is not None and (folder := local_folder(self.tokenizer)) is not None:
                check_tokenizer_folder(folder)
        if problems.found:
            raise DataError(*problems.found)

    @property
    def name(self) -> str:
        """What reports call the dataset, e.g. `"GLUE MRPC"`."""
        return f"{self.hub.rpartition('/')[2].replace('_', ' ')} {self.task}".upper()

    def load(self) -> Data:
        """Read the texts and tokenise those that are kept: inputs int32 [N, S, F, L].

        Raises:
            DataError: the data or the tokenizer cannot be had or are wrong; the message says what to do.
            ConfigError: the validation set takes all.
        """
        files = self.files or self._fetched()
        train, test = (read_table(files[split]) for split in ("train", "test"))
        classes = find_classes(train, test)
        rows = [Split(torch.arange(len(targets)), targets) for targets in map(classes.targets, (train, test))]
        data = Data(
            name=self.name,
            train=rows[0],
            validation=rows[0].take(slice(0)),
            test=rows[1],
            class_names=classes.names,
            transform=TrimPadding(),
            notes=(*train.notes("train"), *test.notes("test")),
            texts={"train": train.pairs(train.columns), "test": test.pairs(train.columns)},
        )
        carved = carve(data, self.validation_size, self.limit_train, self.limit_test)
        return tokenised(carved, str(self.tokenizer), self.layout, self.max_length)

    def _setting_problems(self) -> list[str]:
        whole = isinstance(self.max_length, int)
        checks = {
            "dataset.tokenizer must name a tokenizer, a folder or a model of the hub; dataset.tokenizer=null, since the"
            " model has no name_or_path: choose a model of texts": self.tokenizer,
            f"dataset.task={self.task!r} must name a task, e.g. mrpc": self.task and "/" not in self.task,
            f"dataset.layout={self.layout!r} is unknown; choose one of {', '.join(LAYOUTS)}": self.layout in LAYOUTS,
            f"dataset.max_length must be a whole number of at least {MIN_LENGTH}, not {self.max_length!r}": (
                whole and self.max_length >= MIN_LENGTH
            ),
        }
        wrong = [problem for problem, holds in checks.items() if not holds]
        return wrong + size_problems(self.validation_size, self.limit_train, self.limit_test)

    def _find(self, path: Path) -> Files:
        """The files of the task in a folder."""
        wanted = "dataset.path must be a folder of train-*.parquet and validation-*.parquet, or train.tsv and dev.tsv"
        if not path.is_dir():
            raise DataError(f"{path} {'is a file' if path.exists() else 'does not exist'}; {wanted} of {self.name}")
        files = find_files(path, self.task)
        if files is None:
            present = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
            raise DataError(f"{path} holds {present}; {wanted} of {self.name}")
        return files

    def _fetched(self) -> Files:
        """The files of the task from the hub's cache or the hub."""
        page = f"https://huggingface.co/datasets/{self.hub}/tree/main"
        advice = (
            f"Fetch train-00000-of-00001.parquet and validation-00000-of-00001.parquet of {page}/{self.task} by other"
            " means, put them into a folder, and set dataset.path=FOLDER"
        )
        wanted = [f"{self.task}/{name}-*.parquet" for names in SPLITS.values() for name in names]
        folder = hub_folder(self.hub, "dataset", ["README.md", *wanted], partial(_all_there, task=self.task), advice)
        files = find_files(folder, self.task)
        if files is None:
            known = ", ".join(_tasks(folder)) or f"look at {page}"
            raise DataError(f"{self.hub} has no parquet files of a task {self.task!r}; its tasks: {known}")
        return files


def tokenised(data: Data, tokenizer: str, layout: str, max_length: int) -> Data:
    """Data of texts with tokens for inputs, int32 [N, S, F, L], in place of row numbers.

    Raises:
        DataError: the tokenizer cannot be had or does not fit.
    """
    names = ("train", "validation", "test")
    texts = [pair for name in names for pair in data.texts[name]]
    encoded = encode(load_tokenizer(tokenizer), texts, layout, max_length)
    sizes = [len(data.texts[name]) for name in names]
    train, validation, test = encoded.tokens.split(sizes)
    empty = sum(not text.strip() for pair in texts for text in pair)
    found = {
        f"{encoded.cut:,} of {encoded.lengths.numel():,} sequences cut to {max_length} tokens": encoded.cut,
        f"{empty:,} empty sentences": empty,
        f"{encoded.padding:.0%} of the stored tokens are padding": encoded.padding >= 0.005,
    }
    return replace(
        data,
        train=Split(train, data.train.targets),
        validation=Split(validation, data.validation.targets),
        test=Split(test, data.test.targets),
        lengths=encoded.lengths[: sizes[0]].amax(1),
        notes=(*data.notes, *(note for note, holds in found.items() if holds)),
    )


def find_files(folder: Path, task: str) -> Files | None:
    """The files of both splits in a folder or in one below it, `task`, `TASK` or `data`; None where there are none.

    Raises:
        DataError: a split or some of its shards are missing.
    """
    for place in (folder, folder / task, folder / task.upper(), folder / "data"):
        for ending in ("-*.parquet", ".tsv"):
            files = {split: _first(place, names, ending) for split, names in SPLITS.items()}
            if not any(files.values()):
                continue
            problems = [_missing(place, split, ending) for split in files if not files[split]]
            problems += [problem for shards in files.values() if shards for problem in _shards_missing(shards)]
            if problems:
                raise DataError(*problems)
            return files
    return None


def _first(place: Path, names: Iterable[str], ending: str) -> tuple[Path, ...]:
    """The files of the first of the names that has any."""
    found = (tuple(sorted(place.glob(name + ending))) for name in names)
    return next((files for files in found if files), ())


def _missing(place: Path, split: str, ending: str) -> str:
    name = "dev.tsv" if split == "test" and ending == ".tsv" else SPLITS[split][0] + ending
    why = " (the test set of GLUE has no labels: results are on the validation set)" if split == "test" else ""
    present = ", ".join(sorted(entry.name for entry in place.iterdir())[:6])
    return f"{place} holds no {name}{why}, only {present}; fetch it"


def _shards_missing(shards: Sequence[Path]) -> list[str]:
    return shard_problems(shards[0].parent, shards[0].name.partition("-")[0], shards)


def _all_there(folder: Path, task: str) -> bool:
    """Whether a snapshot of the hub holds all files of a task."""
    try:
        return find_files(folder, task) is not None
    except DataError:
        return False


def _tasks(folder: Path) -> list[str]:
    """The tasks that the card of a dataset of the hub lists."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    configs: Any = (metadata_load(card) or {}).get("configs", []) if card.is_file() else []
    return [str(config["config_name"]) for config in configs if "config_name" in config]


@dataclass(frozen=True)
class Table:
    """One split as it was read.

    Attributes:
        file: the first of its files, for messages.
        columns: the texts by the name of their column, in order.
        labels: a label each row, as stored.
        class_names: the names of the classes, empty where the file has none.
        broken: lines left out because they have too few or too many columns.
    """

    file: Path
    columns: dict[str, list[str]]
    labels: list[Any]
    class_names: tuple[str, ...] = ()
    broken: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> list[int]:
        """The rows that have a label."""
        return [row for row, label in enumerate(self.labels) if label not in UNLABELLED]

    def pairs(self, names: Iterable[str]) -> list[tuple[str, ...]]:
        """The texts of each labelled row, one or two, of the columns named."""
        lists = [self.columns[name] for name in names]
        if len(lists) > 2:
            lists = [[" ".join(texts) for texts in zip(*lists[:-1], strict=True)], lists[-1]]
        return [tuple(texts[row] for texts in lists) for row in self.labelled]

    def notes(self, split: str) -> list[str]:
        """What was left out or joined, in words."""
        unlabelled = len(self) - len(self.labelled)
        found = {
            f"{self.broken:,} {split} lines with a wrong number of columns left out": self.broken,
            f"{unlabelled:,} {split} examples without a label left out": unlabelled,
            f"the columns {', '.join([*self.columns][:-1])} joined into the first text": split == "train"
            and len(self.columns) > 2,
            f"tested on {self.file.name.partition('-0')[0].partition('.')[0]}": "_" in self.file.name,
        }
        return [note for note, holds in found.items() if holds]


@dataclass(frozen=True)
class Classes:
    """The classes of a task: their names, and the number of each stored label."""

    names: tuple[str, ...]
    numbers: dict[Any, int]

    def targets(self, table: Table) -> Tensor:
        """Class numbers of the labelled rows, int64 [N].

        Raises:
            DataError: no row is labelled, or a label is of no class.
        """
        if not table.labelled:
            raise DataError(f"{table.file} has no labels (GLUE hides those of its test sets); fetch a labelled split")
        for row in table.labelled:
            if table.labels[row] not in self.numbers:
                raise DataError(
                    f"{table.file}, row {row}: the label is {table.labels[row]!r}, outside the {len(self.names)}"
                    f" classes {', '.join(self.names[:6])}; mend the row or fetch the file again"
                )
        return torch.tensor([self.numbers[table.labels[row]] for row in table.labelled])


def find_classes(train: Table, test: Table) -> Classes:
    """The classes that the files name, or else the sorted labels of the training set.

    Raises:
        DataError: the labels are no classes, or the two splits are of different tasks.
    """
    if missing := [name for name in train.columns if name not in test.columns]:
        raise DataError(f"{test.file} is of another task than {train.file.name}: it has no column {missing[0]}")
    if train.class_names and test.class_names and train.class_names != test.class_names:
        raise DataError(f"{test.file} is of another task than {train.file.name}: its classes have other names")
    for table in (train, test):
        fractions = [label for label in table.labels if isinstance(label, float) or FRACTION.fullmatch(str(label))]
        if fractions:
            raise DataError(
                f"{table.file} is of a regression: its labels are numbers such as {fractions[0]:.3}, not classes."
                " Choose a task of classes, e.g. dataset.task=mrpc"
            )
    if train.class_names:
        return Classes(train.class_names, {number: number for number in range(len(train.class_names))})
    values = sorted({train.labels[row] for row in train.labelled})
    if len(values) < 2:
        raise DataError(f"{train.file} has one class only, {values}; a task has two or more")
    return Classes(tuple(str(value) for value in values), {value: number for number, value in enumerate(values)})


def read_table(files: Sequence[Path]) -> Table:
    """The texts and labels in the shards of a split, or in its TSV.

    Raises:
        DataError: a file is corrupt, or has no columns of labels and texts.
    """
    table = _read_tsv(files[0]) if files[0].suffix == ".tsv" else _read_parquet(files)
    if not len(table):
        raise DataError(f"{table.file} holds no examples; fetch it again")
    return table


def _read_parquet(files: Sequence[Path]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = []
    for file in files:
        with readable(file):
            shards.append(pq.read_table(file, partitioning=None))
            table = pa.concat_tables(shards)
    label = _label_column(table.column_names, files[0])
    kinds = {name: str(kind) for name, kind in zip(table.column_names, table.schema.types, strict=True)}
    texts = [name for name, kind in kinds.items() if kind in ("string", "large_string") and name not in (label, "idx")]
    columns = {name: [text or "" for text in table[name].to_pylist()] for name in texts}
    _check_texts(columns, table.column_names, files[0])
    return Table(files[0], columns, table[label].to_pylist(), class_names(table.schema, label))


def _read_tsv(file: Path) -> Table:
    """A TSV as GLUE distributes it: quotation marks are ordinary characters (`quoting=3`)."""
    with readable(file):
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not text in UTF-8 ({error.reason}); fetch it again") from error
    rows = [line.removesuffix("\r").split("\t") for line in lines if line.strip()]
    header = rows[0] if rows else []
    if not {*LABELS} & {*header} and len(header) == len(TSV_WITHOUT_HEADER) and header[1] in ("0", "1"):
        header, rows = list(TSV_WITHOUT_HEADER), [[], *rows]
    label = _label_column(header, file)
    whole = [row for row in rows[1:] if len(row) == len(header)]
    columns = {name: [row[header.index(name)] for row in whole] for name in header if TSV_TEXT.fullmatch(name)}
    _check_texts(columns, header, file)
    labels = [row[header.index(label)] for row in whole]
    return Table(file, columns, labels, broken=len(rows) - 1 - len(whole))


def _label_column(names: Sequence[str], file: Path) -> str:
    for name in LABELS:
        if name in names:
            return name
    raise DataError(f"{file} has no column of labels (label), only {', '.join(names[:8])}; choose a task of classes")


def _check_texts(columns: dict[str, list[str]], names: Sequence[str], file: Path) -> None:
    if not columns:
        raise DataError(f"{file} has no column of texts, only {', '.join(names[:8])}; this is another dataset")
