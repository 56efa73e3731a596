"""Parameter groups with step sizes of their own, and models that give two answers to one batch."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from lightning import Callback, Trainer
from torch import nn

from bayeslora.chain.chain import Chain
from bayeslora.chain.optimizers import parameter_groups
from bayeslora.chain.plan import Plan
from bayeslora.chain.stack import Stack
from bayeslora.engine.module import SamplingModule
from bayeslora.errors import ConfigError, DivergedError
from bayeslora.potential import Potential, Prior
from bayeslora.samplers import SGLD, schedules
from tests.cases import each


def chain(model: nn.Module, **settings: object) -> Chain:
    return Chain(
        model,
        Potential(Prior(1.0), 100),
        lambda params, **chain: SGLD(params, lr=0.1, **chain),
        lambda params: torch.optim.SGD(params, lr=0.2),
        Plan(1, 1, 1, 1),
        temperature=1.0,
        seed=0,
        number=settings.pop("number", 0),
        **settings,
    )


def test_the_last_matching_factor_counts_and_order_is_kept():
    params = {name: torch.zeros(1) for name in ("a.weight", "a.bias", "head.weight", "head.bias")}
    groups = parameter_groups(params, {"head": 10.0, "*.bias": 0.5})
    assert [(group["factor"], len(group["params"])) for group in groups] == [(1.0, 1), (0.5, 2), (10.0, 1)]
    assert groups[1]["params"][0] is params["a.bias"]
    assert groups[2]["params"][0] is params["head.weight"]


@each("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_factors_are_refused(factor: float):
    with pytest.raises(ConfigError, match=r"chain.lr_factors\[head\]"):
        parameter_groups({"head.weight": torch.zeros(1)}, {"head": factor})


def test_factors_reach_the_sampler_and_not_the_warm_up():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    warmup, sampler = chain(net, lr_factors={"1": 10.0}).optimizers
    assert [group["lr"] for group in sampler.param_groups] == [0.1, 1.0]
    assert [group["lr"] for group in warmup.param_groups] == [0.2]
    expected = torch.tensor([0.1] * 6 + [1.0] * 6)
    torch.testing.assert_close(sampler.lr, expected)


def test_a_model_that_is_random_in_training_is_refused():
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.nn.functional.dropout(x, 0.5, training=True))

    batch = torch.randn(16, 3), torch.zeros(16, dtype=torch.int64)
    with pytest.raises(ConfigError, match="Random gives two answers to one batch"):
        chain(Random()).check_repeatable(batch)
    chain(nn.Linear(3, 2)).check_repeatable(batch)


def test_norms_and_energies_are_each_chains_own_in_a_stack():
    nets = [nn.Linear(3, 2) for _ in range(2)]
    stacked = chain(Stack(nets), number=[0, 1])
    alone = [chain(net) for net in nets]
    torch.testing.assert_close(stacked.l2_norm(), torch.stack([m.l2_norm() for m in alone]))
    torch.testing.assert_close(stacked.prior_energy(), torch.stack([m.prior_energy() for m in alone]))
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    torch.testing.assert_close(stacked.nll(x, y), torch.stack([m.nll(x, y) for m in alone]))
    assert [sorted(state) for state in stacked.states()] == [["bias", "weight"]] * 2


def test_full_data_gradients_weigh_batches_by_their_size():
    """Batches of 5 and 2 examples: each example counts alike."""
    net, source = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=source), torch.randint(2, (7,), generator=source)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    own = Chain(
        net, Potential(Prior(1.0), 7), lambda params, **chain: SGLD(params, lr=0.1, control_variates=True, **chain),
        lambda params: torch.optim.SGD(params, lr=0.2), Plan(0, 1, 1, 1),
        temperature=1.0, seed=0, number=0, full_data=lambda: batches,
    )  # fmt: skip
    Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(SamplingModule(own), iter([batches[0]]))  # fmt: skip
    anchored = own.sampler.memory
    weight, bias = anchored["anchor"][:6].view(2, 3).requires_grad_(), anchored["anchor"][6:].requires_grad_()
    nll = nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="none")
    expected = torch.autograd.grad(Potential(Prior(1.0), 7)(nll, {"w": weight, "b": bias}), [weight, bias])
    torch.testing.assert_close(anchored["anchor_gradient"], torch.cat([g.flatten() for g in expected]))


def biased(plan: Plan, lr: float = 0.1, **settings: object) -> Chain:
    return Chain(
        nn.Linear(3, 2), Potential(Prior(1.0), 100), lambda params, **chain: SGLD(params, lr=lr, **chain),
        lambda params: torch.optim.SGD(params, lr=0.2), plan, temperature=1.0, seed=0, number=0, **settings,
    )  # fmt: skip


def test_draws_of_unequal_weight_are_warned_of():
    with pytest.warns(RuntimeWarning, match="step size by a factor of"):
        _ = biased(Plan(0, 10, 10, 10), schedule="polynomial").optimizers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = biased(Plan(0, 10, 10, 10)).optimizers
        _ = biased(Plan(0, 100, 10, 10), schedule="exponential").optimizers


def test_the_variance_that_a_cycle_leaves_to_the_prior_is_the_exact_recursions():
    """One coordinate under its prior alone through the cycle's own steps, exploration without noise first."""
    plan = Plan(0, 0, 12, 200, cycles=4, exploration=0.8)
    with pytest.warns(RuntimeWarning, match="of their variance") as caught:
        _ = biased(plan, schedule="cyclical").optimizers
    curvature, kT, variance = 0.01, 0.01, 1.0
    factor = schedules.make("cyclical", plan.total, cycle_length=plan.cycle_length)
    for step in range(plan.total):
        lr = 0.1 * factor(step)
        variance = (1 - lr * curvature) ** 2 * variance + (2 * lr * kT if plan.phase(step) == "sampling" else 0)
    said = float(re.search(r"have ([\d.]+) of their variance", str(caught[0].message)).group(1))
    assert abs(said - variance) < 0.02
    assert said < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = biased(Plan(0, 0, 3, 20_000, cycles=1, exploration=0.2), schedule="cyclical").optimizers


@each("step", [2, 6])  # in the warm-up, and of the sampler
def test_checks_that_come_late_stop_a_chain_before_its_next_draw(step: int):
    """As on a GPU, where no step waits: the batch of one step has inputs that are not numbers."""
    kept: list[int] = []

    class Draws(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: object) -> None:  # type: ignore[override]
            if module.plan.draw_after(module.steps_taken) is not None:
                module.chain.check_finite()
                kept.append(module.steps_taken)

    x, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
    batches = [(x * (float("nan") if number == step else 1), y) for number in range(1, 10)]
    own = biased(Plan(4, 1, 4, 1))
    own.checks_late = True
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Draws()],
    )  # fmt: skip
    with pytest.raises(DivergedError, match="chain 0 diverged"):
        trainer.fit(SamplingModule(own), iter(batches))
    assert kept == []


@pytest.mark.parametrize("stacked", [False, True])
def test_a_chain_alone_moves_as_it_does_in_a_trainer(stacked: bool):
    def own() -> Chain:
        torch.manual_seed(0)
        nets = [nn.Linear(3, 2) for _ in range(2)]
        return chain(Stack(nets) if stacked else nets[0], number=[0, 1] if stacked else 0)

    source = torch.Generator().manual_seed(0)
    shape = (2, 4, 3) if stacked else (4, 3)
    batches = [(torch.randn(shape, generator=source), torch.randint(2, shape[:-1], generator=source)) for _ in range(3)]
    alone, trained = own(), own()
    alone.begin()
    for batch in batches:
        alone.step(batch)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(SamplingModule(trained), iter(batches))
    assert alone.steps_taken == trained.steps_taken == trainer.global_step == 3
    for one, other in zip(alone.states(), trained.states(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert alone.phase == "sampling"
