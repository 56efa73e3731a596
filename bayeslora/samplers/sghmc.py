"""Stochastic-gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import require
from bayeslora.samplers import functional
from bayeslora.samplers.base import Evaluate, Sampler


class Underdamped(Sampler):
    """Base of the samplers with a momentum p beside θ.

    Args:
        params, lr, kT, seed, chain: as `Sampler`; ε is the learning rate of SGD with this momentum.
        momentum: μ in [0, 1), what a step leaves of the momentum; friction is 1 − μ.

    Raises:
        ConfigError: momentum outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        momentum: float = 0.9,
    ) -> None:
        self.momentum = momentum
        super().__init__(params, lr, kT, seed, chain)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require(0 <= self.momentum < 1, f"sampler.momentum={self.momentum} must lie in [0, 1)")

    @property
    def speed(self) -> float:
        return 1 / (1 - self.momentum)

    def update(self, theta: Tensor, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
        potential, gradient = evaluate()
        p = self.memory.get("momentum", torch.zeros_like(theta))
        moved, self.memory["momentum"] = self.move(theta, p, gradient)
        return potential, moved

    def move(self, theta: Tensor, p: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The new (θ, p)."""
        raise NotImplementedError


class SGHMC(Underdamped):
    """Stochastic-gradient Hamiltonian Monte Carlo: p ← μ p − √ε g + √(2(1 − μ)·kT) ξ; θ ← θ + √ε p.

    Targets exp(−U/T) as ε → 0 at any μ; with v = √ε p it is SGD with momentum μ and learning rate ε, plus noise.
    `bayeslora.laws.linear.sghmc` gives its exact law on a quadratic, discretisation included: at μ = 0.9 the variance
    is 1.027 of the posterior's for εa = 0.1. Its momenta, read after the kick, have variance 2kT/(1 + μ) as ε → 0.
    Independent minibatches whose gradients have variance V heat by about εV/(2(1 − μ)·kT), reshuffled epochs by less:
    1.06 was measured where this says 1.45 (docs/samplers.md).

    Args: as `Underdamped`.

    Example:
        >>> sampler = SGHMC(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Chen, Fox & Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, eq. 15.
    """

    def move(self, theta: Tensor, p: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return functional.underdamped_euler(
            theta, p, gradient, self.noise(theta), self.lr, self.kT, friction=1 - self.momentum
        )
