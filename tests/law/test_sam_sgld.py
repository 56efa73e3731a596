"""SAM-SGLD against exp(−(Ũ + ρ‖∇Ũ‖)/kT): laws 4 and 5 of the specification, each with its power proven."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bayeslora.laws import Moment, Quadratic, compare_moments, one_stream, simulate
from bayeslora.laws.targets import moments_of_radius, moments_on_line
from bayeslora.samplers import SAMSGLD, SGLD, Sampler
from tests.cases import each
from tests.law import mutants

Make = Callable[..., Sampler]
A, KT, LR, RHO = 2.0, 0.5, 0.05, 0.4


def run(make: Make, target: Quadratic, observe, **settings: float) -> dict[str, torch.Tensor]:
    sampler = make(target.tensors, lr=LR, kT=target.kT, seed=1, chain=range(target.chains), **settings)
    return simulate(sampler, target, lambda: observe(target.state), burn_in=100, steps=300)


def law_in_one_dimension(make: Make, **settings: float) -> list[Moment]:
    target = Quadratic(A * torch.eye(1, dtype=torch.float64), KT, chains=4096)
    averages = run(make, target, lambda t: {"mean |θ|": t[:, 0].abs(), "mean θ²": t[:, 0] ** 2}, **settings)
    return compare_moments(averages, moments_on_line(lambda t: A * (t + RHO * np.sign(t)), LR, KT, reach=4.5))


def law_of_the_radius(make: Make, dim: int = 6, **settings: float) -> list[Moment]:
    """θ is spread over tensors of unlike sizes; the law depends on ‖θ‖ alone."""
    target = Quadratic(A * torch.eye(dim, dtype=torch.float64), KT, split=(1, 2, dim - 3))

    def observe(theta: torch.Tensor) -> dict[str, torch.Tensor]:
        radius = theta.norm(dim=1)
        return {"mean r": radius, "mean r²": radius**2}

    averages = run(make, target, observe, **settings)
    return compare_moments(averages, moments_of_radius(lambda r: A * (r + RHO), dim, LR, KT, reach=5.0))


def broken(moments: list[Moment]) -> bool:
    return any(not moment.agrees for moment in moments)


def test_law_in_one_dimension():
    for moment in law_in_one_dimension(one_stream(SAMSGLD), rho=RHO):
        assert moment.agrees, moment


def test_law_of_the_radius_with_parameters_over_several_tensors():
    for moment in law_of_the_radius(one_stream(SAMSGLD), rho=RHO):
        assert moment.agrees, moment


def test_the_discretised_law_tends_to_the_truncated_normal():
    """As ε → 0, E|θ| → s·φ(ρ/s)/(1 − Φ(ρ/s)) − ρ with s² = kT/a; the error is O(ε)."""
    s = math.sqrt(KT / A)
    density = math.exp(-0.5 * (RHO / s) ** 2) / math.sqrt(2 * math.pi)
    tail = 0.5 * math.erfc(RHO / s / math.sqrt(2))
    limit = s * density / tail - RHO
    errors = [
        moments_on_line(lambda t: A * (t + RHO * np.sign(t)), lr, KT, reach=4.5)["mean |θ|"] - limit
        for lr in (0.04, 0.01, 0.0025)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert abs(4 * errors[2] - errors[1]) / 3 < 1e-3 * limit  # the O(ε) term removed


def test_drift_is_the_gradient_of_the_stated_potential():
    """For a symmetric A: A(θ + ρ Aθ/‖Aθ‖) = ∇(½ θᵀAθ + ρ‖Aθ‖), to rounding."""
    source = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=source, dtype=torch.float64)
    target = Quadratic(root @ root.T + torch.eye(5, dtype=torch.float64), chains=7, split=(2, 3))
    before = target.state.clone().requires_grad_()
    stated = 0.5 * ((before @ target.precision) * before).sum() + RHO * (before @ target.precision).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(stated, before)
    SAMSGLD(target.tensors, lr=LR, kT=0.0, seed=0, chain=range(7), rho=RHO).step(target.minibatch())
    torch.testing.assert_close((before - target.state) / LR, gradient, rtol=1e-10, atol=1e-10)


def test_rho_zero_is_sgld_bit_for_bit():
    states = []
    for make, settings in ((SGLD, {}), (SAMSGLD, {"rho": 0.0})):
        target = Quadratic(A * torch.eye(4, dtype=torch.float64), KT, chains=3, split=(1, 3))
        sampler = make(target.tensors, lr=LR, kT=KT, seed=5, chain=range(3), **settings)
        for _ in range(20):
            sampler.step(target.minibatch())
        states.append(target.state)
    assert torch.equal(*states)


@each(
    ("law", "mutant", "settings"),
    [
        (law_in_one_dimension, mutants.loud(SAMSGLD), {"rho": RHO}),
        (law_in_one_dimension, one_stream(SAMSGLD), {"rho": 1.1 * RHO}),
        (law_in_one_dimension, one_stream(SGLD), {}),
        (law_of_the_radius, mutants.loud(SAMSGLD), {"rho": RHO}),
        (law_of_the_radius, mutants.per_tensor(SAMSGLD), {"rho": RHO}),
        (law_of_the_radius, one_stream(SGLD), {}),
    ],
)
def test_the_law_goes_red_for_a_mutant(law, mutant, settings):
    assert broken(law(mutant, **settings))
