"""Whether draws still are what they were when they were recorded: their NLL on the probe set, computed again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bayeslora.errors import DataError
from bayeslora.posterior import Posterior

if TYPE_CHECKING:
    from bayeslora.experiment import Experiment
    from bayeslora.runs.directory import RunDirectory

ROUNDING = 1e-4
"""Of the NLL, absolute and relative, between two ways to add in fp32."""


def check_draws(run: RunDirectory, experiment: Experiment) -> None:
    """Check the draws of a run, if it has any (see `check_recorded_nll`)."""
    if any(len(run.store(chain)) for chain in range(experiment.chain.num_chains)):
        check_recorded_nll(Posterior.load(run.root, experiment.model(), experiment.likelihood), experiment)


def check_recorded_nll(posterior: Posterior, experiment: Experiment) -> None:
    """Compute the NLL on the probe set of each chain's first and last draw, and compare it with what was recorded.

    This finds what no fingerprint of a model does: tensors that are plain attributes, functions that use a variable
    from outside, other data. Draws that were sampled in half precision, or on another device, may differ by rounding:
    twice as far as bfloat16 moves the examples' NLL on average.

    Raises:
        DataError: a draw's NLL is another one.
    """
    for store in posterior.stores:
        records = [record for record in store.records() if "nll" in record.scalars]
        for record in {record.index: record for record in (*records[:1], *records[-1:])}.values():
            if not store.intact(record):
                continue  # whoever needs the draw says so, or computes it again
            model = posterior.model_of(store.load(record))
            recorded, computed = record.scalars["nll"], probe_nll(model, experiment)
            off, allowed = abs(computed.mean().item() - recorded), ROUNDING * (1 + abs(recorded))
            if not off <= allowed:
                allowed += 2 * _rounding(model, experiment, computed)
            if not off <= allowed:
                raise DataError(
                    f"draw {record.index} of chain {store.chain} was recorded with NLL {recorded:.4g} on the probe set"
                    f" and has {computed.mean().item():.4g} now, so the model or the training data are not those of the"
                    " run. If the model's function draws tensors at random that are neither parameters nor buffers,"
                    " make them once, outside the function, or seed them, and sample again"
                )


@torch.no_grad()
def probe_nll(model: nn.Module, experiment: Experiment) -> Tensor:
    """−log p(y|x, θ) in nats of every example of the probe set, [P]."""
    model.eval()
    return torch.cat(
        [experiment.likelihood.nll(model(inputs), targets).float() for inputs, targets in experiment.probe()()]
    )


def _rounding(model: nn.Module, experiment: Experiment, nll: Tensor) -> float:
    """How far an example's NLL moves on average in bfloat16; 0 where the model cannot be run so."""
    with suppress(RuntimeError), torch.autocast(experiment.device.type, torch.bfloat16):
        return (probe_nll(model, experiment) - nll).abs().mean().item()
    return 0.0
