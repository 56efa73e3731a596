"""The content of `metrics.json` as types. What cannot be computed is None, and a `reason` beside it says why.

Keys of the file are the names of the fields; docs/metrics.md describes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor, log10
from pathlib import Path
from typing import Any, Literal

from bayeslora.codec import FLAT, OPTIONAL, decode, encode
from bayeslora.diagnostics.convergence import Convergence, FunctionSpace
from bayeslora.diagnostics.values import Difference, Fidelity, MeasuredTemperature, NoiseHeat, RiskCoverage, Steepness
from bayeslora.errors import DataError
from bayeslora.evaluation.scores import (
    ChainScores,
    Curve,
    DrawScore,
    LabelScores,
    MapEnsemble,
    Number,
    PredictionCount,
    Scores,
    TemperedMap,
)


@dataclass(frozen=True)
class MapEntropy:
    """Mean predictive entropy of MAP, in nats."""

    total: Number = None


@dataclass(frozen=True)
class EnsembleEntropy:
    """Mean predictive entropy of the ensemble and its two parts, in nats."""

    total: Number = None
    aleatoric: Number = None
    mutual_information: Number = None
    reason: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Variance:
    """Mean predictive variance of a regression and its two parts, in squared units of the targets."""

    aleatoric: Number = None
    epistemic: Number = None
    total: Number = None


@dataclass(frozen=True)
class Uncertainty:
    """Predictive uncertainty: entropies of classes, variances of real numbers."""

    map: MapEntropy | None = None
    ensemble: EnsembleEntropy | None = None
    variance: Variance | None = field(default=None, metadata=OPTIONAL)
    reason: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Selective:
    """Error rate among the most confident part of the examples."""

    map: RiskCoverage | None = None
    ensemble: RiskCoverage | None = None


@dataclass(frozen=True)
class Prefixes:
    """R-hat of the first `shares` of every chain's draws; of predictions the median."""

    shares: list[float] = field(default_factory=list)
    potential: list[Number] = field(default_factory=list)
    l2_norm: list[Number] = field(default_factory=list)
    function_space: list[Number] = field(default_factory=list)


@dataclass(frozen=True)
class Agreement:
    """How far the ensembles of different chains agree on the evaluated split, means over pairs of chains.

    Attributes:
        kl: nats, the mean of both directions.
        total_variation: 0 to 1.
        same_top: share of examples with the same predicted class.
        mean_difference: of a regression, the root mean square of the means' differences, in predictive sds.
    """

    kl: Number = None
    total_variation: Number = None
    same_top: Number = None
    mean_difference: Number = field(default=None, metadata=OPTIONAL)
    reason: str | None = None


@dataclass(frozen=True)
class Efficiency:
    """Minibatch gradients from the warm-up's end on, over all chains, and effective draws of the potential by each."""

    gradients: int = 0
    ess_per_gradient: Number = None


@dataclass(frozen=True)
class Acceptance:
    """How often a Metropolis test would accept a Langevin step on all data at the run's step sizes, from its draws.

    Attributes:
        mean: 0 to 1; 1 less the mean grows with the error of the discretisation.
        se: its standard error.
        draws: from which a step was tried.
        reason: why there is none.
    """

    mean: Number = None
    se: Number = None
    draws: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Diagnostics:
    """Convergence of the chains: of each scalar of the draws by its name, of predictions, and between ensembles.

    `temperature` has what each block's temperature is by its positions, `kinetic` by its momenta, `noise_heat` how much
    minibatch noise heats where it lies, of a run of which each block's temperature is right, and `steepness` how long
    its steps are for the steepest direction.
    """

    function_space: FunctionSpace | None = None
    prefixes: Prefixes | None = None
    agreement: Agreement | None = None
    efficiency: Efficiency | None = None
    acceptance: Acceptance | None = field(default=None, metadata=OPTIONAL)
    temperature: dict[str, MeasuredTemperature] = field(default_factory=dict, metadata=OPTIONAL)
    kinetic: dict[str, MeasuredTemperature] = field(default_factory=dict, metadata=OPTIONAL)
    noise_heat: dict[str, NoiseHeat] = field(default_factory=dict, metadata=OPTIONAL)
    steepness: Steepness | None = field(default=None, metadata=OPTIONAL)
    scalars: dict[str, Convergence] = field(default_factory=dict, metadata=FLAT)

    def of(self, name: str) -> Convergence:
        """The convergence of a scalar; all None where it is not recorded."""
        return self.scalars.get(name, Convergence())


@dataclass(frozen=True)
class FidelityCurve:
    """Fidelity of the ensemble of the first `draws` draws: lists of one length."""

    draws: list[float] = field(default_factory=list)
    agreement: list[Number] = field(default_factory=list)
    total_variation: list[Number] = field(default_factory=list)


@dataclass(frozen=True)
class ReferenceFidelity:
    """Fidelity to a reference posterior of `map`, `draw` (the mean single draw), `chain <k>` and `ensemble`."""

    curve: FidelityCurve = field(default_factory=FidelityCurve)
    reason: str | None = field(default=None, metadata=OPTIONAL)
    rows: dict[str, Fidelity | None] = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class Detection:
    """How well a score tells another dataset from the run's own: area under the ROC curve, average precision."""

    auroc: Number = None
    aupr: Number = None


@dataclass(frozen=True)
class OutOfDistribution:
    """Detection of another dataset by the ensemble's entropy and mutual information, and by the entropy of MAP."""

    dataset: str | None = None
    entropy: Detection | None = None
    mutual_information: Detection | None = None
    map_entropy: Detection | None = None
    reason: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Corruption:
    """Scores under one corruption: lists over severities, of MAP and of the ensemble."""

    severity: list[int] = field(default_factory=list)
    map: list[Scores | None] = field(default_factory=list)
    ensemble: list[Scores | None] = field(default_factory=list)


@dataclass(frozen=True)
class Corruptions:
    """Scores of corrupted images by corruption, and how many images each severity has."""

    examples: int | None = None
    reason: str | None = field(default=None, metadata=OPTIONAL)
    kinds: dict[str, Corruption] = field(default_factory=dict, metadata=FLAT)


TIE = " (a tie)"
"""After a difference within two of its standard errors."""


@dataclass(frozen=True)
class Criterion:
    """A limit that a run is held to: its value, the limit, how they must lie, and whether they do.

    `se` is the standard error of a difference to MAP; within two of them it is a tie, which counts as 0.
    """

    title: str = ""
    value: Number = None
    limit: Number = None
    relation: str = ""
    passed: bool = False
    se: Number = field(default=None, metadata=OPTIONAL)

    @property
    def shown(self) -> str:
        """The value in words, a difference with its standard error."""
        if self.value is None:
            return "–"
        if self.se is None:
            return f"{self.value:.4g}".replace("-", "−")
        tie = TIE if Difference(self.value, self.se).tie else ""
        digits = max(0, 1 - floor(log10(self.se))) if self.se > 0 else 4  # two of the standard error
        return f"{self.value:z.{digits}f} ± {self.se:.{digits}f}{tie}".replace("-", "−")


@dataclass(frozen=True)
class Tokens:
    """Of a run on texts: tokens a batch, the fraction of padding beside them, tokens per second of all steps."""

    per_batch: float
    padding: float
    per_second: Number = None


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from.

    Attributes:
        command, commit, python, versions, hardware: of the training.
        split, draws, chains: of the evaluation.
        seconds: by phase, summed over chains.
        ess_per_second: of the potential, by the seconds of burn-in and sampling.
        tokens: of a run on texts.
        short_burn_in: of a run whose chains may start off their law, in words.
        other: what else the run recorded.
    """

    command: str | None = None
    commit: str | None = None
    python: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    hardware: str | None = None
    split: str | None = None
    draws: int | None = None
    chains: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    ess_per_second: Number = None
    tokens: Tokens | None = field(default=None, metadata=OPTIONAL)
    short_burn_in: str | None = field(default=None, metadata=OPTIONAL)
    other: dict[str, Any] = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class Results:
    """The content of `metrics.json`.

    Attributes:
        task: what was predicted.
        map: of the MAP baseline.
        map_tempered: of MAP with a fitted temperature, the honest baseline.
        map_ensemble: of the warm-up ends of all chains.
        draw: of single draws, by score.
        ensemble: of all draws, probabilities averaged.
        differences: scores of the ensemble less those of `map`, `map_tempered` and `map_ensemble`, and of the latter
            less MAP's (`map_ensemble_less_map`), on the same examples.
        chains: of each chain's own ensemble.
        cumulative: of the growing ensemble.
        absent: of a regression: what it has none of, and why.
        predicted: where examples have several predictions each, over which all scores are means.
        labels: of several labels an example: each by its name.
        label_average: of several labels an example: means over labels, each of the same weight.
        reference, ood, corruptions: only where they were asked for.
    """

    task: Literal["classification", "multilabel", "regression"] = "classification"
    map: Scores | None = None
    map_tempered: TemperedMap | None = None
    map_ensemble: MapEnsemble | None = None
    draw: dict[str, DrawScore] = field(default_factory=dict)
    ensemble: Scores | None = None
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict, metadata=OPTIONAL)
    chains: list[ChainScores] = field(default_factory=list)
    cumulative: Curve = field(default_factory=Curve)
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    selective: Selective = field(default_factory=Selective)
    absent: dict[str, str] = field(default_factory=dict, metadata=OPTIONAL)
    predicted: PredictionCount | None = field(default=None, metadata=OPTIONAL)
    labels: dict[str, LabelScores] = field(default_factory=dict, metadata=OPTIONAL)
    label_average: LabelScores | None = field(default=None, metadata=OPTIONAL)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    reference: ReferenceFidelity | None = field(default=None, metadata=OPTIONAL)
    ood: OutOfDistribution | None = field(default=None, metadata=OPTIONAL)
    corruptions: Corruptions | None = field(default=None, metadata=OPTIONAL)
    provenance: Provenance = field(default_factory=Provenance)
    criteria: dict[str, Criterion] = field(default_factory=dict)

    @property
    def scored(self) -> str:
        """What scores are means over: examples, labels or positions."""
        return "examples" if self.predicted is None else self.predicted.of

    def to_json(self) -> dict[str, Any]:
        """As the file holds it; a number that is NaN or infinite is null."""
        content: dict[str, Any] = encode(self)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """From what the file holds; a key that is missing takes its default.

        Raises:
            DataError: a value is not of its type, or a key is unknown.
        """
        return decode(cls, content, "metrics")

    @classmethod
    def read(cls, file: Path) -> Results:
        """From a run's `metrics.json`.

        Raises:
            DataError: it is not there, or does not hold a run's results; the message says how to write it again.
        """
        again = f"python -m bayeslora.evaluate run_dir={file.parent}"
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError:
            raise DataError(f"{file.parent} has not been evaluated: {again}") from None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file.parent}: cannot read {file.name} ({str(error).splitlines()[0]}); {again}"
            ) from error
        try:
            results = cls.from_json(content)
        except DataError as error:
            raise DataError(f"{file.parent}: {file.name} does not hold a run's metrics ({error}); {again}") from error
        if results.ensemble is None:
            raise DataError(f"{file.parent}: {file.name} does not hold a run's metrics (no ensemble); {again}")
        return results

    def __getitem__(self, key: str) -> Any:
        """An entry as the file holds it, for scripts: `results["ensemble"]["nll"]`."""
        return self.to_json()[key]
