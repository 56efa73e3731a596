"""The LightningModule that moves one chain: warm-up by an ordinary optimizer, then the sampler."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import count
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from bayeslora.chains.plan import Phase, Plan
from bayeslora.config import check_precision
from bayeslora.errors import ConfigError, DivergedError
from bayeslora.models.modes import frozen_statistics, set_sampling_mode
from bayeslora.potential import Potential, categorical_nll
from bayeslora.samplers import Sampler, schedules

Batch = tuple[Tensor, Tensor]
MakeSampler = Callable[..., Sampler]
"""params, kT=, seed=, chain= -> Sampler"""
MakeOptimizer = Callable[..., Optimizer]
"""params -> the warm-up's optimizer"""


class SamplingModule(LightningModule):
    """One chain of one model: one optimizer step a batch, so `global_step` counts steps of the plan.

    Args:
        model: maps inputs [B, …] to logits [B, C].
        potential: Ũ and kT.
        sampler: makes the sampler from `(params, kT=, seed=, chain=)`.
        warmup: makes the warm-up's optimizer from `(params)`.
        plan: phases in steps.
        temperature: T.
        seed, chain: of the noise.
        warmup_schedule, schedule: step-size schedules of the two parts, by name.
        schedule_settings: further arguments of `schedule`.
        full_data: starts a pass over all training data, in batches; needed for control variates.
        compile_model: run the forward pass through `torch.compile`.
    """

    automatic_optimization = False

    def __init__(
        self,
        model: nn.Module,
        potential: Potential,
        sampler: MakeSampler,
        warmup: MakeOptimizer,
        plan: Plan,
        *,
        temperature: float,
        seed: int,
        chain: int,
        warmup_schedule: str = "cosine",
        schedule: str = "constant",
        schedule_settings: dict[str, Any] | None = None,
        full_data: Callable[[], Iterable[Batch]] | None = None,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.potential, self.plan = model, potential, plan
        self.temperature, self.seed, self.chain = temperature, seed, chain
        self._make_sampler, self._make_warmup = sampler, warmup
        self._factors = {
            "warm-up": schedules.make(warmup_schedule, plan.warmup),
            "sampler": _sampler_schedule(schedule, plan, schedule_settings or {}),
        }
        self._full_data = full_data
        self._forward: Callable[[Tensor], Tensor] = self.model.__call__
        if compile_model and can_compile():
            self._forward = torch.compile(model)
        self.last_potential = torch.tensor(float("nan"))

    @property
    def params(self) -> dict[str, Tensor]:
        """The sampled parameters by name: those that require a gradient."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def steps_taken(self) -> int:
        """Steps of the plan taken so far."""
        return self.trainer.global_step

    @property
    def phase(self) -> Phase:
        """Phase of the step about to be taken (of the last step when all are taken)."""
        return self.plan.phase(min(self.steps_taken, self.plan.total - 1))

    @property
    def sampler(self) -> Sampler:
        """The sampler itself, without Lightning's wrapper."""
        return self.optimizers()[1].optimizer  # type: ignore[index, return-value]

    @property
    def step_size(self) -> float:
        """ε of the last step (of the first parameter group)."""
        active = self.optimizers()[0 if self.phase == "warm-up" else 1]  # type: ignore[index]
        return float(active.param_groups[0]["lr"])

    def configure_optimizers(self) -> list[Optimizer]:
        """The warm-up's optimizer and the sampler, over the same parameters."""
        params = list(self.params.values())
        kT = self.potential.kT(self.temperature)
        optimizers = [self._make_warmup(params), self._make_sampler(params, kT=kT, seed=self.seed, chain=self.chain)]
        self._base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        return optimizers

    def on_fit_start(self) -> None:
        check_precision(str(self.trainer.precision))

    def on_train_start(self) -> None:
        set_sampling_mode(self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """One step of the warm-up's optimizer or of the sampler."""
        warming_up = self.phase == "warm-up"
        number = 0 if warming_up else 1
        if not warming_up:
            self._enter_phase()
        optimizer = self.optimizers()[number]  # type: ignore[index]
        factor = self._factors["warm-up" if warming_up else "sampler"](
            self.steps_taken - (0 if warming_up else self.plan.warmup)
        )
        for group, rate in zip(optimizer.param_groups, self._base_rates[number], strict=True):
            group["lr"] = rate * factor
        try:
            self.last_potential = optimizer.step(self._closure(batch, optimizer)).detach()
        except DivergedError as error:
            value = float(self.last_potential)
            what = "its gradient is not finite" if math.isfinite(value) else "it is not finite"
            raise self.diverged(f"potential {value:g}, {what}", self.steps_taken + 1) from error

    def _enter_phase(self) -> None:
        """What the sampler is told when phases change: where to anchor, when to stop adapting, when to be noisy."""
        taken, sampler = self.steps_taken, self.sampler
        if taken == self.plan.warmup and getattr(sampler, "control_variates", False):
            sampler.anchor(self._full_closure)  # type: ignore[attr-defined]
        if taken == self.plan.burnt_in:
            sampler.freeze()
        if self.plan.cycles:
            exploring = self.phase == "exploration"
            sampler.kT = 0.0 if exploring else self.potential.kT(self.temperature)

    def _full_closure(self) -> Tensor:
        """Ũ of all the data, and its gradient: batches weighted by their share of N."""
        if self._full_data is None:
            raise ConfigError("control variates need SamplingModule(full_data=…)")
        total = torch.zeros((), device=self.device)
        with frozen_statistics(self.model):
            for inputs, targets in self._full_data():
                nll = categorical_nll(self._forward(inputs), targets)
                share = len(targets) / self.potential.num_data * self.potential(nll, self.params)
                self.manual_backward(share)
                total += share.detach()
        return total

    def state(self) -> dict[str, Tensor]:
        """What a draw holds: the sampled parameters and the buffers that go with them, detached."""
        held = self.params | {name: b for name, b in self.model.named_buffers() if name in self._persistent}
        return {name: tensor.detach() for name, tensor in held.items()}

    @property
    def _persistent(self) -> set[str]:
        return set(self.model.state_dict())

    def _closure(self, batch: Batch, optimizer: Any) -> Callable[[], Tensor]:
        """Ũ and its gradient on one batch. Runs after the first leave BatchNorm's running statistics alone."""
        inputs, targets = batch
        runs = count()

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with nullcontext() if next(runs) == 0 else frozen_statistics(self.model):
                potential = self.potential(categorical_nll(self._forward(inputs), targets), self.params)
            self.last_potential = potential.detach()
            if not torch.isfinite(potential):
                raise DivergedError(f"the potential is {potential.item()}")
            self.manual_backward(potential)
            return potential

        return closure

    def diverged(self, what: str, step: int) -> DivergedError:
        """The error for what left the finite numbers in a step (the first is number 1), with the fix."""
        phase = self.plan.phase(step - 1)
        fix = "chain.warmup.optimizer.lr smaller" if phase == "warm-up" else "sampler.lr smaller or the warm-up longer"
        return DivergedError(f"chain {self.chain} diverged in step {step:,} ({phase}): {what}. Make {fix}")


def _sampler_schedule(name: str, plan: Plan, settings: dict[str, Any]) -> schedules.Schedule:
    """The sampler's schedule, counted from the end of the warm-up, with the lengths that it takes from the plan."""
    spans = {"exponential": {"decay_steps": plan.burn_in}, "cyclical": {"cycle_length": plan.cycle_length}}
    factor = schedules.make(name, plan.total - plan.warmup, **spans.get(name, {}) | settings)
    if name != "cyclical":
        return factor
    return lambda step: factor(max(0, step - plan.burn_in))  # the first cycle begins when burn-in is over


def can_compile() -> bool:
    """Whether `torch.compile` finds a compiler; says so where it does not."""
    if torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++"):
        return True
    print("trainer.compile: no C++ compiler found, running without torch.compile", flush=True)  # noqa: T201
    return False
