"""Predictive metrics against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bayeslora.diagnostics.metrics import metrics, reliability
from bayeslora.errors import ConfigError, DivergedError
from tests.cases import each


def _log(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).log()


def _random(examples: int = 500, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(examples, classes, generator=generator)
    return logits.log_softmax(1), torch.randint(classes, (examples,), generator=generator)


def test_metrics_of_two_examples_by_hand() -> None:
    found = metrics(_log((0.7, 0.2, 0.1), (0.5, 0.3, 0.2)), torch.tensor([0, 1]))
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, rel=1e-6)
    assert found["brier"] == pytest.approx((0.09 + 0.04 + 0.01 + 0.25 + 0.49 + 0.04) / 2, rel=1e-6)
    assert found["ece"] == pytest.approx((abs(1 - 0.7) + abs(0 - 0.5)) / 2, rel=1e-6)


def test_ece_averages_within_a_bin_before_taking_the_gap() -> None:
    """Confidences 0.61 and 0.65 share the bin [0.6, 0.667): one right, one wrong."""
    found = metrics(_log((0.61, 0.39), (0.65, 0.35)), torch.tensor([0, 1]))
    assert found["ece"] == pytest.approx(abs(0.5 - 0.63), rel=1e-5)


def test_ece_of_confidence_one_is_in_the_last_bin() -> None:
    """Confidences 1.0 (wrong) and 0.95 (right) share the last bin: |0.5 − 0.975|; a bin of its own would give 0.525."""
    log_probs = _log((1.0, 0.0), (0.95, 0.05))
    targets = torch.tensor([1, 0])
    assert metrics(log_probs, targets)["ece"] == pytest.approx(0.475, abs=1e-6)
    assert reliability(log_probs, targets).count[-1] == 2


def test_probabilities_rounded_above_one_are_not_taken_for_logits() -> None:
    log_probs = torch.tensor([[1e-6, -14.0], [-14.0, 1e-6]])
    found = metrics(log_probs, torch.tensor([0, 1]))
    assert found["ece"] == pytest.approx(0, abs=1e-6)


def test_uniform_predictions_have_the_nll_and_brier_score_of_chance() -> None:
    found = metrics(torch.full((10, 4), -math.log(4)), torch.arange(10) % 4)
    assert found["nll"] == pytest.approx(math.log(4), rel=1e-6)
    assert found["brier"] == pytest.approx(0.75, rel=1e-6)


def test_a_true_class_of_probability_zero_has_infinite_nll() -> None:
    found = metrics(_log((1.0, 0.0)), torch.tensor([1]))
    assert found["nll"] == math.inf
    assert found["brier"] == pytest.approx(2)


def test_metrics_are_python_floats() -> None:
    assert {name: type(value) for name, value in metrics(*_random()).items()} == dict.fromkeys(
        ("accuracy", "nll", "ece", "brier"), float
    )


def test_reliability_by_hand() -> None:
    found = reliability(_log((0.9, 0.1), (0.8, 0.2), (0.6, 0.4)), torch.tensor([0, 1, 0]), bins=4)
    assert found.edges == (0, 0.25, 0.5, 0.75, 1)
    assert found.count == (0, 0, 1, 2)
    assert found.confidence[:2] == found.accuracy[:2] == (None, None)
    assert found.confidence[2:] == pytest.approx((0.6, 0.85))
    assert found.accuracy[2:] == pytest.approx((1.0, 0.5))


def test_reliability_and_metrics_agree_on_the_ece() -> None:
    log_probs, targets = _random()
    found = reliability(log_probs, targets)
    assert found.ece == pytest.approx(metrics(log_probs, targets)["ece"], rel=1e-5)
    assert sum(found.count) == len(targets)


@each(
    ("log_probs", "targets"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
    ],
)
@each("function", [metrics, reliability])
def test_shapes_that_do_not_fit_are_refused(
    function: Callable[[Tensor, Tensor], object], log_probs: Tensor, targets: Tensor
) -> None:
    with pytest.raises(ConfigError, match="metrics need"):
        function(log_probs, targets)


@each("function", [metrics, reliability])
def test_nan_is_refused(function: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises(DivergedError, match="NaN"):
        function(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
