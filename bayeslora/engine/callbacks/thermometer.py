"""The callback that reads the temperature of every kept draw."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import Callback, Trainer
from torch import Tensor

from bayeslora.diagnostics.measured_temperature import readings
from bayeslora.engine.callbacks.draws import DrawScalars
from bayeslora.engine.module import SamplingModule
from bayeslora.experiment import BatchAt


class Thermometer(Callback, DrawScalars):
    """Adds to every draw the temperatures of its blocks, in units of the one asked for; their mean is 1 where it holds.

    `temperature/<block>` and `temperature/all`: N⟨θ_b, g_b⟩/(D_b·T) with the sampler's own force g on a batch that the
    chain did not move by; one gradient a draw (SAM: two). `kinetic/<block>` and `kinetic/all`, of samplers with
    momenta: ‖p_b‖²/D_b over its value at equilibrium, which costs no gradient. At T = 0 there is nothing to read.

    Args:
        batches: of fresh batches by step, the shares that are put together on several devices; the run fills them in.
            The other devices wait meanwhile.
        num_data: N, training examples; the run fills it in.

    Source: the virial theorem; docs/concepts.md has the derivation.
    """

    def __init__(self, batches: Sequence[BatchAt], num_data: int) -> None:
        self.batches, self.num_data = list(batches), num_data

    def draw_scalars(self, trainer: Trainer, module: SamplingModule) -> dict[str, Tensor]:
        chain, sampler, step = module.chain, module.chain.sampler, module.steps_taken
        if sampler.kT == 0:
            return {}
        sizes = chain.padding.sizes(chain.params, chain.chain_axes)
        with trainer.precision_plugin.forward_context():
            force = chain.force(sampler, [share(step) for share in self.batches], step, self.num_data)
        kT = chain.temperature / self.num_data
        temperatures = readings(chain.params, force, sizes, kT, chain.chain_axes)
        scalars = {f"temperature/{block}": value for block, value in temperatures.items()}
        momenta = sampler.standard_momentum()
        if momenta is not None:
            p = chain.by_name(sampler, momenta)
            chain.padding.drop(p)
            temperatures = readings(p, p, sizes, 1.0, chain.chain_axes)
            scalars |= {f"kinetic/{block}": value for block, value in temperatures.items()}
        return scalars
