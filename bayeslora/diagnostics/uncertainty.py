"""What an ensemble does not know: entropy and its parts, detecting other data by them, and selective prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.diagnostics.metrics import refuse_nan
from bayeslora.diagnostics.values import RiskCoverage
from bayeslora.errors import DataError, require

ONE_DRAW = "mutual information is what draws disagree about, and there is only one"
"""Why one draw has none."""


@dataclass(frozen=True)
class Entropy:
    """Entropy of an ensemble's prediction and its two parts, one number an example [N], in nats, float64.

    Attributes:
        total: H[(1/S) Σₛ pₛ], the entropy of the ensemble's prediction.
        aleatoric: (1/S) Σₛ H[pₛ], what remains if the parameters were known.
        mutual_information: total − aleatoric, what the draws disagree about; at least 0.
    """

    total: Tensor
    aleatoric: Tensor
    mutual_information: Tensor


class EntropySplit:
    """Predictive entropy of an ensemble, split draw by draw; memory does not grow with the number of draws.

    Sums are taken in float64, so that the difference keeps its digits where draws hardly disagree.

    Source: Depeweg, Hernández-Lobato, Doshi-Velez, Udluft (2018), "Decomposition of uncertainty in Bayesian deep
    learning for efficient and risk-sensitive learning".

    Examples:
        >>> split = EntropySplit()
        >>> for row in ([1.0, 0.0], [0.0, 1.0]):
        ...     split.add(torch.tensor([row]).log())
        >>> found = split.entropy
        >>> found.aleatoric.item(), round(found.mutual_information.item(), 4)
        (0.0, 0.6931)
    """

    def __init__(self) -> None:
        self.count = 0
        self._probs: Tensor | None = None
        self._entropy: Tensor | None = None

    def add(self, log_probs: Tensor) -> None:
        """Take in one draw's log p [N, C].

        Raises:
            ConfigError: it is not [N, C], or not of the shape of the draws before it.
            DivergedError: a log-probability is NaN.
        """
        entropy = predictive_entropy(log_probs)
        probs = log_probs.double().exp()
        if self._probs is None or self._entropy is None:
            self._probs, self._entropy = probs, entropy
        else:
            expected, given = list(self._probs.shape), list(probs.shape)
            require(expected == given, f"this draw's log_probs are {given} where those before it were {expected}")
            self._probs += probs
            self._entropy += entropy
        self.count += 1

    @property
    def entropy(self) -> Entropy:
        """The entropy of the draws so far and its parts.

        Raises:
            DataError: no draw was added.
        """
        if self._probs is None or self._entropy is None:
            raise DataError("the entropy of an ensemble needs at least one draw")
        total = torch.special.entr(self._probs / self.count).sum(1)
        aleatoric = self._entropy / self.count
        return Entropy(total, aleatoric, (total - aleatoric).clamp(min=0))


def predictive_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each prediction, in nats, float64 [N].

    Args:
        log_probs: normalised log-probabilities [N, C]; a probability of 0 (−∞) adds nothing.

    Raises:
        ConfigError: it is not [N, C].
        DivergedError: a log-probability is NaN.
    """
    require(log_probs.ndim == 2, f"entropy needs log_probs [N, C], not {list(log_probs.shape)}")
    refuse_nan(log_probs)
    return torch.special.entr(log_probs.double().exp()).sum(1)


def detection(score_in: Tensor, score_out: Tensor) -> dict[str, float]:
    """How well a score (predictive entropy, mutual information) tells another dataset from the run's own.

    Args:
        score_in: scores [N] of the run's own examples.
        score_out: scores [M] of the other dataset's, which are the positive class: they should be higher.

    Returns:
        `auroc`: the chance that one of the others scores above one of the run's own, a tie counting one half; 0.5 is
        chance. `aupr`: average precision; chance is M / (N + M), so it compares only at the same N and M.

    Raises:
        ConfigError: a score is not [N], empty or not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    for name, score in (("score_in", score_in), ("score_out", score_out)):
        require(score.ndim == 1 and len(score) > 0, f"{name} must be [N], N at least 1, not {list(score.shape)}")
        require(bool(score.isfinite().all()), f"{name} holds NaN or infinite values; predict these examples again")
    scores = torch.cat([score_in.double().cpu(), score_out.double().cpu()]).numpy()
    outside = (torch.arange(len(scores)) >= len(score_in)).numpy()
    return {
        "auroc": float(roc_auc_score(outside, scores)),
        "aupr": float(average_precision_score(outside, scores)),
    }


def risk_coverage(
    log_probs: Tensor, targets: Tensor, confidence: Tensor | None = None, points: int = 100
) -> RiskCoverage:
    """Selective prediction: answer the most confident examples only, and count the wrong answers.

    Examples of equal confidence have no order: each takes the error rate of its group, which is the expectation over
    all orders, so the curve does not depend on the order of the examples.

    Args:
        log_probs: normalised log-probabilities [N, C].
        targets: class numbers [N].
        confidence: what to order by [N], higher is more confident; None takes log p of the predicted class.
        points: the curve is given at so many coverages at most, evenly spaced; `aurc` uses all N.

    Raises:
        ConfigError: the shapes do not fit each other, there are no examples, or fewer than one point is asked for.
        DivergedError: a log-probability or a confidence is NaN.

    Source: Geifman & El-Yaniv (2017), "Selective classification for deep neural networks".
    """
    confidence = log_probs.max(-1).values if confidence is None else confidence
    shapes = f"log_probs {list(log_probs.shape)}, targets {list(targets.shape)}, confidence {list(confidence.shape)}"
    fit = log_probs.ndim == 2 and targets.shape == confidence.shape == log_probs.shape[:1]
    require(fit, f"risk_coverage needs [N, C], [N] and [N], not {shapes}")
    require(len(targets) > 0, "risk_coverage needs at least one example; the evaluation set is empty")
    require(points >= 1, f"points must be at least 1, not {points}")
    refuse_nan(log_probs)
    refuse_nan(confidence)
    values, order = confidence.sort(descending=True)
    wrong = (log_probs.argmax(1) != targets).double()[order]
    answered = torch.arange(1, len(wrong) + 1, device=wrong.device, dtype=torch.float64)
    risk = _average_ties(wrong, values).cumsum(0) / answered
    points = min(points, len(wrong))
    shown = [len(wrong) * point // points - 1 for point in range(1, points + 1)]
    coverage = answered[shown] / len(wrong)
    return RiskCoverage(tuple(coverage.tolist()), tuple(risk[shown].tolist()), risk.mean().item())


def _average_ties(values: Tensor, keys: Tensor) -> Tensor:
    """Values [N], each replaced by the mean over the run of equal keys [N, sorted] that it is in."""
    _, group, size = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
    return (torch.zeros_like(size, dtype=values.dtype).index_add_(0, group, values) / size)[group]
