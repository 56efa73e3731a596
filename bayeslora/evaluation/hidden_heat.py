"""How much minibatch noise heats a run where it lies, from forces at its draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bayeslora.diagnostics.noise_heat import FORCES, noise_heat, products, traces
from bayeslora.diagnostics.values import ALL, TOLERANCE, NoiseHeat
from bayeslora.evaluation.criteria import all_temperatures_shown, off_temperature
from bayeslora.evaluation.forces import SHARE, FreshForces, step_sizes, takes_parts
from bayeslora.evaluation.results import Results
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior

STATES = 32
"""Draws of all chains at which forces are taken, as far as `SHARE` of the run's own gradients suffices."""


def is_heated(experiment: Experiment) -> bool:
    """Whether minibatch noise heats a run: its batches are parts of the data, and its sampler is not immune."""
    return takes_parts(experiment) and experiment.sampler_of_one().heated


def hidden_heat(posterior: Posterior, experiment: Experiment, results: Results) -> dict[str, NoiseHeat]:
    """By block; none where a block's temperature is off or not known anyway, or where there is nothing to measure.

    Args:
        posterior: of the run.
        experiment: its own.
        results: with the temperatures of its blocks.
    """
    limit, off = experiment.evaluation.criteria.temperature, off_temperature(results)
    well = off is not None and off <= (TOLERANCE if limit is None else limit) and all_temperatures_shown(results)
    if not well:
        return {}
    sampler = experiment.sampler_of_one()
    if not is_heated(experiment) or sampler.kT == 0 or not sampler.plain_noise:
        return {}
    affordable = int(SHARE * experiment.gradients(range(len(posterior.stores))) / FORCES)
    sizes = {block: one.size for block, one in results.diagnostics.temperature.items() if block != ALL and one.size}
    return noise_heats(posterior, experiment, sizes, min(STATES, affordable))


def noise_heats(
    posterior: Posterior, experiment: Experiment, sizes: Mapping[str, int], states: int
) -> dict[str, NoiseHeat]:
    """By block, from so many draws of all chains together; none where that is less than one of each.

    Args:
        posterior: whose draws.
        experiment: whose sampler, step sizes and batches.
        sizes: coordinates by block.
        states: draws.
    """
    estimates: dict[str, list[tuple[float, float]]] = {}
    of_each = states // len(posterior.stores)
    for store in posterior.stores if of_each else []:
        for of_blocks in _of_chain(posterior, experiment, store.chain, -(-len(store) // of_each)):
            for block, pair in of_blocks.items():
                estimates.setdefault(block, []).append(pair)
    found = {block: noise_heat(pairs, sizes[block]) for block, pairs in estimates.items() if block in sizes}
    return {block: one for block, one in found.items() if one is not None}


def _of_chain(
    posterior: Posterior, experiment: Experiment, chain: int, every: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """tr(H) and tr(H²) of every block at every so many draws of a chain."""
    fresh, plan = FreshForces(posterior, experiment, chain), experiment.plan
    scale = fresh.sampler.speed / (2 * fresh.kT)
    for draw in fresh.at_draws("measuring minibatch noise", every):
        later = [plan.total + FORCES * draw.index + nth for nth in range(1, FORCES + 1)]  # no thermometer's batches
        forces = [{name: g.clone() for name, g in fresh.at(draw, step).items()} for step in later]
        sizes = step_sizes(experiment, fresh.moving.params, draw.step)
        yield {block: traces(gram, scale) for block, gram in products(forces, sizes).items()}
