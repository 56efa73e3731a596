"""Heat of minibatches where their noise lies, against what chains of SGLD do there on a linear regression."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from bayeslora.diagnostics.noise_heat import FORCES, noise_heat, products, traces
from bayeslora.diagnostics.values import NoiseHeat
from bayeslora.samplers import SGLD

N, BATCH, USED, CHAINS, LR = 256, 16, 2, 400, 0.05
SIZE = 40
"""Weights, of whose inputs all but `USED` are 0: these the data determine, the prior the others."""
KT, PRIOR = 1 / N, 100.0


@cache
def chains() -> tuple[NoiseHeat, Tensor]:
    """What the diagnostic says, and the variance of each used weight in units of the exact one, [chains, used]."""
    random = torch.Generator().manual_seed(0)
    x = torch.zeros(N, SIZE, dtype=torch.float64)
    x[:, :USED] = torch.linalg.qr(torch.randn(N, USED, generator=random, dtype=torch.float64))[0] * N**0.5
    y = torch.randn(N, generator=random, dtype=torch.float64)
    w = nn.Parameter(torch.zeros(CHAINS, SIZE, dtype=torch.float64))
    mean = x[:, :USED].T @ y / (N + PRIOR)

    def gradient(at: Tensor) -> Tensor:
        """∇Ũ of each chain, on a random subset of its own."""
        rows = torch.rand(len(at), N, generator=random).topk(BATCH).indices
        off = torch.einsum("kbd,kd->kb", x[rows], at) - y[rows]
        return torch.einsum("kb,kbd->kd", off, x[rows]) / BATCH + PRIOR / N * at

    def closure() -> Tensor:
        w.grad = gradient(w.detach())
        return torch.zeros(CHAINS)

    sampler, squares = SGLD([w], lr=LR, kT=KT, seed=1, chain=range(CHAINS)), []
    for step in range(400):
        sampler.step(closure)
        if step >= 100:
            squares.append((w.detach()[:, :USED] - mean).square())
    estimates = []
    forces = [gradient(w.detach()) for _ in range(FORCES)]
    for chain in range(CHAINS):
        gram = products([{"head.weight": force[chain]} for force in forces], {"head.weight": LR})["head"]
        estimates.append(traces(gram, 1 / (2 * KT)))
    heat = noise_heat(estimates, SIZE)
    assert heat is not None
    return heat, torch.stack(squares).mean(0) * (N + PRIOR)


def test_the_directions_that_the_data_determine_are_as_hot_as_the_noise_in_them_says() -> None:
    heat, ratios = chains()
    discretised = 1 / (1 - LR * (1 + PRIOR / N) / 2)  # of SGLD by Euler on a quadratic
    expected, measured = (1 + heat.share) * discretised, float(ratios.mean())
    of_chains = float(ratios.std()) / ratios.numel() ** 0.5
    assert heat.share > 0.3
    assert abs(measured - expected) < 4 * (of_chains**2 + (heat.se * discretised) ** 2) ** 0.5


def test_the_mean_over_the_block_does_not_show_it() -> None:
    heat, _ = chains()
    assert heat.mean < 0.025
    assert heat.share > 0.3
    assert 1.5 < heat.directions < 2.1  # of the two, whose noise is not quite the same
