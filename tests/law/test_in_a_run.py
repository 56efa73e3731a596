"""The law of samplers as they run in `SamplingModule`: step-size factors, potential, prior and phases on the way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from bayeslora import samplers
from bayeslora.chain.chain import Chain
from bayeslora.chain.plan import Plan
from bayeslora.chain.stack import Stack
from bayeslora.engine.module import SamplingModule
from bayeslora.laws import compare_moments, linear, one_stream
from bayeslora.laws.checks import covariance
from bayeslora.laws.targets import moments_on_plane
from bayeslora.likelihood import Gaussian
from bayeslora.potential import Potential, Prior
from tests.cases import each

CHAINS, BURN_IN, STEPS, N, PRIOR = 512, 300, 400, 40, 0.05
FACTORS = np.array([1.0, 0.2])


class Sum(nn.Module):
    """y = a x₀ + b x₁, its two coefficients in tensors of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1] * self.a + x[..., 1:] * self.b


def data() -> tuple[Tensor, Tensor]:
    """Correlated inputs [N, 2] and targets [N, 1] whose posterior mean is 0."""
    source = torch.Generator().manual_seed(5)
    x = torch.randn(N, 2, generator=source) @ torch.tensor([[1.0, 0.7], [0.0, 0.7]])
    return x, torch.zeros(N, 1)


X = data()[0].double().numpy()
CURVATURE = X.T @ X / N + np.eye(2) / (N * PRIOR)


class Averages(Callback):
    """Time averages of each chain's second moments after burn-in."""

    def __init__(self) -> None:
        self.total = torch.zeros(CHAINS, 2, 2, dtype=torch.float64)

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: object) -> None:  # type: ignore[override]
        if module.steps_taken > BURN_IN:
            theta = torch.cat([p.detach() for p in module.chain.params.values()], dim=1).double()
            self.total += theta[:, :, None] * theta[:, None, :] / STEPS


def batch() -> tuple[Tensor, Tensor]:
    """All data, for every chain."""
    x, y = (t.expand(CHAINS, *t.shape) for t in data())
    return x, y


def grouped_chain(sampler: type[samplers.Sampler], settings: dict[str, object]) -> Chain:
    """A stack of chains whose tensor `b` has its own step size."""
    made = one_stream(sampler)
    return Chain(
        Stack(Sum() for _ in range(CHAINS)),
        Potential(Prior(PRIOR), N),
        lambda params, **chain: made(params, **settings, **chain),
        lambda params: torch.optim.SGD(params, lr=0.1),
        Plan(0, BURN_IN, STEPS, 1),
        temperature=1.0,
        seed=0,
        number=range(CHAINS),
        lr_factors={"b": float(FACTORS[1])},
        likelihood=Gaussian(noise=1.0),
    )


class Batches:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (batch() for _ in range(BURN_IN + STEPS))


def in_a_trainer(chain: Chain) -> Tensor:
    """Second moments of the chains, [K, 2, 2]."""
    averages = Averages()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[averages],
    )  # fmt: skip
    trainer.fit(SamplingModule(chain), Batches())
    return averages.total


def alone(chain: Chain) -> Tensor:
    """The same of a chain without Lightning, which takes the same steps (tests/unit/test_step_size_groups.py)."""
    total, whole = torch.zeros(CHAINS, 2, 2, dtype=torch.float64), batch()
    chain.begin()
    for number in range(BURN_IN + STEPS):
        chain.step(whole)
        if number >= BURN_IN:
            theta = torch.cat([p.detach() for p in chain.params.values()], dim=1).double()
            total += theta[:, :, None] * theta[:, None, :] / STEPS
    return total


def check(sampled: Tensor, expected: dict[str, float], slack: float = 0.0) -> None:
    """Compare second moments [K, 2, 2], within 4 standard errors and a share of the expected ones."""
    averages = {f"cov {i}{j}": sampled[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1))}
    for moment in compare_moments(averages, {name: expected[name] for name in averages}):
        assert abs(moment.sampled - moment.expected) < 4 * moment.standard_error + slack * abs(moment.expected), moment


@each(
    ("sampler", "settings"),
    [
        (samplers.SGLD, {"lr": 0.15}),
        (samplers.SAMSGLDR1, {"lr": 0.04, "rho": 0.0, "sigma": 1.0}),
        (samplers.SGHMC, {"lr": 0.1, "momentum": 0.7}),
    ],
)
def test_a_run_with_step_size_factors_has_the_law_of_the_posterior(sampler, settings):
    rates = settings["lr"] * FACTORS
    law, more = {
        samplers.SGLD: (linear.sgld_covariance, ()),
        samplers.SGHMC: (linear.sghmc_covariance, (settings.get("momentum"),)),
    }.get(sampler, (None, ()))
    if law is None:  # û is what each chain learned: the law at its own û differs by O(ε), so compare as ε is small
        expected, slack = POSTERIOR, 0.03
    else:
        expected, slack = covariance(linear.grouped_covariance(law, CURVATURE, rates, 1 / N, *more)), 0.0
    check(in_a_trainer(grouped_chain(sampler, settings)), expected, slack)


def grouped(law: linear.Law, lr: float, *more: object) -> dict[str, float]:
    return covariance(linear.grouped_covariance(law, CURVATURE, lr * FACTORS, 1 / N, *more))


def sam(lr: float, rho: float) -> dict[str, float]:
    """Of SAM-SGLD, by quadrature on the plane."""
    rates = np.diag(lr * FACTORS)

    def drift(theta: np.ndarray) -> np.ndarray:
        g = theta @ CURVATURE
        return (theta + rho * g / np.linalg.norm(g, axis=1, keepdims=True)) @ CURVATURE @ rates

    return moments_on_plane(drift, 2 / N * rates, reach=0.7)


ROOT = np.diag(np.sqrt(0.1 * FACTORS))
POSTERIOR = covariance(np.linalg.inv(CURVATURE) / N)
LAWS: list[tuple[type[samplers.Sampler], dict[str, object], dict[str, float], float]] = [
    (samplers.SGLD, {"lr": 0.2, "integrator": "leimkuhler_matthews"},
     grouped(linear.leimkuhler_matthews_covariance, 0.2), 0.0),
    (samplers.ASGLD, {"lr": 0.15, "a": 0.0}, grouped(linear.sgld_covariance, 0.15), 0.0),
    (samplers.SAMSGLD, {"lr": 0.1, "rho": 0.1}, sam(0.1, 0.1), 0.0),
    (samplers.BAOAB, {"lr": 0.3, "momentum": 0.6}, grouped(linear.baoab_covariance, 0.3, 0.6), 0.0),
    (samplers.FSGLD, {"lr": 0.1, "sigma": 0.3},
     grouped(linear.sgld_covariance, 0.1, 0.3**2 * ROOT @ CURVATURE @ CURVATURE @ ROOT), 0.0),
    (samplers.EntropyMCMC, {"lr": 0.15, "eta": 0.05},
     grouped(linear.entropy_mcmc_covariance, 0.15, 0.05 / (0.15 * FACTORS)), 0.0),
    (samplers.SGLRW, {"lr": 0.05}, grouped(linear.sglrw_covariance, 0.05), 0.0),
    (samplers.SGNHT, {"lr": 0.02, "momentum": 0.8}, POSTERIOR, 0.02),  # its law has no closed form: a small step
    (samplers.PSGLD, {"lr": 0.01}, POSTERIOR, 0.06),  # V is what each chain learned
]  # fmt: skip


@each(("sampler", "settings", "expected", "slack"), LAWS)
def test_every_sampler_has_its_law_with_step_size_factors(sampler, settings, expected, slack):
    check(alone(grouped_chain(sampler, settings)), expected, slack)
