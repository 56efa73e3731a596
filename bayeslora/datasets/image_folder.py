"""A folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.datasets.base import Data
from bayeslora.datasets.cache import cached
from bayeslora.datasets.images import fitted
from bayeslora.datasets.tables import Targets, assemble, held_out, setting_problems
from bayeslora.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass
class ImageFolder:
    """Images in `train/<class>/…` and `test/<class>/…` (or `val`), or in `<class>/…`, of which a share is held out.

    Images are decoded once, cut to the middle square and scaled to `size`.

    Attributes:
        path: the folder.
        size: height and width in pixels.
        channels: 3 (colour) or 1 (grey).
        test_share: share of each class held out where there is no folder of test images.
        validation_size: images moved from the training set to a validation set.
        limit_train, limit_test: keep at most so many; None keeps all.

    Raises:
        DataError: a setting is impossible, or the folder holds no classes; all problems at once.
    """

    path: str | Path
    _: KW_ONLY
    size: int = 32
    channels: int = 3
    test_share: float = 0.2
    validation_size: int = 0
    limit_train: int | None = None
    limit_test: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.validation_size, self.limit_train, self.limit_test)
        problems = setting_problems("auto", self.test_share, *sizes)
        if self.size < 1:
            problems.add(f"dataset.size={self.size} must be at least 1 (pixels)")
        if self.channels not in (1, 3):
            problems.add(f"dataset.channels={self.channels} must be 3 (colour) or 1 (grey)")
        if self.path is None or not Path(self.path).expanduser().is_dir():
            problems.add(f"dataset.path={self.path} must be a folder with a folder of images for each class")
        if problems.found:
            raise DataError(*problems.found)

    def load(self) -> Data:
        """Read the images into memory: uint8 [N, C, size, size].

        Raises:
            DataError: there are fewer than two classes, an empty one, or an image that cannot be read.
        """
        root = Path(self.path).expanduser()
        train_root = root / "train" if (root / "train").is_dir() else root
        test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
        if train_root == root:
            test_root = None
        names = class_folders(train_root)
        train, notes = _listed(train_root, names), []
        if test_root is None:
            train, test = self._hold_out(train)
            notes = [f"{len(test):,} images held out for the test set"]
        else:
            if new := sorted(set(subfolders(test_root)) - set(names)):
                raise DataError(f"{test_root} has a class {new[0]}, which {train_root} lacks")
            test = _listed(test_root, names)
        numbers = [torch.tensor([number for _, number in part]) for part in (train, test)]
        targets = Targets(numbers[0], numbers[1], tuple(names))
        images = self._images([file for file, _ in (*train, *test)])
        inputs = images[: len(train)], images[len(train) :]
        return assemble(
            root.name, inputs, targets, validation_size=self.validation_size, limit_train=self.limit_train,
            limit_test=self.limit_test, notes=notes,
        )  # fmt: skip

    def _hold_out(self, files: list[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
        """Files and classes of the training and the test set, a share of every class."""
        parts: tuple[list[tuple[Path, int]], list[tuple[Path, int]]] = [], []
        for number in sorted({number for _, number in files}):
            own = [entry for entry in files if entry[1] == number]
            for part, rows in zip(parts, held_out(len(own), self.test_share), strict=True):
                part.extend(own[row] for row in rows)
        return parts

    def _images(self, files: Sequence[Path]) -> Tensor:
        """The images in order, decoded once and cached."""
        key = f"images-{self.size}x{self.channels}"
        return cached(key, files, lambda: {"images": torch.stack([self._decoded(file) for file in files])})["images"]

    def _decoded(self, file: Path) -> Tensor:
        """One image uint8 [C, size, size]."""
        from PIL import Image

        try:
            with Image.open(file) as found:
                return fitted(found, self.size, "RGB" if self.channels == 3 else "L")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).split(" <")[0]
            raise DataError(f"{file} cannot be read as an image ({reason}); remove or mend it") from error


def subfolders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def class_folders(root: Path) -> list[str]:
    """The names of the classes, sorted: the folders in `root`.

    Raises:
        DataError: there are fewer than two.
    """
    names = subfolders(root)
    if len(names) < 2:
        present = ", ".join(sorted(entry.name for entry in root.iterdir())[:6]) or "nothing"
        raise DataError(
            f"{root} holds {present}; it must hold a folder for each class, two at least, as in {root}/cats/1.jpg"
            f" and {root}/dogs/1.jpg"
        )
    return names


def _listed(root: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Image files with their class numbers, in order."""
    found = []
    for number, name in enumerate(names):
        folder = root / name
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS) if folder.is_dir() else []
        if not files and root.name not in TEST_FOLDERS:
            raise DataError(f"{folder} holds no images ({', '.join(ENDINGS)}); add some or remove the folder")
        found += [(file, number) for file in files]
    if not found:
        raise DataError(f"{root} holds no images of the classes {', '.join(names[:6])}")
    return found
