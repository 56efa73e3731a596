"""Maximum a posteriori: the potential at temperature zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import require
from bayeslora.samplers.sampler import Evaluate, Sampler


class MAP(Sampler):
    """Momentum SGD on Ũ: v ← μ v + g; θ ← θ − ε v.

    Targets a mode of the posterior (T = 0), no distribution: the baseline that a posterior must beat, and the warm
    start of the chains. Several chains of it are a deep ensemble.

    Args:
        params, lr, kT, seed, chain: as `Sampler`; `kT` is ignored, the temperature of MAP is 0.
        momentum: μ in [0, 1).
        nesterov: look ahead along the velocity.

    Raises:
        ConfigError: momentum outside [0, 1).

    Source: Polyak (1964); Sutskever et al. (2013).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float = 0.0,  # noqa: ARG002
        seed: int = 0,
        chain: int | Sequence[int] = 0,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
    ) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(params, lr, 0.0, seed, chain)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require(0 <= self.momentum < 1, f"sampler.momentum={self.momentum} must lie in [0, 1)")

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        velocity = self.parts(self.remember("velocity"))
        torch._foreach_mul_(velocity, self.momentum)
        torch._foreach_add_(velocity, gradient)
        if self.nesterov:
            torch._foreach_add_(gradient, velocity, alpha=self.momentum)
        for lr, theta, direction in self.by_group(gradient if self.nesterov else velocity):
            torch._foreach_add_(theta, direction, alpha=-lr)
        return potential
