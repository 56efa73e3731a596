"""Entropy and its parts, detection and selective prediction against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayeslora.diagnostics.uncertainty import EntropySplit, detection, predictive_entropy, risk_coverage
from bayeslora.errors import ConfigError, DataError, DivergedError
from tests.cases import each


def _log(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).log()


def _draws(count: int, examples: int = 200, classes: int = 5, scale: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(examples, classes, generator=generator)).log_softmax(1) for _ in range(count)]


def _split(draws: list[Tensor]) -> EntropySplit:
    split = EntropySplit()
    for draw in draws:
        split.add(draw)
    return split


def test_entropy_of_two_draws_by_hand() -> None:
    """Example 0: both draws unsure. Example 1: each draw sure of another class. Example 2: both sure of one."""
    first = _log((0.5, 0.5), (1.0, 0.0), (1.0, 0.0))
    second = _log((0.5, 0.5), (0.0, 1.0), (1.0, 0.0))
    found = _split([first, second]).entropy
    assert found.total.tolist() == pytest.approx([math.log(2), math.log(2), 0])
    assert found.aleatoric.tolist() == pytest.approx([math.log(2), 0, 0])
    assert found.mutual_information.tolist() == pytest.approx([0, math.log(2), 0])


def test_entropy_of_uneven_draws_by_hand() -> None:
    found = _split([_log((0.9, 0.1)), _log((0.6, 0.4)), _log((0.6, 0.4))]).entropy
    total = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    aleatoric = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1) + 2 * (0.6 * math.log(0.6) + 0.4 * math.log(0.4))) / 3
    assert found.total.item() == pytest.approx(total, rel=1e-6)
    assert found.aleatoric.item() == pytest.approx(aleatoric, rel=1e-6)
    assert found.mutual_information.item() == pytest.approx(total - aleatoric, rel=1e-5)


def test_identical_draws_carry_no_information() -> None:
    found = _split(_draws(1) * 37).entropy
    assert found.mutual_information.max().item() < 1e-14
    torch.testing.assert_close(found.total, found.aleatoric, rtol=0, atol=1e-14)


def test_information_is_never_negative_and_at_most_the_log_of_the_number_of_draws() -> None:
    for scale in (1e-4, 1.0, 100.0):
        found = _split(_draws(3, scale=scale)).entropy
        assert found.mutual_information.min().item() >= 0
        assert found.mutual_information.max().item() <= math.log(3) + 1e-6
        torch.testing.assert_close(found.aleatoric + found.mutual_information, found.total, rtol=0, atol=1e-14)


def test_draws_that_hardly_disagree_keep_their_digits() -> None:
    """Two draws p ± δ of two classes: the information is δ² / (2 p (1 − p)) to second order."""
    p, delta = 0.3, 1e-5
    draws = [torch.tensor([[q, 1 - q]], dtype=torch.float64).log() for q in (p - delta, p + delta)]
    expected = delta**2 / (2 * p * (1 - p))
    assert _split(draws).entropy.mutual_information.item() == pytest.approx(expected, rel=1e-4)


def test_draws_are_not_kept_and_not_changed() -> None:
    draws = _draws(2)
    before = [draw.clone() for draw in draws]
    sizes = [
        sum(value.numel() for value in vars(_split(draws * repeats)).values() if isinstance(value, Tensor))
        for repeats in (1, 11)
    ]
    assert sizes[0] == sizes[1] == 200 * 5 + 200
    assert all(torch.equal(*pair) for pair in zip(draws, before, strict=True))


def test_entropy_refuses_what_is_no_draw() -> None:
    with pytest.raises(DataError, match="at least one draw"):
        _ = EntropySplit().entropy
    with pytest.raises(ConfigError, match=r"needs log_probs \[N, C\], not \[3\]"):
        EntropySplit().add(torch.zeros(3))
    split = _split(_draws(1))
    with pytest.raises(ConfigError, match=r"are \[1, 2\] where those before it were \[200, 5\]"):
        split.add(_log((0.5, 0.5)))
    with pytest.raises(DivergedError, match="NaN"):
        split.add(torch.full((200, 5), math.nan))
    assert split.count == 1


def test_predictive_entropy_by_hand() -> None:
    found = predictive_entropy(_log((0.25, 0.25, 0.25, 0.25), (1.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0)))
    assert found.tolist() == pytest.approx([math.log(4), 0, math.log(2)], rel=1e-6)


def test_detection_by_hand() -> None:
    """Of the pairs (in, out), 1 > {0.5, 0.2}, 0.5 > 0.2 and 0.5 = 0.5: 3.5 of 4. Precision 1 at 1, 2/3 at the tie."""
    found = detection(torch.tensor([0.2, 0.5]), torch.tensor([1.0, 0.5]))
    assert found == {"auroc": pytest.approx(3.5 / 4), "aupr": pytest.approx(0.5 * 1 + 0.5 * 2 / 3)}


def test_detection_of_what_cannot_be_told_apart_is_chance() -> None:
    """AUROC one half, AUPR the positives' share; the sizes differ so that in and out cannot be mixed up."""
    found = detection(torch.full((30,), 0.1), torch.full((10,), 0.1))
    assert found == {"auroc": pytest.approx(0.5), "aupr": pytest.approx(0.25)}


def test_detection_is_perfect_one_way_round_only() -> None:
    low, high = torch.linspace(0, 1, 50), torch.linspace(1.1, 2, 20)
    assert detection(low, high) == {"auroc": 1.0, "aupr": pytest.approx(1.0)}
    assert detection(high, low)["auroc"] == 0.0


@each(
    ("score_in", "score_out", "message"),
    [
        (torch.zeros(0), torch.zeros(3), r"score_in must be \[N\], N at least 1, not \[0\]"),
        (torch.zeros(3), torch.zeros(3, 2), r"score_out must be \[N\], N at least 1, not \[3, 2\]"),
        (torch.tensor([0.0, math.nan]), torch.zeros(3), "score_in holds NaN"),
        (torch.zeros(3), torch.tensor([math.inf]), "score_out holds NaN or infinite"),
    ],
)
def test_detection_refuses_bad_scores(score_in: Tensor, score_out: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detection(score_in, score_out)


def test_risk_coverage_by_hand() -> None:
    """In order of confidence: right (0.9), wrong (0.8), right (0.7), wrong (0.6)."""
    log_probs = _log((0.2, 0.8), (0.6, 0.4), (0.9, 0.1), (0.3, 0.7))
    found = risk_coverage(log_probs, torch.tensor([0, 1, 0, 1]))
    assert found.coverage == (0.25, 0.5, 0.75, 1.0)
    assert found.risk == pytest.approx((0, 1 / 2, 1 / 3, 2 / 4))
    assert found.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_tied_examples_share_their_errors_in_any_order() -> None:
    """One sure and right; then three alike of which one is wrong: 1/3 of an error each."""
    log_probs = _log((0.9, 0.1), (0.7, 0.3), (0.7, 0.3), (0.7, 0.3))
    for order in ([0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]):
        found = risk_coverage(log_probs, torch.tensor(order))
        assert found.risk == pytest.approx((0, 1 / 6, 2 / 9, 1 / 4))


def test_ties_take_the_mean_over_random_orders() -> None:
    wrong = torch.tensor([1.0, 0, 0, 1, 0, 0, 0])
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(7, generator=generator) for _ in range(4000)])
    areas = (wrong[orders].cumsum(1) / torch.arange(1, 8)).mean(1)
    found = risk_coverage(_log((0.7, 0.3)).expand(7, 2), wrong.long())
    assert found.aurc == pytest.approx(areas.mean().item(), abs=4 * areas.std().item() / math.sqrt(4000))


def test_another_score_orders_the_examples() -> None:
    log_probs, targets = _log((0.9, 0.1), (0.6, 0.4)), torch.tensor([1, 0])
    assert risk_coverage(log_probs, targets).aurc == pytest.approx((1 + 1 / 2) / 2)
    assert risk_coverage(log_probs, targets, confidence=torch.tensor([0.0, 1.0])).aurc == pytest.approx((0 + 1 / 2) / 2)


def test_the_curve_ends_at_the_error_rate_and_thins_to_the_points_asked_for() -> None:
    log_probs = _draws(1, examples=1003)[0]
    targets = torch.arange(1003) % 5
    error = (log_probs.argmax(1) != targets).double().mean().item()
    full, thin = (risk_coverage(log_probs, targets, points=points) for points in (5000, 10))
    assert (len(full.coverage), len(thin.coverage)) == (1003, 10)
    assert full.aurc == thin.aurc == pytest.approx(sum(full.risk) / 1003)
    assert full.risk[-1] == thin.risk[-1] == pytest.approx(error)
    assert thin.coverage == pytest.approx([point / 10 for point in range(1, 11)], abs=1 / 1003)
    assert set(zip(thin.coverage, thin.risk, strict=True)) <= set(zip(full.coverage, full.risk, strict=True))


def test_a_calibrated_confidence_beats_a_random_one() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = (2 * torch.randn(2000, 4, generator=generator)).log_softmax(1)
    targets = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)
    blind = risk_coverage(log_probs, targets, confidence=torch.rand(2000, generator=generator))
    assert risk_coverage(log_probs, targets).aurc < 0.7 * blind.aurc


def test_risk_coverage_refuses_bad_input() -> None:
    log_probs, targets = _log((0.9, 0.1), (0.6, 0.4)), torch.tensor([1, 0])
    with pytest.raises(ConfigError, match="risk_coverage needs"):
        risk_coverage(log_probs, targets[:1])
    with pytest.raises(ConfigError, match="risk_coverage needs"):
        risk_coverage(log_probs, targets, confidence=torch.zeros(3))
    with pytest.raises(ConfigError, match="evaluation set is empty"):
        risk_coverage(log_probs[:0], targets[:0])
    with pytest.raises(ConfigError, match="points must be at least 1, not 0"):
        risk_coverage(log_probs, targets, points=0)
    with pytest.raises(DivergedError, match="NaN"):
        risk_coverage(log_probs, targets, confidence=torch.tensor([0.0, math.nan]))
