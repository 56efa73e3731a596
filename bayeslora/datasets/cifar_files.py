"""Where 32x32 colour images come from: parquet shards in the hub's layout, or torchvision's folders of batches."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bayeslora.cache import Tensors
from bayeslora.datasets.images import open_picture
from bayeslora.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SIZE = 32
"""Height and width of an image in pixels."""

SHARD = re.compile(r"-(\d+)-of-(\d+)")
CHOICES = {"label": "CIFAR-10: choose dataset=cifar10", "fine_label": "CIFAR-100: choose dataset=cifar100"}
DOWNLOAD_TIMEOUT = 20.0
"""Seconds without an answer after which a download has failed."""


class Source(Protocol):
    """Files that hold a dataset."""

    @property
    def paths(self) -> Sequence[Path]:
        """All files that `read` may read."""
        ...

    def read(self) -> Tensors:
        """Decode `{train,test}_images` (uint8 [N, 3, 32, 32]) and `{train,test}_labels` (int64 [N]).

        Raises:
            DataError: a file is corrupt or holds something else.
        """
        ...


@dataclass(frozen=True)
class ParquetImages:
    """Shards `train-*.parquet` and `test-*.parquet` with a column `img` of encoded images and one of labels.

    Attributes:
        title: the dataset's name, for messages.
        label: the column of labels.
        class_names: the classes, in the labels' order.
        shards: the files of each split.
    """

    title: str
    label: str
    class_names: tuple[str, ...]
    shards: dict[str, tuple[Path, ...]]

    @classmethod
    def find(cls, folder: Path, title: str, label: str, class_names: tuple[str, ...]) -> ParquetImages | None:
        """The shards in a folder or in one of its subfolders (`data/`, `plain_text/`); None where there are none.

        Reads the footers only.

        Raises:
            DataError: the shards hold another dataset, are cut short, or some are missing.
        """
        folders = [folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())]
        holders = [place for place in folders if any(place.glob("*.parquet"))]
        if not holders:
            return None
        place = max(holders, key=lambda holder: any(holder.glob("train-*.parquet")))
        shards = {split: tuple(sorted(place.glob(f"{split}-*.parquet"))) for split in ("train", "test")}
        source = cls(title, label, class_names, shards)
        for file in source.paths or sorted(place.glob("*.parquet")):
            source._check_columns(file)
        problems = [problem for split, files in shards.items() for problem in shard_problems(place, split, files)]
        if problems:
            raise DataError(*problems)
        return source

    @property
    def paths(self) -> Sequence[Path]:
        return [file for files in self.shards.values() for file in files]

    def read(self) -> Tensors:
        tensors: Tensors = {}
        for split, files in self.shards.items():
            images, labels = zip(*(self._read_shard(file) for file in files), strict=True)
            tensors |= {f"{split}_images": torch.cat(images), f"{split}_labels": torch.cat(labels)}
            if not len(tensors[f"{split}_labels"]):
                raise DataError(f"{files[0]} holds no images; fetch the {self.title} shards again")
        return tensors

    def _check_columns(self, file: Path) -> None:
        import pyarrow.parquet as pq

        with reading_file(file):
            schema = pq.read_schema(file)
        columns = dict(zip(schema.names, schema.types, strict=True))
        if not (_holds_bytes(columns.get("img")) and str(columns.get(self.label)).startswith(("int", "uint"))):
            likely = [f" (perhaps {choice})" for name, choice in CHOICES.items() if {"img", name} <= columns.keys()]
            raise DataError(
                f"{file} holds another dataset{''.join(likely)}: its columns are {', '.join(columns)},"
                f" while {self.title} has encoded images in img and whole numbers in {self.label}"
            )
        names = class_names(schema, self.label)
        if names and names != self.class_names:
            raise DataError(
                f"{file} holds another dataset: its classes are {', '.join(names[:4])}, …, not {self.title}'s"
            )

    def _read_shard(self, file: Path) -> tuple[Tensor, Tensor]:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with reading_file(file):
            table = pq.read_table(file, columns=["img", self.label], partitioning=None)
            labels = table[self.label].cast(pa.int64()).to_pylist()
        for row, label in enumerate(labels):
            if label is None or not 0 <= label < len(self.class_names):
                raise DataError(
                    f"{file}, row {row}: the label is {label}, outside the {len(self.class_names)} classes of"
                    f" {self.title}; fetch the shard again, or choose its own dataset"
                )
        column = table["img"]
        cells = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        images = np.empty((len(cells), SIZE, SIZE, 3), np.uint8)
        for row, cell in enumerate(cells):
            images[row] = _decode(cell.as_py(), file, row)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.int64)


@contextmanager
def reading_file(file: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into a `DataError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read, it is corrupt or cut short ({reason}); fetch it again") from error


def _holds_bytes(column: pa.DataType | None) -> bool:
    """Whether a column is binary, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    if column is not None and pa.types.is_struct(column) and column.get_field_index("bytes") >= 0:
        column = column.field("bytes").type
    return column is not None and (pa.types.is_binary(column) or pa.types.is_large_binary(column))


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The names of the classes as the hub's tools note them in a shard; empty where they do not."""
    with suppress(KeyError, TypeError, ValueError):
        note: Any = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(note["info"]["features"][label]["names"])
    return ()


def shard_problems(folder: Path, split: str, files: Sequence[Path]) -> list[str]:
    """What is missing or too much among the shards of a split."""
    if not files:
        present = ", ".join(sorted(file.name for file in folder.glob("*.parquet"))[:6])
        return [f"{folder} holds no {split}-*.parquet, only {present}; fetch the missing shards into it"]
    numbers = [(int(match[1]), int(match[2])) for file in files if (match := SHARD.search(file.name))]
    totals = {total for _, total in numbers}
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        return [
            f"{folder} holds shards of more than one {split} set: {', '.join(file.name for file in files)}; keep one"
        ]
    missing = {(index, total) for total in totals for index in range(total)} - set(numbers)
    return [f"{split}-{i:05d}-of-{n:05d}.parquet is missing in {folder}; fetch it" for i, n in sorted(missing)[:6]]


def _decode(blob: bytes | None, file: Path, row: int) -> np.ndarray:
    """One encoded image -> uint8 [32, 32, 3]."""
    image = open_picture(blob or b"", f"{file}, row {row}", "fetch the shard again").image
    if image.size == (SIZE, SIZE) and image.mode != "F":
        return np.asarray(image.convert("RGB"))
    raise DataError(
        f"{file}, row {row}: the image has {image.width}x{image.height} pixels"
        f"{' of more than 8 bits' if image.mode == 'F' else ''}, not {SIZE}x{SIZE} of 8 bits: this is another dataset"
    )


@dataclass(frozen=True)
class TorchvisionImages:
    """The official batches as torchvision unpacks them; only files whose md5 is torchvision's are ever unpickled.

    Attributes:
        root: the folder above the dataset's own.
        folder: the dataset's own folder, e.g. `cifar-10-batches-py`.
        name: torchvision's class, `CIFAR10` or `CIFAR100`.
    """

    root: Path
    folder: str
    name: str

    @property
    def paths(self) -> Sequence[Path]:
        return sorted(file for file in (self.root / self.folder).iterdir() if file.is_file())

    def read(self) -> Tensors:
        from torchvision.datasets.utils import check_integrity

        dataset, place = self._torchvision(), self.root / self.folder
        parts = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
        broken = [name for name, md5 in parts if not check_integrity(place / name, md5)]
        if broken:
            raise DataError(
                f"{place}: {', '.join(broken)} missing or not the official file (md5); delete the folder and unpack"
                f" {dataset.filename} again"
            )
        tensors: Tensors = {}
        for split in ("train", "test"):
            loaded = dataset(self.root, train=split == "train")
            tensors[f"{split}_images"] = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
            tensors[f"{split}_labels"] = torch.tensor(loaded.targets)
        return tensors

    def fetch(self, download: bool) -> None:
        """Unpack the official archive into the root, if it lies there; else download it first, if `download`.

        Raises:
            DataError: there is no archive and it cannot be had; the message says which file to put where.
        """
        from torchvision.datasets.utils import check_integrity, download_and_extract_archive

        dataset, reason = self._torchvision(), "dataset.download=false"
        if download or check_integrity(self.root / dataset.filename, dataset.tgz_md5):
            try:
                with _socket_timeout(DOWNLOAD_TIMEOUT):
                    download_and_extract_archive(dataset.url, self.root, filename=dataset.filename, md5=dataset.tgz_md5)
            except (OSError, RuntimeError, HTTPException) as error:
                reason = f"downloading failed: {error}"
            else:
                return
        raise DataError(
            f"{self.name} is not in {self.root} ({reason}). Fetch {dataset.filename} ({dataset.url}, md5"
            f" {dataset.tgz_md5}) by other means and put it into {self.root}, or point dataset.path=FOLDER at a folder"
            f" that holds {self.folder}/ or train-*.parquet and test-*.parquet"
        )

    def _torchvision(self) -> Any:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.name)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let connections opened inside the block fail after so many seconds without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
