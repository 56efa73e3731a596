"""The callback that keeps posterior draws by the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from bayeslora.chains.module import SamplingModule
from bayeslora.models.modes import set_sampling_mode
from bayeslora.posterior.store import DrawStore, write_tensors
from bayeslora.potential import categorical_nll

Probe = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over the probe set: (inputs, targets) batches, not augmented."""


class DrawCollector(Callback):
    """Keeps a draw wherever the plan says so, with its scalars, and the MAP baseline at the end of the warm-up.

    Scalars of a draw: `potential` (U in nats, its data term estimated on the probe set), `nll` (mean over the probe
    set, nats), `prior` (prior energy, nats), `l2_norm` (‖θ‖) and `lr` (ε).

    Args:
        store: where the draws go.
        probe: the probe set, a fixed subset of the training data.
        map_file: where the MAP baseline goes; None for chains that do not write it.
    """

    def __init__(self, store: DrawStore, probe: Probe, map_file: Path | None = None) -> None:
        self.store, self.probe, self.map_file = store, probe, map_file
        self.kept = 0

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]
        """Keep what the plan wants kept after this step."""
        taken = trainer.global_step
        index, map_file = module.plan.draw_after(taken), self.map_file if taken == map_step(module) else None
        if index is None and map_file is None:
            return
        scalars = self.scalars(trainer, module)
        if map_file is not None:
            write_tensors(map_file, module.state(), {"chain": self.store.chain, "step": taken})
        if index is not None:
            self.store.put(index, module.state(), step=taken, scalars=scalars)
            self.kept = index + 1
            for logger in trainer.loggers:
                logger.log_metrics({f"draw/{name}": value for name, value in scalars.items()}, step=taken)

    @torch.no_grad()
    def scalars(self, trainer: Trainer, module: SamplingModule) -> dict[str, float]:
        """Diagnostics of the present state; leaves the model's mode and statistics as they were.

        Raises:
            DivergedError: one of them is not finite.
        """
        module.model.eval()
        with trainer.precision_plugin.forward_context():
            nll = torch.cat([categorical_nll(module.model(x), y) for x, y in self.probe()]).mean()
        set_sampling_mode(module.model)
        params = module.params
        scalars = {
            "potential": float(module.potential.total(nll, params)),
            "nll": float(nll),
            "prior": float(module.potential.prior.energy(params)),
            "l2_norm": float(torch.stack(torch._foreach_norm(list(params.values()))).norm()),
            "lr": module.step_size,
        } | module.sampler.diagnostics()
        wrong = [f"{name} {value:g}" for name, value in scalars.items() if not math.isfinite(value)]
        if wrong:
            raise module.diverged(", ".join(wrong), trainer.global_step)
        return scalars


def map_step(module: SamplingModule) -> int:
    """Steps after which the state is the MAP baseline: the warm-up's end, or the plan's where all of it is at T = 0."""
    return module.plan.total if module.temperature == 0 or module.sampler.kT == 0 else module.plan.warmup
