"""Arrays in a NumPy file: images or tables, with classes or numbers to predict."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Sizes
from bayeslora.datasets.images import shared_notes
from bayeslora.datasets.tabular import assemble, file_problems, held_out, read_targets, setting_problems
from bayeslora.errors import DataError

NAMES = {
    "x_train": ("x_train", "X_train", "train_images", "train_x", "x", "X"),
    "y_train": ("y_train", "Y_train", "train_labels", "train_y", "y", "Y"),
    "x_test": ("x_test", "X_test", "test_images", "test_x"),
    "y_test": ("y_test", "Y_test", "test_labels", "test_y"),
}
"""What the arrays may be called; Keras's files and MedMNIST's are among them."""
CHANNELS = (1, 3, 4)
"""Usual numbers of channels of an image: grey, RGB, and RGB with a fourth."""


@dataclass
class Npz(Sizes):
    """A file `.npz` with x_train, y_train, x_test, y_test (or x and y, of which a share is held out for testing).

    Images are bytes of 0..255, [N, H, W], [N, H, W, C] or [N, C, H, W] (see `channel_axis`); four channels are taken as
    they are. Other inputs are numbers, [N, F] or of more axes. Targets are classes (whole numbers, text) or real
    numbers, [N] or [N, D].

    Attributes:
        path: the file.
        task: `"classification"`, `"regression"`, `"labels"`, or `"auto"`: by the targets (see `read_targets`).
        test_share: share of the examples held out where the file has no test set.
        standardise: numbers, inputs and targets, are scaled to mean 0 and sd 1 of the training set. Images always are.
        class_names: to show, in the order of the sorted classes; None: their values.

    Raises:
        DataError: a setting is impossible, or there is no such file; all problems at once.
    """

    path: str | Path
    _: KW_ONLY
    task: str = "auto"
    test_share: float = 0.2
    standardise: bool = True
    class_names: list[str] | None = None

    def __post_init__(self) -> None:
        problems = setting_problems(self, self.task, self.test_share)
        problems.add(*file_problems("path", self.path, "a file .npz with x_train, y_train, x_test and y_test"))
        problems.raise_if_any(DataError)

    def load(self) -> Data:
        """Read the arrays into memory.

        Raises:
            DataError: an array is missing, corrupt or of another form than the others.
        """
        file = Path(self.path).expanduser()
        arrays, notes = self._parts(file)
        targets = read_targets(arrays["y_train"], arrays["y_test"], self.task, str(file))
        shown = tuple(self.class_names or ())
        if shown and len(shown) != len(targets.class_names):
            raise DataError(
                f"dataset.class_names has {len(shown)} names and {file} {len(targets.class_names)} classes; name each"
            )
        train, test = (_inputs(arrays[name], f"{file}, {name}") for name in ("x_train", "x_test"))
        if train.dtype == torch.uint8:
            notes += ["4 channels, taken as they are: transparency is not applied"] * (train.shape[1] == 4)
        notes += shared_notes(train, test, what="image" if train.dtype == torch.uint8 else "example")
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            raise DataError(f"{file}: x_train is {list(train.shape)} and x_test {list(test.shape)}: not of one form")
        return assemble(
            file.stem, (train, test), targets, standardise=self.standardise, sizes=self, notes=notes, shown_as=shown,
        )  # fmt: skip

    def _parts(self, file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
        """Inputs and targets of training and test set by name, and what to say of them."""
        arrays = read_arrays(file)
        by_part = {part: next((arrays[n] for n in names if n in arrays), None) for part, names in NAMES.items()}
        present = {part: array for part, array in by_part.items() if array is not None}
        missing = [part for part in ("x_train", "y_train") if part not in present]
        if missing or ("x_test" in present) != ("y_test" in present):
            wanted = missing or [part for part in ("x_test", "y_test") if part not in present]
            raise DataError(
                f"{file} holds {', '.join(arrays) or 'nothing'}, and no {' and '.join(wanted)}; save it by"
                " np.savez(file, x_train=…, y_train=…, x_test=…, y_test=…)"
            )
        for split in {part.partition("_")[2] for part in present}:
            sizes = [len(present[f"{axis}_{split}"]) if present[f"{axis}_{split}"].ndim else 0 for axis in "xy"]
            if len(set(sizes)) > 1 or not sizes[0]:
                raise DataError(f"{file}: {sizes[0]} inputs and {sizes[1]} targets of {split}; there must be as many")
        if "x_test" in present:
            return present, []
        train, test = held_out(len(present["y_train"]), self.test_share)
        rows = {"train": train, "test": test}
        parts = {f"{axis}_{split}": present[f"{axis}_train"][rows[split]] for axis in "xy" for split in rows}
        return parts, [f"{counted(len(test), 'example')} held out for the test set"]


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy file by name; objects are refused, since reading them would run code.

    Raises:
        DataError: it is no such file.
    """
    try:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError(f"it holds one array {list(archive.shape)}, as .npy does, and no targets")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{file} cannot be read as .npz of plain arrays ({reason}); write it by np.savez(file, x_train=…, …)"
            " without objects"
        ) from error


def _inputs(array: np.ndarray, where: str) -> Tensor:
    """Images uint8 [N, C, H, W], or numbers float32 [N, …].

    Raises:
        DataError: neither bytes nor numbers, not finite, or images of which no axis is that of the channels.
    """
    if array.dtype.kind not in "fiub" or array.ndim < 2:
        raise DataError(f"{where} is {array.dtype} {list(array.shape)}; inputs must be images or numbers [N, F]")
    if array.ndim == 4:
        array = np.moveaxis(array, channel_axis(array.shape, where), 1)
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        return torch.from_numpy(np.ascontiguousarray(array[:, None] if array.ndim == 3 else array))
    with np.errstate(over="ignore"):
        numbers = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not numbers.isfinite().all():
        count, most = int((~numbers.isfinite()).sum()), np.finfo(np.float32).max
        raise DataError(f"{where}: {count} values are NaN, infinite or above {most:.1e}; fill or remove them")
    return numbers


def channel_axis(shape: tuple[int, ...], where: str) -> int:
    """The axis of the channels of images [N, C, H, W] or [N, H, W, C]: 1 or 3.

    It is the one of `CHANNELS` channels, if one of the two is; else the one that leaves square images.

    Raises:
        DataError: neither tells.
    """
    usual = [axis for axis in (1, 3) if shape[axis] in CHANNELS]
    square = [axis for axis, rest in ((1, shape[2:]), (3, shape[1:3])) if rest[0] == rest[1]]
    for axes in (usual, square):
        if len(axes) == 1:
            return axes[0]
    raise DataError(
        f"{where} is {list(shape)}, and may be [N, C, H, W] or [N, H, W, C]; use images of 1, 3 or 4 channels that are"
        " higher and wider than that"
    )
