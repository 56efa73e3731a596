"""SGLD with an adaptive drift."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import Problems
from bayeslora.samplers.sampler import Evaluate, Sampler, Tensors


class ASGLD(Sampler):
    """SGLD with an adaptive drift: θ ← θ − ε (g + a·A) + √(2ε·kT) ξ,  A = m̂/(√v̂ + λ).

    m and v are the moments of *past* gradients, as in Adam: m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g².
    Targets exp(−U/T) only at a = 0, where it is SGLD bit for bit. Any a > 0 adds a force along the average gradient and
    shifts the law: on the reference target (`bayeslora.laws.GaussianMean`, a = 1, ε = 0.05) the variance is 0.73
    of the posterior's, and 0.23 at ε = 0.01: the bias does not vanish as ε → 0, it grows.

    Args:
        params, lr, kT, seed, chain: as `Sampler`.
        a: weight of the adaptive drift, a ≥ 0.
        beta1, beta2: decay of the moments, in [0, 1).
        floor: λ > 0.

    Raises:
        ConfigError: a setting out of its range.

    Examples:
        >>> sampler = ASGLD(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0, a=0.1)   # doctest: +SKIP
        >>> for x, y in loader:                                                                 # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Kim, Song & Liang (2020), Stochastic gradient Langevin dynamics with adaptive drifts.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        a: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.999,
        floor: float = 1e-6,
    ) -> None:
        self.a, self.beta1, self.beta2, self.floor = a, beta1, beta2, floor
        super().__init__(params, lr, kT, seed, chain)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        problems = Problems()
        ranges = [
            ("a", self.a >= 0, "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "in [0, 1)"),
            ("beta2", 0 <= self.beta2 < 1, "in [0, 1)"),
            ("floor", self.floor > 0, "positive"),
        ]
        problems.add(*(f"sampler.{n}={getattr(self, n)} must be {what}" for n, holds, what in ranges if not holds))
        problems.raise_if_any()

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        drift = gradient if self.a == 0 else self._drift(gradient)
        self.langevin(drift)
        return potential

    def _drift(self, gradient: Tensors) -> Tensors:
        """g + a·A from the moments so far, to which g is then added."""
        first, second, past = self.remember("first"), self.remember("second"), self.memory.get("moments_of", 0)
        m, v, drift = self.parts(first), self.parts(second), gradient
        if past:
            joined = self.buffer("drift")
            torch.sqrt(second, out=joined).div_((1 - self.beta2**past) ** 0.5).add_(self.floor).reciprocal_()
            joined.mul_(first).mul_(self.a / (1 - self.beta1**past))  # a m̂/(√v̂ + λ)
            drift = self.parts(joined)
            torch._foreach_add_(drift, gradient)
        torch._foreach_mul_(m, self.beta1)
        torch._foreach_add_(m, gradient, alpha=1 - self.beta1)
        torch._foreach_mul_(v, self.beta2)
        torch._foreach_addcmul_(v, gradient, gradient, value=1 - self.beta2)
        self.memory["moments_of"] = past + 1
        return drift
