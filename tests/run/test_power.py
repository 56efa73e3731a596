"""Whole runs that are wrong in one way each go red by the temperature that they measure; right ones do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora.evaluation.results import Results
from bayeslora.likelihood import Gaussian
from bayeslora.potential import Potential, Prior
from bayeslora.samplers import BAOAB, SGHMC
from tests.cases import each

N, BATCH = 60, 15
SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=SOURCE)
Y = X[:, :1].sin() + 0.5 * torch.randn(N, 1, generator=SOURCE)


class Louder(BAOAB):
    """Noise × 1.05."""

    def noise(self) -> Tensor | None:
        found = super().noise()
        return None if found is None else found.mul_(1.05)


def results(seed: int = 0, sampler: Any = BAOAB, lr: float = 0.2, **settings: Any) -> Results:
    """A run of four chains of a network of 225 parameters."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 28), nn.Tanh(), nn.Linear(28, 1))
    plan = {"warmup": 50, "burn_in": 100, "draws": 100, "thin": 4} | settings
    posterior = bayeslora.sample(
        net, (X, Y), partial(sampler, lr=lr, momentum=0.7), likelihood=Gaussian(noise=0.7), seed=seed,
        test_dataset=(X[:10], Y[:10]), batch_size=plan.pop("batch_size", None), parallel="stacked", progress=False,
        report=False, **{"prior": Prior(0.05)} | plan,
    )  # fmt: skip
    assert posterior.metrics is not None
    return posterior.metrics


def without_prior(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Potential, "add_prior_gradient", lambda *_: None)


def batch_for_n(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Potential, "kT", lambda self, temperature: temperature / BATCH)


@pytest.mark.filterwarnings("ignore:.*burn-in (is|are) too few")
@each(
    ("settings", "mutate", "hot"),
    [
        ({"sampler": Louder}, None, True),
        ({}, without_prior, True),
        ({"batch_size": BATCH}, batch_for_n, True),
        ({"prior": Prior(1.0), "lr": 0.05, "burn_in": 0, "thin": 1, "draws": 60}, None, False),
        ({"sampler": SGHMC, "batch_size": BATCH, "lr": 0.14}, None, True),
    ],
)
def test_a_wrong_run_goes_red(
    settings: dict[str, Any], mutate: Callable[[pytest.MonkeyPatch], None] | None, hot: bool, monkeypatch: Any
) -> None:
    """Noise × 1.05, no prior, N replaced by the batch, no burn-in, a step that minibatches heat by 10 %."""
    if mutate is not None:
        mutate(monkeypatch)
    found = results(**settings)
    assert not found.criteria["temperature"].passed
    ratio = found.diagnostics.temperature["all"].ratio
    assert ratio is not None
    assert (ratio > 1) == hot


@each("seed", [1, 2])
def test_a_right_run_stays_green(seed: int) -> None:
    """95 % of 40 seeds do so in tests/law/test_thermometer.py, by the same judgement."""
    found = results(seed)
    assert found.criteria["temperature"].passed
    assert found.diagnostics.temperature["all"].status == "measured"
