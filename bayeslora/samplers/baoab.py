"""Underdamped Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.samplers.sampler import Tensors
from bayeslora.samplers.sghmc import Underdamped


class BAOAB(Underdamped):
    """Symmetric splitting of underdamped Langevin dynamics: kick, half drift, friction and noise, half drift, kick.

        p ← p − √ε g;  θ ← θ + ½√ε p;  p ← μ p + √((1 − μ²)·kT) ξ;  θ ← θ + ½√ε p

    Targets exp(−U/T) with momenta p ~ N(0, kT) as ε → 0, and samples θ of a quadratic *exactly* at every stable ε
    (εa < 4). Minibatch noise heats as in SGHMC. The two half kicks at one position are joined, so a step costs one
    gradient.

    Args: as `Underdamped`.

    Examples:
        >>> sampler = BAOAB(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Leimkuhler & Matthews (2013), Rational construction of stochastic numerical methods.
    """

    @property
    def curvature_limit(self) -> float:
        """0.5: a quadratic is sampled exactly, and an eighth of the largest stable step leaves room for what is not."""
        return 0.5

    def momentum_variance(self) -> float:
        """kT, also at a finite ε on a quadratic: a step ends half a kick after the friction, where p is θ's own."""
        return self.kT

    def move(self, p: Tensor, gradient: Tensors) -> None:
        xi, mu = self.noise(), self.momentum
        parts = self.parts(p), gradient, None if xi is None else self.parts(xi)
        for lr, theta, p_, g, xi_ in self.by_group(*parts):
            torch._foreach_add_(p_, g, alpha=-(lr**0.5))  # p ← p − √ε g
            torch._foreach_add_(theta, p_, alpha=lr**0.5 / 2)  # θ ← θ + ½√ε p
            torch._foreach_mul_(p_, mu)  # p ← μ p + √((1 − μ²)·kT) ξ
            if xi_ is not None:
                torch._foreach_add_(p_, xi_, alpha=((1 - mu**2) * self.kT) ** 0.5)
            torch._foreach_add_(theta, p_, alpha=lr**0.5 / 2)  # θ ← θ + ½√ε p
