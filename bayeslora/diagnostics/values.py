"""What diagnostics give as plain numbers: read without torch, as a comparison of runs does."""

from __future__ import annotations

from dataclasses import asdict, dataclass


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

    def to_json(self) -> dict[str, float | None]:
        """The fields as `metrics.json` holds them."""
        return asdict(self)
