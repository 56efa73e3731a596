"""Sharpness-aware SGLD with noise enlarged along one direction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bayeslora.errors import require
from bayeslora.samplers.input_checks import require_non_negative
from bayeslora.samplers.sam_sgld import SAMSGLD
from bayeslora.samplers.sampler import Evaluate, Tensors


class SAMSGLDR1(SAMSGLD):
    """SAM-SGLD with a rank-one preconditioner: θ ← θ − M g⁺ + √(2kT) E^½ (I + σûûᵀ) ξ,  M = E^½ (I + σûûᵀ)² E^½.

    E = diag(ε) holds the step sizes of the parameter groups; with one for all M is ε (I + σûûᵀ)².

    û is the average of the SAM directions g/‖g‖ gathered in burn-in, frozen while draws are kept. Drift and noise are
    preconditioned together, so the law is SAM-SGLD's: exp(−(Ũ + ρ‖∇Ũ‖)/kT) to first order in ρ, whatever σ; at ρ = 0
    SGLD's. Along û the chain moves (1 + σ)² times as fast, and ε must be stable for that: ε (1 + σ)² a < 2.

    `direction="adaptive", drift="plain"` is an earlier rule, kept for comparison: û is the direction
    of the present gradient and the drift is not preconditioned. It has no known invariant law; with a fixed û the
    variance along it is (1 + σ)² too large, and on the reference target (`bayeslora.laws.Quadratic`, σ = 1, ρ = 0) the
    adaptive rule's is 2.48 of the posterior's at ε = 0.05. An adaptive û with the preconditioned drift is biased too
    (0.72 there), since the noise depends on θ without the correction that this calls for.

    Args:
        params, lr, kT, seed, chain, rho: as `SAMSGLD`.
        sigma: σ ≥ 0.
        direction: `"frozen"` or `"adaptive"`.
        drift: `"preconditioned"` or `"plain"`.

    Raises:
        ConfigError: σ negative or not finite, or an unknown choice; from `step`, if it was frozen before it had seen a
            direction.

    Examples:
        >>> sampler = SAMSGLDR1(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)   # doctest: +SKIP
        >>> for step, (x, y) in enumerate(loader):                                           # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     if step == burn_in: sampler.freeze()

    Source: this project; the preconditioner is that of Girolami & Calderhead (2011) with a constant metric.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        rho: float = 0.05,
        sigma: float = 1.0,
        direction: Literal["frozen", "adaptive"] = "frozen",
        drift: Literal["preconditioned", "plain"] = "preconditioned",
    ) -> None:
        self.sigma, self.direction, self.drift = sigma, direction, drift
        self._known: tuple[Tensor, Tensor] | None = None  # a frozen direction, and 1/‖d‖² of it
        super().__init__(params, lr, kT, seed, chain, rho=rho)

    @property
    def stiffness(self) -> float:
        return (1 + self.sigma) ** 2

    @property
    def learns_in_burn_in(self) -> bool:
        return self.direction == "frozen" and self.sigma > 0

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require_non_negative("sigma", self.sigma, "SAM-SGLD")
        for name, choices in (("direction", ("frozen", "adaptive")), ("drift", ("preconditioned", "plain"))):
            value = getattr(self, name)
            require(value in choices, f"sampler.{name}={value!r} is unknown; choose {' or '.join(choices)}")

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        direction = self._direction(self.unit(gradient, self.gradient_norm))
        uphill = self.uphill(gradient, evaluate)
        inverse = self._inverse_square(direction)
        # θ ← θ − ε g⁺ + √ε (√(2kT) ξ + c û),  c = σ√(2kT) (û·ξ) − (2σ + σ²)(û·√ε g⁺)
        xi, coefficient, thermal = self.noise(), torch.zeros_like(inverse), (2 * self.kT) ** 0.5
        if xi is not None:
            coefficient += self.sigma * thermal * self.per_chain([xi], [direction])
        if self.drift == "preconditioned":
            for lr, _, g, u in self.by_group(uphill, self.parts(direction)):
                coefficient -= (2 * self.sigma + self.sigma**2) * lr**0.5 * self.per_chain(g, u)
        move = torch.mul(direction, coefficient * inverse, out=self.buffer("origin"))  # free since `uphill`
        if xi is not None:
            move.add_(xi, alpha=thermal)
        for lr, theta, g, m in self.by_group(uphill, self.parts(move)):
            torch._foreach_add_(theta, g, alpha=-lr)
            torch._foreach_add_(theta, m, alpha=lr**0.5)
        return potential

    def _inverse_square(self, direction: Tensor) -> Tensor:
        """1/‖d‖² where û = d/‖d‖, [1] or [K, 1]; 0 for no direction. Kept once d is frozen."""
        if self._known is None or self._known[0] is not direction:
            square = self.per_chain([direction])
            inverse = torch.where(square > 0, 1 / square, 0)
            if not self.frozen or self.direction == "adaptive":
                return inverse
            self._known = direction, inverse
        return self._known[1]

    def _direction(self, present: Tensors) -> Tensor:
        """û up to its length: the present direction, or the sum of those seen before `freeze`."""
        if self.direction == "adaptive":
            kept = self.buffer("direction")
            torch._foreach_copy_(self.parts(kept), present)
            return kept
        if not self.frozen:
            torch._foreach_add_(self.parts(self.remember("directions")), present)
        require(
            "directions" in self.memory or self.sigma == 0,
            "sampler.direction=frozen learns û in burn-in, and there was none: make chain.burn_in longer than 0",
        )
        return self.remember("directions")
