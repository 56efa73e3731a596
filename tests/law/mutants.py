"""Deliberately wrong samplers: each law test must go red for those that break its law."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.laws import GaussianMean, one_stream
from bayeslora.potential import Potential
from bayeslora.samplers import SAMSGLD, SGLD, Sampler


class LoudNoise:
    """Noise × 1.05."""

    def noise(self, like: Tensor) -> Tensor | None:
        xi = super().noise(like)  # type: ignore[misc]
        return None if xi is None else 1.05 * xi


def loud(sampler_class: type[Sampler]) -> type[Sampler]:
    return type(f"Loud{sampler_class.__name__}", (LoudNoise, one_stream(sampler_class)), {})


class PerTensorSAM(one_stream(SAMSGLD)):  # type: ignore[misc]
    """The ascent normalised tensor by tensor, as the predecessor did."""

    def update(self, theta: Tensor, evaluate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        from bayeslora.samplers import functional

        potential, gradient = evaluate()
        parts = gradient.split([self._size(p) for p in self._params], dim=-1)
        ascent = torch.cat([functional.sam_ascent(part, self.rho) for part in parts], dim=-1)
        _, uphill = evaluate(theta + ascent)
        return potential, functional.sgld(theta, uphill, self.noise(theta), self.lr, self.kT)


class NoPrior(Potential):
    """The prior dropped."""

    def __call__(self, nll: Tensor, params) -> Tensor:  # type: ignore[no-untyped-def]
        return nll.mean(-1) + 0 * self.prior.energy(params, chain_axes=nll.ndim - 1)


def drop_prior(target: GaussianMean) -> None:
    target.potential = NoPrior(target.potential.prior, target.num_data)


LOUD_SGLD = loud(SGLD)
LOUD_SAMSGLD = loud(SAMSGLD)
