"""Stochastic-gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import require
from bayeslora.samplers.sampler import Evaluate, Sampler, Tensors


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

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        self.move(self.remember("momentum"), gradient)
        return potential

    def move(self, p: Tensor, gradient: Tensors) -> None:
        """Move p, [D] or [K, D], and θ in place."""
        raise NotImplementedError

    def momentum_variance(self) -> Tensor | float:
        """E p² after a step at kT as ε → 0: a number, or [K, 1]. Where the noise comes with the kick, 2kT/(1 + μ)."""
        return 2 * self.kT / (1 + self.momentum)

    def standard_momentum(self) -> Tensors | None:
        if "momentum" not in self.memory or self.kT == 0:
            return None
        momenta = [p.clone() for p in self.parts(self.memory["momentum"])]
        variance = torch.as_tensor(self.momentum_variance()).to(momenta[0]).reshape(-1)
        self.scale(momenta, variance.rsqrt().expand(len(self.chains)))
        return momenta


class SGHMC(Underdamped):
    """Stochastic-gradient Hamiltonian Monte Carlo: p ← μ p − √ε g + √(2(1 − μ)·kT) ξ; θ ← θ + √ε p.

    Targets exp(−U/T) as ε → 0 at any μ; with v = √ε p it is SGD with momentum μ and learning rate ε, plus noise.
    `bayeslora.laws.linear.sghmc_covariance` gives its exact law on a quadratic, discretisation included: at μ = 0.9 the
    variance is 1.027 of the posterior's for εa = 0.1. Its momenta, read after the kick, have variance 2kT/(1 + μ) as
    ε → 0. Independent minibatches whose gradients have variance V heat by about εV/(2(1 − μ)·kT), reshuffled epochs by
    less: 1.06 was measured where this says 1.45 (docs/samplers.md).

    Args: as `Underdamped`.

    Examples:
        >>> sampler = SGHMC(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Chen, Fox & Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, eq. 15.
    """

    def move(self, p: Tensor, gradient: Tensors) -> None:
        xi, mu = self.noise(), self.momentum
        parts = self.parts(p), gradient, None if xi is None else self.parts(xi)
        for lr, theta, p_, g, xi_ in self.by_group(*parts):
            torch._foreach_mul_(p_, mu)  # p ← μ p − √ε g + √(2(1 − μ)·kT) ξ
            torch._foreach_add_(p_, g, alpha=-(lr**0.5))
            if xi_ is not None:
                torch._foreach_add_(p_, xi_, alpha=(2 * (1 - mu) * self.kT) ** 0.5)
            torch._foreach_add_(theta, p_, alpha=lr**0.5)  # θ ← θ + √ε p
