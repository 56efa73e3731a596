"""Differences of two predictions' scores on the same examples, with standard errors over examples. NumPy alone.

A score is a function (`OF`) of means over examples of some values [N, S], its parts; most scores are the mean itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bayeslora.diagnostics.values import Difference

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
