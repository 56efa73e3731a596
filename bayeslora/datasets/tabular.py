"""What datasets of anyone's arrays and tables share: a test set held out, targets as classes or numbers, scaling."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Real, Sizes, Split
from bayeslora.datasets.images import Normalise
from bayeslora.datasets.in_memory import Identity
from bayeslora.datasets.validation import NO_NUMBER, one_hot_problems
from bayeslora.errors import DataError, Problems
from bayeslora.rng import generator

TASKS = ("auto", "classification", "regression", "labels")
MOST_CLASSES = 20
"""Whole numbers of at most so many values are taken for classes, where the task is not given."""


@dataclass(frozen=True)
class Targets:
    """Targets of both splits: class numbers int64 [N] with the classes' names, labels int64 [N, L], or reals [N, D]."""

    train: Tensor
    test: Tensor
    class_names: tuple[str, ...] = ()
    are_labels: bool = False


def setting_problems(sizes: Sizes, task: str, test_share: float) -> Problems:
    """What is wrong with settings that these datasets share."""
    problems = Problems()
    if task not in TASKS:
        problems.add(f"dataset.task={task} is unknown; choose one of {', '.join(TASKS)}")
    if not 0 < test_share < 1:
        problems.add(f"dataset.test_share={test_share} must lie between 0 and 1")
    problems.add(*sizes.size_problems())
    return problems


def file_problems(key: str, path: str | Path | None, what: str) -> list[str]:
    """What is wrong with a setting that must name a file, one message each."""
    if not path:
        return [f"dataset.{key} must name {what}"]
    file = Path(path).expanduser()
    if file.is_file():
        return []
    return [f"dataset.{key}={path} {'is a folder' if file.is_dir() else 'does not exist'}; it must be {what}"]


def held_out(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the test set, where there is one set of examples: always the same shuffle.

    Raises:
        DataError: nothing would be left to train on, or to test.
    """
    order = torch.randperm(count, generator=generator(0, 0, 0, "split/held out")).numpy()
    size = math.ceil(share * count)
    if not 0 < size < count:
        raise DataError(
            f"{counted(count, 'example')} cannot give a share of {share:g} of them to the test set: too few"
        )
    return np.sort(order[size:]), np.sort(order[:size])


def read_targets(train: np.ndarray, test: np.ndarray, task: str, where: str) -> Targets:
    """Classes or real numbers, by the task or, if it is `"auto"`, by what they look like.

    Text, booleans and whole numbers of at most `MOST_CLASSES` values are classes, in sorted order; several columns of 0
    and 1 are labels; all else is numbers.

    Args:
        train, test: [N] or [N, D].
        task: one of `TASKS`.
        where: the source, for messages.

    Raises:
        DataError: they are neither, or the test set has a class that the training set lacks.
    """
    if task == "labels" or (task == "auto" and train.ndim == 2 and train.shape[1] > 1 and look_like_labels(train)):
        return _labels(train, test, where)
    train, test = (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y for y in (train, test))
    if train.ndim > 2:
        raise DataError(
            f"{where}: the targets are {list(train.shape)}; they must be one an example, [N], or several, [N, D]. A"
            " class at each position, of a token or a pixel, goes through bayeslora.sample"
        )
    if task == "classification" or (task == "auto" and _look_like_classes(train)):
        return _classes(train, test, where)
    try:
        numbers = [np.array(y, dtype=np.float64).reshape(len(y), -1) for y in (train, test)]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the targets are no numbers ({str(error).splitlines()[0]})") from error
    broken = sum(int((~np.isfinite(y)).any(1).sum()) for y in numbers)
    if broken:
        raise DataError(f"{where}: {broken} targets are empty or not finite; fill them, or leave these rows out")
    return Targets(torch.from_numpy(numbers[0]), torch.from_numpy(numbers[1]))


def labels_or_none(labels: Sequence[Any], named: bool, where: str, classes: Set[Any] = frozenset()) -> list[Any]:
    """Labels as stored, None for those that stand for no label: null, -1, an empty word and the like.

    Args:
        labels: one a row.
        named: whether the classes have names, so that -1 is none of them.
        where: the source, for messages.
        classes: of a test set: the labels of the training set, which are no gaps.

    Raises:
        DataError: there are several labels an example, or -1 may be a class or stand for no label.
    """
    if any(isinstance(label, list | tuple | dict | np.ndarray) for label in labels):
        raise DataError(
            f"{where}: the labels are lists, several an example, and only one class an example can be learnt here;"
            " choose another column"
        )
    labels = [None if isinstance(label, float) and math.isnan(label) else label for label in labels]
    if len({isinstance(label, str) for label in (*labels, *classes) if label is not None}) > 1:
        labels = [None if label is None else str(label) for label in labels]  # words and numbers in a JSON
    if all(label is None or (isinstance(label, float) and label.is_integer()) for label in labels):
        labels = [None if label is None else int(label) for label in labels]  # whole numbers beside empty cells
    nothing: set[Any] = {None, "", "-1", *(["-"] if "+" not in labels else [])}
    words = {label for label in labels if isinstance(label, str)} - nothing
    if any(re.fullmatch(r"-?\d+", word) for word in words):
        nothing |= {word for word in words if word.lower() in NO_NUMBER}
    values = set(labels) - nothing
    if named or values == {-1}:
        nothing.add(-1)
    elif -1 in values - classes and values != {-1, 1}:
        raise DataError(
            f"{where}: the label -1 may be a class or stand for no label; name the classes by the hub's type"
            " ClassLabel, or leave these rows out"
        )
    nothing -= classes
    return [None if label in nothing else label for label in labels]


def look_like_labels(values: np.ndarray) -> bool:
    """Whether they are 1, 0, or −1 or nothing where one is not known, and no class of several, one-hot."""
    if values.dtype.kind not in "iufb":
        return False
    numbers = np.nan_to_num(values.astype(np.float64), nan=-1.0)
    one_hot = numbers.ndim == 2 and numbers.shape[1] > 1 and bool((numbers.sum(1) == 1).all()) and numbers.min() >= 0
    return bool(np.isin(numbers, (-1, 0, 1)).all()) and not one_hot


def _labels(train: np.ndarray, test: np.ndarray, where: str) -> Targets:
    """Labels int64 [N, L], −1 where one is not known."""
    parts = []
    for values in (train, test):
        numbers = values.astype(np.float64) if values.dtype.kind in "iufb" else np.full(values.shape, 2.0)
        numbers = np.nan_to_num(numbers, nan=-1.0).reshape(len(values), -1)
        if not np.isin(numbers, (-1, 0, 1)).all():
            raise DataError(f"{where}: labels must be 1, 0, or -1 or empty where one is not known; choose another task")
        parts.append(torch.from_numpy(numbers).long())
    return Targets(parts[0], parts[1], are_labels=True)


def several_labels(
    train: Sequence[Any], test: Sequence[Any], names: Sequence[str] | None, where: str
) -> tuple[list[tuple[int, ...] | None], list[tuple[int, ...] | None], tuple[str, ...]]:
    """Lists of labels as one number a label, 1, 0, or −1 where it is not known; and the labels' names.

    Args:
        train, test: of each example a list of the labels that hold, by number or name; or a list of 0 and 1 (−1: not
            known) of one length, one entry a label; None where nothing is known.
        names: of the labels, where the source has them.
        where: the source, for messages.

    Raises:
        DataError: a test example has a label that no training example has, the lists are one-hot, or a number in one
            is none of a label.
    """
    rows = [row for row in train if row is not None]
    lengths = {len(row) for row in rows}
    flags = len(lengths) == 1 and {value for row in rows for value in row} <= {-1, 0, 1}
    if names is None and flags and lengths != {1} and all(row.count(1) == 1 and -1 not in row for row in rows):
        raise DataError(
            f"{where}: the lists are one-hot, a 1 for the class and 0 elsewhere; give the number of the class"
        )
    if names is None and flags and any(len(set(row)) < len(row) for row in rows):
        shown = _numbered("label", lengths.pop())
        strange = [row for row in test if row is not None and len(row) != len(shown)]
        if strange:
            raise DataError(f"{where}: a test example has {len(strange[0])} labels, training examples {len(shown)}")
        as_rows = [
            [None if row is None else tuple(int(value) for value in row) for row in part] for part in (train, test)
        ]
        return as_rows[0], as_rows[1], shown
    values = list(range(len(names))) if names else sorted({value for row in rows for value in row})
    given = [value for row in (*rows, *test) if row is not None for value in row if not isinstance(value, str)]
    if strange := [value for value in given if value < 0 or (names and value not in values)]:
        raise DataError(f"{where}: {strange[0]} is in a list of labels and is none of them; take it out of the lists")
    if new := sorted({value for row in test if row is not None for value in row if value not in values}):
        raise DataError(f"{where}: no training example has the label {new[0]}, which a test example has")
    held = [
        [None if row is None else tuple(int(value in set(row)) for value in values) for row in part]
        for part in (train, test)
    ]
    return held[0], held[1], tuple(names or map(str, values))


def _look_like_classes(targets: np.ndarray) -> bool:
    if targets.ndim != 1:
        return False
    if targets.dtype.kind in "OUSb":
        return True
    return targets.dtype.kind in "iu" and len(np.unique(targets)) <= MOST_CLASSES


def _classes(train: np.ndarray, test: np.ndarray, where: str) -> Targets:
    if train.ndim != 1:
        if problems := one_hot_problems(where, torch.from_numpy(train)) if train.dtype.kind in "iufb" else []:
            raise DataError(*problems)
        raise DataError(
            f"{where}: classes must be one an example, not {list(train.shape)}; set dataset.task=regression"
        )
    train, test = (y.astype(str) if y.dtype.kind in "OUSb" else y for y in (train, test))
    values, numbers = np.unique(train, return_inverse=True)
    if len(values) < 2:
        raise DataError(f"{where}: all training examples are of class {values[0]}; there must be two classes at least")
    known = {value: number for number, value in enumerate(values.tolist())}
    new = sorted({str(value) for value in test.tolist() if value not in known})
    if new:
        raise DataError(
            f"{where}: no training example is of class {', '.join(new[:4])}, which test examples are; there are"
            f" {len(values):,} classes in {len(train):,} training examples"
        )
    names = tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in values.tolist())
    return Targets(torch.from_numpy(numbers), torch.tensor([known[value] for value in test.tolist()]), names)


def assemble(
    name: str,
    inputs: tuple[Tensor, Tensor],
    targets: Targets,
    *,
    target_names: Sequence[str] = (),
    standardise: bool = True,
    sizes: Sizes,
    notes: Sequence[str] = (),
    shown_as: Sequence[str] = (),
) -> Data:
    """The dataset: a validation set carved, then inputs and numbers scaled by what is left to train on.

    Args:
        name: in reports.
        inputs: of the training and the test set: images uint8 [N, C, H, W], or numbers float32 [N, …].
        targets: of both.
        target_names: of the D numbers, or of the L labels; none: `target`, or `label`.
        standardise: scale inputs that are numbers, column by column, and targets that are, to mean 0 and sd 1.
        sizes: of the splits.
        notes: for the report.
        shown_as: names of the classes to show, in place of their values.
    """
    train, test = (Split(x, y) for x, y in zip(inputs, (targets.train, targets.test), strict=True))
    count = targets.train.shape[1] if targets.are_labels else 0
    data = Data(
        name=name,
        labels=(tuple(target_names) or _numbered("label", count)) if count else (),
        train=train,
        validation=train.take(slice(0)),
        test=test,
        class_names=tuple(shown_as) or targets.class_names,
        transform=Identity(),
        notes=tuple(notes),
    )
    data = sizes.carve(data)
    if data.train.inputs.dtype == torch.uint8:
        data = replace(data, transform=channel_scale(data.train.inputs))
    elif standardise:
        mean, sd = _moments(data.train.inputs)
        data = _each(data, lambda split: Split(((split.inputs.double() - mean) / sd).float(), split.targets))
    return data if targets.class_names or count else _scaled_targets(data, target_names, standardise)


def _numbered(word: str, count: int) -> tuple[str, ...]:
    """Names of so many targets."""
    return (word,) if count == 1 else tuple(f"{word} {i}" for i in range(count))


def channel_scale(images: Tensor) -> Normalise:
    """Scaling of images uint8 [N, C, H, W] by their mean and sd by channel, over all pixels."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.transpose(0, 1)])
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ levels
    sd = ((weights @ levels.square()) - mean.square()).clamp(min=0).sqrt()
    return Normalise(tuple(mean.tolist()), tuple(s if s > 1e-6 else 1.0 for s in sd.tolist()))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of each column, of images [N, C, H, W] of each channel, float64; sd 1 where it is constant."""
    values, over = values.double(), (0, 2, 3) if values.ndim == 4 else (0,)
    mean, sd = values.mean(over, keepdim=True), values.std(over, unbiased=False, keepdim=True)
    return mean, torch.where(sd > 1e-12 * (1 + mean.abs()), sd, 1.0)


def _each(data: Data, change: Callable[[Split], Split]) -> Data:
    """The data with every split changed."""
    return replace(data, train=change(data.train), validation=change(data.validation), test=change(data.test))


def _scaled_targets(data: Data, names: Sequence[str], standardise: bool) -> Data:
    """Real targets float32 [N, D], with what they were."""
    mean, sd = _moments(data.train.targets)
    if not standardise:
        mean, sd = torch.zeros_like(mean), torch.ones_like(sd)
    count = mean.shape[1]
    named = tuple(names) or _numbered("target", count)
    scaled = _each(data, lambda split: Split(split.inputs, ((split.targets - mean) / sd).float()))
    return replace(scaled, real=Real(named, tuple(mean[0].tolist()), tuple(sd[0].tolist())))
