"""Entropy-MCMC: a chain pulled towards flat regions by a guide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import require
from bayeslora.samplers.sampler import Evaluate, Sampler


class EntropyMCMC(Sampler):
    """Two coupled Langevin chains, the parameters θ and a guide θₐ that moves in a smoothed landscape.

        θ  ← θ  − ε (g + (kT/η)(θ − θₐ)) + √(2ε·kT) ξ
        θₐ ← θₐ − ε (kT/η)(θₐ − θ)       + √(2ε·kT) ξₐ

    Targets exp(−Ũ(θ)/kT − ‖θ − θₐ‖²/(2η)) on the pair as ε → 0. The marginal of θ is the posterior exp(−U/T); that of
    the guide is the posterior smoothed by N(0, η), which weights flat regions. On a quadratic the pair's discretised
    law is exact in `bayeslora.laws.linear.entropy_mcmc_covariance`; minibatch noise heats θ as in SGLD. One gradient a
    step.

    The force by which a thermometer reads θ is g alone, without the pull of the guide, since draws hold the marginal of
    θ. Both would do at the pair's law: integrating by parts over θ at a fixed guide gives
    E⟨θ − c, g + (kT/η)(θ − θₐ)⟩ = D·kT, and E[θ − θₐ | θ] = 0, as θₐ given θ is N(θ, η), so that the second term is 0
    on average. Without it the reading is less noisy, and it also shows a guide that has not come to its law: θ at a
    fixed guide has the first expectation whatever the guide is.

    Args:
        params, lr, kT, seed, chain: as `Sampler`.
        eta: η > 0, variance of θ around its guide, in units of θ².

    Raises:
        ConfigError: η is not positive.

    Examples:
        >>> sampler = EntropyMCMC(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0)   # doctest: +SKIP
        >>> for x, y in loader:                                                                # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))      # the guide is sampler.memory["guide"]

    Source: Li & Zhang (2024), Entropy-MCMC: sampling from flat basins with ease.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        eta: float = 0.01,
    ) -> None:
        self.eta = eta
        super().__init__(params, lr, kT, seed, chain)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require(self.eta > 0, f"sampler.eta={self.eta} must be positive")

    @property
    def speed(self) -> float:
        return 0.5  # θ drags its guide, on which no force acts

    @property
    def own_curvature(self) -> float:
        return 2 * self.kT / self.eta  # of the spring between θ and its guide

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        if "guide" not in self.memory:
            torch._foreach_copy_(self.parts(self.remember("guide")), self.theta)
        guide, away = self.parts(self.memory["guide"]), self.parts(self.buffer("away"))
        torch._foreach_copy_(away, self.theta)
        torch._foreach_sub_(away, guide)  # θ − θₐ
        self.langevin(gradient)
        xi = self.parts(self.draw(self.buffer("guide noise"), purpose="guide")) if self.noisy else None
        for lr, theta, guide_, away_, xi_ in self.by_group(guide, away, xi):
            torch._foreach_add_(theta, away_, alpha=-lr * self.kT / self.eta)
            torch._foreach_add_(guide_, away_, alpha=lr * self.kT / self.eta)
            if xi_ is not None:
                torch._foreach_add_(guide_, xi_, alpha=(2 * lr * self.kT) ** 0.5)
        return potential
