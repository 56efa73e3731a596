"""Whether a run's steps are short enough for the steepest directions of its potential, which a block's mean hides."""

from __future__ import annotations

import math

from bayeslora.chain.modes import set_sampling_mode
from bayeslora.chain.pilot import Curvature
from bayeslora.diagnostics.values import Steepness
from bayeslora.errors import DivergedError
from bayeslora.evaluation.forces import SHARE, step_sizes, takes_parts
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior
from bayeslora.posterior.store import Draw, load_into

PRODUCTS, BATCHES = 6, 4
"""Products of a power iteration, and minibatches of each."""


def steepness(posterior: Posterior, experiment: Experiment) -> Steepness | None:
    """ε·λ along the steepest direction at the last draw of every chain; the largest.

    λ is that of Ũ's Hessian, by power iteration on differences of the sampler's force at the distance √(kT/λ): a lower
    bound. A chain keeps out of directions that are far too steep for its steps, so beyond the limit it is a lower bound
    of what the posterior has, too. None at T = 0, of a sampler with step sizes of its own by coordinate, and where it
    would take too many gradients.

    Args:
        posterior: of the run.
        experiment: its own.
    """
    sampler = experiment.sampler_of_one()
    stores = [store for store in posterior.stores if len(store)]
    batches = BATCHES if takes_parts(experiment) else 1
    taken = 2 * PRODUCTS * batches * sampler.gradients_per_step * len(stores)
    affordable = SHARE * experiment.gradients([store.chain for store in stores])
    if sampler.kT == 0 or sampler.scales_itself or taken > affordable:
        return None
    try:
        values = [_of_chain(experiment, store.chain, store.load(store.records()[-1]), batches) for store in stores]
    except DivergedError:
        return None
    return Steepness(sampler.stiffness * max(values), sampler.curvature_limit)


def _of_chain(experiment: Experiment, chain: int, draw: Draw, batches: int) -> float:
    """ε·λ at a draw, by so many fresh batches."""
    pilot, fresh = experiment.new_pilot(chain), experiment.batches(chain, fresh=True)
    set_sampling_mode(pilot.network)
    load_into(pilot.network, draw.tensors, f"draw {draw.index} of chain {chain}")
    sizes = step_sizes(experiment, pilot.params, draw.step)
    curvature = Curvature(pilot, [*pilot.params], (PRODUCTS, PRODUCTS))
    probe = [fresh(experiment.plan.total + nth) for nth in range(batches)]
    found = curvature(probe, {name: math.sqrt(size) for name, size in sizes.items()})
    return found + pilot.sampler.own_curvature * max(sizes.values())
