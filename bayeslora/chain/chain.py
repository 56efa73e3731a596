"""A chain that moves: warm-up by an ordinary optimizer, then the sampler; without a trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bayeslora.chain.divergence import at_fault, cause, diverged
from bayeslora.chain.modes import check_answers, frozen_statistics, set_sampling_mode
from bayeslora.chain.optimizers import parameter_groups, plain_step, sampler_schedule, warn_of_bias
from bayeslora.chain.padding import PaddingRows
from bayeslora.chain.plan import Phase, Plan
from bayeslora.chain.scale_free import ScaleFree
from bayeslora.chain.stack import Stack
from bayeslora.errors import DivergedError, require
from bayeslora.likelihood import Categorical, Likelihood
from bayeslora.potential import Potential, norms
from bayeslora.samplers import Sampler, schedules

Batch = tuple[Tensor, Tensor]
MakeSampler = Callable[..., Sampler]
"""params, kT=, seed=, chain= -> Sampler"""
MakeOptimizer = Callable[..., Optimizer]
"""params -> the warm-up's optimizer"""


class Chain:
    """One chain, or K stacked chains: warm-up by an ordinary optimizer, then the sampler, one batch a step.

    `take_step`, `backward` and `over_ranks` say how an optimizer's step is taken, a gradient computed and a potential
    averaged over processes; whoever runs the chain in a trainer puts the trainer's own in their place.

    Args:
        model: maps inputs [B, …] to logits [B, C]; or a `Stack` of K, inputs [K, B, …] to logits [K, B, C].
        potential: Ũ and kT.
        sampler: makes the sampler from `(params, kT=, seed=, chain=)`.
        warmup: makes the warm-up's optimizer from `(params)`.
        plan: phases in steps.
        temperature: T.
        seed: of the noise.
        number: the chain's number, or those of the K chains of a `Stack`.
        warmup_schedule, schedule: step-size schedules of the two parts, by name.
        warmup_schedule_settings, schedule_settings: their further arguments.
        lr_factors: factors on the sampler's step size by parameter name, as `potential.matches` reads it; the last
            match wins.
        scale_free: weights whose norm is drawn when the warm-up ends (see `chain.scale_free`), by name or pattern.
        full_data: starts a pass over all training data, in batches; needed for control variates.
        max_potential: Ũ in nats per example beyond which a chain counts as diverged.
        likelihood: what the model's outputs say of a target; None: softmax over classes.
    """

    def __init__(
        self,
        model: nn.Module | Stack,
        potential: Potential,
        sampler: MakeSampler,
        warmup: MakeOptimizer,
        plan: Plan,
        *,
        temperature: float,
        seed: int,
        number: int | Sequence[int],
        warmup_schedule: str = "cosine",
        warmup_schedule_settings: dict[str, Any] | None = None,
        schedule: str = "constant",
        schedule_settings: dict[str, Any] | None = None,
        lr_factors: Mapping[str, float] | None = None,
        scale_free: Iterable[str] = (),
        full_data: Callable[[], Iterable[Batch]] | None = None,
        max_potential: float = 1e6,
        likelihood: Likelihood | None = None,
    ) -> None:
        self._params: dict[str, Tensor] | None = None
        self.model, self.plan = model, plan
        self.potential = potential.for_model(self.network)
        self.temperature, self.seed, self.number = temperature, seed, number
        self.likelihood: Likelihood = likelihood or Categorical()
        self.padding = PaddingRows(self.network, self.params)
        self._make_sampler, self._make_warmup = sampler, warmup
        self._factors = {
            "warm-up": schedules.make(warmup_schedule, plan.warmup, **warmup_schedule_settings or {}),
            "sampler": sampler_schedule(schedule, plan, schedule_settings or {}),
        }
        self.lr_factors = dict(lr_factors or {})
        self.scale_free = ScaleFree(self.params, scale_free, self.chain_axes > 0, self.potential.prior, temperature)
        self._full_data = full_data
        self._forward: Callable[..., Tensor] = self.model.__call__
        self._train_forward = self._forward
        self.last_potential = torch.tensor(float("nan"))
        self.checks_late = False
        self._beyond: Tensor | None = None
        self.max_potential, self.lr_scale = max_potential, 1.0
        self.steps_taken, self._begun = 0, False
        self.take_step: Callable[[Optimizer, Callable[[], Tensor]], Tensor] = plain_step
        self.backward: Callable[[Tensor], None] = Tensor.backward
        self.over_ranks: Callable[[Tensor], Tensor] = Tensor.detach

    @property
    def params(self) -> dict[str, Tensor]:
        """The sampled parameters by name: those that require a gradient; each [K, …] in a stack."""
        if self._params is not None:  # every step asks several times
            return self._params
        if isinstance(self.model, Stack):
            return self.model.sampled()
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def network(self) -> nn.Module:
        """The model itself, whose structure all stacked chains share."""
        return self.model.model if isinstance(self.model, Stack) else self.model

    @property
    def chains(self) -> list[int]:
        """Numbers of the chains that move here."""
        return [self.number] if isinstance(self.number, int) else list(self.number)

    @property
    def phase(self) -> Phase:
        """Phase of the step about to be taken (of the last step when all are taken)."""
        return self.plan.phase(min(self.steps_taken, self.plan.total - 1))

    @property
    def device(self) -> torch.device:
        """Where the sampled parameters are."""
        return next(iter(self.params.values())).device

    @cached_property
    def optimizers(self) -> tuple[Optimizer, Sampler]:
        """The warm-up's optimizer and the sampler, over the same parameters.

        Raises:
            ConfigError: settings of the sampler that do not go with the plan.
        """
        self._params = self.params
        kT = self.potential.kT(self.temperature)
        sampler = self._make_sampler(self.groups(), kT=kT, seed=self.seed, chain=self.number)
        require(
            self.plan.burn_in > 0 or not sampler.learns_in_burn_in,
            f"chain.burn_in=0: {type(sampler).__name__} adapts in burn-in and is frozen after it; give it a burn-in",
        )
        for group in sampler.param_groups:
            group["lr"] *= group["factor"]
        if self.padding.places:
            sampled = self.padding.sampled(self.params)
            names = {id(p): name for name, p in self.params.items()}
            sampler.hold([sampled[names[id(p)]] for p in sampler.theta])
        optimizers = self._make_warmup(list(self.params.values())), sampler
        self._base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        warn_of_bias(self.plan, self._factors["sampler"], sampler, lambda: self._slowest(sampler))
        return optimizers

    def groups(self) -> list[dict[str, Any]]:
        """The sampler's parameter groups, each with its `factor` on the step size."""
        return parameter_groups(self.params, self.lr_factors)

    @property
    def sampler(self) -> Sampler:
        """The sampler."""
        return self.optimizers[1]

    @property
    def step_size(self) -> float:
        """ε of the last step (of the first parameter group)."""
        return float(self.optimizers[0 if self.phase == "warm-up" else 1].param_groups[0]["lr"])

    def _slowest(self, sampler: Sampler) -> float:
        """The smallest product of a parameter's step size and its prior's precision, by N."""
        rates = {id(p): group["lr"] for group in sampler.param_groups for p in group["params"]}
        prior, shapes = self.potential.prior, {name: p.shape[self.chain_axes :] for name, p in self.params.items()}
        products = (rates[id(p)] * prior.precision(name, shapes[name]) for name, p in self.params.items())
        return min(products) / self.potential.num_data

    def begin(self, compile_forward: Callable[[nn.Module], Callable[..., Tensor]] | None = None) -> None:
        """Put the model into the mode in which it is sampled.

        Args:
            compile_forward: makes the forward pass of training batches, which are all of one shape; None: the model's.
        """
        set_sampling_mode(self.network)
        self.checks_late = self.sampler.checks_late = self.checks_late or self.sampler.checks_late
        if compile_forward is not None:
            self._train_forward = compile_forward(self.model)

    def step(self, batch: Batch) -> Tensor:
        """One step of the warm-up's optimizer or of the sampler. Returns Ũ of the batch: scalar, or [K].

        Raises:
            ConfigError: the model gives two answers to one batch, or depends on the scale of a scale-free weight.
            DivergedError: the potential or its gradient became NaN or infinite, or the potential too large.
        """
        if not self._begun:
            self.check_repeatable(batch)
            self.scale_free.check(self._in_full(batch))
            self._begun = True
        warming_up = self.phase == "warm-up"
        number = 0 if warming_up else 1
        if not warming_up:
            self.enter_phase(batch)
        optimizer = self.optimizers[number]
        taken = self.steps_taken - (0 if warming_up else self.plan.warmup)
        factor = self._factors["warm-up" if warming_up else "sampler"](taken)
        for group, rate in zip(optimizer.param_groups, self._base_rates[number], strict=True):
            group["lr"] = rate * factor * self.lr_scale
        try:
            self.last_potential = self.take_step(optimizer, self._closure(batch, optimizer, warming_up)).detach()
        except DivergedError as error:
            chains = at_fault(self.chains, self.last_potential, self.max_potential, self.params.values())
            raise self.diverged(self._why(chains), self.steps_taken + 1, chains) from error
        self.padding.restore(self.params)
        self.steps_taken += 1
        return self.last_potential

    def check_finite(self) -> None:
        """Raise `DivergedError` if a step since the last call was not finite.

        On a CPU every step does that by itself. On a GPU the host would have to wait, so it is asked for where the host
        waits anyway: at draws, resume points and lines of progress. Until then θ stays where it was.
        """
        beyond, self._beyond = self._beyond, None
        try:
            self.sampler.check_finite()
        except DivergedError as error:
            raise self.diverged(self._why(error.chains), self.steps_taken, error.chains) from error
        if beyond is not None and beyond.any():
            chains = [chain for chain, bad in zip(self.chains, beyond.reshape(-1).tolist(), strict=True) if bad]
            raise self.diverged(self._why(chains), self.steps_taken, chains)

    def _why(self, chains: Sequence[int]) -> str:
        """What was wrong with the potential of the first of these chains."""
        value = float(self.last_potential.reshape(-1)[self.chains.index(chains[0])]) if chains else math.nan
        return cause(value, self.max_potential)

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """What the model says of a training batch, [B, …] or [K, B, …]; running statistics stay as they are."""
        with frozen_statistics(self.network):
            return self._forward(batch[0])

    def check_repeatable(self, batch: Batch) -> None:
        """Raise `ConfigError` where the model gives two answers to one batch: dropout, say, that no mode turns off."""
        once, again = (self.likelihood.nll(self.outputs(batch), batch[1]) for _ in range(2))
        check_answers(self.network, torch.allclose(once, again, rtol=1e-3, atol=1e-3, equal_nan=True))

    def _in_full(self, batch: Batch) -> Callable[[], Tensor]:
        """`outputs` of a batch without autocast, which rounds by more than the scale of a weight may matter."""

        def outputs() -> Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return self.outputs(batch)

        return outputs

    def enter_phase(self, batch: Batch) -> None:
        """What happens when phases change: norms are drawn, the sampler anchors, stops adapting, becomes noisy."""
        taken, sampler = self.steps_taken, self.sampler
        if taken == self.plan.warmup and sampler.kT > 0:  # at T = 0 there is no law to draw from
            self.scale_free.draw_norms(self._in_full(batch), self.seed, self.chains)
        if taken == self.plan.warmup and getattr(sampler, "control_variates", False):
            sampler.anchor(self._full_closure)  # type: ignore[attr-defined]
        if taken == self.plan.burnt_in:
            sampler.freeze()
        if self.plan.cycles:
            sampler.noise_free = self.phase == "exploration"

    def _full_closure(self) -> Tensor:
        """Ũ of all the data, and its gradient: batches weighted by their share of N."""
        require(self._full_data is not None, "control variates need Chain(full_data=…)")
        assert self._full_data is not None
        total = torch.zeros((), device=self.device)
        with frozen_statistics(self.network):
            for inputs, targets in self._full_data():
                potential = self.potential(self.nll(inputs, targets), self.params)
                potential = potential - self._padding_energy() / self.potential.num_data
                share = len(targets) / self.potential.num_data * potential
                self.backward(share.sum())
                total = total + share.detach()
        self.padding.drop_gradient(self.params)
        return total

    def _padding_energy(self) -> Tensor | float:
        return self.padding.prior_energy(self.potential.prior, self.params, self.chain_axes)

    @torch.no_grad()
    def force(self, sampler: Sampler, batches: Sequence[Batch], step: int, num_data: int) -> dict[str, Tensor]:
        """A sampler's own force at the present state by name; θ, `grad` and running statistics stay as they are.

        For a thermometer: likelihood, prior and N are put together here anew, not as `potential` does for the steps.

        Args:
            sampler: over the sampled parameters.
            batches: equal shares of one minibatch that does not depend on the state; each chain's own in a stack.
            step: of the plan; what the force draws at random is a function of it.
            num_data: N, training examples.
        """

        def evaluate() -> tuple[Tensor, list[Tensor]]:
            self.padding.restore(self.params)
            total, gradient = torch.zeros(()), [torch.zeros_like(p) for p in sampler.theta]
            for inputs, targets in batches:
                with torch.enable_grad(), frozen_statistics(self.network):
                    nll = self.likelihood.nll(self._train_forward(inputs), targets)
                    energy = nll.to(torch.promote_types(nll.dtype, torch.float32)).mean(-1)
                    share = (energy + self.prior_energy() / num_data) / len(batches)
                    torch._foreach_add_(gradient, torch.autograd.grad(share.sum(), sampler.theta))
                total = total.to(share.device) + share.detach()
            self.padding.drop(self.by_name(sampler, gradient))
            return total, gradient

        try:
            return self.by_name(sampler, sampler.force(evaluate, step))
        finally:
            sampler.come_back()

    def by_name(self, sampler: Sampler, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
        """One tensor a parameter, in a sampler's order, by the parameters' names in the order of `params`."""
        places = {id(p): tensor for p, tensor in zip(sampler.theta, tensors, strict=True)}
        return {name: places[id(p)] for name, p in self.params.items()}

    def logits(self, inputs: Any) -> Tensor:
        """Logits of inputs [B, …] that all chains share: [B, C], or [K, B, C] in a stack."""
        return self._forward(inputs, shared_inputs=True) if isinstance(self.model, Stack) else self._forward(inputs)

    def nll(self, inputs: Any, targets: Tensor) -> Tensor:
        """−log p(y|x, θ) in nats of inputs and targets [B, …] that all chains share: [B], or [K, B] in a stack."""
        return self.likelihood.nll(self.logits(inputs), targets)

    def states(self) -> list[dict[str, Tensor]]:
        """What a draw holds, one dictionary a chain: sampled parameters and the buffers that go with them, detached."""
        held = {name: tensor.detach() for name, tensor in self.held().items()}
        if not isinstance(self.model, Stack):
            return [held]
        return [{name: tensor[place] for name, tensor in held.items()} for place in range(len(self.chains))]

    def held(self) -> dict[str, Tensor]:
        """Sampled parameters and the buffers that go with them; each [K, …] in a stack."""
        if isinstance(self.model, Stack):
            return self.model.held()
        saved = set(self.model.state_dict())
        return self.params | {name: b for name, b in self.model.named_buffers() if name in saved}

    @property
    def chain_axes(self) -> int:
        """Leading axes of the sampled parameters that count chains: 1 in a stack, else 0."""
        return int(isinstance(self.model, Stack))

    def prior_energy(self) -> Tensor:
        """−log p(θ) up to its constant, in nats: scalar, or [K]."""
        return self.potential.prior.energy(self.params, chain_axes=self.chain_axes) - self._padding_energy()

    @torch.no_grad()
    def l2_norm(self) -> Tensor:
        """‖θ‖ over all sampled parameters: scalar, or [K]; to about 1e-5, since it is asked for at every step."""
        of_each = torch.stack(norms(list(self.params.values()), self.chain_axes))
        return torch.linalg.vector_norm(of_each, dim=0)

    def _closure(self, batch: Batch, optimizer: Any, warming_up: bool) -> Callable[[], Tensor]:
        """Ũ and its gradient on one batch. Runs after the first leave BatchNorm's running statistics alone."""
        inputs, targets = batch
        runs = count()

        def closure() -> Tensor:
            if warming_up:  # the sampler zeroes gradients by itself
                optimizer.zero_grad(set_to_none=True)
            self.padding.restore(self.params)  # a sampler may have moved all of θ to look at another point
            with nullcontext() if next(runs) == 0 else frozen_statistics(self.network):
                data_term = self.potential.data_term(self.likelihood.nll(self._train_forward(inputs), targets))
            prior_term = self.potential.prior_term(self.params, self.chain_axes)
            if self.padding.places:  # of padding rows, which are not sampled
                prior_term = prior_term - self._padding_energy() / self.potential.num_data
            self.last_potential = self.over_ranks(data_term.detach() + prior_term)
            within = self.last_potential.abs() <= self.max_potential
            if not self.checks_late and not within.all():
                raise DivergedError(f"the potential is {self.last_potential.tolist()}")
            self.backward(data_term.sum())
            self.potential.add_prior_gradient(self.params, self.chain_axes)
            self.padding.drop_gradient(self.params)
            if not self.checks_late:
                return self.last_potential
            self._beyond = ~within if self._beyond is None else self._beyond | ~within
            return self.last_potential.where(within, float("nan"))  # which the sampler keeps note of

        return closure

    def diverged(self, what: str, step: int, chains: Sequence[int]) -> DivergedError:
        """The error for what left the finite numbers in a step (the first is number 1), with the fix."""
        return diverged(what, chains or self.chains, self.plan, step, first=not self.steps_taken)
