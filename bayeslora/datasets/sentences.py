"""Tables of sentences with classes, wherever they were read: which rows can be used, and the `Data` made of them."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Sizes, Split
from bayeslora.datasets.tabular import labels_or_none
from bayeslora.datasets.text import LAYOUTS, TrimPadding, check_tokenizer_folder, load_tokenizer, local_folder, tokenise
from bayeslora.errors import DataError, Problems

MIN_LENGTH = 8
"""Tokens: room for what a tokenizer adds to a pair."""
FRACTION = re.compile(r"-?\d*\.\d+")


@dataclass(frozen=True)
class Sentences:
    """One split as it was read.

    Attributes:
        where: its file or place, for messages.
        columns: the texts by the name of their column, in order; None where there is none.
        labels: a label each row, as stored.
        class_names: the names of the classes, empty where the file has none.
        broken: lines left out because they have too few or too many columns.
        several: `labels` has one number a label of each row, 1, 0 or −1, and `class_names` are the labels' names.
    """

    where: str
    columns: dict[str, list[str | None]]
    labels: list[Any]
    class_names: tuple[str, ...] = ()
    broken: int = 0
    several: bool = False


@dataclass(kw_only=True)
class TextSettings(Sizes):
    """Settings of every dataset of texts, beside its sizes.

    Attributes:
        tokenizer: a folder with a tokenizer, or the hub's name of a model.
        max_length: a sequence of more tokens is cut, of a pair the longer text first.
        layout: `"pair"`: a pair is one sequence, `[CLS] a [SEP] b [SEP]` or as the tokenizer has it; `"separate"`: each
            text is its own sequence, for a bi-encoder.
    """

    tokenizer: str | None = None
    max_length: int = 256
    layout: str = "pair"

    def text_problems(self) -> Problems:
        """What is wrong with them, before texts are read."""
        problems = Problems()
        if self.layout not in LAYOUTS:
            problems.add(f"dataset.layout={self.layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
        if not (isinstance(self.max_length, int) and self.max_length >= MIN_LENGTH):
            problems.add(f"dataset.max_length must be a whole number of at least {MIN_LENGTH}, not {self.max_length!r}")
        with problems.collect():
            if self.tokenizer is not None and (folder := local_folder(self.tokenizer)) is not None:
                check_tokenizer_folder(folder)
        return problems


def sentence_data(
    name: str,
    train: Sentences,
    test: Sentences,
    settings: TextSettings,
    notes: Sequence[str] = (),
) -> Data:
    """The dataset, of the columns of the training set: inputs int32 [N, S, F, L].

    Of three or more columns of texts all but the last are joined by spaces. Rows without a label, or without one of
    their texts, are left out and counted.

    Args:
        name: in reports.
        train, test: both splits.
        settings: of the dataset; texts that are kept are tokenised.
        notes: for the report.

    Raises:
        DataError: the splits are not of one task of classes, or most rows cannot be used.
        ConfigError: the validation set takes all.
    """
    if missing := [column for column in train.columns if column not in test.columns]:
        raise DataError(f"{test.where} is of another task than {train.where}: it has no column {missing[0]}")
    if train.class_names and test.class_names and train.class_names != test.class_names:
        raise DataError(f"{test.where} is of another task than {train.where}: its classes have other names")
    parts = {"train": train, "test": test}
    used = {"train": _used(train, [*train.columns], "train")}
    classes = {} if train.several else _classes(train, [label for _, label in used["train"].rows])
    used["test"] = _used(test, [*train.columns], "test", classes.keys())
    all_notes = list(notes)
    splits = {}
    for part, table in parts.items():
        all_notes += used[part].notes
        targets = _targets(table, used[part].rows, classes)
        splits[part] = Split(torch.arange(len(targets)), targets)
    if len(train.columns) > 2:
        all_notes.append(f"the columns {', '.join([*train.columns][:-1])} joined into the first text")
    data = Data(
        name=name,
        train=splits["train"],
        validation=splits["train"].take(slice(0)),
        test=splits["test"],
        class_names=() if train.several else train.class_names or tuple(map(str, classes)),
        labels=train.class_names if train.several else (),
        transform=TrimPadding(),
        notes=tuple(all_notes),
        texts={part: used[part].texts for part in parts},
    )
    return _tokenised(settings.carve(data), settings)


@dataclass(frozen=True)
class _Used:
    """What can be used of a split: (row, label) pairs, their texts, and notes on the rest."""

    rows: list[tuple[int, Any]]
    texts: list[tuple[str, ...]]
    notes: list[str]


def _used(table: Sentences, columns: Sequence[str], part: str, classes: Set[Any] = frozenset()) -> _Used:
    """The rows that have a label and all texts.

    Raises:
        DataError: there is none, or most have no text in a column.
    """
    named = bool(table.class_names)
    labels = table.labels if table.several else labels_or_none(table.labels, named, table.where, classes)
    fractions = [label for label in labels if isinstance(label, float) or FRACTION.fullmatch(str(label))]
    if fractions:
        raise DataError(
            f"{table.where} is of a regression: its labels are numbers such as {fractions[0]:.3}, not classes."
            " Choose a task of classes, e.g. dataset.task=mrpc"
        )
    labelled = [row for row, label in enumerate(labels) if label is not None]
    if not labelled:
        raise DataError(f"{table.where} has no labels (GLUE hides those of its test sets); fetch a labelled split")
    lists = [table.columns[column] for column in columns]
    empty = {column: sum(texts[row] is None for row in labelled) for column, texts in zip(columns, lists, strict=True)}
    for column, count in empty.items():
        if 2 * count > len(labelled):
            raise DataError(
                f"{table.where}: column {column} has no text in {count:,} of {len(labelled):,} examples; fill it, or"
                " choose other columns (dataset=hub: dataset.inputs)"
            )
    whole = [row for row in labelled if all(texts[row] is not None for texts in lists)]
    if not whole:
        raise DataError(f"{table.where}: no example has a text in each of the columns {', '.join(columns)}; fill them")
    counts = {
        ("line", "with a wrong number of columns left out"): table.broken,
        ("example", "without a label left out"): len(labels) - len(labelled),
        **{("example", f"without a text in column {column} left out"): count for column, count in empty.items()},
    }
    if len(lists) > 2:
        lists = [[" ".join(map(str, texts)) for texts in zip(*lists[:-1], strict=True)], lists[-1]]
    return _Used(
        [(row, labels[row]) for row in whole],
        [tuple(str(texts[row]) for texts in lists) for row in whole],
        [f"{counted(count, f'{part} {thing}')} {what}" for (thing, what), count in counts.items() if count],
    )


def _classes(table: Sentences, labels: Sequence[Any]) -> dict[Any, int]:
    """The number of each label: as the file names them, or by their sorted values in the training set."""
    if table.class_names:
        return {number: number for number in range(len(table.class_names))}
    values = sorted(set(labels))
    if len(values) < 2:
        raise DataError(f"{table.where} has one class only, {values}; a task has two or more")
    return {value: number for number, value in enumerate(values)}


def _targets(table: Sentences, rows: Sequence[tuple[int, Any]], classes: dict[Any, int]) -> Tensor:
    """Class numbers int64 [N] of (row, label) pairs, or several labels int64 [N, L]."""
    if table.several:
        return torch.tensor([label for _, label in rows])
    names = table.class_names or tuple(map(str, classes))
    for row, label in rows:
        if label not in classes:
            raise DataError(
                f"{table.where}, row {row}: the label is {label!r}, outside the {len(names)} classes"
                f" {', '.join(names[:6])}; mend the row or fetch the file again"
            )
    return torch.tensor([classes[label] for _, label in rows])


def _tokenised(data: Data, settings: TextSettings) -> Data:
    """Data of texts with tokens for inputs, int32 [N, S, F, L], in place of row numbers."""
    names = ("train", "validation", "test")
    texts = [pair for name in names for pair in data.texts[name]]
    encoded = tokenise(load_tokenizer(str(settings.tokenizer)), texts, settings.layout, settings.max_length)
    sizes = [len(data.texts[name]) for name in names]
    train, validation, test = encoded.tokens.split(sizes)
    empty = sum(not text.strip() for pair in texts for text in pair)
    notes = {
        f"{encoded.cut:,} of {encoded.lengths.numel():,} sequences cut to {settings.max_length} tokens": encoded.cut,
        f"{empty:,} empty sentences": empty,
        f"{100 * encoded.padding:.0f} % of the stored tokens are padding": encoded.padding >= 0.005,
    }
    return replace(
        data,
        train=Split(train, data.train.targets),
        validation=Split(validation, data.validation.targets),
        test=Split(test, data.test.targets),
        lengths=encoded.lengths[: sizes[0]].amax(1),
        notes=(*data.notes, *(note for note, holds in notes.items() if holds)),
    )
