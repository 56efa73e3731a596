"""The LightningModule in which a chain moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from bayeslora.chain.chain import Batch, Chain
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
