"""Scores in `metrics.json` as types: of classes, of predictive densities, of chains, labels, draws and baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bayeslora.codec import FLAT, OPTIONAL
from bayeslora.diagnostics.paired import Parts, paired
from bayeslora.diagnostics.values import Difference

Number = float | None


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of predicted classes, means over examples.

    Attributes:
        accuracy: a share.
        nll: nats per example.
        ece: over 15 bins of confidence, a share.
        brier: squared error summed over classes, 0 to 2.
        f1: of the second of two classes; not written where there are more.
    """

    accuracy: Number = None
    nll: Number = None
    ece: Number = None
    brier: Number = None
    f1: Number = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class RegressionScores:
    """Scores of a predictive density, in the unit of the targets.

    Attributes:
        nll: nats per example.
        rmse, mae: of the predictive mean.
        coverage_50, coverage_90, coverage_95: share of targets in the central interval of so many percent.
        calibration_error: of the predictive quantiles, mean absolute difference of shares.
        sharpness: mean predictive standard deviation.
    """

    nll: Number = None
    rmse: Number = None
    mae: Number = None
    coverage_50: Number = None
    coverage_90: Number = None
    coverage_95: Number = None
    calibration_error: Number = None
    sharpness: Number = None


Scores = ClassificationScores | RegressionScores


def score(scores: Scores | None, name: str) -> Number:
    """One score by its name; None where there is none."""
    return getattr(scores, name, None)


@dataclass(frozen=True)
class ChainScores:
    """Scores of the ensemble of one chain's draws."""

    chain: int
    scores: Scores = field(default_factory=ClassificationScores, metadata=FLAT)


@dataclass(frozen=True)
class LabelScores:
    """Scores of one label of several, over the examples of which it is known; or their means over labels.

    Attributes:
        known: examples of which it is known.
        holds: the share of these of which it holds.
        map, ensemble: scores of MAP and of all draws.
    """

    known: int = 0
    holds: Number = None
    map: ClassificationScores | None = None
    ensemble: ClassificationScores | None = None


@dataclass(frozen=True)
class PredictionCount:
    """What scores are means over, where an example has several predictions: `of` is what they are of."""

    of: Literal["labels", "positions"]
    predictions: int
    examples: int


@dataclass(frozen=True)
class TemperedMap:
    """MAP with a temperature fitted on the validation set, and the NLL there in nats before and after."""

    temperature: Number = None
    nll_before: Number = None
    nll_after: Number = None
    reason: str | None = None
    scores: Scores | None = field(default=None, metadata=FLAT)


@dataclass(frozen=True)
class MapEnsemble:
    """MAP × K, a deep ensemble: the probabilities of `members` warm-up ends averaged, one a chain."""

    members: int = 0
    reason: str | None = None
    scores: Scores | None = field(default=None, metadata=FLAT)


@dataclass(frozen=True)
class DrawScore:
    """A score of single draws: its mean over draws, their standard deviation, the mean's Monte Carlo error."""

    mean: Number = None
    sd: Number = None
    mcse: Number = None


@dataclass(frozen=True)
class Curve:
    """Scores of the ensemble of the first `draws` draws, taken in turn from every chain: lists of one length by name.

    `<score>_se` holds the Monte Carlo standard error of a score where it is known.
    """

    draws: list[float] = field(default_factory=list)
    scores: dict[str, list[Number]] = field(default_factory=dict, metadata=FLAT)

    @classmethod
    def of(cls, lists: Mapping[str, list[float]]) -> Curve:
        """From lists by name, `draws` among them."""
        return cls(lists["draws"], {name: [*values] for name, values in lists.items() if name != "draws"})


def map_ensemble(members: int, scores: Scores | None) -> MapEnsemble:
    """MAP × K with its scores, or why there are none."""
    available = "is only one" if members == 1 else "is none"
    reason = None if scores else f"it takes different warm-up ends of several chains, and there {available}"
    return MapEnsemble(members, reason, scores)


def paired_differences(of: Mapping[str, Parts | None]) -> dict[str, dict[str, Difference]]:
    """Scores of `ensemble` less those of each other, and of `map_ensemble` less those of `map`; of what is there."""
    parts_of = {name: parts for name, parts in of.items() if parts}
    ensemble = parts_of.pop("ensemble")
    differing = {name: paired(ensemble, baseline) for name, baseline in parts_of.items()}
    if {"map", "map_ensemble"} <= set(parts_of):
        differing["map_ensemble_less_map"] = paired(parts_of["map_ensemble"], parts_of["map"])
    return differing
