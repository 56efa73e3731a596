"""The Metropolis acceptance of a full-data Langevin step from a run's draws, at the run's own step sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.chain.chain import Chain
from bayeslora.chain.modes import set_sampling_mode
from bayeslora.diagnostics.metropolis import accepted, log_ratio, proposal
from bayeslora.evaluation.forces import SHARE, step_sizes
from bayeslora.evaluation.predictions import with_progress
from bayeslora.evaluation.results import Acceptance
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior
from bayeslora.posterior.store import load_into
from bayeslora.rng import generator
from bayeslora.samplers import Sampler

MOST_EXAMPLES = 2000
"""Training examples up to which steps on all of them are tried."""
MOST_DRAWS = 50
"""Draws of a chain from which a step is tried, as far as `SHARE` of the run's own gradients suffices."""


def full_data_acceptance(posterior: Posterior, experiment: Experiment) -> Acceptance:
    """Mean acceptance over equally spaced draws of all chains, or why there is none."""
    sampler, values = experiment.sampler_of_one(), []
    count, steps = len(experiment.data.train), experiment.plan.total - experiment.plan.warmup
    most = min(MOST_DRAWS, int(SHARE * steps * (experiment.chain.batch or count) / (2 * count)))
    if (reason := _missing(sampler, experiment, most)) is not None:
        return Acceptance(reason=reason)
    for store in posterior.stores:
        moving = experiment.new_chain(store.chain)
        set_sampling_mode(moving.network)
        every = -(-len(store) // most)
        for draw in with_progress(
            posterior.draws(store.chain), len(store), f"steps on all data, chain {store.chain}, draws"
        ):
            if draw.index % every == 0:
                load_into(moving.network, draw.tensors, f"draw {draw.index} of chain {store.chain}")
                sizes = step_sizes(experiment, moving.params, draw.step)
                values.append(float(_acceptance(moving, experiment, sizes, draw.step)))
    found = torch.tensor(values, dtype=torch.float64)
    se = float(found.std()) / len(values) ** 0.5 if len(values) > 1 else None
    return Acceptance(float(found.mean()), se, len(values))


def _missing(sampler: Sampler, experiment: Experiment, affordable: int) -> str | None:
    """Why no step can be tried, from so many draws of a chain."""
    if sampler.kT == 0:
        return "the run samples at T = 0"
    if type(sampler).force is not Sampler.force or sampler.scales_itself:
        return f"{type(sampler).__name__} takes other steps than Langevin's, or samples another law than the posterior"
    if experiment.chain.schedule != "constant" or experiment.plan.cycles:
        return "the step size changes from draw to draw"
    if len(experiment.data.train) > MOST_EXAMPLES:
        return f"more than {MOST_EXAMPLES:,} training examples"
    if experiment.data.augment is not None:
        return "training examples are augmented"
    return None if affordable else f"one step would take more than {100 * SHARE:g} % of the run's gradients"


@torch.no_grad()
def _acceptance(moving: Chain, experiment: Experiment, sizes: dict[str, float], step: int) -> Tensor:
    """min(1, r) of one step from where a chain is."""
    params = moving.params
    flat = torch.cat([torch.full((p.numel(),), sizes[name], dtype=torch.float64) for name, p in params.items()])
    kT = moving.potential.kT(moving.temperature)
    start = _state(moving, experiment)
    source = generator(experiment.seed, moving.chains[0], step, "acceptance")
    noise = torch.randn(len(flat), generator=source, dtype=torch.float64)
    parts = proposal(start[0], start[1], flat, kT, noise).split([p.numel() for p in params.values()])
    for p, part in zip(params.values(), parts, strict=True):
        p.copy_(part.view(p.shape))
    return accepted(log_ratio(start, _state(moving, experiment), flat, kT))


def _state(moving: Chain, experiment: Experiment) -> tuple[Tensor, Tensor, Tensor]:
    """(θ, g, Ũ) on all data, fp64 on the CPU."""
    count, params = moving.potential.num_data, moving.params
    total, gradient = torch.zeros((), dtype=torch.float64), [torch.zeros_like(p) for p in params.values()]
    for inputs, targets in experiment.loader(experiment.data.train.to(experiment.device))():
        with torch.enable_grad():
            share = moving.nll(inputs, targets).double().sum() / count
            torch._foreach_add_(gradient, torch.autograd.grad(share, [*params.values()]))
        total += share.detach().cpu()
    with torch.enable_grad():
        prior = moving.prior_energy().double() / count
        torch._foreach_add_(gradient, torch.autograd.grad(prior, [*params.values()]))
    moving.padding.drop(dict(zip(params, gradient, strict=True)))
    theta, g = (torch.cat([t.detach().reshape(-1).double().cpu() for t in of]) for of in (params.values(), gradient))
    return theta, g, total + prior.detach().cpu()
