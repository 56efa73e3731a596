"""The loop over a chain's steps, in the place of Lightning's, whose bookkeeping costs more than a small net's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bayeslora.chain.optimizers import plain_step
from bayeslora.engine.module import SamplingModule

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
