"""How long a chain takes to forget its start: the closed form against chains under the prior alone, and the words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeslora.chain.plan import Plan
from bayeslora.diagnostics.relaxation import relaxations, too_short
from bayeslora.samplers import BAOAB, SGHMC, SGLD, SGLRW, SGNHT, EntropyMCMC
from tests.cases import each

N, VARIANCE, LR = 50, 0.4, 0.5
"""A prior of curvature 1/(Nσ²) = 0.05 on Ũ: 40 steps of SGLD."""


@each(
    ("sampler", "settings"),
    [(SGLD, {}), (SGLRW, {}), (SGHMC, {"momentum": 0.8}), (BAOAB, {"momentum": 0.8}), (EntropyMCMC, {"eta": 0.02})],
)
def test_chains_forget_their_start_in_the_time_that_is_told(sampler: type, settings: dict[str, float]) -> None:
    """The mean of many coordinates is 1/e of what it was one relaxation time before; noise averages out."""
    width = 40_000
    step = LR / 10 if settings.get("momentum") else LR
    theta = nn.Parameter(torch.full((width,), 3.0))
    made = sampler([theta], lr=step, kT=1 / N, seed=1, **settings)
    (found,) = relaxations(Plan(0, 0, 1, 1), {"w": VARIANCE}, {"w": step}, N, made.speed)

    def closure() -> torch.Tensor:
        theta.grad = theta.detach() / (N * VARIANCE)
        return torch.tensor(0.0)

    before = math.nan
    for number in range(round(3 * found.steps)):
        if number == round(2 * found.steps):  # once momentum, or the guide, has caught up
            before = theta.mean().item()
        made.step(closure)
    error = 0.63 / width**0.5 / (3.0 * math.exp(-3))  # of the mean of N(0, 0.4) beside it: 0.02
    assert theta.mean().item() / before == pytest.approx(math.exp(-1), rel=0.03 + 3 * error)  # and first order in ε


def test_a_block_is_as_slow_as_its_slowest_tensor_and_a_schedule_shortens_the_burn_in() -> None:
    variances = {"stem.weight": 0.1, "stem.bias": 1.0, "head.weight": 4.0}
    steps = {"stem.weight": 0.05, "stem.bias": 0.05, "head.weight": 2.0}
    plan = Plan(10, 5000, 5, 2)
    found = relaxations(plan, variances, steps, 100, schedule=lambda step: 1.0 if step < 4000 else 0.5)
    assert [(one.block, one.steps, one.burn_in) for one in found] == [("stem", 2000.0, 4500.0), ("head", 200.0, 4500.0)]
    assert "block stem" in str(too_short(found))
    assert "2,000" in str(too_short(found))
    assert "6,000" in str(too_short(found))
    assert too_short(relaxations(Plan(10, 6000, 5, 2), variances, steps, 100)) is None


def test_with_cycles_the_steps_before_a_cycles_first_draw_count() -> None:
    plan = Plan(0, 10_000, 6, 20, cycles=2, exploration=0.5)
    (found,) = relaxations(plan, {"w": 1.0}, {"w": 0.5}, 10, schedule=lambda step: 0.1 * (step >= 10_060))
    assert (found.steps, found.burn_in) == (20.0, pytest.approx(2.0))
    assert "chain.thin 60" in str(too_short([found], cycles=True))


def test_a_thermostat_starts_with_its_momentums_speed() -> None:
    assert SGNHT([nn.Parameter(torch.zeros(1))], lr=0.1, kT=1.0, seed=0, momentum=0.75).speed == 4.0
