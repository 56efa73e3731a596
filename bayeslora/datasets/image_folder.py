"""A folder of images, one folder a class.

Neither torchvision's `ImageFolder` nor the one of `datasets` is used to list the files: the first takes hidden folders
for classes, the second splits by words in file names (`dog_test_1.jpg`), and neither says what it leaves out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from PIL import Image

from bayeslora.cache import cached
from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Sizes
from bayeslora.datasets.images import decode_images, decoding_notes, shared_notes
from bayeslora.datasets.tabular import Targets, assemble, held_out, setting_problems
from bayeslora.errors import DataError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
"""What folders of splits are called, in any case; the first test set that is there is taken."""
HIDDEN = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini")
"""What systems leave in folders, beside names that begin with a dot."""

TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl")
"""Endings of files that may describe images instead of their folders."""


@dataclass
class ImageFolder(Sizes):
    """Images in `train/<class>/…` and `test/<class>/…` (or `val`, …), or in `<class>/…`, of which a share is held out.

    Any format that Pillow reads is an image. Hidden files and folders are skipped; what is left out is counted in the
    notes of the data. Images are decoded once (`decode_images`), cut to the middle square and scaled to `size`.

    Attributes:
        path: the folder.
        size: height and width in pixels; None: the height of the first image.
        channels: 3 (colour) or 1 (grey); None: 1 if all images are grey.
        test_share: share of each class held out where there is no folder of test images.

    Raises:
        DataError: a setting is impossible, or the folder holds no classes; all problems at once.
    """

    path: str | Path
    _: KW_ONLY
    size: int | None = 32
    channels: int | None = 3
    test_share: float = 0.2

    def __post_init__(self) -> None:
        problems = setting_problems(self, "auto", self.test_share)
        if self.size is not None and self.size < 1:
            problems.add(f"dataset.size={self.size} must be at least 1 (pixels)")
        if self.channels not in (1, 3, None):
            problems.add(f"dataset.channels={self.channels} must be 3 (colour) or 1 (grey)")
        if self.path is None or not Path(self.path).expanduser().is_dir():
            problems.add(f"dataset.path={self.path} must be a folder with a folder of images for each class")
        problems.raise_if_any(DataError)

    def load(self) -> Data:
        """Read the images into memory: uint8 [N, C, size, size].

        Raises:
            DataError: there are fewer than two classes, an empty one, or an image that cannot be read.
        """
        root = Path(self.path).expanduser()
        layout = Layout.find(root)
        names = class_folders(layout.train)
        train = _listed(layout.train, names)
        if empty := sorted(set(range(len(names))) - {number for _, number in train}):
            raise DataError(f"{layout.train / names[empty[0]]} holds no images; add some or remove the folder")
        if layout.test is None:
            train, test = self._hold_out(train)
            notes = [f"{counted(len(test), 'image')} held out for the test set"]
        else:
            if new := sorted(set(subfolders(layout.test)) - set(names)):
                raise DataError(f"{layout.test} has a class {new[0]}, which {layout.train} lacks")
            test, notes = _listed(layout.test, names), []
            if not test:
                raise DataError(f"{layout.test} holds no images of the classes {', '.join(names[:6])}")
        files = [file for file, _ in (*train, *test)]
        decoded = cached(
            f"images-{self.size}x{self.channels}",
            files,
            lambda: decode_images(((file, str(file)) for file in files), self.size, self.channels),
        )
        numbers = [torch.tensor([number for _, number in part]) for part in (train, test)]
        inputs = decoded["images"][: len(train)], decoded["images"][len(train) :]
        return assemble(
            root.name, inputs, Targets(numbers[0], numbers[1], tuple(names)), sizes=self,
            notes=[*notes, *left_out_notes(root, files), *decoding_notes(decoded), *shared_notes(*inputs, numbers[0])],
        )  # fmt: skip

    def _hold_out(self, files: list[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
        """Files and classes of the training and the test set, a share of every class."""
        parts: tuple[list[tuple[Path, int]], list[tuple[Path, int]]] = [], []
        for number in sorted({number for _, number in files}):
            own = [entry for entry in files if entry[1] == number]
            if len(own) < 2:
                raise DataError(
                    f"{own[0][0].parent} holds one image, of which none can be held out for the test set; add some, or"
                    " make a folder test/ beside train/"
                )
            for part, rows in zip(parts, held_out(len(own), self.test_share), strict=True):
                part.extend(own[row] for row in rows)
        return parts


@dataclass(frozen=True)
class Layout:
    """Which folders hold the folders of the classes.

    Attributes:
        train: of the training images.
        test: of the test images; None: a share of the training images is to be held out.
    """

    train: Path
    test: Path | None

    @classmethod
    def find(cls, root: Path) -> Layout:
        """The splits in a folder, by name in any case; a folder so called without folders in it is a class.

        Raises:
            DataError: two folders have names of one split, splits and classes lie side by side, or splits in classes.
        """
        folders = {name: name.casefold() for name in subfolders(root)}
        by_word = {name: _split_word(name) for name in folders if subfolders(root / name)}
        if all({*by_word.values()} & {*names} for names in (TRAIN_NAMES, TEST_NAMES)) and None not in by_word.values():
            folders |= {name: word for name, word in by_word.items() if word}  # train_images/ and test_images/
        splits = [name for name, word in folders.items() if word in TRAIN_NAMES + TEST_NAMES]
        nested = [name for name in splits if subfolders(root / name)]
        if not nested:
            if len(splits) == len(folders) > 1:
                raise DataError(
                    f"{root} holds {', '.join(splits)}, which are names of splits, with no folder for each class in"
                    f" them, as in {root / splits[0]}/cats/1.jpg"
                )
            inside = [{*map(str.casefold, subfolders(root / name))} for name in folders]
            if len(inside) > 1 and all(names & {*TRAIN_NAMES} and names & {*TEST_NAMES} for names in inside):
                raise DataError(
                    f"{root} holds folders of splits in each folder of a class ({', '.join(folders)}); put the splits"
                    f" outside, as in {root}/train/{next(iter(folders))}/1.jpg"
                )
            return cls(root, None)
        train = [name for name in nested if folders[name] in TRAIN_NAMES]
        tests = sorted((TEST_NAMES.index(folders[name]), name) for name in nested if name not in train)
        first = [name for index, name in tests if index == tests[0][0]]
        for double in (train, first):
            if len(double) > 1:
                raise DataError(f"{root} holds {' and '.join(double)}; keep one of them")
        others = [name for name in folders if name not in splits and next(images_in(root / name), None)]
        if not train or (others and not tests):
            raise DataError(
                f"{root} holds {', '.join(nested)} of a split beside {', '.join(others[:4]) or 'no training images'};"
                " put the folders of all classes into train/ and test/, or all classes side by side"
            )
        return cls(root / train[0], root / first[0] if first else None)


def _split_word(name: str) -> str | None:
    """The name of a split in a folder's name, as in `train_images` or `seg-test`; None: there is none, or several."""
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word in TRAIN_NAMES + TEST_NAMES]
    return words[0] if len(words) == 1 else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is one of those that systems leave."""
    return name.startswith(".") or name.casefold() in HIDDEN


def subfolders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))


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
            + (
                f"; set dataset.path={root / names[0]} if that holds them"
                if names and subfolders(root / names[0])
                else ""
            )
        )
    return names


def files_in(root: Path) -> Iterator[tuple[Path, bool]]:
    """All files below a folder in order, and whether each is hidden or in a hidden folder; links are followed once."""
    seen = {root.resolve(), *root.resolve().parents}
    for place, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if Path(place, name).resolve() not in seen)
        seen |= {Path(place, name).resolve() for name in folders}
        hidden = any(is_hidden(part) for part in Path(place).relative_to(root).parts)
        for name in sorted(names):
            yield Path(place, name), hidden or is_hidden(name)


def images_in(root: Path) -> Iterator[Path]:
    """The image files below a folder, in order, by their ending."""
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return (file for file, hidden in files_in(root) if not hidden and file.suffix.lower() in endings)


def holds_classes_of_images(root: Path) -> bool:
    """Whether a folder is one of images by class: most files are images, and no `metadata.*` describes them."""
    images = sum(file.parent != root for file in images_in(root))
    others = [file for file, hidden in files_in(root) if not hidden and file.suffix.lower() in TABLES]
    return images > len(others) and not any(file.stem == "metadata" for file in others)


def left_out_notes(root: Path, taken: Sequence[Path]) -> list[str]:
    """Says how many files below a folder are hidden, are no images, or are images that were not taken."""
    ours, images, places = set(taken), set(images_in(root)), Counter[str]()
    hidden, endings = 0, Counter[str]()
    for file, is_hidden_file in files_in(root):
        if is_hidden_file:
            hidden += 1
        elif file not in images:
            endings[file.suffix.lower() or "no ending"] += 1
        elif file not in ours:
            places[str(file.parent.relative_to(root))] += 1
    notes = {
        f"{counted(hidden, 'hidden file')} left out": hidden,
        f"{counted(endings.total(), 'file')} of other kinds left out ({', '.join(sorted(endings)[:6])})": endings,
        f"{counted(places.total(), 'image')} outside the classes' folders left out (in {', '.join([*places][:4])})":
            places,
    }  # fmt: skip
    return [note for note, holds in notes.items() if holds]


def _listed(root: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Image files with their class numbers, in order."""
    folders = [(number, root / name) for number, name in enumerate(names)]
    return [(file, number) for number, folder in folders if folder.is_dir() for file in images_in(folder)]
