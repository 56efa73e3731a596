"""What every dataset gives: splits held in memory as tensors, and how to turn a batch into model input."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bayeslora.datasets.validation import class_notes, scale_note, split_problems, two_value_notes
from bayeslora.errors import ConfigError, DataError
from bayeslora.rng import generator

log = logging.getLogger(__name__)

LOOKED_AT = 1000
"""Examples of which the scale is looked at."""

REALS = (torch.float32, torch.float64)
"""Precisions of real numbers that a model can take."""
Transform = Callable[[Tensor], Tensor]
"""Stored inputs [B, …] -> model input [B, …]: uint8 images to float32, normalised; tokens int32 to int64, trimmed.

Runs on any device.
"""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Stored inputs [B, …] and a CPU generator -> augmented inputs of the same shape and dtype; runs on any device."""


def cast(values: Tensor, part: str, precision: torch.dtype) -> Tensor:
    """Real numbers in another precision; raises `DataError` for one that is too large for it."""
    changed = values.to(precision)
    if changed is not values and values.isfinite().all() and not changed.isfinite().all():
        raise DataError(
            f"{part}: there is a number {values.abs().max():.1e}, too large for {precision}; scale the data"
        )
    return changed


@dataclass(frozen=True)
class Split:
    """Examples in memory: `inputs` [N, …], or several by name, and `targets`.

    Images are uint8 [N, C, H, W]; texts are int32 [N, S, F, L], the fields F as in `bayeslora.datasets.text`; tables
    are float32 [N, F]. Targets are class numbers int64 [N], or [N, *positions] of one class at each position, with one
    negative number where there is none; labels int64 [N, L] of 1, 0, or −1 where one is not known; or real numbers
    float32 [N, D].
    """

    inputs: Any
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor | slice) -> Split:
        """The examples at `index` (int64 [M] or a slice), in that order."""
        return Split(tree_map(lambda held: held[index], self.inputs), self.targets[index])

    def to(self, device: torch.device | str) -> Split:
        """The same examples on another device."""
        return Split(tree_map(lambda held: held.to(device), self.inputs), self.targets.to(device))

    def in_precision(self, precision: torch.dtype, part: str) -> Split:
        """The same examples with real numbers as float32 or float64; `part` says in a message which they are."""

        def changed(held: Tensor) -> Tensor:
            return cast(held, part, precision) if held.dtype in REALS else held

        return Split(tree_map(changed, self.inputs), changed(self.targets))


@dataclass(frozen=True)
class Real:
    """Real-valued targets as a dataset gives them: (y − mean) / std.

    Attributes:
        names: of the D targets.
        mean, std: by target, in its own unit; 0 and 1 where they are as they were.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Data:
    """A loaded dataset.

    Attributes:
        name: what to call it in reports, e.g. `"CIFAR-10"`.
        train, validation, test: the splits; `validation` is carved from the official training set and may be empty.
        class_names: one name a class; their number is the number of classes. Empty for real-valued targets.
        transform: stored inputs to model input (used in training and in evaluation).
        augment: random augmentation of training batches, or None.
        augmentation: the augmentation in words, `"none"` where there is none (for the report).
        notes: what a reader of the results should know of the data, in plain sentences.
        lengths: of texts: tokens of the longest sequence of each training example, int64 [N]; None for images.
        texts: of texts: the sentences of each example by split, `"train"`, `"validation"` and `"test"`; else empty.
        real: what the targets are, where they are real numbers; None for classes.
        labels: names of the L labels, where each example has several that hold or do not; empty for others.

    Raises:
        DataError: there are numbers that are NaN or infinite, classes that have no name, or one-hot targets.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    transform: Transform
    augment: Augment | None = None
    augmentation: str = "none"
    notes: tuple[str, ...] = field(default=())
    lengths: Tensor | None = None
    texts: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    real: Real | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        for part in ("train", "validation", "test"):
            split, count = getattr(self, part), len(self.class_names)
            problems += split_problems(f"{self.name}, {part}", split.inputs, split.targets, count, self.labels)
        if problems:
            raise DataError(*problems)

    def with_notes(self, *more: str) -> Data:
        """The same data, with `more` notes, and those on classes that may be none and on scales far from 1."""
        real = self.real is not None
        notes = two_value_notes(self.train.targets) if real else class_notes(self.class_names, self.train.targets)
        if self.kind not in ("texts", "several inputs") and len(self.train):
            seen = self.transform(self.train.inputs[:LOOKED_AT])
            notes += scale_note("inputs", seen, "standardise each column, or scale images to [0, 1]")
        if self.real is not None:
            notes += scale_note("targets", self.train.targets, "standardise them: (y − mean) / sd")
        new = [note for note in (*more, *notes) if note not in self.notes]
        for note in new:
            log.warning("%s: %s", self.name, note)
        return replace(self, notes=(*self.notes, *new)) if new else self

    def with_one_label(self) -> Data:
        """The same data of two classes as one label, the second of them, that holds or does not."""
        train, validation, test = (
            Split(split.inputs, split.targets.reshape(len(split), 1))
            for split in (self.train, self.validation, self.test)
        )
        labels = self.class_names[1:]
        return replace(self, train=train, validation=validation, test=test, class_names=(), labels=labels)

    def in_precision(self, precision: torch.dtype) -> Data:
        """The same data with real numbers, of inputs and targets, as float32 or float64."""
        if self.reals <= {precision}:
            return self
        parts = ("train", "validation", "test")
        return replace(self, **{part: getattr(self, part).in_precision(precision, part) for part in parts})

    @property
    def reals(self) -> set[torch.dtype]:
        """Which of float32 and float64 there are among inputs and targets."""
        parts = (self.train, self.validation, self.test)
        return {held.dtype for one in parts for held in (*tree_leaves(one.inputs), one.targets)} & set(REALS)

    @property
    def num_classes(self) -> int:
        """Number of classes, of labels, or of real-valued targets."""
        return len(self.labels or self.class_names) if self.real is None else len(self.real.names)

    @property
    def axes(self) -> int:
        """Axes of positions within an example that have a class each: 0 where an example has one."""
        return self.train.targets.ndim - 1 if self.class_names else 0

    @property
    def kind(self) -> str:
        """`"texts"`, `"images"`, `"several inputs"` or `"tables"` (anything else)."""
        if isinstance(self.train.inputs, Mapping):
            return "several inputs"
        return "texts" if self.lengths is not None else "images" if self.train.inputs.ndim == 4 else "tables"

    @property
    def in_channels(self) -> int:
        """Channels of an image [C, H, W]; 0 for others."""
        return int(self.train.inputs.shape[1]) if self.kind == "images" else 0

    @property
    def in_features(self) -> int:
        """Numbers an example, of a table's row or of an image; 0 for others."""
        return 0 if self.kind in ("texts", "several inputs") else math.prod(self.train.inputs.shape[1:])


class Dataset(Protocol):
    """A dataset's settings. The constructor checks them cheaply; `load` reads (or downloads) the data."""

    def load(self) -> Data:
        """Read the data into memory.

        Raises:
            DataError: the data are missing, corrupt or of another dataset; the message says what to do.
        """
        ...


def size_problems(validation_size: int, limit_train: int | None, limit_test: int | None) -> list[str]:
    """What is wrong with the sizes asked of `carve`, before the data are known; one message each."""
    limits = [("limit_train", limit_train, 1), ("limit_test", limit_test, 1)]
    sizes = [("validation_size", validation_size, 0), *(limit for limit in limits if limit[1] is not None)]
    return [
        f"dataset.{name} must be a whole number of at least {least}, not {value!r}"
        for name, value, least in sizes
        if not (isinstance(value, int) and value >= least)
    ]


@dataclass(kw_only=True)
class Sizes:
    """Settings of every dataset that is split here.

    Attributes:
        validation_size: examples moved from the training set to a validation set.
        limit_train, limit_test: keep at most so many; None keeps all.
    """

    validation_size: int = 0
    limit_train: int | None = None
    limit_test: int | None = None

    def size_problems(self) -> list[str]:
        """What is wrong with them, before the data are known; one message each."""
        return size_problems(self.validation_size, self.limit_train, self.limit_test)

    def carve(self, data: Data) -> Data:
        """`carve` by these sizes."""
        return carve(data, self.validation_size, self.limit_train, self.limit_test)


def carve(
    data: Data,
    validation_size: int = 0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    split_seed: int = 0,
) -> Data:
    """Split off a validation set and shorten the splits, all by one fixed shuffle of each.

    Args:
        data: a dataset with an empty validation split; `lengths` and `texts` go where their examples go.
        validation_size: examples moved from train to validation.
        limit_train: keep at most this many training examples: of those that the validation set leaves, then, if they
            are fewer, of those that `limit_test` takes from the validation set; None keeps all that the former leaves.
        limit_test: keep at most this many test and validation examples; None keeps all.
        split_seed: seed of the shuffles; the run's own seed does not enter, so runs stay comparable.

    Raises:
        ConfigError: nothing would be left to train on, or a number is negative.
    """
    problems = size_problems(validation_size, limit_train, limit_test)
    shown = validation_size if limit_test is None else min(validation_size, limit_test)
    used = validation_size if limit_train is None else shown
    if not problems and used >= len(data.train):
        problems.append(
            f"dataset.validation_size={validation_size} leaves nothing of the {len(data.train)} training examples;"
            " make it smaller"
        )
    if problems:
        raise ConfigError(*problems)
    order = torch.randperm(len(data.train), generator=generator(split_seed, 0, 0, "split/train"))
    held_out, kept = order[:validation_size], order[validation_size:]
    if limit_train is not None:  # a trial on few examples: what the shortened validation set leaves is trained on, too
        kept = torch.cat([kept, held_out[used:]])[:limit_train]
    test = torch.randperm(len(data.test), generator=generator(split_seed, 0, 0, "split/test"))[:limit_test]
    everything = slice(None)  # a view: nothing is copied, nothing shuffled
    train_rows = everything if len(kept) == len(data.train) else kept
    test_rows = everything if len(test) == len(data.test) else test
    rows = {"train": ("train", train_rows), "validation": ("train", held_out[:shown]), "test": ("test", test_rows)}
    return replace(
        data,
        train=data.train.take(train_rows),
        validation=data.train.take(held_out[:shown]),
        test=data.test.take(test_rows),
        lengths=None if data.lengths is None else data.lengths[train_rows],
        texts={name: _picked(data.texts[source], index) for name, (source, index) in rows.items() if data.texts},
    )


def limited(data: Data, limit_train: int | None = None, limit_test: int | None = None) -> Data:
    """Shortened splits of a dataset that has no such limits itself; a validation set becomes as short as a test set."""
    if limit_train is None and limit_test is None:
        return data
    kept, validation = carve(data, 0, limit_train, limit_test), data.validation
    if not len(validation):
        return kept
    some = torch.randperm(len(validation), generator=generator(0, 0, 0, "split/validation"))[:limit_test]
    texts = {"validation": _picked(data.texts["validation"], some)} if data.texts else {}
    return replace(kept, validation=validation.take(some), texts={**kept.texts, **texts})


def _picked(texts: Sequence[tuple[str, ...]], index: Tensor | slice) -> list[tuple[str, ...]]:
    """The texts at `index`, int64 [M] or a slice, in that order."""
    return [texts[row] for row in torch.arange(len(texts))[index].tolist()]
