"""Sharpness-aware SGLD."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.samplers.input_checks import require_non_negative
from bayeslora.samplers.sampler import Evaluate, Sampler, Tensors


class SAMSGLD(Sampler):
    """Sharpness-aware SGLD: g⁺ = ∇Ũ(θ + ρ g/‖g‖), then θ ← θ − ε g⁺ + √(2ε·kT) ξ from the original θ.

    Targets exp(−(Ũ + ρ‖∇Ũ‖)/kT) to first order in ρ with full-batch gradients, and exactly that where Ũ is
    quadratic (as ε → 0): a posterior that prefers flat regions, not the Bayes posterior. Minibatch ascent adds a
    further bias, since the direction of a noisy gradient is partly random: on the reference target
    (`bayeslora.laws.GaussianMean`, ρ = 0.1, ε = 0.05) the variance is 0.57 of the Bayes posterior's with full batch, as
    the law says, but 0.78 with half of the data a step and 1.14 with a tenth. ρ = 0 is SGLD. The norm runs
    over all parameters of a chain together; both gradients are taken on the same minibatch.

    Args:
        params, lr, kT, seed, chain: as `Sampler`.
        rho: radius ρ ≥ 0 of the ascent, in units of θ.

    Raises:
        ConfigError: ρ is negative or not finite.

    Note:
        The closure runs twice a step. With BatchNorm its second run must leave the running statistics alone
        (`SamplingModule` does so; in a loop of your own use `bayeslora.models.frozen_statistics`).

    Source: Foret et al. (2021) for the ascent; the invariant law is derived in docs/samplers.md.
    """

    gradients_per_step = 2

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        rho: float = 0.05,
    ) -> None:
        self.rho = rho
        super().__init__(params, lr, kT, seed, chain)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require_non_negative("rho", self.rho, "SGLD")

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        uphill = self.uphill(self.unit(gradient, self.gradient_norm), evaluate)
        self.langevin(uphill)
        return potential

    def force(self, evaluate: Evaluate, step: int) -> Tensors:  # noqa: ARG002
        """g⁺, the gradient at the ascended point, whose law is exp(−(Ũ + ρ‖∇Ũ‖)/kT) to first order in ρ."""
        _, gradient = evaluate()
        return self.uphill(self.unit(gradient), evaluate)

    def unit(self, gradient: Tensors, norm: Tensor | None = None) -> Tensors:
        """g/‖g‖ in place of g, one norm a chain, given if it is known; zero for a chain whose gradient is zero."""
        norm = self.per_chain(gradient).sqrt() if norm is None else norm
        self.scale(gradient, torch.where(norm > 0, 1 / norm, 0))
        return gradient

    def uphill(self, direction: Tensors, evaluate: Evaluate) -> Tensors:
        """The gradient at θ + ρ·direction, on the same minibatch; θ is then where it was."""
        self.leave()
        torch._foreach_add_(self.theta, direction, alpha=self.rho)
        _, gradient = evaluate()
        self.come_back()
        return gradient
