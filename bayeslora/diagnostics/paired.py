"""Differences of two predictions' scores on the same examples, with standard errors over examples. NumPy alone.

A score is a function (`OF`) of means over examples of some values [N, S], its parts; most scores are the mean itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bayeslora.diagnostics.values import Difference

EXAMPLES_FILE = "examples.npz"
"""In a run directory: what each evaluated example adds to the ensemble's scores, and its target."""
TARGETS = "targets"
"""The one array of that file that is of no score."""
Parts = Mapping[str, np.ndarray]
"""By score, what each example adds to it, [N, S]."""

QUANTILES = np.arange(1, 20) / 20
"""At which the calibration error of a regression looks."""
OF: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ece": lambda means: np.abs(means).sum(-1),
    "f1": lambda means: 2 * means[..., 0] / np.maximum(means[..., 1], 1e-300),
    "rmse": lambda means: np.sqrt(means[..., 0]),
    "calibration_error": lambda means: np.abs(means - QUANTILES).mean(-1),
}
"""By score, its value from means [..., S]; a score that is not named is the mean."""


def paired(one: Parts, other: Parts) -> dict[str, Difference]:
    """Scores of one less those of the other, each with its standard error by the jackknife over examples.

    Of scores that are means this is the usual standard error of paired differences, sd / √N. Of calibration errors,
    whose terms cannot fall below 0, it is too large, by up to a third. There is none of fewer than two examples.

    Args:
        one, other: of the same examples in the same order.

    Source: Efron & Stein (1981), "The jackknife estimate of variance".
    """
    return {name: _difference(name, one[name], other[name]) for name in one if name in other}


def to_bytes(parts: Parts, targets: np.ndarray) -> bytes:
    """The content of an `EXAMPLES_FILE`."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: values.astype(np.float32) for name, values in parts.items()}
    np.savez_compressed(buffer, **arrays, targets=targets)
    return buffer.getvalue()


def read(file: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an `EXAMPLES_FILE`, `targets` among them; None where there is none that can be read."""
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {str(name): np.asarray(content[name], dtype=np.float64) for name in content.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    whole = TARGETS in arrays and all(len(values) == len(arrays[TARGETS]) for values in arrays.values())
    return arrays if whole else None


def between(one: Mapping[str, np.ndarray] | None, other: Mapping[str, np.ndarray] | None) -> dict[str, Difference]:
    """`paired` of two such files; empty where one is missing, or they are of other examples."""
    if one is None or other is None or not np.array_equal(one[TARGETS], other[TARGETS]):
        return {}
    return paired({name: values for name, values in one.items() if name != TARGETS}, other)


def by_group(parts: Parts, groups: np.ndarray) -> dict[str, np.ndarray]:
    """What each group adds to scores of single predictions, so that its mean over groups is that over all [M, S].

    Errors are then over groups, e.g. examples of several predictions each. That a group left out takes a number of
    predictions with it which is not the others' is neglected.

    Args:
        parts: of M predictions.
        groups: the group of each, [M].
    """
    _, place = np.unique(groups, return_inverse=True)
    sums_of = {}
    for name, values in parts.items():
        sums = np.zeros((int(place.max()) + 1, values.shape[1]))
        np.add.at(sums, place, values)
        sums_of[name] = sums * (len(sums) / len(values))
    return sums_of


def value_of(name: str, parts: np.ndarray) -> np.ndarray:
    """The score of all examples, from its parts [N, S]."""
    return _of(name, parts.mean(0))


def _difference(name: str, one: np.ndarray, other: np.ndarray) -> Difference:
    value = float(value_of(name, one) - value_of(name, other))
    if len(one) < 2:
        return Difference(value)
    left_out = _without_each(name, one) - _without_each(name, other)
    return Difference(value, float(np.sqrt((len(one) - 1) * left_out.var())))


def _without_each(name: str, parts: np.ndarray) -> np.ndarray:
    """The score of all examples but one, by the one that is left out, [N]."""
    return _of(name, (parts.sum(0) - parts) / (len(parts) - 1))


def _of(name: str, means: np.ndarray) -> np.ndarray:
    return OF[name](means) if name in OF else means[..., 0]
