"""Underdamped Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

from torch import Tensor

from bayeslora.samplers import functional
from bayeslora.samplers.sghmc import Underdamped


class BAOAB(Underdamped):
    """Symmetric splitting of underdamped Langevin dynamics: kick, half drift, friction and noise, half drift, kick.

        p ← p − √ε g;  θ ← θ + ½√ε p;  p ← μ p + √((1 − μ²)·kT) ξ;  θ ← θ + ½√ε p

    Targets exp(−U/T) with momenta p ~ N(0, kT) as ε → 0, and samples θ of a quadratic *exactly* at every stable ε
    (εa < 4). Minibatch noise heats as in SGHMC. The two half kicks at one position are joined, so a step costs one
    gradient.

    Args: as `Underdamped`.

    Example:
        >>> sampler = BAOAB(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Leimkuhler & Matthews (2013), Rational construction of stochastic numerical methods.
    """

    def move(self, theta: Tensor, p: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return functional.baoab(theta, p, gradient, self.noise(theta), self.lr, self.kT, persistence=self.momentum)
