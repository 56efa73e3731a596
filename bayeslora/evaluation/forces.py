"""Forces on minibatches that no chain moved by, at the draws of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from bayeslora.chain.modes import set_sampling_mode
from bayeslora.chain.optimizers import sampler_schedule
from bayeslora.evaluation.predictions import with_progress
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior
from bayeslora.posterior.store import Draw, load_into
from bayeslora.potential import last_match

SHARE = 0.05
"""Of a run's own gradients, what a diagnostic of its draws may take at most."""


class FreshForces:
    """The force of a chain's sampler where its draws are.

    Args:
        posterior: of the run.
        experiment: its own; or one with another sampler, whose force is asked for.
        chain: the chain's number.

    Attributes:
        moving: the chain, at the draw that `at_draws` gave last.
        sampler: over its parameters.
        num_data, kT: N and T/N.
    """

    def __init__(self, posterior: Posterior, experiment: Experiment, chain: int) -> None:
        self.posterior, self.experiment, self.chain = posterior, experiment, chain
        self.moving, self.batches = experiment.new_chain(chain), experiment.batches(chain, fresh=True)
        set_sampling_mode(self.moving.network)
        self.num_data = len(experiment.data.train)
        self.kT = experiment.temperature / self.num_data
        params = [*self.moving.params.values()]
        self.sampler = experiment.make_sampler(params, kT=self.kT, seed=experiment.seed, chain=chain)

    def at_draws(self, what: str, every: int = 1) -> Iterator[Draw]:
        """Every so many of the chain's draws, each put into `moving` before it is given.

        Args:
            what: is done, for whoever waits.
            every: 1 for all.
        """
        count = next((len(store) for store in self.posterior.stores if store.chain == self.chain), 0)
        for draw in with_progress(self.posterior.draws(self.chain), count, f"{what}, chain {self.chain}, draws"):
            if draw.index % every == 0:
                load_into(self.moving.network, draw.tensors, f"draw {draw.index} of chain {self.chain}")
                yield draw

    def at(self, draw: Draw, step: int) -> dict[str, Tensor]:
        """The force at the present draw on the fresh batch of a step, by name."""
        bf16 = self.experiment.trainer.precision == "bf16-mixed"
        with torch.autocast(self.experiment.device.type, torch.bfloat16, enabled=bf16):
            return self.moving.force(self.sampler, [self.batches(step)], draw.step, self.num_data)


def step_sizes(experiment: Experiment, names: Iterable[str], step: int) -> dict[str, float]:
    """ε of each parameter, by name, in a step of the sampler; the plan's steps count from 1."""
    lr, chain, plan = experiment.sampler_of_one().param_groups[0]["lr"], experiment.chain, experiment.plan
    scale = lr * sampler_schedule(chain.schedule, plan, chain.schedule_settings)(step - 1 - plan.warmup)
    return {name: scale * last_match(name, chain.lr_factors, 1.0) for name in names}


def takes_parts(experiment: Experiment) -> bool:
    """Whether a step's batch is a part of the data."""
    batch = experiment.chain.batch
    return batch is not None and batch < len(experiment.data.train)
