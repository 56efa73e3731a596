"""A table in a text file: a row an example, one column the target, or several."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Sizes
from bayeslora.datasets.delimited import DECIMALS, Column, check_header, check_named, parse_column, read_rows, read_text
from bayeslora.datasets.images import shared_notes
from bayeslora.datasets.tabular import (
    assemble,
    file_problems,
    held_out,
    look_like_labels,
    read_targets,
    setting_problems,
)
from bayeslora.errors import DataError

MISSING = ("error", "drop")
MOST_VALUES = 50
"""Different words that a column may hold to be taken for a category."""

Table = dict[str, Column]
"""The columns by name."""


@dataclass
class Csv(Sizes):
    """A CSV file with a header: numbers and categories to predict a class or a number from.

    Columns of numbers enter as they are (then standardised), columns of words as one 0/1 column a value of the training
    set, which is noted. A column of which most cells look like numbers, but not all are, is refused.

    Attributes:
        path: the file.
        target: the column to predict, or several: labels of 0 and 1, or numbers; None: the last.
        test_path: a second file of the same columns for the test set; None: a share of the rows is held out.
        test_share: that share.
        separator: between columns; `\\t`, a backslash and a t, is a tab.
        decimal: the mark before a number's fraction: `"."` or `","`.
        encoding: of the text, as Python calls it.
        leave_out: columns that are not used, e.g. an id.
        categories: columns that are categories though their cells look like numbers.
        missing: rows with an empty cell: `"error"`, or `"drop"`. An empty cell of a label is one that is not known.
        task: `"classification"`, `"regression"`, `"labels"`, or `"auto"`: by the target (see `read_targets`).
        standardise: inputs, and a target that is a number, are scaled to mean 0 and sd 1 of the training set.

    Raises:
        DataError: a setting is impossible, or there is no such file; all problems at once.
    """

    path: str | Path
    _: KW_ONLY
    target: str | list[str] | None = None
    test_path: str | Path | None = None
    test_share: float = 0.2
    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    leave_out: list[str] | None = None
    categories: list[str] | None = None
    missing: str = "error"
    task: str = "auto"
    standardise: bool = True

    def __post_init__(self) -> None:
        problems = setting_problems(self, self.task, self.test_share)
        for key, value in (("path", self.path), ("test_path", self.test_path)):
            if value is not None or key == "path":
                problems.add(*file_problems(key, value, "a CSV file with a header line"))
        if self.missing not in MISSING:
            problems.add(f"dataset.missing={self.missing} is unknown; choose {' or '.join(MISSING)}")
        self.separator = "\t" if self.separator == r"\t" else self.separator
        if len(self.separator) != 1 or not self.separator.isascii():
            problems.add(f"dataset.separator={self.separator!r} must be one character of ASCII")
        if self.decimal not in DECIMALS:
            problems.add(f"dataset.decimal={self.decimal!r} is unknown; choose '.' or ','")
        try:
            "a".encode(self.encoding)
        except (LookupError, TypeError):
            problems.add(f"dataset.encoding={self.encoding} is unknown; choose e.g. utf-8, latin-1, cp1252 or utf-16")
        problems.raise_if_any(DataError)

    def load(self) -> Data:
        """Read the table into memory: inputs float32 [N, F].

        Raises:
            DataError: it cannot be read, has empty cells, or no column that could be used.
        """
        file = Path(self.path).expanduser()
        table, dropped = self._read(file)
        named = self._targets or [list(table)[-1]]
        target = ", ".join(named)
        if self.test_path is None:
            train, test = held_out(len(table[named[0]].values), self.test_share)
            parts = [{name: column.take(rows) for name, column in table.items()} for rows in (train, test)]
            notes = [f"{counted(len(test), 'row')} held out for the test set"]
        else:
            other, more = self._read(Path(self.test_path).expanduser(), table)
            parts, dropped, notes = [table, other], dropped + more, []
        if dropped:
            notes.append(f"{counted(dropped, 'row')} with an empty cell left out")
        is_dates = parts[0][named[0]].dates
        values = [_together([part.pop(name) for name in named]) for part in parts]
        targets = read_targets(values[0], values[1], self.task, f"{file}, column {target}")
        if is_dates:
            notes.append(
                f"target {target} holds dates and became {len(targets.class_names)} classes; if they are meant as"
                " numbers, write e.g. days since the first"
            )
        inputs, encoded = _encoded(parts[0], parts[1], str(file))
        if self.test_path is not None:
            notes += shared_notes(*inputs, what="row")
        return assemble(
            file.stem, inputs, targets, target_names=named, standardise=self.standardise, sizes=self,
            notes=notes + encoded,
        )  # fmt: skip

    @property
    def _targets(self) -> list[str]:
        """The columns to predict that are named."""
        return [self.target] if isinstance(self.target, str) else list(self.target or ())

    def _read(self, file: Path, train: Table | None = None) -> tuple[Table, int]:
        """The columns that are used, complete rows of them, and how many rows were left out.

        Args:
            file: to read.
            train: of a test set: the table of the training set, whose columns it must have.
        """
        if self.decimal == self.separator and '"' not in read_text(file, self.encoding):  # that sets off the numbers
            raise DataError(f"dataset.decimal={self.decimal!r} is the separator, too; set dataset.separator to ';'")
        header, cells, _ = read_rows(file, self.separator, encoding=self.encoding)
        header = [name.strip() for name in header]
        listed = ", ".join(header)
        for key in ("leave_out", "categories"):
            if train is None and (unknown := [name for name in getattr(self, key) or [] if name not in header]):
                raise DataError(f"dataset.{key}: {file} has no column {', '.join(unknown)}, only {listed}")
        if absent := [name for name in train or {} if name not in header]:
            raise DataError(f"{file} has no column {', '.join(absent)}, which {self.path} has")
        used = [place for place, name in enumerate(header) if name not in (self.leave_out or ())]
        names = [header[place] for place in used]
        if len(used) < 2:
            raise DataError(
                f"{file} has the one column {', '.join(names)}; if columns are separated by something else than"
                f" {self.separator!r}, set dataset.separator"
            )
        if absent := [name for name in self._targets if name not in names]:
            raise DataError(f"dataset.target={', '.join(absent)}: {file} has no such column, only {', '.join(names)}")
        if len(set(self._targets)) == len(set(names)):
            raise DataError(f"dataset.target={', '.join(self._targets)}: {file} has no other column to predict it from")
        check_named(names, str(file))
        columns = []
        for place in used:
            name = header[place]
            words = name in (self.categories or ()) or (train is not None and name in train and train[name].is_words)
            mixed = self.task == "classification" and name in (self._targets or names[-1:])
            columns.append(parse_column(cells[place], self.decimal, str(file), name, words=words, mixed=mixed))
        check_header(names, columns, str(file))
        table = dict(zip(names, columns, strict=True))
        return self._complete(file, table if train is None else {name: table[name] for name in train})

    def _complete(self, file: Path, table: Table) -> tuple[Table, int]:
        """The rows without an empty cell, and how many others there are; of labels, those with one that is known."""
        labels = [table[name] for name in self._labels(table)]
        gaps = {name: column.missing for name, column in table.items() if not any(column is one for one in labels)}
        if labels:
            gaps[f"all of {', '.join(self._targets)}"] = np.all([column.missing for column in labels], axis=0)
        empty = {name: int(rows.sum()) for name, rows in gaps.items() if rows.any()}
        if void := [name for name, column in table.items() if len(column.missing) and column.missing.all()]:
            raise DataError(
                f"{file}: no cell of {', '.join(void)} is filled; fill it, or set dataset.leave_out=[{','.join(void)}]"
            )
        if empty and self.missing == "error":
            counts = ", ".join(f"{name} ({number})" for name, number in list(empty.items())[:6])
            raise DataError(f"{file} has empty cells: {counts}; fill them, or set dataset.missing=drop")
        whole = ~np.any([*gaps.values()], axis=0)
        if whole.sum() < 2:
            raise DataError(
                f"{file} has {counted(int(whole.sum()), 'row')} without empty cells; there must be two at least"
            )
        return {name: column.take(whole) for name, column in table.items()}, int((~whole).sum())

    def _labels(self, table: Table) -> list[str]:
        """The columns to predict that are labels, of which some cells may be empty."""
        named = self._targets or [list(table)[-1]]
        several = self.task == "auto" and len(named) > 1
        filled = [table[name].values[~table[name].missing] for name in named]
        return named if self.task == "labels" or (several and all(map(look_like_labels, filled))) else []


def _together(columns: list[Column]) -> np.ndarray:
    """Values of one column [N], or of several [N, D]; numbers that are missing are NaN."""
    values = [
        np.where(column.missing, np.nan, column.values.astype(np.float64))
        if column.missing.any() and not column.is_words
        else column.values
        for column in columns
    ]
    return values[0] if len(values) == 1 else np.stack(values, axis=1)


def _encoded(train: Table, test: Table, where: str) -> tuple[tuple[Tensor, Tensor], list[str]]:
    """Columns as float32 [N, F]: numbers as they are, words as one column a value of the training set; and notes."""
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    notes = []
    for name, column in train.items():
        ours, theirs = column.values, test[name].values
        if not column.is_words:
            if test[name].is_words:
                raise DataError(f"{where}: column {name} holds numbers, and words in the test set; mend one of them")
            _check_finite(name, (ours, theirs), where)
            columns.append((ours[:, None], theirs[:, None]))
            continue
        values = np.unique(ours.astype(str))
        what = "dates" if column.dates else "words"
        if len(values) > MOST_VALUES:
            raise DataError(
                f"{where}: column {name} holds {len(values)} different {what}, too many for a category; leave it out by"
                f" dataset.leave_out=[{name}]"
                + (", or make numbers of the dates, e.g. days since the first" if column.dates else "")
            )
        columns.append((ours.astype(str)[:, None] == values, theirs.astype(str)[:, None] == values))
        shown = ", ".join(values[:4].tolist()) + ", …" * (len(values) > 4)
        new = int((~columns[-1][1].any(1)).sum())
        notes.append(
            f"column {name} holds {what} and became {counted(len(values), 'column')} of 0 and 1 ({shown})"
            + f"; {counted(new, 'test row')} with a value that no training row has" * bool(new)
        )
    train_inputs, test_inputs = (
        torch.from_numpy(np.concatenate(part, axis=1).astype(np.float32)) for part in zip(*columns, strict=True)
    )
    return (train_inputs, test_inputs), notes


def _check_finite(name: str, parts: tuple[np.ndarray, ...], where: str) -> None:
    """Raise `DataError` for numbers that are infinite, or too large for single precision."""
    most = np.finfo(np.float32).max
    if large := [value for part in parts for value in part[~(np.abs(part) <= most)].tolist()]:
        raise DataError(f"{where}: column {name} holds the number {large[0]}; mend or leave out its row")
