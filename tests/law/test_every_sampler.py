"""Every sampler against every exact law that it has, and every law against wrong samplers."""

from __future__ import annotations

import numpy as np
import torch

from bayeslora import samplers
from bayeslora.laws import GaussianMean, linear, one_stream
from bayeslora.laws.checks import LawCheck, all_checks, grouped_checks, linear_checks, minibatch_checks, sam_checks
from bayeslora.potential import Potential
from tests.cases import each
from tests.law import mutants

CHECKS = all_checks()


def label(check: LawCheck) -> str:
    return f"{check.name} / {check.target}"


@each("check", CHECKS)
def test_sampler_has_its_exact_law(check: LawCheck):
    for moment in check.run():
        assert moment.agrees, moment


def test_every_sampler_has_a_check():
    tried = {check.sampler.__name__ for check in CHECKS}
    assert tried >= set(samplers.__all__) - {
        "Sampler",
        "MAP",
        "BY_NAME",
    }  # MAP has no law: it is compared with torch.optim.SGD


def red(check: LawCheck, make=None, change=None) -> bool:
    return any(not moment.agrees for moment in check.run(make, change=change))


@each("check", [c for c in CHECKS if c.sampler is not samplers.SGNHT])
def test_noise_times_1_05_is_noticed(check: LawCheck):
    """All but the thermostat, which is there to absorb noise of the wrong size: its power is shown by its absence."""
    assert red(check, mutants.loud(check.sampler))


@each("check", list(minibatch_checks()))
@each("fault", ["prior dropped", "batch size for N", "inverted T"])
def test_wrong_scaling_of_the_posterior_is_noticed(check: LawCheck, fault: str):
    def change(target: GaussianMean) -> None:
        if fault == "prior dropped":
            mutants.drop_prior(target)
        elif fault == "batch size for N":
            target.potential = Potential(target.potential.prior, target.batch_size)
        else:
            target.temperature = 1 / target.temperature

    assert red(check, change=change)


@each("check", [c for c in sam_checks() if "radius" in c.target])
def test_a_norm_taken_tensor_by_tensor_is_noticed(check: LawCheck):
    assert red(check, mutants.per_tensor(check.sampler))


def test_an_uncompensated_rank_one_is_noticed():
    (check,) = [c for c in linear_checks() if c.sampler is samplers.SAMSGLDR1]

    def plain_drift(*args, **kwargs):
        return one_stream(samplers.SAMSGLDR1)(*args, **kwargs, drift="plain")

    assert red(check, plain_drift)


@each(
    ("checks", "mutant", "settings"),
    [
        (grouped_checks, mutants.FirstGroupsNoise, set()),
        (grouped_checks, mutants.UngroupedRankOne, {"sigma"}),
        (minibatch_checks, mutants.WeakAnchor, {"control_variates"}),
    ],
)
def test_mutants_of_groups_and_anchors_are_noticed(checks, mutant, settings: set[str]):
    check = next(
        c
        for c in checks()
        if issubclass(mutant, c.sampler) and "SAM law" not in c.target and settings <= set(c.settings)
    )
    assert red(check, mutant)


@each("name", ["integrator", "thermostat", "lattice"])
def test_near_misses_are_noticed(name: str):
    """Variants that differ from the right rule by what a plausible slip would make."""
    check, wrong = {c.name: c for c in CHECKS}, None
    if name == "integrator":  # Euler's noise where the pair's mean belongs
        check = check["SGLD leimkuhler_matthews"]
        wrong = lambda *a, **k: one_stream(samplers.SGLD)(*a, **k | {"integrator": "euler"})  # noqa: E731
    elif name == "thermostat":  # no thermostat: the noise heats
        check = next(c for c in CHECKS if c.sampler is samplers.SGNHT)
        wrong = one_stream(samplers.SGHMC)
    else:  # Gaussian steps where signs belong: heated by the minibatch
        check = next(c for c in minibatch_checks() if c.sampler is samplers.SGLRW)
        wrong = one_stream(samplers.SGLD)
    assert red(check, wrong)


def test_adaptation_is_frozen_and_then_has_the_law():
    """û and V learnt by the sampler itself in burn-in; after `freeze` they stay, and a small step has the posterior."""
    for sampler, settings in (
        (samplers.SAMSGLDR1, {"lr": 0.005, "rho": 0.0, "sigma": 1.0}),
        (samplers.PSGLD, {"lr": 0.01}),
    ):
        exact = torch.linalg.inv(torch.tensor([[2.0, 0.8], [0.8, 1.0]])) * 0.5
        reference = next(c for c in linear_checks() if c.sampler is sampler)
        check = LawCheck(
            sampler, "correlated Gaussian", reference.make_target,
            {"cov 00": exact[0, 0].item(), "cov 01": exact[0, 1].item(), "cov 11": exact[1, 1].item()},
            settings, freeze_at=100, burn_in=600,
        )  # fmt: skip
        for moment in check.run(steps=400):
            assert abs(moment.sampled / moment.expected - 1) < 0.02 + 4 * abs(moment.standard_error / moment.expected)


def test_gradient_noise_may_be_correlated():
    """V = ccᵀ, noise along one direction only: a recursion written out by hand gives the law of SGLD."""
    along = np.array([[1.0], [2.0]])
    a, lr, kT = np.array([[2.0, 0.8], [0.8, 1.0]]), 0.1, 0.5
    law, covariance = linear.sgld_covariance(a, lr, kT, along @ along.T), np.zeros((2, 2))
    step = np.eye(2) - lr * a
    for _ in range(2000):
        covariance = step @ covariance @ step.T + 2 * lr * kT * np.eye(2) + lr**2 * along @ along.T
    np.testing.assert_allclose(law, covariance, rtol=1e-10)
    assert abs(law[0, 1] - linear.sgld_covariance(a, lr, kT, 1.0)[0, 1]) > 0.01  # and the off-diagonal matters
