"""Deliberately wrong samplers: each law test must go red for those that break its law."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.laws import GaussianMean, one_stream
from bayeslora.potential import Potential
from bayeslora.samplers import SAMSGLD, SAMSGLDR1, SGLD, SGLRW, Sampler, functional


class LoudNoise:
    """Noise × 1.05."""

    def draw(self, out: Tensor, method: str = "normal_", purpose: str = "noise", step: int | None = None) -> Tensor:
        xi = super().draw(out, method, purpose, step)  # type: ignore[misc]
        return xi.mul_(1.05) if purpose == "noise" else xi


def loud(sampler_class: type[Sampler]) -> type[Sampler]:
    """The sampler with noise × 1.05; the lattice walk, whose noise is its stride, with the stride × 1.05."""
    mutant = LongStride if issubclass(sampler_class, SGLRW) else LoudNoise
    return type(f"Loud{sampler_class.__name__}", (mutant, one_stream(sampler_class)), {})


class LongStride:
    """δ × 1.05 at the same mean step."""

    def update(self, evaluate) -> Tensor:  # type: ignore[no-untyped-def]
        kT, self.kT = self.kT, 1.05**2 * self.kT
        try:
            return super().update(evaluate)  # type: ignore[misc]
        finally:
            self.kT = kT


class FirstGroupsNoise(one_stream(SGLD)):  # type: ignore[misc]
    """The noise of every group scaled by the first group's step size."""

    def langevin(self, drift: list[Tensor]) -> None:
        first = self.param_groups[0]["lr"]
        for lr, theta, g, xi in self.by_group(drift, self.parts(self.noise())):
            torch._foreach_add_(theta, g, alpha=-lr)
            torch._foreach_add_(theta, xi, alpha=(2 * first * self.kT) ** 0.5)


class WeakAnchor(one_stream(SGLD)):  # type: ignore[misc]
    """Control variates that lose a tenth of the anchor's gradient."""

    def anchor(self, full_closure) -> None:  # type: ignore[no-untyped-def]
        super().anchor(full_closure)
        self.memory["anchor_gradient"] *= 0.9


class UngroupedRankOne(one_stream(SAMSGLDR1)):  # type: ignore[misc]
    """Drift E (I + σûûᵀ)² g beside noise √(2kT) E^½ (I + σûûᵀ) ξ, which do not fit where E and ûûᵀ do not commute."""

    def update(self, evaluate) -> Tensor:  # type: ignore[no-untyped-def]
        potential, gradient = evaluate()
        along, sigma = self.memory["directions"], self.sigma
        along = along / along.norm(dim=-1, keepdim=True)
        stretched = functional.rank_one(torch.cat(gradient, 1), along, 2 * sigma + sigma**2)
        noise = functional.rank_one(self.noise(), along, sigma)
        moved = functional.sgld(torch.cat(self.theta, 1), stretched, noise, self.lr, self.kT)
        torch._foreach_copy_(self.theta, self.parts(moved))
        return potential


def per_tensor(sampler_class: type[SAMSGLD]) -> type[Sampler]:
    """The ascent normalised tensor by tensor, as the predecessor did."""

    class PerTensor(one_stream(sampler_class)):  # type: ignore[misc]
        def unit(self, gradient: list[Tensor], norm: Tensor | None = None) -> list[Tensor]:
            for g in gradient:
                g.div_(g.norm(dim=-1, keepdim=True))
            return gradient

    return PerTensor


class NoPrior(Potential):
    """The prior dropped."""

    def __call__(self, nll: Tensor, params) -> Tensor:  # type: ignore[no-untyped-def]
        return nll.mean(-1) + 0 * self.prior.energy(params, chain_axes=nll.ndim - 1)


def drop_prior(target: GaussianMean) -> None:
    target.potential = NoPrior(target.potential.prior, target.num_data)
