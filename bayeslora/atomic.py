"""Files that are there whole or not at all."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from torch import Tensor


def user_path(path: Path | str) -> Path:
    """A path as a user writes it: `~` is the home, where there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path's own raises where there is none


@contextmanager
def writable_caches() -> Iterator[None]:
    """Where the user's cache folder cannot be written, a temporary one in its place: libraries fail at import else."""
    variables = {"XDG_CACHE_HOME": ".cache", "HOME": ""}  # the second for systems that do not look at the first
    folder = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        yield
        return
    elsewhere = Path(tempfile.mkdtemp(prefix="bayeslora-cache-"))
    atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= {name: str(elsewhere / place) for name, place in variables.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well it is fsynced and takes the place of `path`.

    Raises:
        StorageError: it cannot be written (disk full, no permission); `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary, os.O_RDWR)
        temporary.replace(path)
        _fsync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise StorageError(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file so that it is there whole or not at all, also after a power cut. Returns its path."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)
    return path


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, types, shapes and values, wherever they are."""
    import torch

    contents = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        contents.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        contents.update(tensor.flatten().view(torch.uint8).numpy().data)
    return contents.hexdigest()


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary files that a killed process left of `name`; call it only where no other process writes it."""
    for file in folder.glob(f".{name}.*.tmp"):
        if file.is_file():
            file.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock on a file inside the block. The system lets go of it when the process ends, however it ends.

    Args:
        path: the lock's file; made if missing, and left there.
        busy: the message where another process holds the lock.
        wait: wait for that process instead.

    Raises:
        ConfigError: another process holds the lock.
        StorageError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(busy) from None
        yield
    finally:
        os.close(descriptor)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
