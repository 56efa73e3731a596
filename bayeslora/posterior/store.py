"""Draws on disk: one safetensors file each, listed in an append-only manifest with its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from bayeslora.atomic import digest, remove_leftovers, write_atomically
from bayeslora.errors import DataError, StorageError

MAP_FILE = "map.safetensors"
"""In a chain's folder: its warm-up's end point."""


@dataclass(frozen=True)
class Record:
    """A line of the manifest: which draw, after how many steps, its checksum and its scalars."""

    index: int
    step: int
    sha256: str
    size: int
    scalars: dict[str, float]


@dataclass(frozen=True)
class Draw:
    """One kept state: sampled tensors and the buffers that go with them, by name, on the CPU."""

    chain: int
    index: int
    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, float]


class DrawStore:
    """The draws of one chain in `folder`: `draws/<index>.safetensors` and `manifest.jsonl`.

    A draw is on disk entirely or not at all: it is written to a temporary name, fsynced and renamed, and only then
    listed. Reading never executes code and never follows a path from the manifest.

    Args:
        folder: the chain's folder, e.g. `run_dir/chains/0`; made when the first draw is kept.
        chain: the chain's number.
    """

    def __init__(self, folder: Path | str, chain: int) -> None:
        self.folder, self.chain = Path(folder), chain
        self.manifest = self.folder / "manifest.jsonl"

    def path(self, index: int) -> Path:
        """Where draw number `index` lies."""
        return self.folder / "draws" / f"{index:06d}.safetensors"

    def append(self, state: Mapping[str, Tensor], *, step: int, scalars: Mapping[str, float] | None = None) -> Path:
        """Keep a state as the draw after the last one.

        Args:
            state: tensors by name, on any device.
            step: steps of the plan taken when the state was reached.
            scalars: finite diagnostics of the state, e.g. its potential in nats.
        """
        return self.put(len(self), state, step=step, scalars=scalars)

    def put(
        self, index: int, state: Mapping[str, Tensor], *, step: int, scalars: Mapping[str, float] | None = None
    ) -> Path:
        """Keep a state as draw number `index`; a chain run again puts the same draws, and their lines once."""
        content = serialise(state, {"chain": self.chain, "index": index, "step": step})
        path = self.path(index)
        record = Record(index, step, hashlib.sha256(content).hexdigest(), len(content), dict(scalars or {}))
        listed = self._records().get(index) == record
        if not (listed and self.intact(record)):
            write_atomically(path, content)
        if not listed:
            self._append_line(asdict(record))
        return path

    def note(self, event: Mapping[str, Any]) -> None:
        """Record in the manifest what happened to the chain, e.g. `{"event": "retry", …}`; the same event once."""
        if dict(event) not in self.events():
            self._append_line(dict(event))

    def events(self) -> list[dict[str, Any]]:
        """What `note` recorded."""
        lines = (_parse_json(line) for line in self._lines())
        return [line for line in lines if isinstance(line, dict) and "event" in line]

    def repair(self) -> None:
        """Remove what a killed process left half written: temporary files, and a manifest's last line that was cut."""
        remove_leftovers(self.folder)
        remove_leftovers(self.folder / "draws")
        if self.manifest.exists() and not _ends_with_newline(self.manifest):
            lines = self.manifest.read_bytes().splitlines(keepends=True)
            write_atomically(self.manifest, b"".join(line for line in lines if line.endswith(b"\n")))

    def intact(self, record: Record) -> bool:
        """Whether a draw's file is what the manifest says."""
        path = self.path(record.index)
        try:
            if not path.is_file() or path.stat().st_size != record.size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        except OSError:
            return False

    def __len__(self) -> int:
        """Draws kept without a gap from the first."""
        return len(self.records())

    def records(self) -> list[Record]:
        """The manifest's lines in the order of the draws, up to the first missing one; unreadable lines are skipped."""
        records = self._records()
        return [records[i] for i in takewhile(records.__contains__, count())]

    def load(self, record: Record) -> Draw:
        """Read one draw.

        Raises:
            DataError: the file is missing, or is not what the manifest's checksum says.
        """
        path = self.path(record.index)
        if not self.intact(record):
            state = "is missing" if not path.exists() else "does not match its checksum in manifest.jsonl"
            raise DataError(
                f"draw {path} {state}; repeat the training command with run_dir=… of this run to compute it again"
            )
        return Draw(self.chain, record.index, record.step, read_tensors(path), record.scalars)

    def __iter__(self) -> Iterator[Draw]:
        return (self.load(record) for record in self.records())

    def _records(self) -> dict[int, Record]:
        records = (parse_record(line) for line in self._lines())
        return {record.index: record for record in records if record is not None}

    def _lines(self) -> list[bytes]:
        try:
            return self.manifest.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"cannot read {self.manifest} ({error.strerror})") from error

    def _append_line(self, fields: Mapping[str, Any]) -> None:
        """Add a line to the manifest, and see it on disk."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.manifest.open("ab") as file:
                if file.tell() and not _ends_with_newline(self.manifest):
                    file.write(b"\n")
                file.write(json.dumps(fields, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(self.manifest, error) from error


def parse_record(line: bytes) -> Record | None:
    """A manifest line, or None for one that was cut off or is no record."""
    try:
        record = Record(**_parse_json(line))
    except TypeError:
        return None
    whole = all(type(v) is int and v >= 0 for v in (record.index, record.step, record.size))
    numbers = isinstance(record.scalars, dict) and all(map(_is_finite, record.scalars.values()))
    return record if whole and numbers and isinstance(record.sha256, str) else None


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold, neither NaN nor infinite."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _parse_json(line: bytes) -> Any:
    """What a line says, or None if it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def serialise(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """Tensors by name as safetensors bytes, equal for equal input.

    The metadata is one entry, since the format writes several in an order of its own. Tensors are copied: views of one
    storage, which the format does not take, are written as tensors of their own.
    """
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    return save_safetensors(copies, metadata={"bayeslora": json.dumps(dict(metadata), sort_keys=True)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        DataError: missing or corrupt.
    """
    try:
        return load_safetensors(path.read_bytes())
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"cannot read {path} ({error}); it is missing or corrupt") from error


def parse_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `serialise` wrote: tensors and metadata.

    Raises:
        DataError: missing or corrupt.
    """
    tensors = read_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["bayeslora"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{path} does not say what it holds ({error})") from error
    if not isinstance(metadata, dict):
        raise DataError(f"{path} does not say what it holds")
    return tensors, metadata


def write_baseline(path: Path, state: Mapping[str, Tensor], chain: int, step: int) -> None:
    """Write a chain's MAP baseline, with a checksum of its own since no manifest lists it."""
    write_atomically(path, serialise(state, {"chain": chain, "step": step, "sha256": digest(state)}))


def read_baseline(path: Path) -> dict[str, Tensor]:
    """Read what `write_baseline` wrote.

    Raises:
        DataError: missing or corrupt.
    """
    tensors, facts = parse_tensors(path)
    if facts.get("sha256") != digest(tensors):
        raise DataError(
            f"{path} does not match its checksum; repeat the training command with run_dir=… of this run to compute it"
            " again"
        )
    return tensors


def load_into(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy a draw's tensors into a model, leaving what the draw does not hold as it is.

    Raises:
        DataError: a tensor that the model lacks or of another shape: the draw belongs to another model.
    """
    own = model.state_dict()
    wrong = [name for name, t in tensors.items() if name not in own or own[name].shape != t.shape]
    if wrong:
        raise DataError(f"{source} belongs to another model: it lacks or reshapes {', '.join(wrong[:3])}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _ends_with_newline(path: Path) -> bool:
    """Whether no line of a file was cut; an empty file has none."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
