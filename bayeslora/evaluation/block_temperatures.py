"""The temperatures at which the blocks of a run were sampled, from the readings of its draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bayeslora.diagnostics.measured_temperature import block_sizes, readings, temperatures
from bayeslora.diagnostics.values import ALL, TOLERANCE, MeasuredTemperature
from bayeslora.evaluation.forces import FreshForces
from bayeslora.evaluation.results import Diagnostics
from bayeslora.evaluation.series import Series, by_scalar
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior

READINGS, KINETIC = "temperature/", "kinetic/"
"""First parts of the names of the draws' scalars."""


def with_temperatures(
    diagnostics: Diagnostics, posterior: Posterior, experiment: Experiment, series: Series
) -> Diagnostics:
    """Diagnostics with the temperature of every block, or under `all` why there is none.

    With one chain from the readings that its draws hold, which are about c = 0. With several about the mean of the
    other chains' draws, which is as free of bias and less noisy: the forces are computed again, one gradient a draw.
    """
    reason = _missing(experiment, series)
    if reason is not None:
        return replace(diagnostics, temperature={ALL: MeasuredTemperature(reason=reason)})
    moving = experiment.new_chain(0)
    sizes = block_sizes(moving.padding.sizes(moving.params, 0))
    limit = experiment.evaluation.criteria.temperature
    tolerance = TOLERANCE if limit is None else limit
    at_zero, about = _scalars_with(series, READINGS), None
    if len(series) > 1:
        about = _about_other_chains(posterior, experiment, list(moving.params))
    return replace(
        diagnostics,
        temperature=temperatures(at_zero, sizes, tolerance)
        if about is None
        else temperatures(about, sizes, tolerance, at_zero),
        kinetic=temperatures(_scalars_with(series, KINETIC), sizes, tolerance),
    )


def _missing(experiment: Experiment, series: Series) -> str | None:
    """Why a run has no temperature to measure; None where it has."""
    if experiment.map_step == experiment.plan.total:
        return "the run samples at T = 0, where there is no temperature to measure"
    if not _scalars_with(series, READINGS):
        return "the draws hold no readings: callbacks.thermometer was null"
    return None


def _scalars_with(series: Series, prefix: str) -> dict[str, list[np.ndarray]]:
    """Scalars of one group that all chains have, by the rest of their names."""
    return {name.removeprefix(prefix): s for name, s in by_scalar(series).items() if name.startswith(prefix)}


def _about_other_chains(
    posterior: Posterior, experiment: Experiment, names: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Readings of every draw about the mean of the other chains' draws, one array [draws] a chain by block."""
    means = [_mean(posterior, store.chain, names) for store in posterior.stores]
    by_block: dict[str, list[np.ndarray]] = {}
    for place, store in enumerate(posterior.stores):
        others = [mean for at, mean in enumerate(means) if at != place]
        center = {name: torch.stack([mean[name] for mean in others]).mean(0).to(experiment.device) for name in names}
        rows = readings_about(posterior, experiment, store.chain, center)
        for block in rows[0]:
            by_block.setdefault(block, []).append(np.array([row[block] for row in rows]))
    return by_block


def _mean(posterior: Posterior, chain: int, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of a chain's draws of some tensors, by name."""
    mean: dict[str, Tensor] = {}
    for count, draw in enumerate(posterior.draws(chain), start=1):
        for name in names:
            tensor = draw.tensors[name]
            mean[name] = tensor.clone() if count == 1 else mean[name].lerp_(tensor, 1 / count)
    return mean


def readings_about(
    posterior: Posterior, experiment: Experiment, chain: int, center: Mapping[str, Tensor]
) -> list[dict[str, float]]:
    """Readings of each draw of a chain about a center, by the very force that its thermometer took."""
    forces, rows = FreshForces(posterior, experiment, chain), []
    params = forces.moving.params
    sizes = forces.moving.padding.sizes(params, 0)
    for draw in forces.at_draws("measuring temperatures"):
        values = readings(params, forces.at(draw, draw.step), sizes, forces.kT, center=center)
        rows.append({block: float(value) for block, value in values.items()})
    return rows
