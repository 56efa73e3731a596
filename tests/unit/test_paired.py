"""Differences of scores on the same examples: values are those of the scores, errors those of repetition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bayeslora.diagnostics.metrics import metrics, score_parts
from bayeslora.diagnostics.paired import paired, value_of
from bayeslora.diagnostics.values import Difference
from bayeslora.evaluation import regression
from bayeslora.posterior.density import NormalMixture
from tests.cases import each


def classifiers(seed: int, examples: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log p of two overconfident classifiers that err on the same examples for the most part, and the classes."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (examples,), generator=random)
    common = 1.2 * torch.nn.functional.one_hot(truth, classes) + torch.randn(examples, classes, generator=random)
    one, other = (common + 0.4 * torch.randn(examples, classes, generator=random) for _ in range(2))
    return (3.0 * one).log_softmax(1), (2.2 * other).log_softmax(1), truth


def densities(seed: int, examples: int) -> tuple[NormalMixture, NormalMixture, Tensor]:
    """Predictive densities of two regressions, one of them with too little noise."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randn(examples, 2, generator=random).double()
    found = []
    for noise in (1.0, 0.5):
        mixture = NormalMixture(targets)
        mixture.add(0.3 * torch.randn(examples, 2, generator=random), torch.full((examples, 2), noise))
        found.append(mixture)
    return found[0], found[1], targets


@each("classes", [2, 5])
def test_the_parts_of_scores_make_the_scores(classes: int) -> None:
    log_probs, _, truth = classifiers(0, 200, classes)
    scores = metrics(log_probs, truth)
    found = {name: float(value_of(name, values)) for name, values in score_parts(log_probs, truth).items()}
    assert found == pytest.approx(scores, abs=1e-6)
    mixture, _, targets = densities(0, 200)
    of_density = regression.scores(mixture, targets)
    for name, values in regression.density_parts(mixture, targets).items():
        assert float(value_of(name, values)) == pytest.approx(getattr(of_density, name), abs=1e-9)


def test_standard_errors_are_those_of_repetition() -> None:
    """sd over 400 data sets, itself known to 1/√800 = 3.5 %; the jackknife's mean within four of these, 14 %.

    Terms of calibration errors cannot fall below 0: there it is too large by up to a third.
    """
    repeats = 400
    found: dict[str, list[tuple[float | None, float | None]]] = {}
    for seed in range(repeats):
        one, other, truth = classifiers(seed, 300, 2)
        density, narrow, targets = densities(seed, 300)
        several = paired(score_parts(one, truth), score_parts(other, truth)) | {
            f"density {name}": difference
            for name, difference in paired(
                regression.density_parts(density, targets), regression.density_parts(narrow, targets)
            ).items()
        }
        for name, difference in several.items():
            found.setdefault(name, []).append((difference.value, difference.se))
    assert len(found) == 9
    for name, pairs in found.items():
        values, errors = np.array(pairs).T
        above = 0.33 if name in ("ece", "density calibration_error") else 0.0
        assert -0.14 < errors.mean() / values.std(ddof=1) - 1 < above + 0.14, name


def test_errors_of_means_are_the_usual_ones() -> None:
    one, other, truth = classifiers(1, 50, 3)
    difference = (score_parts(one, truth)["nll"] - score_parts(other, truth)["nll"])[:, 0]
    found = paired(score_parts(one, truth), score_parts(other, truth))["nll"]
    assert found.value == pytest.approx(difference.mean())
    assert found.se == pytest.approx(difference.std(ddof=1) / np.sqrt(50))


@each(
    ("difference", "tie"),
    [
        (Difference(0.2, 0.1), True),
        (Difference(-0.21, 0.1), False),
        (Difference(0.0, 0.0), True),
        (Difference(0.1), True),
        (Difference(), False),
        (Difference(None, 0.1), False),
    ],
)
def test_a_difference_within_two_standard_errors_is_a_tie(difference: Difference, tie: bool) -> None:
    assert difference.tie is tie


def test_one_example_has_no_error() -> None:
    one, other, truth = classifiers(1, 1, 3)
    assert paired(score_parts(one, truth), score_parts(other, truth))["nll"].se is None
