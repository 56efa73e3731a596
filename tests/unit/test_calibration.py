"""Temperature scaling against closed forms and a dense grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayeslora.diagnostics.calibration import TEMPERATURES, fit_temperature, scaled
from bayeslora.diagnostics.metrics import metrics
from bayeslora.errors import ConfigError, DivergedError
from tests.cases import each


def _log(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def _sampled(examples: int, sharpness: float, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Log-probabilities whose logits are `sharpness` times those the classes were drawn from."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(examples, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return (sharpness * logits).log_softmax(1), targets


def test_two_classes_by_hand() -> None:
    """All say 0.9 and three in four are right: the best prediction is 3/4, so t = log 9 / log 3 = 2."""
    found = fit_temperature(_log(*[(0.9, 0.1)] * 4), torch.tensor([0, 0, 0, 1]))
    assert found.temperature == pytest.approx(2, rel=1e-8)
    assert found.nll_before == pytest.approx(-(3 * math.log(0.9) + math.log(0.1)) / 4)
    assert found.nll_after == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4)
    assert found.reason is None
    assert found.apply(_log((0.9, 0.1))).exp()[0].tolist() == pytest.approx([0.75, 0.25])


@each("sharpness", [0.2, 1.0, 3.0, 20.0])
def test_the_sharpness_of_a_model_is_undone(sharpness: float) -> None:
    """The standard error of t is about t / √(information in log t); 5 % covers 20,000 examples amply."""
    log_probs, targets = _sampled(20_000, sharpness)
    found = fit_temperature(log_probs, targets)
    assert found.temperature == pytest.approx(sharpness, rel=0.05)
    assert found.reason is None


def test_no_temperature_of_a_dense_grid_is_better() -> None:
    log_probs, targets = _sampled(500, 4.0)
    found = fit_temperature(log_probs, targets)
    assert found.temperature is not None
    assert found.nll_after is not None
    of_target = torch.arange(500), targets
    best = min(-scaled(log_probs.double(), t)[of_target].mean().item() for t in torch.logspace(-2, 2, 2000).tolist())
    assert found.nll_after <= best + 1e-9
    assert found.nll_after == pytest.approx(metrics(found.apply(log_probs), targets)["nll"], rel=1e-5)
    assert found.nll_before == pytest.approx(metrics(log_probs, targets)["nll"], rel=1e-5)


def test_logits_and_log_probabilities_give_one_temperature() -> None:
    log_probs, targets = _sampled(500, 4.0)
    shift = torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    found, shifted = fit_temperature(log_probs, targets), fit_temperature(log_probs + shift, targets)
    assert found.temperature == pytest.approx(shifted.temperature, rel=1e-5)


def test_applying_keeps_the_classes_and_normalises() -> None:
    log_probs, targets = _sampled(500, 4.0)
    applied = fit_temperature(log_probs, targets).apply(log_probs)
    assert torch.equal(applied.argmax(1), log_probs.argmax(1))
    torch.testing.assert_close(applied.exp().sum(1), torch.ones(500))
    assert applied.dtype == log_probs.dtype


def test_separable_predictions_end_at_the_lower_bound_and_say_so() -> None:
    log_probs, targets = _log((0.9, 0.1), (0.2, 0.8)), torch.tensor([0, 1])
    for sharper in (log_probs, 1000 * log_probs):
        found = fit_temperature(sharper, targets)
        assert found.temperature == TEMPERATURES[0]
        assert found.reason is not None
        assert "lower end" in found.reason
        assert found.nll_after == pytest.approx(0, abs=1e-12)
        assert torch.isfinite(found.apply(sharper)).all()


def test_predictions_worse_than_none_end_at_the_upper_bound_and_say_so() -> None:
    found = fit_temperature(_log((0.9, 0.1), (0.2, 0.8)), torch.tensor([1, 0]))
    assert found.temperature == TEMPERATURES[1]
    assert found.reason is not None
    assert "upper end" in found.reason
    assert found.nll_after == pytest.approx(math.log(2), rel=0.02)


def test_huge_logits_are_fitted() -> None:
    found = fit_temperature(torch.tensor([[0.0, -40.0]] * 4), torch.tensor([0, 0, 0, 1]))
    assert found.temperature == pytest.approx(40 / math.log(3), rel=1e-6)


def test_uniform_predictions_stay_as_they_are_and_say_so() -> None:
    found = fit_temperature(torch.full((5, 3), -math.log(3)), torch.tensor([0, 1, 2, 0, 1]))
    assert found.temperature == 1
    assert found.reason is not None
    assert "uniform" in found.reason
    assert found.nll_before == found.nll_after == pytest.approx(math.log(3), rel=1e-6)


def test_impossible_classes_that_do_not_occur_do_no_harm() -> None:
    impossible = torch.full((4, 1), -math.inf)
    log_probs = torch.cat([_log(*[(0.9, 0.1)] * 4), impossible], 1)
    found = fit_temperature(log_probs, torch.tensor([0, 0, 0, 1]))
    assert found.temperature == pytest.approx(2, rel=1e-8)
    assert found.apply(log_probs)[:, 2].tolist() == [-math.inf] * 4


@each(
    ("log_probs", "targets", "reason"),
    [
        (None, None, "no validation set"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "no validation set"),
        (torch.tensor([[0.0, -math.inf]]), torch.tensor([1]), "probability 0"),
    ],
)
def test_what_cannot_be_fitted_is_a_reason_and_no_number(
    log_probs: Tensor | None, targets: Tensor | None, reason: str
) -> None:
    found = fit_temperature(log_probs, targets)
    assert (found.temperature, found.nll_before, found.nll_after) == (None, None, None)
    assert found.reason is not None
    assert reason in found.reason
    assert vars(found) == {"temperature": None, "nll_before": None, "nll_after": None, "reason": found.reason}
    with pytest.raises(ConfigError, match=f"no temperature to apply: .*{reason}"):
        found.apply(torch.zeros(1, 2))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"log_probs \[N, C\] and targets \[N\], not \[3, 2\] and \[2\]"):
        fit_temperature(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(DivergedError, match="NaN"):
        fit_temperature(torch.full((1, 2), math.nan), torch.tensor([0]))
