"""SGLD against the exact law of its recursion: laws 1, 3 and 10 of the specification, each with its power proven."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bayeslora.diagnostics.convergence import convergence
from bayeslora.laws import GaussianMean, Moment, compare_moments, one_stream, simulate
from bayeslora.samplers import SGLD, Sampler
from tests.cases import each
from tests.law import mutants

Make = Callable[..., Sampler]


def law_of_sgld(make: Make, target: GaussianMean, lr: float, kT: float | None = None) -> list[Moment]:
    """Mean, variance and lag-one autocovariance of θ against the AR(1) law."""
    variance, phi = target.sgld_variance(lr), 1 - lr * target.curvature
    sampler = make(target.tensors, lr=lr, kT=target.kT if kT is None else kT, seed=1, chain=range(target.chains))
    previous = torch.zeros(target.chains, dtype=torch.float64)

    def observe() -> dict[str, torch.Tensor]:
        nonlocal previous
        theta = target.state[:, 0].clone()
        centred = theta - target.mean
        values = {"mean": theta, "variance": centred**2, "autocovariance": centred * previous}
        previous = centred
        return values

    burn_in = int(8 / (lr * target.curvature))
    averages = simulate(sampler, target, observe, burn_in=burn_in, steps=400)
    # the first lag product of the record uses a zero: it is left out by rescaling
    averages["autocovariance"] = averages["autocovariance"] * (400 / 399)
    expected = {"mean": target.mean, "variance": variance, "autocovariance": phi * variance}
    return compare_moments(averages, expected)


def broken(moments: list[Moment]) -> bool:
    return any(not moment.agrees for moment in moments)


def test_full_batch_has_the_variance_and_autocorrelation_of_its_ar1():
    for moment in law_of_sgld(one_stream(SGLD), GaussianMean(), lr=0.2):
        assert moment.agrees, moment


def test_minibatch_heating_is_as_predicted():
    target = GaussianMean(batch_size=5)
    assert target.sgld_variance(0.05) > 1.2 * target.kT / target.curvature  # the heating is not negligible here
    for moment in law_of_sgld(one_stream(SGLD), target, lr=0.05):
        assert moment.agrees, moment


def test_temperature_four_doubles_the_posterior_sd():
    cold, hot = GaussianMean(), GaussianMean(temperature=4)
    assert hot.sgld_variance(0.1) == pytest.approx(4 * cold.sgld_variance(0.1))
    for moment in law_of_sgld(one_stream(SGLD), hot, lr=0.1):
        assert moment.agrees, moment


def test_temperature_zero_is_plain_sgd_bit_for_bit():
    ours, theirs = (torch.nn.Linear(13, 7) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(32, 13, generator=torch.Generator().manual_seed(0))
    sampler = SGLD(ours.parameters(), lr=0.1, kT=0.0, seed=0)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(50):
        for model, optimizer in ((ours, sampler), (theirs, sgd)):

            def closure(model=model, optimizer=optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(x).square().logsumexp(1).mean()
                loss.backward()
                return loss

            optimizer.step(closure)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_effective_sample_size_of_our_diagnostics_matches_the_exact_autocorrelation_time():
    """τ = (1 + φ)/(1 − φ): ESS of chains of SGLD must be S/τ, within the spread of 64 repetitions."""
    target, lr, draws = GaussianMean(chains=256), 0.2, 1000
    sampler = one_stream(SGLD)(target.tensors, lr=lr, kT=target.kT, seed=3, chain=range(256))
    history: list[np.ndarray] = []

    def observe() -> dict[str, torch.Tensor]:
        history.append(target.state[:, 0].numpy().copy())
        return {}

    simulate(sampler, target, observe, burn_in=50, steps=draws)
    series = np.stack(history, axis=1)  # [256 chains, draws]
    tau = np.array([4 * draws / convergence(list(group)).ess_bulk for group in series.reshape(64, 4, draws)])
    phi = 1 - lr * target.curvature
    assert abs(tau.mean() / ((1 + phi) / (1 - phi)) - 1) < 0.05
    assert tau.std() / 8 < 0.02 * tau.mean()  # the comparison above is precise enough to mean something


@each("fault", ["noise", "prior", "batch for N", "temperature"])
def test_the_law_goes_red_for(fault: str):
    target = GaussianMean(
        temperature=4 if fault == "temperature" else 1, batch_size=5 if fault == "batch for N" else None
    )
    make: Make = one_stream(SGLD)
    kT = target.kT
    if fault == "noise":
        make = mutants.loud(SGLD)
    elif fault == "prior":
        mutants.drop_prior(target)
    elif fault == "batch for N":
        kT = target.temperature / 5
    else:
        kT = 1 / (target.temperature * target.num_data)
    assert broken(law_of_sgld(make, target, lr=0.1, kT=kT))
