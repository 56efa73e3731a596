"""The LightningModule in which a chain moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from bayeslora.chain.chain import Batch, Chain
from bayeslora.chain.optimizers import plain_step
from bayeslora.chain.plan import Phase, Plan
from bayeslora.engine.acceleration import can_compile, compiled
from bayeslora.settings import check_precision


class SamplingModule(LightningModule):
    """Moves a chain, or several stacked, by one optimizer step a batch, so `global_step` counts steps of the plan.

    Optimisation is manual: `training_step` is a whole step, Langevin noise and SAM's perturbations included.

    Args:
        chain: what moves.
        compile_model: run the forward pass of training batches through `torch.compile`.
    """

    def __init__(self, chain: Chain, compile_model: bool = False) -> None:
        super().__init__()
        self.compile_model = compile_model and can_compile()
        self.automatic_optimization = False
        self.chain = chain
        self.model, self.padding = chain.model, chain.padding

    @property
    def plan(self) -> Plan:
        """The phases in steps."""
        return self.chain.plan

    @property
    def steps_taken(self) -> int:
        """Steps of the plan taken so far."""
        return self.chain.steps_taken

    @property
    def phase(self) -> Phase:
        """Phase of the step about to be taken (of the last step when all are taken)."""
        return self.chain.phase

    def configure_optimizers(self) -> list[Optimizer]:
        """The warm-up's optimizer and the sampler, over the same parameters."""
        return list(self.chain.optimizers)

    def on_fit_start(self) -> None:
        check_precision(str(self.trainer.precision))
        self._wrapped = {id(wrapped.optimizer): wrapped for wrapped in self.optimizers()}  # type: ignore[union-attr]
        self.chain.take_step = self._take_step
        if self.trainer.world_size > 1:  # on one device manual_backward comes to backward, and costs more
            self.chain.backward, self.chain.over_ranks = self.manual_backward, self._over_ranks

    def on_train_start(self) -> None:
        self.chain.begin(partial(compiled, device=self.device) if self.compile_model else None)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """One step of the warm-up's optimizer or of the sampler."""
        self.chain.step(batch)

    def _take_step(self, optimizer: Optimizer, closure: Callable[[], Tensor]) -> Tensor:
        """The step through Lightning's wrapper, which counts it and runs the closure in the run's precision."""
        return self._wrapped[id(optimizer)].step(closure)

    def _over_ranks(self, potential: Tensor) -> Tensor:
        """Ũ of the whole batch: the mean over the ranks' shares, each with the prior once, as DDP does gradients."""
        return self.trainer.strategy.reduce(potential.clone(), reduce_op="mean")


OWN = "bayeslora."
"""Packages whose callbacks are known to use no more of Lightning than this loop gives."""


class StepLoop(_TrainingEpochLoop):
    """Takes the steps of a `SamplingModule`: the hooks of callbacks at a batch's start and end, and the step itself.

    There is nothing else to do at a step of manual optimisation on one device: no validation, no schedulers, no metrics
    of Lightning's own. On several devices, or with callbacks of others, Lightning's loop runs.
    """

    def run(self, data_fetcher: Any) -> None:
        """Take all steps of the plan that are left."""
        trainer = self.trainer
        if trainer.world_size > 1 or not all(type(one).__module__.startswith(OWN) for one in callbacks_of(trainer)):
            super().run(data_fetcher)
            return
        self.reset()
        self.on_run_start(data_fetcher)
        module: SamplingModule = trainer.lightning_module  # type: ignore[assignment]
        module.chain.take_step = plain_step
        begin, end = (list(_hooks(trainer, name)) for name in ("on_train_batch_start", "on_train_batch_end"))
        progress, steps = self.batch_progress, self.manual_optimization.optim_step_progress
        last, context = int(trainer.num_training_batches) - 1, trainer.precision_plugin.train_step_context
        for number, batch in enumerate(trainer.train_dataloader):  # type: ignore[arg-type]
            progress.is_last_batch = number == last
            progress.increment_ready()
            for hook in begin:
                hook(trainer, module, batch, number)
            progress.increment_started()
            steps.increment_ready()
            with context():
                module.training_step(batch, number)
            steps.increment_completed()
            progress.increment_processed()
            for hook in end:
                hook(trainer, module, None, batch, number)
            progress.increment_completed()
            self._batches_that_stepped += 1
            if trainer.should_stop:
                break
            if number < last and trainer.received_sigterm:
                raise SIGTERMException


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """A trainer's callbacks, which its type does not tell."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _hooks(trainer: Trainer, name: str) -> Iterator[Callable[..., None]]:
    """One hook of the callbacks that have it, in their order."""
    for callback in callbacks_of(trainer):
        if getattr(type(callback), name) is not getattr(Callback, name):
            yield getattr(callback, name)
