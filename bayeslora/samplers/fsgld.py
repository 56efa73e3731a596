"""SGLD on a potential smoothed by Gaussian weight noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.samplers.input_checks import require_non_negative
from bayeslora.samplers.sampler import Evaluate, Sampler, Tensors


class FSGLD(Sampler):
    """Flatness-seeking SGLD: θ ← θ − ε ∇Ũ(θ + σz) + √(2ε·kT) ξ,  z ~ N(0, I) fresh at every step.

    Targets exp(−E_z[Ũ(θ + σz)]/kT) as ε → 0: to second order in σ the potential gains ½σ² tr ∇²Ũ, a preference for
    flat regions at the price of one gradient. On a quadratic the smoothing adds a constant and the law is SGLD's with
    gradient noise of covariance σ²A²; σ = 0 is SGLD. Where the force should be that of the posterior up to a small
    reweighting, couple σ to the temperature, as the source does: σ = β^(−(1 + η)/4) with the inverse temperature
    β = 1/kT and a small η > 0 (0.01 in its code); at N = 50,000 and T = 1 this is 0.065.

    A step has one gradient, at the perturbed parameters: `step` returns Ũ there, whose average over z is the smoothed
    potential that is sampled, not Ũ(θ). It is the potential that draws and traces record.

    Args:
        params, lr, kT, seed, chain: as `Sampler`.
        sigma: σ ≥ 0, standard deviation of the weight noise, in units of θ.

    Raises:
        ConfigError: σ negative or not finite.

    Examples:
        >>> sampler = FSGLD(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Bruno, Hwang, An, Sabanis & Lim (2026), Flatness-aware stochastic gradient Langevin dynamics, arXiv
    2510.02174.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        sigma: float = 0.01,
    ) -> None:
        self.sigma = sigma
        super().__init__(params, lr, kT, seed, chain)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require_non_negative("sigma", self.sigma, "SGLD")

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = self._perturbed(evaluate, "perturbation", self.steps)
        self.langevin(gradient)
        return potential

    def force(self, evaluate: Evaluate, step: int) -> Tensors:
        """∇Ũ(θ + σz) with a z of its own: unbiased for the gradient of the smoothed potential that is sampled."""
        return self._perturbed(evaluate, "thermometer", step)[1]

    def _perturbed(self, evaluate: Evaluate, purpose: str, step: int) -> tuple[Tensor, Tensors]:
        """(Ũ, g) at θ + σz, z the draw of a purpose and step; θ is then where it was."""
        z = self.parts(self.draw(self.buffer("perturbation"), purpose=purpose, step=step))
        self.leave()
        torch._foreach_add_(self.theta, z, alpha=self.sigma)
        potential_and_force = evaluate()
        self.come_back()
        return potential_and_force
