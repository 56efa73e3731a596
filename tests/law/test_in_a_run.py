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


class Averages(Callback):
    """Time averages of each chain's second moments after burn-in."""

    def __init__(self) -> None:
        self.total = torch.zeros(CHAINS, 2, 2, dtype=torch.float64)

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: object) -> None:  # type: ignore[override]
        if module.steps_taken > BURN_IN:
            theta = torch.cat([p.detach() for p in module.chain.params.values()], dim=1).double()
            self.total += theta[:, :, None] * theta[:, None, :] / STEPS


def sampled(
    sampler: type[samplers.Sampler], settings: dict[str, object], factors: dict[str, float]
) -> dict[str, Tensor]:
    """Second moments of the chains [K] by name."""
    x, y = (t.expand(CHAINS, *t.shape) for t in data())
    made = one_stream(sampler)
    chain = Chain(
        Stack(Sum() for _ in range(CHAINS)),
        Potential(Prior(PRIOR), N),
        lambda params, **chain: made(params, **settings, **chain),
        lambda params: torch.optim.SGD(params, lr=0.1),
        Plan(0, BURN_IN, STEPS, 1),
        temperature=1.0,
        seed=0,
        number=range(CHAINS),
        lr_factors=factors,
        likelihood=Gaussian(noise=1.0),
    )

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return ((x, y) for _ in range(BURN_IN + STEPS))

    averages = Averages()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[averages],
    )  # fmt: skip
    trainer.fit(SamplingModule(chain), Batches())
    return {f"cov {i}{j}": averages.total[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1))}


@each(
    ("sampler", "settings"),
    [
        (samplers.SGLD, {"lr": 0.15}),
        (samplers.SAMSGLDR1, {"lr": 0.04, "rho": 0.0, "sigma": 1.0}),
        (samplers.SGHMC, {"lr": 0.1, "momentum": 0.7}),
    ],
)
def test_a_run_with_step_size_factors_has_the_law_of_the_posterior(sampler, settings):
    x = data()[0].double().numpy()
    a, rates = x.T @ x / N + np.eye(2) / (N * PRIOR), settings["lr"] * FACTORS
    law, more = {
        samplers.SGLD: (linear.sgld_covariance, ()),
        samplers.SGHMC: (linear.sghmc_covariance, (settings.get("momentum"),)),
    }.get(sampler, (None, ()))
    if law is None:  # û is what each chain learned: the law at its own û differs by O(ε), so compare as ε is small
        expected, slack = np.linalg.inv(a) / N, 0.03
    else:
        expected, slack = linear.grouped_covariance(law, a, rates, 1 / N, *more), 0.0
    centred = {name: value for name, value in covariance(expected).items() if name.startswith("cov")}
    moments = compare_moments(sampled(sampler, settings, {"b": float(FACTORS[1])}), centred)
    for moment in moments:
        assert abs(moment.sampled - moment.expected) < 4 * moment.standard_error + slack * abs(moment.expected), moment
