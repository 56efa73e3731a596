"""GLUE and other sets of sentences or sentence pairs with classes: from the hub, or from a folder on disk.

Sources: Wang et al. 2019, "GLUE" (https://gluebenchmark.com); Dolan & Brockett 2005 for MRPC.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bayeslora.datasets.base import Data
from bayeslora.datasets.cifar_files import class_names, reading_file, shard_problems
from bayeslora.datasets.delimited import read_rows
from bayeslora.datasets.sentences import Sentences, TextSettings, sentence_data
from bayeslora.datasets.text import hub_folder
from bayeslora.errors import DataError, Problems

SPLITS = {"train": ("train",), "test": ("validation", "validation_matched", "dev", "dev_matched")}
"""How the files of our splits are called: GLUE's own test sets have no labels, so its validation set is our `test`."""

LABELS = ("label", "gold_label", "Quality", "is_duplicate", "score")
"""What the column of labels is called: the first that is there."""
TSV_TEXT = re.compile(r"sentence\d?|question\d?|premise|hypothesis|passage|text|#\d String")
"""Columns of texts in a TSV, where every column is text."""
TSV_WITHOUT_HEADER = ("source", "label", "mark", "sentence")
"""CoLA's columns."""

Files = dict[str, tuple[Path, ...]]
"""The files of each split, `"train"` and `"test"`."""


@dataclass
class Glue(TextSettings):
    """One task of GLUE, or another of its form: one or two texts and a class an example.

    Columns and classes are looked up in the data: the labels are in `label`, the texts in the other columns of strings,
    in their order. Of three or more (WiC: word, sentence1, sentence2) all but the last are joined by spaces into the
    first of a pair. Classes of a file that does not name them are the sorted values of its labels.

    Attributes:
        task: a task of the hub's repository, e.g. `"mrpc"`.
        path: a folder of `train-*.parquet` and `validation-*.parquet` with the hub's columns, or of GLUE's own
            `train.tsv` and `dev.tsv`, or one with such a folder named like the task. None: the hub.
        hub: the hub's dataset, which holds each task's parquet files in a folder of its name, e.g. `"aps/super_glue"`.

    Raises:
        DataError: a setting is impossible, or a folder lacks files; all problems at once.
    """

    path: str | Path | None = None
    _: KW_ONLY
    task: str = "mrpc"
    hub: str = "nyu-mll/glue"
    files: Files | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        problems = Problems()
        if not self.tokenizer:
            problems.add(
                "dataset.tokenizer must name a tokenizer, a folder or a model of the hub; dataset.tokenizer=null, since"
                " the model has no name_or_path: choose a model of texts"
            )
        if not self.task or "/" in self.task:
            problems.add(f"dataset.task={self.task!r} must name a task, e.g. mrpc")
        problems.add(*self.text_problems().messages, *self.size_problems())
        with problems.collect():
            self.files = None if self.path is None else self._find(Path(self.path).expanduser())
        problems.raise_if_any(DataError)

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
        tested = files["test"][0].name.partition("-0")[0].partition(".")[0]
        return sentence_data(self.name, train, test, self, notes=[f"tested on {tested}"] * ("_" in tested))

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
            problems += [
                problem
                for shards in files.values()
                if shards
                for problem in shard_problems(place, shards[0].name.partition("-")[0], shards)
            ]
            if problems:
                raise DataError(*problems)
            return files
    return None


def _first(place: Path, names: Iterable[str], ending: str) -> tuple[Path, ...]:
    """The files of the first of the names that has any."""
    candidates = (tuple(sorted(place.glob(name + ending))) for name in names)
    return next((files for files in candidates if files), ())


def _missing(place: Path, split: str, ending: str) -> str:
    name = "dev.tsv" if split == "test" and ending == ".tsv" else SPLITS[split][0] + ending
    why = " (the test set of GLUE has no labels: results are on the validation set)" if split == "test" else ""
    present = ", ".join(sorted(entry.name for entry in place.iterdir())[:6])
    return f"{place} holds no {name}{why}, only {present}; fetch it"


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


def read_table(files: Sequence[Path]) -> Sentences:
    """The texts and labels in the shards of a split, or in its TSV.

    Raises:
        DataError: a file is corrupt, or has no columns of labels and texts.
    """
    table = _read_tsv(files[0]) if files[0].suffix == ".tsv" else _read_parquet(files)
    if not table.labels:
        raise DataError(f"{files[0]} holds no examples; fetch it again")
    return table


def _read_parquet(files: Sequence[Path]) -> Sentences:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = []
    for file in files:
        with reading_file(file):
            shards.append(pq.read_table(file, partitioning=None))
            table = pa.concat_tables(shards)
    label = _label_column(table.column_names, files[0])
    kinds = dict(zip(table.column_names, map(str, table.schema.types), strict=True))
    texts = [name for name, kind in kinds.items() if kind in ("string", "large_string") and name not in (label, "idx")]
    _check_texts(texts, table.column_names, files[0])
    columns = {name: table[name].to_pylist() for name in texts}
    return Sentences(str(files[0]), columns, table[label].to_pylist(), class_names(table.schema, label))


def _read_tsv(file: Path) -> Sentences:
    """A TSV as GLUE distributes it: quotation marks are ordinary characters (`quoting=3`)."""
    header, cells, broken = read_rows(file, "\t", encoding=None, quoted=False, skip_broken=True)
    rows = [column.to_pylist() for column in cells]
    if not {*LABELS} & {*header} and len(header) == len(TSV_WITHOUT_HEADER) and header[1] in ("0", "1"):
        rows = [[first, *column] for first, column in zip(header, rows, strict=True)]
        header = list(TSV_WITHOUT_HEADER)
    table = dict(zip(header, rows, strict=True))
    label = _label_column(header, file)
    texts = [name for name in header if TSV_TEXT.fullmatch(name)]
    _check_texts(texts, header, file)
    return Sentences(str(file), {name: table[name] for name in texts}, table[label], broken=broken)


def _label_column(names: Sequence[str], file: Path) -> str:
    for name in LABELS:
        if name in names:
            return name
    raise DataError(f"{file} has no column of labels (label), only {', '.join(names[:8])}; choose a task of classes")


def _check_texts(texts: Sequence[str], names: Sequence[str], file: Path) -> None:
    if not texts:
        raise DataError(f"{file} has no column of texts, only {', '.join(names[:8])}; this is another dataset")
