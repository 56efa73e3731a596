"""Handwritten digits of 8x8 pixels: the dataset for tests, first steps and machines without a network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from bayeslora.cache import cached
from bayeslora.datasets.base import Data, Sizes, Split
from bayeslora.datasets.images import Normalise, RandomShift
from bayeslora.errors import ConfigError

TEST_SIZE = 360
MEAN, STD = 0.3054, 0.3760
"""Of the training pixels, on the scale 0..1."""


@dataclass(kw_only=True)
class Digits(Sizes):
    """1,797 grey digits, which come with scikit-learn: 1,437 to train on, 360 to test, split by class, always alike.

    Attributes:
        augment: shift training images by up to one pixel.

    Raises:
        ConfigError: a size is impossible.

    Source: Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits (its test set).
    """

    augment: bool = False

    def __post_init__(self) -> None:
        problems = self.size_problems()
        if problems:
            raise ConfigError(*problems)

    def load(self) -> Data:
        """Read the data into memory: inputs uint8 [N, 1, 8, 8], 0..16 spread over 0..255.

        Raises:
            ConfigError: the validation set takes all.
        """
        parts = cached("digits", _data_files(), _decode, slow=False)
        train, test = (Split(parts[f"{part}_images"], parts[f"{part}_labels"]) for part in ("train", "test"))
        shift = RandomShift(padding=1, flip=False) if self.augment else None
        data = Data(
            name="digits",
            train=train,
            validation=train.take(slice(0)),
            test=test,
            class_names=tuple("0123456789"),
            transform=Normalise((MEAN,), (STD,)),
            augment=shift,
            augmentation=str(shift or "none"),
        )
        return self.carve(data)


def _data_files() -> list[Path]:
    """The file in scikit-learn, found without importing it, which takes most of a second."""
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    return [file for folder in folders or [] if (file := Path(folder) / "datasets/data/digits.csv.gz").is_file()]


def _decode() -> dict[str, torch.Tensor]:
    """Images uint8 [N, 1, 8, 8] and labels int64 [N] of both splits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    rows = train_test_split(np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=0)
    return {
        f"{name}_{kind}": torch.from_numpy(values[part])
        for name, part in zip(("train", "test"), rows, strict=True)
        for kind, values in (("images", images), ("labels", labels))
    }
