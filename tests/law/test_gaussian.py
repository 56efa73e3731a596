"""The Gaussian likelihood against exact posteriors: conjugate for known noise, by quadrature for sampled noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora.laws import compare_moments, one_stream, simulate
from bayeslora.likelihood import NOISE, Gaussian
from bayeslora.potential import Potential, Prior
from bayeslora.samplers import BAOAB
from tests.cases import each

SIGMA, VARIANCE = 0.5, 0.05


def made_up(examples: int, dim: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs [N, D] and targets [N, 1] with noise of sd `SIGMA`."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, dim, generator=source, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + SIGMA * torch.randn(examples, 1, generator=source, dtype=torch.float64)
    return x, y


def conjugate(x: Tensor, y: Tensor, sigma: float, variance: float) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of N(0, variance) coefficients given y = xᵀθ + N(0, sigma²)."""
    precision = x.T @ x / sigma**2 + torch.eye(x.shape[1], dtype=x.dtype) / variance
    covariance = torch.linalg.inv(precision)
    return covariance @ x.T @ y[:, 0] / sigma**2, covariance


class Stacked:
    """K chains of a linear model's coefficients and, where it is sampled, its noise; full batches."""

    def __init__(self, likelihood: Gaussian, x: Tensor, y: Tensor, chains: int, num_data: int | None = None) -> None:
        self.likelihood, self.x, self.y = likelihood, x, y
        prior = likelihood.extend(Prior(VARIANCE))
        self.potential = Potential(prior, num_data or len(y))
        self.params = {"theta": nn.Parameter(torch.zeros(chains, x.shape[1], dtype=torch.float64))}
        if likelihood.noise == "learned":
            self.params[NOISE] = nn.Parameter(torch.zeros(chains, 1, dtype=torch.float64))

    def minibatch(self) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            for p in self.params.values():
                p.grad = None
            outputs = (self.params["theta"] @ self.x.T)[..., None]
            if NOISE in self.params:
                outputs = torch.cat([outputs, self.params[NOISE][:, None].expand_as(outputs)], dim=-1)
            potential = self.potential(self.likelihood.nll(outputs, self.y), self.params)
            potential.sum().backward()
            return potential

        return closure

    def observe(self) -> dict[str, Tensor]:
        """First and second moments of every sampled number."""
        flat = torch.cat([p.detach() for p in self.params.values()], dim=1)
        return {f"{i}": v for i, v in enumerate(flat.T)} | {f"{i}²": v**2 for i, v in enumerate(flat.T)}


def sampled(target: Stacked, lr: float, burn_in: int = 200, steps: int = 200) -> dict[str, Tensor]:
    chains = len(target.params["theta"])
    kT = target.potential.kT(1.0)
    sampler = one_stream(BAOAB)([*target.params.values()], lr=lr, kT=kT, seed=1, chain=range(chains), momentum=0.6)
    return simulate(sampler, target, target.observe, burn_in=burn_in, steps=steps)


def exact_moments(mean: Tensor, covariance: Tensor) -> dict[str, float]:
    return {f"{i}": m.item() for i, m in enumerate(mean)} | {
        f"{i}²": (m**2 + covariance[i, i]).item() for i, m in enumerate(mean)
    }


@pytest.fixture(scope="module")
def known_noise() -> dict[str, Tensor]:
    """Averages with the noise known to be `SIGMA`."""
    return sampled(Stacked(Gaussian(noise=SIGMA), *made_up(60, 3), chains=2048), lr=0.1)


def test_known_noise_gives_the_conjugate_posterior(known_noise: dict[str, Tensor]):
    moments = compare_moments(known_noise, exact_moments(*conjugate(*made_up(60, 3), SIGMA, VARIANCE)))
    assert all(moment.agrees for moment in moments), [str(m) for m in moments]


@each(("sigma", "variance"), [(SIGMA * 1.05, VARIANCE), (SIGMA, 100 * VARIANCE)])
def test_another_noise_or_prior_is_noticed(known_noise: dict[str, Tensor], sigma: float, variance: float):
    moments = compare_moments(known_noise, exact_moments(*conjugate(*made_up(60, 3), sigma, variance)))
    assert not all(moment.agrees for moment in moments)


def quadrature(x: Tensor, y: Tensor, prior_variance: float) -> dict[str, float]:
    """Moments of θ (one coefficient) and ℓ = log σ² of exp(−U), on a grid; written without the package's likelihood."""
    theta = torch.linspace(0.0, 1.6, 801, dtype=torch.float64)[:, None]
    ell = torch.linspace(-4.0, 2.0, 801, dtype=torch.float64)[None, :]
    squares = ((y[:, 0] - theta * x[:, 0]) ** 2).sum(1, keepdim=True)
    log_p = -0.5 * (squares * (-ell).exp() + len(y) * ell + theta**2 / VARIANCE + ell**2 / prior_variance)
    weight = (log_p - log_p.max()).exp()
    weight = weight / weight.sum()
    moments = {"0": theta, "0²": theta**2, "1": ell, "1²": ell**2}
    return {name: (weight * value).sum().item() for name, value in moments.items()}


def test_sampled_noise_has_its_exact_posterior():
    x, y = made_up(25, 1)
    averages = sampled(Stacked(Gaussian(prior_variance=2.0), x, y, chains=4096), lr=0.03, burn_in=400)
    moments = compare_moments(averages, quadrature(x, y, 2.0))
    assert all(moment.agrees for moment in moments), [str(m) for m in moments]
    wrong = compare_moments(averages, quadrature(x, y, 0.2))  # the prior of the noise matters, and is noticed
    assert not all(moment.agrees for moment in wrong)


def test_sample_gives_the_conjugate_posterior_and_its_predictions():
    """From the public function to the draws on disk, and back to predictive mean and variance."""
    x, y = (t.float() for t in made_up(60, 2))
    posterior = bayeslora.sample(
        nn.Linear(2, 1, bias=False),
        (x, y),
        "baoab",
        likelihood=Gaussian(noise=SIGMA),
        prior=VARIANCE,
        lr=0.1,
        chains=8,
        draws=40,
        thin=10,
        burn_in=60,
        warmup=60,
        warmup_lr=0.05,
        batch_size=None,
        parallel="stacked",
        progress=False,
    )
    mean, covariance = conjugate(x.double(), y.double(), SIGMA, VARIANCE)
    theta = torch.stack([draw.tensors["weight"][0].double() for draw in posterior.draws()])
    count = len(theta)
    assert count == 320
    z = (theta.mean(0) - mean) / (covariance.diagonal() / count).sqrt()
    assert z.abs().max() < 4, z
    ratio = theta.var(0) / covariance.diagonal()
    assert (ratio - 1).abs().max() < 4 * (2 / count) ** 0.5, ratio
    said = posterior.predict(x)
    torch.testing.assert_close(said.noise, torch.full_like(said.noise, SIGMA**2))
    spread = torch.einsum("nd,de,ne->n", x.double(), covariance, x.double())[:, None]
    assert ((said.spread - spread).abs() <= 4 * (2 / count) ** 0.5 * spread).double().mean() > 0.95
