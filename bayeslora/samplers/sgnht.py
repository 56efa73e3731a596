"""The stochastic-gradient Nosé–Hoover thermostat."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeslora.samplers.sampler import Tensors
from bayeslora.samplers.sghmc import Underdamped


class SGNHT(Underdamped):
    """Nosé–Hoover thermostat: p ← (1 − αₜ) p − √ε g + √(2(1 − μ)·kT) ξ; θ ← θ + √ε p; αₜ ← αₜ + ε (Kₜ/kT − 1).

    Kₜ = (1 − αₜ/2) ‖p‖²/D is the temperature of the positions: the momentum after a kick is hotter than they are by
    1/(1 − α/2), a difference that the original rule, Kₜ = ‖p‖²/D, turns into positions that are α/2 too cold.

    Targets exp(−U/T) as ε → 0, also under minibatch noise that is the same in all directions: the friction αₜ rises
    until that temperature is kT, which absorbs noise of unknown size where SGHMC runs hot. Noise that
    differs between directions is balanced on average only.

    Args: as `Underdamped`; the friction starts at 1 − μ. One thermostat a chain.

    Examples:
        >>> sampler = SGNHT(model.parameters(), lr=1e-3, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Ding et al. (2014), Bayesian sampling using stochastic gradient thermostats, algorithm 2.
    """

    def move(self, p: Tensor, gradient: Tensors) -> None:
        xi = self.noise()
        if "friction" not in self.memory:
            self.memory["friction"] = torch.full_like(p[..., :1], 1 - self.momentum)
        friction, sizes = self.memory["friction"], 0.0
        self.scale([p], 1 - friction)  # p ← (1 − αₜ) p − √ε g + √(2(1 − μ)·kT) ξ
        for lr, theta, p_, g, xi_ in self.by_group(self.parts(p), gradient, None if xi is None else self.parts(xi)):
            torch._foreach_add_(p_, g, alpha=-(lr**0.5))
            if xi_ is not None:
                torch._foreach_add_(p_, xi_, alpha=(2 * (1 - self.momentum) * self.kT) ** 0.5)
            torch._foreach_add_(theta, p_, alpha=lr**0.5)  # θ ← θ + √ε p
            sizes += lr * sum(map(self._size, theta))
        if self.noisy:
            if self.sampled is not None:
                p.mul_(self.sampled)  # what is held has no momentum
            kinetic = torch.linalg.vector_norm(p, dim=-1, keepdim=True).square() / self.dim
            rate = sizes / p.shape[-1]  # ε, on average over the coordinates
            self.memory["friction"] = friction + rate * ((1 - friction / 2) * kinetic / self.kT - 1)

    def momentum_variance(self) -> Tensor | float:
        """kT/(1 − αₜ/2), [K, 1]: at kT the friction settles where that is E p²."""
        return self.kT / (1 - self.memory["friction"] / 2)

    def diagnostics(self) -> dict[str, Tensor]:
        """`friction`: αₜ; it settles where the kinetic energy is right."""
        return {"friction": self.memory["friction"].squeeze(-1)} if "friction" in self.memory else {}
