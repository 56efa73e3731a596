"""What diagnostics give as plain numbers: read without torch, as a comparison of runs does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ALL, POOLED = "all", "pooled"
"""The whole net, and the blocks that are too small to be measured alone, among the names of blocks."""
TOLERANCE = 0.05
"""How far from the temperature asked for a block may be, where the run sets no limit."""


@dataclass(frozen=True)
class Difference:
    """A difference of two scores on the same examples, and its standard error over examples; None where not known."""

    value: float | None = None
    se: float | None = None

    @property
    def of_one_example(self) -> bool:
        """Whether it has no standard error, as there is one example only."""
        return self.value is not None and self.se is None

    @property
    def tie(self) -> bool:
        """Whether it is not shown to be there: within two standard errors, or of one example."""
        return self.value is not None and (self.se is None or abs(self.value) <= 2 * self.se)


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the most confident examples, against the fraction of examples answered.

    Attributes:
        coverage: fractions of the examples that are answered, rising to 1.
        risk: fraction of the answers that are wrong, at each coverage.
        aurc: area under the curve, the mean risk over all N coverages k / N; lower is better.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    aurc: float


@dataclass(frozen=True)
class Fidelity:
    """Agreement with a reference; standard errors are over examples, None where there is only one.

    Attributes:
        agreement, agreement_se: fraction of examples whose most probable class is the reference's.
        total_variation, total_variation_se: mean over examples of ½ Σ_c |p_c − q_c|, in [0, 1]; 0 is equality.
    """

    agreement: float
    agreement_se: float | None
    total_variation: float
    total_variation_se: float | None


@dataclass(frozen=True)
class MeasuredTemperature:
    """What the readings of a block say of the temperature that it is sampled at.

    Attributes:
        ratio: measured temperature in units of the one asked for; None where there is no number.
        se: standard error of `ratio`, from the effective number of readings.
        reason: why it is not known, or why it decides only with others; of `pooled`: whose it is.
        status: `"measured"`: it decides. `"pooled"`: too noisy alone for so few coordinates and draws, it decides with
            others, as `pooled`. `"not shown"`: it is not known, or not to be relied on, which is not a pass.
        c: the center of the readings: `"0"`, or `"other chains"`, the mean of the other chains' draws.
        size: D_b, coordinates.
    """

    ratio: float | None = None
    se: float | None = None
    reason: str | None = None
    status: Literal["measured", "pooled", "not shown"] = "not shown"
    c: Literal["0", "other chains"] | None = None
    size: int | None = None


@dataclass(frozen=True)
class NoiseHeat:
    """By how much independent minibatches heat a block, as a share of the temperature asked for.

    Attributes:
        share: in the directions in which their noise lies, tr(H²)/tr(H) (`diagnostics/noise_heat.py`).
        se: its standard error, over states of the chains.
        mean: over all coordinates, tr(H)/D, as the block's temperature shows it.
        directions: tr(H)²/tr(H²), in about how many the noise lies.
        size: D, coordinates.
    """

    share: float
    se: float
    mean: float
    directions: float
    size: int

    @property
    def where(self) -> str:
        """In how many directions noise lies, in words."""
        return f"about {max(1, round(self.directions)):,} of the {self.size:,} directions"


@dataclass(frozen=True)
class Steepness:
    """How long a run's steps are for the steepest direction of its potential.

    Attributes:
        value: ε·λ, with λ the largest curvature of Ũ there, and what the sampler makes of it.
        limit: up to which the sampler's law is within a few percent of the posterior's (`Sampler.curvature_limit`).
    """

    value: float
    limit: float

    @property
    def too_long(self) -> bool:
        """Whether the steps are more than twice as long as that."""
        return self.value > 2 * self.limit


@dataclass(frozen=True)
class BlockTuning:
    """What a pilot found of a block.

    Attributes:
        step_size: ε, on Ũ.
        curvature: λmax of its Hessian, of Ũ.
        relaxation: steps in which what only the prior constrains forgets its start; None of a likelihood's own.
        size: coordinates.
        heat: upper bound on the share by which independent minibatches heat it, εV·s/(2kT); None with all the data.
        gradient_variance: V, mean over coordinates; None with all the data.
        noise: how much they heat the directions in which their noise lies, of which `heat` is the mean over all
            coordinates; None with all the data, or of a sampler that they do not heat.
    """

    step_size: float
    curvature: float
    relaxation: float | None
    size: int
    heat: float | None = None
    gradient_variance: float | None = None
    noise: NoiseHeat | None = None


@dataclass(frozen=True)
class Tuning:
    """What a pilot found.

    Attributes:
        blocks: by name, in the model's order.
        momentum: μ; None of a sampler without.
        relaxation: τ, in steps.
        scale: factor on all step sizes that keeps λmax(E^½ H E^½) at its limit.
        steps: that the pilot took, warm-up and burn-in.
        halvings: how often it diverged and went on at half the step sizes.
        batch_size: examples a step; None for all the data.
        cheapest_batch: that on whose batches the slowest block relaxes on the fewest examples; None for all the data.
    """

    blocks: dict[str, BlockTuning]
    momentum: float | None
    relaxation: float
    scale: float
    steps: int
    halvings: int = 0
    batch_size: int | None = None
    cheapest_batch: int | None = None
