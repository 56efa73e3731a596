"""Whether a Metropolis test would accept a step: on exact draws the ratio has mean 1, and tells a wrong step."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.diagnostics.metropolis import accepted, log_ratio, proposal
from tests.cases import each

KT, CURVATURE = 0.02, torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64)


def ratios(factor: float, noise: float = 1.0) -> Tensor:
    """log r of steps from 200,000 exact draws of exp(−½Σaθ²/kT), at a multiple of the step sizes 0.1/a."""
    source, size = torch.Generator().manual_seed(0), (200_000, 3)
    theta, xi = (torch.randn(size, generator=source, dtype=torch.float64) for _ in range(2))
    theta, steps = theta * (KT / CURVATURE).sqrt(), factor * 0.1 / CURVATURE
    moved = proposal(theta, CURVATURE * theta, steps, KT, noise * xi)
    start, end = ((t, CURVATURE * t, 0.5 * (CURVATURE * t.square()).sum(-1)) for t in (theta, moved))
    return log_ratio(start, end, steps, KT)


@each("factor", [0.5, 3.0])
def test_on_exact_draws_the_mean_ratio_is_one(factor: float) -> None:
    r = ratios(factor).exp()
    assert abs(r.mean() - 1) < 4 * r.std() / len(r) ** 0.5
    wrong = ratios(factor, noise=1.05).exp()
    assert abs(wrong.mean() - 1) > 10 * wrong.std() / len(r) ** 0.5


def test_acceptance_falls_with_the_step_and_is_one_without() -> None:
    means = [accepted(ratios(factor)).mean().item() for factor in (0.01, 1.0, 5.0)]
    assert 1 > means[0] > 0.9999
    assert means[0] > means[1] > means[2]
