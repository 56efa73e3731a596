"""The Gaussian likelihood and the scores of a mixture of normal densities, by hand and by scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from bayeslora.compatibility import check_task
from bayeslora.errors import ConfigError, DivergedError
from bayeslora.evaluation.criteria import judge
from bayeslora.evaluation.regression import scores
from bayeslora.evaluation.results import Results
from bayeslora.evaluation.scores import RegressionScores
from bayeslora.likelihood import NOISE, Categorical, Gaussian, from_recorded
from bayeslora.posterior.density import NormalMixture
from bayeslora.potential import Prior
from bayeslora.settings import Criteria
from tests.cases import each

SOURCE = torch.Generator().manual_seed(0)
MEANS, SDS = torch.randn(3, 5, 2, generator=SOURCE), torch.rand(3, 5, 2, generator=SOURCE) + 0.5
TARGETS = torch.randn(5, 2, generator=SOURCE)


def mixture() -> NormalMixture:
    found = NormalMixture(TARGETS)
    for mean, sd in zip(MEANS, SDS, strict=True):
        found.add(mean, sd.square())
    return found


@each("noise", [0.3, "learned", "per_example"])
def test_nll_is_that_of_scipy(noise: float | str) -> None:
    outputs = MEANS[0] if noise == 0.3 else torch.cat([MEANS[0], 2 * SDS[0].log()], dim=-1)
    sd = 0.3 if noise == 0.3 else SDS[0].numpy()
    expected = -norm.logpdf(TARGETS.numpy(), MEANS[0].numpy(), sd).sum(1)
    np.testing.assert_allclose(Gaussian(noise).nll(outputs, TARGETS).numpy(), expected, rtol=1e-5)


def test_stacked_chains_have_the_nll_of_each() -> None:
    nll = Gaussian(0.5).nll(MEANS, TARGETS)
    assert nll.shape == (3, 5)
    torch.testing.assert_close(nll[1], Gaussian(0.5).nll(MEANS[1], TARGETS))


def test_half_precision_outputs_lose_nothing_more() -> None:
    half = MEANS[0].bfloat16()
    assert Gaussian(0.1).nll(half, TARGETS).dtype == torch.float32
    torch.testing.assert_close(Gaussian(0.1).nll(half, TARGETS), Gaussian(0.1).nll(half.float(), TARGETS))


def test_a_learned_noise_is_one_more_parameter_with_a_prior_of_its_own() -> None:
    likelihood = Gaussian(prior_variance=3.0)
    model = likelihood.attach(nn.Linear(4, 2), 2)
    assert likelihood.attach(model, 2) is model
    with torch.no_grad():
        getattr(model, NOISE).copy_(torch.tensor([1.0, -1.0]))
    outputs = model(torch.zeros(5, 4))
    assert outputs.shape == (5, 4)
    assert outputs[0, 2:].tolist() == [1.0, -1.0]
    prior = likelihood.extend(Prior(0.1, overrides={"weight": 0.2}))
    assert prior.precision(NOISE, torch.Size([2])) == pytest.approx(1 / 3)
    assert prior.precision("weight", torch.Size([2, 4])) == pytest.approx(5)
    assert prior.precision("bias", torch.Size([2])) == pytest.approx(10)
    mine = likelihood.extend(Prior(0.1, overrides={NOISE: 7.0}))
    assert mine.precision(NOISE, torch.Size([2])) == pytest.approx(1 / 7)


def test_moments_density_and_distribution_of_a_mixture() -> None:
    found = mixture()
    said = found.normals
    means, sds = MEANS.double(), SDS.double()
    torch.testing.assert_close(said.mean, means.mean(0))
    torch.testing.assert_close(said.noise, sds.square().mean(0))
    torch.testing.assert_close(said.spread, means.var(0, unbiased=False))
    density = np.mean([norm.pdf(TARGETS, m, s).prod(1) for m, s in zip(MEANS, SDS, strict=True)], axis=0)
    np.testing.assert_allclose(found.nll.numpy(), -np.log(density), rtol=1e-5)
    below = np.mean([norm.cdf(TARGETS, m, s) for m, s in zip(MEANS, SDS, strict=True)], axis=0)
    np.testing.assert_allclose(found.pit.numpy(), below, rtol=1e-5)


def test_a_far_target_has_a_finite_nll() -> None:
    found = NormalMixture(torch.full((1, 1), 1e4))
    found.add(torch.zeros(1, 1), torch.ones(1, 1))
    assert found.nll.item() == pytest.approx(5e7, rel=1e-3)


@each(("claimed", "coverage_90", "error"), [(1.0, 0.9, 0.0), (0.5, 0.589, 0.09), (2.0, 0.999, 0.09)])
def test_coverage_and_calibration_tell_a_wrong_noise(claimed: float, coverage_90: float, error: float) -> None:
    """20,000 targets of sd 1 about a mean of 0, said to have sd `claimed`."""
    targets = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1))
    found = NormalMixture(targets)
    found.add(torch.zeros(20_000, 1), torch.full((20_000, 1), claimed**2))
    values = scores(found, targets.double())
    assert values.coverage_90 == pytest.approx(coverage_90, abs=0.01)
    assert values.calibration_error == pytest.approx(error, abs=0.03 if error else 0.01)
    assert values.rmse == pytest.approx(1.0, abs=0.02)
    assert values.mae == pytest.approx((2 / np.pi) ** 0.5, abs=0.02)
    assert values.sharpness == pytest.approx(claimed)


def test_a_prediction_that_is_not_finite_is_no_score() -> None:
    found = NormalMixture(TARGETS)
    found.add(MEANS[0] / 0, SDS[0])
    with pytest.raises(DivergedError, match="not finite"):
        scores(found, TARGETS)


def test_criteria_of_classes_are_left_out_of_a_regression() -> None:
    results = Results("regression", map=RegressionScores(nll=1.0), ensemble=RegressionScores(nll=0.9))
    against_map = {name: one.passed for name, one in judge(results, Criteria()).items() if name.endswith("_map")}
    assert against_map == {"nll_above_map": True}
    assert not judge(replace(results, task="classification"), Criteria())["ece_above_map"].passed


def test_recorded_likelihoods_are_this_packages() -> None:
    assert isinstance(from_recorded(None), Categorical)
    made = from_recorded({"_target_": "bayeslora.likelihood.Gaussian", "noise": 0.2, "prior_variance": 4.0})
    assert isinstance(made, Gaussian)
    assert made.noise == 0.2
    with pytest.raises(ConfigError, match=r"give Posterior.load\(…, likelihood=…\)"):
        from_recorded({"_target_": "mine.Poisson"})


def test_a_likelihood_must_fit_the_targets() -> None:
    from bayeslora.datasets import from_examples

    reals = from_examples((TARGETS, TARGETS))
    classes = from_examples((TARGETS, torch.arange(5) % 2))
    check_task(reals, Gaussian())
    check_task(classes, Categorical())
    with pytest.raises(ConfigError, match="choose likelihood=gaussian"):
        check_task(reals, Categorical())
    with pytest.raises(ConfigError, match="choose likelihood=categorical"):
        check_task(classes, Gaussian())
