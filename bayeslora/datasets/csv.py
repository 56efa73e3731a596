"""A table in a text file: a row an example, one column the target."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.datasets.base import Data
from bayeslora.datasets.tables import assemble, held_out, read_targets, setting_problems
from bayeslora.errors import DataError

MISSING = ("error", "drop")
MOST_VALUES = 50
"""Different texts that a column may hold to be taken for a category."""


@dataclass
class Csv:
    """A CSV file with a header: numbers and categories to predict a class or a number from.

    Columns of numbers enter as they are (then standardised), columns of text as one 0/1 column a value of the training
    set.

    Attributes:
        path: the file.
        target: the column to predict; None: the last.
        test_path: a second file of the same columns for the test set; None: a share of the rows is held out.
        test_share: that share.
        separator: between columns.
        leave_out: columns that are not used, e.g. an id.
        missing: rows with an empty cell: `"error"`, or `"drop"`.
        task: `"classification"`, `"regression"`, or `"auto"`: by the target (see `read_targets`).
        standardise: inputs, and a target that is a number, are scaled to mean 0 and sd 1 of the training set.
        validation_size: rows moved from the training set to a validation set.
        limit_train, limit_test: keep at most so many; None keeps all.

    Raises:
        DataError: a setting is impossible, or there is no such file; all problems at once.
    """

    path: str | Path
    _: KW_ONLY
    target: str | None = None
    test_path: str | Path | None = None
    test_share: float = 0.2
    separator: str = ","
    leave_out: list[str] | None = None
    missing: str = "error"
    task: str = "auto"
    standardise: bool = True
    validation_size: int = 0
    limit_train: int | None = None
    limit_test: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.validation_size, self.limit_train, self.limit_test)
        problems = setting_problems(self.task, self.test_share, *sizes)
        for key, value in (("path", self.path), ("test_path", self.test_path)):
            if (value is not None or key == "path") and not (value and Path(value).expanduser().is_file()):
                problems.add(f"dataset.{key}={value} must be a CSV file with a header line")
        if self.missing not in MISSING:
            problems.add(f"dataset.missing={self.missing} is unknown; choose {' or '.join(MISSING)}")
        if len(self.separator) != 1:
            problems.add(f"dataset.separator={self.separator!r} must be one character")
        if problems.found:
            raise DataError(*problems.found)

    def load(self) -> Data:
        """Read the table into memory: inputs float32 [N, F].

        Raises:
            DataError: it cannot be read, has empty cells, or no column that could be used.
        """
        file = Path(self.path).expanduser()
        table, dropped = self._read(file)
        target = self._target(file, table)
        if self.test_path is None:
            train, test = held_out(len(table[target]), self.test_share)
            parts = [{name: column[rows] for name, column in table.items()} for rows in (train, test)]
            notes = [f"{len(test):,} rows held out for the test set"]
        else:
            other, more = self._read(Path(self.test_path).expanduser())
            if missing := [name for name in table if name not in other]:
                raise DataError(f"{self.test_path} has no column {', '.join(missing)}, which {file} has")
            parts, dropped, notes = [table, other], dropped + more, []
        if dropped:
            notes.append(f"{dropped:,} rows with an empty cell left out")
        train_rows, test_rows = parts
        targets = read_targets(train_rows.pop(target), test_rows.pop(target), self.task, f"{file}, column {target}")
        return assemble(
            file.stem, _encoded(train_rows, test_rows, str(file)), targets, target_names=(target,),
            standardise=self.standardise, validation_size=self.validation_size, limit_train=self.limit_train,
            limit_test=self.limit_test, notes=notes,
        )  # fmt: skip

    def _read(self, file: Path) -> tuple[dict[str, np.ndarray], int]:
        """The columns by name, numbers or text, and how many rows were left out."""
        table = read_table(file, self.separator)
        unknown = [name for name in self.leave_out or [] if name not in table.column_names]
        if unknown:
            raise DataError(f"dataset.leave_out: {file} has no column {', '.join(unknown)}, only {_listed(table)}")
        table = table.drop_columns(self.leave_out or [])
        empty = {name: table[name].null_count for name in table.column_names if table[name].null_count}
        count = table.num_rows
        if empty and self.missing == "error":
            cells = ", ".join(f"{name} ({number})" for name, number in list(empty.items())[:6])
            raise DataError(f"{file} has empty cells: {cells}; fill them, or set dataset.missing=drop")
        table = table.drop_null()
        if table.num_rows < 2:
            raise DataError(f"{file} has {table.num_rows} rows without empty cells; there must be two at least")
        return {name: table[name].to_numpy() for name in table.column_names}, count - table.num_rows

    def _target(self, file: Path, table: dict[str, np.ndarray]) -> str:
        target = list(table)[-1] if self.target is None else self.target
        if target not in table:
            raise DataError(f"dataset.target={target}: {file} has no such column, only {', '.join(table)}")
        if len(table) < 2:
            raise DataError(
                f"{file} has the one column {target}; if columns are separated by something else than"
                f" {self.separator!r}, set dataset.separator"
            )
        return target


def read_table(file: Path, separator: str) -> Any:
    """A CSV file as a table of arrow; empty cells, NA, NaN and the like are null.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv

    try:
        return csv.read_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=separator),
            convert_options=csv.ConvertOptions(strings_can_be_null=True),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file} cannot be read as CSV with a header line ({reason}); check dataset.separator"
        ) from error


def _listed(table: Any) -> str:
    return ", ".join(table.column_names)


def _encoded(train: dict[str, np.ndarray], test: dict[str, np.ndarray], where: str) -> tuple[Tensor, Tensor]:
    """Columns as float32 [N, F]: numbers as they are, text as one column a value of the training set."""
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    for name, column in train.items():
        if column.dtype.kind in "fiub" and test[name].dtype.kind in "fiub":
            columns.append((column[:, None], test[name][:, None]))
            continue
        values = np.unique(column.astype(str))
        if len(values) > MOST_VALUES:
            raise DataError(
                f"{where}: column {name} holds {len(values)} different texts, too many for a category; leave it out by"
                f" dataset.leave_out=[{name}]"
            )
        columns.append((column.astype(str)[:, None] == values, test[name].astype(str)[:, None] == values))
    both = [np.concatenate(parts, axis=1).astype(np.float32) for parts in zip(*columns, strict=True)]
    if not all(np.isfinite(part).all() for part in both):
        raise DataError(f"{where} holds infinite numbers; mend or leave out these rows")
    return torch.from_numpy(both[0]), torch.from_numpy(both[1])
