"""The stochastic-gradient Nosé–Hoover thermostat."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.samplers import functional
from bayeslora.samplers.sghmc import Underdamped


class SGNHT(Underdamped):
    """Nosé–Hoover thermostat: p ← (1 − αₜ) p − √ε g + √(2(1 − μ)·kT) ξ; θ ← θ + √ε p; αₜ ← αₜ + ε (Kₜ/kT − 1).

    Kₜ = (1 − αₜ/2) ‖p‖²/D is the temperature of the positions: the momentum after a kick is hotter than they are by
    1/(1 − α/2), a difference that the original rule, Kₜ = ‖p‖²/D, turns into positions that are α/2 too cold.

    Targets exp(−U/T) as ε → 0, also under minibatch noise that is the same in all directions: the friction αₜ rises
    until that temperature is kT, which absorbs noise of unknown size where SGHMC runs hot. Noise that
    differs between directions is balanced on average only.

    Args: as `Underdamped`; the friction starts at 1 − μ. One thermostat a chain.

    Example:
        >>> sampler = SGNHT(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Ding et al. (2014), Bayesian sampling using stochastic gradient thermostats, algorithm 2.
    """

    def move(self, theta: Tensor, p: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        friction = self.memory.get("friction", torch.full_like(theta[..., :1], 1 - self.momentum))
        theta, p = functional.underdamped_euler(
            theta, p, gradient, self.noise(theta), self.lr, self.kT, friction=friction, injected=1 - self.momentum
        )
        if self.noisy:
            excess = (1 - friction / 2) * p.square().mean(-1, keepdim=True) / self.kT - 1
            rate = self.lr if isinstance(self.lr, float) else self.lr.mean()
            friction = friction + rate * excess
        self.memory["friction"] = friction
        return theta, p

    def diagnostics(self) -> dict[str, Tensor]:
        """`friction`: αₜ; it settles where the kinetic energy is right."""
        return {"friction": self.memory["friction"].squeeze(-1)} if "friction" in self.memory else {}
