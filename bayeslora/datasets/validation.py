"""What no model can be trained on, whoever made it: numbers that are not finite, classes and scales gone wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import DataError

NO_NUMBER = ("na", "n/a", "nan", "null", "none")
"""Words that stand for no label among labels that are numbers."""
FEW = 10
"""Examples that may share two values by chance."""
LARGE, SMALL = 100.0, 0.01
"""Root mean squares beyond which inputs and targets are called out: priors and step sizes suit values near 1."""


def split_problems(part: str, inputs: Any, targets: Tensor, num_classes: int, labels: Sequence[str] = ()) -> list[str]:
    """What is wrong with the examples of a split, one message each.

    Args:
        part: the split's name, for messages.
        inputs, targets: of its examples, as `Split` has them.
        num_classes: how many classes there are; 0 for real-valued targets, or where it is not known.
        labels: names of the labels, where each example has several.
    """
    numbers = [(f"inputs {name}", held) for name, held in inputs.items()] if isinstance(inputs, Mapping) else []
    problems = [
        f"{part}: {count:,} of the numbers in its {what} are NaN or infinite, the first in example {row}; fill them, or"
        " leave these examples out"
        for what, values in (*(numbers or [("inputs", inputs)]), ("targets", targets))
        for count, row in _not_finite(values)
    ]
    if labels:
        return problems + _label_problems(part, targets, labels)
    problems += one_hot_problems(part, targets)
    if num_classes and len(targets) and not targets.is_floating_point():
        if targets.ndim > 1:
            problems += _left_out_problems(part, targets)
            targets = targets.clamp(min=0)
        least, most = int(targets.min()), int(targets.max())
        if least < 0 or most >= num_classes:
            problems.append(
                f"{part}: there is an example of class {least if least < 0 else most}; the {num_classes} classes are"
                f" numbered from 0 to {num_classes - 1}"
            )
    return problems


def _label_problems(part: str, targets: Tensor, labels: Sequence[str]) -> list[str]:
    """What is wrong with labels [N, L]."""
    if targets.ndim != 2 or targets.shape[1] != len(labels) or targets.is_floating_point():
        return [f"{part}: labels must be whole numbers [N, {len(labels)}], not {targets.dtype} {list(targets.shape)}"]
    strange = sorted(set(targets.unique().tolist()) - {-1, 0, 1})
    if strange:
        return [f"{part}: there is a label {strange[0]}; a label holds (1), does not (0), or is not known (-1)"]
    return []


def _left_out_problems(part: str, targets: Tensor) -> list[str]:
    """What is wrong with the negative numbers among classes at positions, which mark what is left out."""
    marks = targets[targets < 0].unique().tolist()
    if len(marks) > 1:
        return [f"{part}: positions without a class have the targets {', '.join(map(str, marks))}; give one number"]
    return [f"{part}: no position has a class"] if len(targets) and bool((targets < 0).all()) else []


def _not_finite(values: Tensor) -> list[tuple[int, int]]:
    """How many numbers are not finite, and in which example the first is; empty where all are."""
    if not values.is_floating_point() or values.isfinite().all():
        return []
    bad = ~values.isfinite().flatten(1) if values.ndim > 1 else ~values.isfinite()[:, None]
    return [(int(bad.sum()), int(bad.any(1).nonzero()[0]))]


def is_one_hot(targets: Tensor) -> bool:
    """Whether targets [N, D] are one-hot: a single 1 in each row, of two columns or more, and not always the same."""
    if targets.ndim != 2 or targets.shape[1] < 2 or len(targets) < 2:
        return False
    ones = targets == 1
    return bool(((ones | (targets == 0)).all() & (ones.sum(1) == 1).all()).item())


def one_hot_problems(part: str, targets: Tensor) -> list[str]:
    """Says of one-hot targets what they are."""
    if not is_one_hot(targets):
        return []
    return [
        f"{part}: the targets {list(targets.shape)} are one-hot, a 1 for the class and 0 elsewhere; give the number of"
        " the class: targets.argmax(1)"
    ]


def check_class_numbers(targets: Tensor, part: str) -> None:
    """Raise `DataError` unless whole-number targets are classes from 0 on, int [N] or [N, *positions]."""
    if is_one_hot(targets):
        return  # `split_problems` says so
    if targets.ndim == 1 and len(targets) and int(targets.min()) < 0:
        raise DataError(
            f"{part}: classes are numbered from 0 on, and there is a class {int(targets.min())}; number them anew, or"
            " leave these examples out if they have no label"
        )


def check_counted_from_0(targets: Tensor, name: str) -> None:
    """Raise `DataError` for classes 1..C: a model of C outputs takes 0..C − 1."""
    present = targets.unique().tolist()
    if present == list(range(1, len(present) + 1)):
        raise DataError(
            f"{name}: the classes are numbered from 1 to {present[-1]}, not from 0; subtract 1, or give class_names of"
            " all classes if class 0 has no example"
        )


def class_notes(names: Sequence[str], targets: Tensor) -> list[str]:
    """What should be said of classes that may stand for no label, or whose names differ in case or spaces alone.

    Args:
        names: of the classes.
        targets: of the training set, class numbers.
    """
    numbered = len(names) > 2 and all(re.fullmatch(r"-?\d+", name) for name in names)
    nothing = {*NO_NUMBER, "", "?", *(["-"] if "+" not in names else [])}
    notes, seen = [], dict[str, str]()
    for number, name in enumerate(names):
        word = name.strip().casefold()
        if word in nothing or (numbered and word.startswith("-")):
            count = int((targets == number).sum())
            notes.append(f"class {name!r} ({count:,} in training) may stand for no label; if so, leave them out")
        if len(word) > 1 and word in seen:
            notes.append(f"the classes {seen[word]!r} and {name!r} are called alike, but for case or spaces")
        seen.setdefault(word, name)
    return notes


def two_value_notes(targets: Tensor) -> list[str]:
    """What should be said of real-valued targets [N, D] of which a column holds two values, as classes do."""
    if targets.ndim != 2 or len(targets) <= FEW:
        return []
    sums = targets.sum(1)
    if targets.shape[1] > 1 and targets.min() >= 0 and torch.allclose(sums, torch.ones_like(sums)):
        return ["The targets of each example sum to 1, as probabilities of classes do, and are taken for real numbers;"
                " if they stand for classes, give the number of the likeliest: targets.argmax(1)"]  # fmt: skip
    if any(len(column.unique()) == 2 for column in targets.T):
        return ["The targets hold two values alone and are taken for real numbers; if they are classes, give whole"
                " numbers, of an integer type"]  # fmt: skip
    return []


def scale_note(what: str, values: Tensor, advice: str) -> list[str]:
    """What should be said of inputs, or of real-valued targets, far from the scale that priors and step sizes are for.

    Args:
        what: they are called.
        values: some of them.
        advice: what to do.
    """
    if not values.is_floating_point() or not values.numel():
        return []
    size = float(values.double().flatten(1).square().mean(0).max().sqrt())
    if SMALL <= size <= LARGE or size == 0:
        return []
    return [
        f"The {what} are {'large' if size > LARGE else 'small'}: their root mean square is {size:.2g} (the largest of"
        f" all columns), while priors and step sizes are made for values near 1; {advice}"
    ]
