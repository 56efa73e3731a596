"""Stochastic-gradient Langevin dynamics."""

from __future__ import annotations

from torch import Tensor

from bayeslora.samplers import functional
from bayeslora.samplers.base import Evaluate, Sampler


class SGLD(Sampler):
    """Stochastic-gradient Langevin dynamics: θ ← θ − ε g + √(2ε·kT) ξ.

    Targets exp(−Ũ/kT) = exp(−U/T) as ε → 0. At a finite step on a quadratic of curvature a the variance is
    (kT/a)/(1 − εa/2), and minibatch gradient noise of variance V adds to it: (2ε·kT + ε²V)/(2εa − ε²a²).
    At kT = 0 this is plain SGD, bit for bit.

    Args: as `Sampler`.

    Example:
        >>> sampler = SGLD(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0)      # doctest: +SKIP
        >>> def closure():                                                                 # doctest: +SKIP
        ...     u = potential(nll(model(x), y), dict(model.named_parameters())); u.backward(); return u
        >>> sampler.step(closure)                                                          # doctest: +SKIP

    Source: Welling & Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics.
    """

    def update(self, theta: Tensor, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
        potential, gradient = evaluate()
        return potential, functional.sgld(theta, gradient, self.noise(theta), self.lr, self.kT)
