"""Predictive metrics from log-probabilities: accuracy, negative log-likelihood, calibration error, Brier score, F1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayeslora.errors import DivergedError, require

BINS = 15
"""Confidence bins of equal width, of the ECE and of the reliability diagram."""


@dataclass(frozen=True)
class Reliability:
    """Accuracy and confidence by confidence bin.

    Attributes:
        edges: [bins + 1], from 0 to 1.
        confidence: [bins], mean probability of the predicted class; None in an empty bin.
        accuracy: [bins], fraction predicted right; None in an empty bin.
        count: [bins], number of examples.
    """

    edges: tuple[float, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    count: tuple[int, ...]

    @property
    def ece(self) -> float:
        """Expected calibration error: Σ_b (n_b / N) |accuracy_b − confidence_b|."""
        filled = zip(self.confidence, self.accuracy, self.count, strict=True)
        gaps = (count * abs(a - c) for c, a, count in filled if a is not None and c is not None)
        return sum(gaps) / sum(self.count)


def metrics(log_probs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score, each a mean over examples.

    Args:
        log_probs: normalised log-probabilities [N, C], float32.
        targets: class numbers [N].

    Returns:
        `accuracy` in [0, 1]; `nll` in nats, infinite if a true class has probability 0; `ece` over 15 bins;
        `brier`, the squared error of the probabilities summed over classes, in [0, 2]; of two classes also `f1` of the
        second, 0 where it is neither there nor predicted.

    Raises:
        ConfigError: the shapes do not fit each other, or there are no examples.
        DivergedError: a log-probability is NaN.
    """
    _check(log_probs, targets)
    probs = log_probs.float().exp()
    truth = torch.nn.functional.one_hot(targets.long(), probs.shape[1])
    scores = {
        "accuracy": (log_probs.argmax(1) == targets).double().mean().item(),
        "nll": -log_probs.double().gather(1, targets.long()[:, None]).mean().item(),
        "ece": _ece(probs, targets),
        "brier": (probs - truth).double().square().sum(1).mean().item(),
    }
    return scores if probs.shape[1] != 2 else scores | {"f1": _f1(log_probs.argmax(1), targets)}


def score_parts(log_probs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
    """What each example adds to each of the scores of `metrics`, [N, S] (see `bayeslora.diagnostics.paired`).

    Args:
        log_probs: normalised log-probabilities [N, C].
        targets: class numbers [N].
    """
    truth, predicted = targets.long(), log_probs.argmax(1)
    right, probs = (predicted == truth).double(), log_probs.float().exp()
    confidence, bins = _confidence_bins(log_probs, BINS)
    by_score = {
        "accuracy": right[:, None],
        "nll": -log_probs.double().gather(1, truth[:, None]),
        "ece": torch.nn.functional.one_hot(bins, BINS) * (right - confidence)[:, None],
        "brier": (probs - torch.nn.functional.one_hot(truth, probs.shape[1])).double().square().sum(1, keepdim=True),
    }
    if probs.shape[1] == 2:
        by_score["f1"] = torch.stack([predicted * truth, predicted + truth], 1).double()
    return {name: values.numpy() for name, values in by_score.items()}


def reliability(log_probs: Tensor, targets: Tensor, bins: int = BINS) -> Reliability:
    """Accuracy against confidence in `bins` bins [edge, next edge); a confidence of 1 is in the last bin.

    Args:
        log_probs: normalised log-probabilities [N, C].
        targets: class numbers [N].
        bins: number of bins.

    Raises:
        ConfigError, DivergedError: as `metrics`.
    """
    _check(log_probs, targets)
    edges, right = torch.linspace(0, 1, bins + 1, device=log_probs.device), (log_probs.argmax(1) == targets).double()
    confidence, index = _confidence_bins(log_probs, bins)
    count = torch.bincount(index, minlength=bins).tolist()
    return Reliability(
        edges=tuple(edges.tolist()),
        confidence=_means(torch.bincount(index, confidence.double(), bins), count),
        accuracy=_means(torch.bincount(index, right, bins), count),
        count=tuple(count),
    )


def _confidence_bins(log_probs: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Probabilities of the predicted classes [N], and the numbers of their bins [N], from log p [N, C]."""
    confidence = _below_one(log_probs.float().max(1).values.exp())
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device)
    return confidence, torch.bucketize(confidence, edges, right=True) - 1


def _means(sums: Tensor, count: list[int]) -> tuple[float | None, ...]:
    """Sums [bins] over counts [bins]; None where the count is 0."""
    return tuple(total / n if n else None for total, n in zip(sums.tolist(), count, strict=True))


def _f1(predicted: Tensor, targets: Tensor) -> float:
    """F1 of class 1 by torchmetrics."""
    from torchmetrics.functional.classification import binary_f1_score

    return float(binary_f1_score(predicted, targets, validate_args=False))


def _ece(probs: Tensor, targets: Tensor) -> float:
    """Expected calibration error of probabilities [N, C] by torchmetrics."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(_below_one(probs), targets, probs.shape[1], BINS, "l1", validate_args=False)
    return float(error)


def _below_one(probs: Tensor) -> Tensor:
    """Probabilities below 1: torchmetrics puts an exact 1 in a bin of its own and takes a rounded-up 1 for a logit."""
    return probs.clamp(max=1 - torch.finfo(probs.dtype).eps / 2)


def _check(log_probs: Tensor, targets: Tensor) -> None:
    """Raise unless `log_probs` is [N, C], `targets` [N], N at least 1 and nothing NaN."""
    shapes = f"log_probs {list(log_probs.shape)} and targets {list(targets.shape)}"
    require(log_probs.ndim == 2 and targets.shape == log_probs.shape[:1], f"metrics need [N, C] and [N], not {shapes}")
    require(len(targets) > 0, "metrics need at least one example; the evaluation set is empty")
    refuse_nan(log_probs)


def refuse_nan(log_probs: Tensor) -> None:
    """Raise `DivergedError` if anything is NaN."""
    if log_probs.isnan().any():
        raise DivergedError("a log-probability is NaN: the parameters of this draw, or its logits, are not finite")
