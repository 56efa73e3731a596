"""Tensors decoded once and kept on disk, under a name made from the contents of the files they come from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora.atomic import digest, replaced
from bayeslora.errors import DataError, StorageError

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

FORMAT = "3"
"""Changes when the same sources are to give other tensors."""


def home() -> Path:
    """Where the package keeps files between runs: `$XDG_CACHE_HOME/bayeslora`, or `~/.cache/bayeslora`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayeslora"


def cache_folder() -> Path:
    """Where decoded data are cached: `$BAYESLORA_CACHE`, or `home()`."""
    return Path(os.environ.get("BAYESLORA_CACHE") or home()).expanduser()


def data_folder() -> Path:
    """Where downloads go: `$BAYESLORA_DATA`, or `home() / "data"`."""
    return Path(os.environ.get("BAYESLORA_DATA") or home() / "data").expanduser()


def cached(
    name: str, files: Sequence[Path], build: Callable[[], Tensors], folder: Path | None = None, slow: bool = True
) -> Tensors:
    """What `build()` makes of `files`: read from the cache if they were seen before, else built and kept.

    A damaged cache file is rebuilt, and a folder that cannot be written costs speed only.

    Args:
        name: first part of the cache file's name.
        files: the sources; their names, sizes and contents (not their folder) are the key.
        build: makes the tensors from the sources.
        folder: of the cache; None for `cache_folder()`.
        slow: whether building takes so long that it is told.

    Raises:
        DataError: a source cannot be read, or what `build` raises.
    """
    path = (folder or cache_folder()) / f"{name}-{fingerprint(files)}.safetensors"
    tensors = _read(path)
    if tensors is None:
        if slow:
            log.info("decoding %s once into %s", name, path)
        tensors = build()
        _write(tensors, path)
    return tensors


def fingerprint(files: Sequence[Path]) -> str:
    """32 hex digits that change with the name, size or contents of any of the files.

    Raises:
        DataError: a file cannot be read.
    """
    identity = hashlib.sha256(FORMAT.encode())
    for path in files:
        try:
            with path.open("rb") as file:
                contents = hashlib.file_digest(file, "sha256").hexdigest()
                identity.update(f"\n{path.name}/{file.tell()}/{contents}".encode())
        except OSError as error:
            fix = "it is a link to a file that is gone" if path.is_symlink() else "check its permissions"
            raise DataError(f"{path} cannot be read ({error.strerror}): {fix}") from error
    return identity.hexdigest()[:32]


def _read(path: Path) -> Tensors | None:
    """The tensors of a cache file; None if there is none, or it is not what was written."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("sha256") == digest(tensors):
                return tensors
    except (OSError, SafetensorError) as error:
        log.debug("reading %s: %s", path, error)
    log.warning("the cache file %s is damaged and will be rebuilt", path)
    return None


def _write(tensors: Tensors, path: Path) -> None:
    """Keep the tensors: all of them under the final name, or nothing."""
    try:
        with replaced(path) as temporary:
            save_file(tensors, temporary, {"sha256": digest(tensors)})
    except (StorageError, SafetensorError) as error:
        log.warning("the cache %s cannot be written (%s): the data will be decoded again next time", path.parent, error)
