"""Deliberately wrong samplers: each law test must go red for those that break its law."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.laws import GaussianMean, one_stream
from bayeslora.potential import Potential
from bayeslora.samplers import SAMSGLD, SAMSGLDR1, SGLD, SGLRW, Sampler, functional


class LoudNoise:
    """Noise × 1.05, whichever way the sampler makes its noise."""

    def noise(self, like: Tensor) -> Tensor | None:
        xi = super().noise(like)  # type: ignore[misc]
        return None if xi is None else 1.05 * xi

    def draw(self, like: Tensor, method: str = "normal_", purpose: str = "noise", step: int | None = None) -> Tensor:
        xi = super().draw(like, method, purpose, step)  # type: ignore[misc]
        return xi if method == "uniform_" or step is None else 1.05 * xi


def loud(sampler_class: type[Sampler]) -> type[Sampler]:
    """The sampler with noise × 1.05; the lattice walk, whose noise is its stride, with the stride × 1.05."""
    if issubclass(sampler_class, SGLRW):
        return type("LoudSGLRW", (LongStride, one_stream(sampler_class)), {})
    return type(f"Loud{sampler_class.__name__}", (LoudNoise, one_stream(sampler_class)), {})


class LongStride:
    """δ × 1.05 at the same mean step."""

    def update(self, theta: Tensor, evaluate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        potential, gradient = evaluate()
        moved, _ = functional.lattice_walk(theta, gradient, self.draw(theta, "uniform_"), self.lr, 1.05**2 * self.kT)
        return potential, moved


class FirstGroupsNoise(one_stream(SGLD)):  # type: ignore[misc]
    """The noise of every group scaled by the first group's step size."""

    def update(self, theta: Tensor, evaluate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        potential, gradient = evaluate()
        moved = functional.descend(theta, gradient, self.lr)
        return potential, moved + (2 * self.param_groups[0]["lr"] * self.kT) ** 0.5 * self.noise(theta)


class WeakAnchor(one_stream(SGLD)):  # type: ignore[misc]
    """Control variates that lose a tenth of the anchor's gradient."""

    def anchor(self, full_closure) -> None:  # type: ignore[no-untyped-def]
        super().anchor(full_closure)
        self.memory["anchor_gradient"] *= 0.9


class UngroupedRankOne(one_stream(SAMSGLDR1)):  # type: ignore[misc]
    """Drift E (I + σûûᵀ)² g beside noise √(2kT) E^½ (I + σûûᵀ) ξ, which do not fit where E and ûûᵀ do not commute."""

    def update(self, theta: Tensor, evaluate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        potential, gradient = evaluate()
        along, sigma = self.memory["directions"], self.sigma
        along = along / along.norm(dim=-1, keepdim=True)
        stretched = functional.rank_one(gradient, along, 2 * sigma + sigma**2)
        noise = functional.rank_one(self.noise(theta), along, sigma)
        return potential, functional.sgld(theta, stretched, noise, self.lr, self.kT)


def per_tensor(sampler_class: type[SAMSGLD]) -> type[Sampler]:
    """The ascent normalised tensor by tensor, as the predecessor did."""

    class PerTensor(one_stream(sampler_class)):  # type: ignore[misc]
        def update(self, theta: Tensor, evaluate) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
            potential, gradient = evaluate()
            parts = gradient.split([self._size(p) for p in self._params], dim=-1)
            ascent = torch.cat([functional.sam_ascent(part, self.rho) for part in parts], dim=-1)
            _, uphill = evaluate(theta + ascent)
            return potential, functional.sgld(theta, uphill, self.noise(theta), self.lr, self.kT)

    return PerTensor


class NoPrior(Potential):
    """The prior dropped."""

    def __call__(self, nll: Tensor, params) -> Tensor:  # type: ignore[no-untyped-def]
        return nll.mean(-1) + 0 * self.prior.energy(params, chain_axes=nll.ndim - 1)


def drop_prior(target: GaussianMean) -> None:
    target.potential = NoPrior(target.potential.prior, target.num_data)
