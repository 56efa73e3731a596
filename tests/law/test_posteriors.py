"""Laws 7, 8 and 9: conjugate linear regression, logistic regression by quadrature, simulation-based calibration."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import chisquare

from bayeslora import samplers
from bayeslora.laws import one_stream, simulate
from bayeslora.laws.regression_posteriors import LinearRegression, LogisticRegression, SimulatedLogistic
from tests.cases import each

BAYES = [
    (samplers.SGLD, {"lr": 0.002}),
    (samplers.SGLD, {"lr": 0.002, "integrator": "leimkuhler_matthews"}),
    (samplers.SGLD, {"lr": 0.02, "control_variates": True}),
    (samplers.ASGLD, {"lr": 0.002, "a": 0.0}),
    (samplers.SAMSGLD, {"lr": 0.002, "rho": 0.0}),
    (samplers.SAMSGLDR1, {"lr": 0.002, "rho": 0.0, "sigma": 0.2}),
    (samplers.PSGLD, {"lr": 0.0003}),
    (samplers.SGHMC, {"lr": 0.0004, "momentum": 0.8}),
    (samplers.SGNHT, {"lr": 0.002, "momentum": 0.8}),
    (samplers.BAOAB, {"lr": 0.0004, "momentum": 0.8}),
    (samplers.FSGLD, {"lr": 0.002, "sigma": 0.01}),
    (samplers.SGLRW, {"lr": 0.004}),
    (samplers.EntropyMCMC, {"lr": 0.002, "eta": 0.002}),
]


def label(value) -> str:
    return value.__name__ if isinstance(value, type) else "-".join(f"{k}={v}" for k, v in value.items())


def check_posterior(sampler_class, settings, target, *, burn_in: int, steps: int) -> None:
    """Mean within 0.1 posterior sd and sd within 1 % + 4 standard errors, every coordinate; pooled sd within 3 %.

    Chains start at the exact mean and sd, so that burn-in leaves the sampler's own law and no trace of a far start.
    """
    mean, sd = (torch.from_numpy(v) for v in target.posterior())
    start = torch.randn(target.state.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with torch.no_grad():
        target.tensors[0].copy_(mean + sd * start)
    sampler = one_stream(sampler_class)(target.tensors, kT=target.kT, seed=1, chain=range(target.chains), **settings)
    if settings.get("control_variates"):
        sampler.anchor(target.full)
    for _ in range(burn_in // 2):
        sampler.step(target.minibatch())
    sampler.freeze()
    averages = simulate(
        sampler,
        target,
        lambda: {"z": (target.state - mean) / sd, "z²": ((target.state - mean) / sd) ** 2},
        burn_in=burn_in // 2,
        steps=steps,
    )
    ratio = (averages["z²"].mean(0) - averages["z"].mean(0) ** 2).sqrt()
    error = averages["z²"].std(0) / target.chains**0.5 / 2
    assert averages["z"].mean(0).abs().max() < 0.1
    assert torch.all((ratio - 1).abs() < 0.01 + 4 * error), (ratio, error)
    assert abs(ratio.mean() - 1) < 0.03, ratio


@each(("sampler_class", "settings"), BAYES)
def test_conjugate_linear_regression_on_minibatches(sampler_class, settings):
    """d = 10, N = 1000, batch 100, at a step that heats by under 1 %."""
    burn_in = (
        4000 if sampler_class is samplers.EntropyMCMC else 800
    )  # its guide moves at half the speed, from θ's start
    check_posterior(sampler_class, settings, LinearRegression(chains=512), burn_in=burn_in, steps=600)


@each(("sampler_class", "settings"), BAYES)
def test_logistic_regression_against_quadrature(sampler_class, settings):
    """d = 2, N = 100, batch 20: the same bound on the heating allows a ten times larger step."""
    target = LogisticRegression(num_data=100, dim=2, batch_size=20, chains=512)
    larger = {"lr": settings["lr"] * 10} | ({"eta": 0.05} if "eta" in settings else {})
    check_posterior(sampler_class, settings | larger, target, burn_in=800, steps=600)


CALIBRATED = [
    (samplers.SGLD, {"lr": 0.05, "integrator": "leimkuhler_matthews"}),
    (samplers.SGLRW, {"lr": 0.02}),
    (samplers.BAOAB, {"lr": 0.05, "momentum": 0.6}),
    (samplers.SGHMC, {"lr": 0.02, "momentum": 0.8}),
]


def ranks_of_the_truth(sampler_class, settings, kT_factor: float = 1.0) -> np.ndarray:
    """Rank of each replication's true parameters among 19 nearly independent draws, [replications · 2]."""
    target = SimulatedLogistic(num_data=30, dim=2, batch_size=None, chains=400, seed=5)
    sampler = one_stream(sampler_class)(
        target.tensors, kT=kT_factor * target.kT, seed=2, chain=range(target.chains), **settings
    )
    draws = []
    for step in range(1, 20 * 200):
        sampler.step(target.minibatch())
        if step % 200 == 0:
            draws.append(target.state.clone())
    return (torch.stack(draws) < target.truth).sum(0).flatten().numpy()


def uniformity(ranks: np.ndarray) -> float:
    """p-value of χ² against equal counts of the ranks 0…19 (in ten pairs)."""
    return chisquare(np.bincount(ranks // 2, minlength=10)).pvalue


@each(("sampler_class", "settings"), CALIBRATED)
def test_simulation_based_calibration(sampler_class, settings):
    assert uniformity(ranks_of_the_truth(sampler_class, settings)) > 0.01


def test_calibration_notices_a_wrong_temperature():
    sampler_class, settings = CALIBRATED[0]
    assert uniformity(ranks_of_the_truth(sampler_class, settings, kT_factor=0.5)) < 1e-4
