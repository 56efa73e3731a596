"""CIFAR-10 and CIFAR-100: from a folder on disk, or downloaded; held in memory as one uint8 tensor a split.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from bayeslora.cache import Tensors, cached, data_folder
from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Sizes, Split
from bayeslora.datasets.cifar_files import ParquetImages, Source, TorchvisionImages
from bayeslora.datasets.images import Normalise, RandomShift, channel_problems
from bayeslora.errors import DataError, Problems

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
"""CIFAR-100's coarse classes, in the order of their labels, and the fine classes of each."""

CIFAR100_CLASSES = tuple(sorted(fine for names in SUPERCLASSES.values() for fine in names.split()))
COARSE_OF_FINE = tuple(
    next(coarse for coarse, names in enumerate(SUPERCLASSES.values()) if fine in names.split())
    for fine in CIFAR100_CLASSES
)

FOLDERS = {"cifar-10-batches-py": "dataset=cifar10", "cifar-100-python": "dataset=cifar100"}
OFFICIAL = {"train": 50_000, "test": 10_000}


@dataclass
class Cifar10(Sizes):
    """CIFAR-10. The constructor checks the settings and looks into `path`; `load` decodes, or reads the cache.

    Attributes:
        path: a folder in torchvision's layout (`cifar-10-batches-py/` in it, or that folder itself), or one of parquet
            shards `train-*.parquet` and `test-*.parquet` with the hub's columns. None: the official archive, unpacked
            in `$BAYESLORA_DATA` (`~/.cache/bayeslora/data`), where it is downloaded to if need be.
        augment: random crops (padding 4) and horizontal flips of training images.
        mean, std: normalisation, one number a channel, on the scale 0..1.
        download: whether downloading is allowed.
        cache: folder for the decoded images; None for `$BAYESLORA_CACHE` (`~/.cache/bayeslora`).

    Raises:
        DataError: a setting is impossible, or the folder does not hold CIFAR-10; all problems at once.
    """

    title: ClassVar[str] = "CIFAR-10"
    folder: ClassVar[str] = "cifar-10-batches-py"
    archive: ClassVar[str] = "cifar-10-python.tar.gz"
    torchvision: ClassVar[str] = "CIFAR10"
    label: ClassVar[str] = "label"
    stored_classes: ClassVar[tuple[str, ...]] = CIFAR10_CLASSES

    path: str | Path | None = None
    _: KW_ONLY
    augment: bool = True
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
    std: Sequence[float] = (0.2470, 0.2435, 0.2616)
    download: bool = True
    cache: str | Path | None = None
    source: Source | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        problems = Problems()
        problems.add(*self._setting_problems())
        with problems.collect():
            self.source = None if self.path is None else self._find(Path(self.path).expanduser())
        problems.raise_if_any(DataError)

    @property
    def name(self) -> str:
        """What reports call the dataset."""
        return self.title

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes to be told apart, in the order of the targets."""
        return self.stored_classes

    def load(self) -> Data:
        """Read the data into memory: inputs uint8 [N, 3, 32, 32].

        Raises:
            DataError: the data cannot be downloaded, or are corrupt; the message says what to do.
            ConfigError: the validation set takes all.
        """
        source = self.source or TorchvisionImages(data_folder(), self.folder, self.torchvision)
        if isinstance(source, TorchvisionImages) and not (source.root / self.folder).is_dir():
            source.fetch(self.download)  # or unpack the archive in the data folder
        folder = None if self.cache is None else Path(self.cache).expanduser()
        tensors = cached(self.torchvision.lower(), source.paths, source.read, folder)
        shift = RandomShift(padding=4, flip=True) if self.augment else None
        data = Data(
            name=self.name,
            train=self._split(tensors, "train"),
            validation=self._split(tensors, "train").take(slice(0)),
            test=self._split(tensors, "test"),
            class_names=self.class_names,
            transform=Normalise(tuple(self.mean), tuple(self.std)),
            augment=shift,
            augmentation=str(shift or "none"),
            notes=(*_size_notes(tensors), *_inexact_notes(source.paths[0].parent)),
        )
        return self.carve(data)

    def _setting_problems(self) -> list[str]:
        sizes = self.size_problems()
        return sizes + channel_problems(self.mean, self.std, channels=3)

    def _targets(self, labels: Tensor) -> Tensor:
        return labels

    def _split(self, tensors: Tensors, split: str) -> Split:
        return Split(tensors[f"{split}_images"], self._targets(tensors[f"{split}_labels"]))

    def _find(self, path: Path) -> Source:
        """The dataset in a folder, in whichever layout."""
        wanted = f"dataset.path must be a folder that holds {self.folder}/, or train-*.parquet and test-*.parquet"
        if not path.is_dir():
            raise DataError(f"{path} {'is a file' if path.exists() else 'does not exist'}; {wanted} of {self.title}")
        root = path.resolve().parent if path.resolve().name == self.folder else path
        if (root / self.folder).is_dir():
            return TorchvisionImages(root, self.folder, self.torchvision)
        source = ParquetImages.find(path, self.title, self.label, self.stored_classes)
        if source is None:
            raise DataError(f"{path} holds {self._instead(path)}; {wanted} of {self.title}")
        return source

    def _instead(self, path: Path) -> str:
        """In words, what a folder without the dataset holds."""
        names = sorted(entry.name for entry in path.iterdir())
        for other, choice in FOLDERS.items():
            if other in {path.name, *names}:
                return f"another dataset, {other}: choose {choice} for it"
        if self.archive in names:
            return f"{self.archive}, which is still packed: run `tar xzf {self.archive}` there"
        return ", ".join(names[:6]) or "nothing"


@dataclass
class Cifar100(Cifar10):
    """CIFAR-100, with its 100 fine classes or its 20 coarse ones.

    Attributes:
        labels: `"fine"` or `"coarse"`; the other settings are those of `Cifar10`.

    Raises:
        DataError: a setting is impossible, or the folder does not hold CIFAR-100; all problems at once.
    """

    title: ClassVar[str] = "CIFAR-100"
    folder: ClassVar[str] = "cifar-100-python"
    archive: ClassVar[str] = "cifar-100-python.tar.gz"
    torchvision: ClassVar[str] = "CIFAR100"
    label: ClassVar[str] = "fine_label"
    stored_classes: ClassVar[tuple[str, ...]] = CIFAR100_CLASSES

    _: KW_ONLY
    mean: Sequence[float] = (0.5071, 0.4866, 0.4409)
    std: Sequence[float] = (0.2673, 0.2564, 0.2762)
    labels: str = "fine"

    @property
    def name(self) -> str:
        """What reports call the dataset."""
        return self.title if self.labels == "fine" else f"{self.title} (20 coarse classes)"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes to be told apart, in the order of the targets."""
        return CIFAR100_CLASSES if self.labels == "fine" else tuple(SUPERCLASSES)

    def _setting_problems(self) -> list[str]:
        unknown = self.labels not in {"fine", "coarse"}
        mine = [f"dataset.labels={self.labels!r} is unknown; choose fine or coarse"] if unknown else []
        return mine + super()._setting_problems()

    def _targets(self, labels: Tensor) -> Tensor:
        return labels if self.labels == "fine" else torch.tensor(COARSE_OF_FINE)[labels]


def _size_notes(tensors: Tensors) -> list[str]:
    """Says so where a split is not of its official size."""
    sizes = {split: len(tensors[f"{split}_labels"]) for split in OFFICIAL}
    return [
        f"{counted(sizes[split], f'{split} image')} where the official set has {official:,}"
        for split, official in OFFICIAL.items()
        if sizes[split] != official
    ]


def _inexact_notes(folder: Path) -> list[str]:
    """Says how many images are not the original ones, where a file `inexact.json` (rows by split) lists them."""
    file = folder / "inexact.json"
    if not file.is_file():
        return []
    try:
        count = sum(len(rows) for rows in json.loads(file.read_text()).values())
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file} is not a JSON object of row numbers by split; mend or remove it") from error
    return [f"{counted(count, 'image')} re-encoded"] if count else []
