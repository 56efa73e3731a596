"""How an ensemble fares by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.evaluation.results import Results
from bayeslora.evaluation.scores import ClassificationScores
from bayeslora.report.words import MISSING, number, percent

MANY = 20
"""Above so many classes only the worst and the best are shown at first, half of this number each."""


@dataclass(frozen=True)
class ClassRow:
    """One class of the evaluated examples; without any, there is nothing to say of it.

    Attributes:
        name: of the class.
        examples: how many there are.
        accuracy: share of them that is predicted right.
        confidence: mean probability of the class predicted for them.
        nll: mean, in nats.
        confused: the class most often predicted instead and how often, or None.
    """

    name: str
    examples: int
    accuracy: float | None
    confidence: float | None
    nll: float | None
    confused: tuple[str, int] | None

    @property
    def cells(self) -> list[str]:
        """The row as shown, without its name."""
        if not self.examples:
            return ["0", *[MISSING] * 3, "no example to judge by"]
        wrong = f"{self.confused[0]} ({self.confused[1]:,})" if self.confused else MISSING
        return [
            f"{self.examples:,}", percent(self.accuracy), percent(self.confidence), number(self.nll, ".4f"), wrong,
        ]  # fmt: skip


def class_rows(log_probs: Tensor, targets: Tensor, names: Sequence[str]) -> list[ClassRow]:
    """One row a class, in the order of the classes.

    Args:
        log_probs: of the ensemble [N, C].
        targets: true classes [N].
        names: of the C classes.
    """
    return [_row(log_probs[targets == at].double(), at, names) for at in range(len(names))]


def _row(log_probs: Tensor, truth: int, names: Sequence[str]) -> ClassRow:
    """The row of one class, from log p [n, C] of its examples."""
    if not len(log_probs):
        return ClassRow(names[truth], 0, None, None, None, None)
    log_confidence, predicted = log_probs.max(1)
    return ClassRow(
        name=names[truth],
        examples=len(log_probs),
        accuracy=(predicted == truth).double().mean().item(),
        confidence=log_confidence.exp().mean().item(),
        nll=-log_probs[:, truth].mean().item(),
        confused=_confused(predicted, truth, names),
    )


def _confused(predicted: Tensor, truth: int, names: Sequence[str]) -> tuple[str, int] | None:
    """The wrong class that is predicted most often, and how often."""
    counts = torch.bincount(predicted, minlength=len(names))
    counts[truth] = 0
    most = int(counts.argmax())
    return (names[most], int(counts[most])) if counts[most] else None


def label_rows(results: Results) -> list[tuple[str, list[str]]]:
    """One row a label, and their average; none where examples have no labels."""
    named = {**results.labels, **({"Average": results.label_average} if results.label_average else {})}
    rows = []
    for name, label in named.items():
        scores = label.ensemble or ClassificationScores()
        numbers = [number(getattr(scores, key), ".4f") for key in ("nll", "ece", "brier", "f1")]
        by_map = number(None if label.map is None else label.map.nll, ".4f")
        shares = [percent(label.holds), percent(scores.accuracy)]
        rows.append((name, [f"{label.known:,}", *shares, *numbers, by_map]))
    return rows


def worst_and_best(rows: Sequence[ClassRow]) -> tuple[list[ClassRow], list[ClassRow]]:
    """The classes of lowest accuracy, worst first, and those of highest, best last; all and none if they are few."""
    if len(rows) <= MANY:
        return list(rows), []
    ranked = sorted((row for row in rows if row.examples), key=lambda row: (row.accuracy or 0.0, -(row.nll or 0.0)))
    half = min(MANY // 2, len(ranked) // 2)
    return ranked[:half], ranked[len(ranked) - half :]
