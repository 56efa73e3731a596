"""SGLD with the preconditioner of RMSprop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bayeslora.errors import Problems, require
from bayeslora.samplers.sampler import Evaluate, Sampler, Tensors


class PSGLD(Sampler):
    """Preconditioned SGLD: θ ← θ − ε G g + √(2ε·kT·G) ξ,  G = diag(1/(λ + √V)),  V ← αV + (1 − α) g².

    Targets exp(−U/T) as ε → 0 with `preconditioner="frozen"`: V is learnt in burn-in and fixed while draws are kept, so
    that G is a constant. With `"adaptive"` V goes on following the gradients; the term Γ = ∂G/∂θ that the law would
    need is left out, as everywhere in the field, and on the reference target (`bayeslora.laws.GaussianMean`, α = 0.99,
    ε = 0.05) the variance is 1.24 of the posterior's, and 1.43 at α = 0.9, ε = 0.01.

    Args:
        params, lr, kT, seed, chain: as `Sampler`; ε is in units of G, so it is smaller than SGLD's.
        alpha: α in [0, 1), decay of V.
        floor: λ > 0; at least the gradient's scale keeps G from exploding where gradients vanish.
        preconditioner: `"frozen"` or `"adaptive"`.

    Raises:
        ConfigError: a setting out of its range; from `step`, if it was frozen before it had seen a gradient.

    Examples:
        >>> sampler = PSGLD(model.parameters(), lr=1e-4, kT=potential.kT(1.0), seed=0)   # doctest: +SKIP
        >>> for step, (x, y) in enumerate(loader):                                       # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     if step == burn_in: sampler.freeze()

    Source: Li, Chen, Carlson & Carin (2016), Preconditioned stochastic gradient Langevin dynamics.
    """

    scales_itself = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        alpha: float = 0.99,
        floor: float = 1e-2,
        preconditioner: Literal["frozen", "adaptive"] = "frozen",
    ) -> None:
        self.alpha, self.floor, self.preconditioner = alpha, floor, preconditioner
        super().__init__(params, lr, kT, seed, chain)

    @property
    def learns_in_burn_in(self) -> bool:
        return self.preconditioner == "frozen"

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        problems = Problems()
        if not 0 <= self.alpha < 1:
            problems.add(f"sampler.alpha={self.alpha} must lie in [0, 1)")
        if not self.floor > 0:
            problems.add(f"sampler.floor={self.floor} must be positive")
        if self.preconditioner not in ("frozen", "adaptive"):
            problems.add(f"sampler.preconditioner={self.preconditioner!r} is unknown; choose frozen or adaptive")
        problems.raise_if_any()

    @property
    def speed(self) -> float:
        return 1 / self.floor  # where gradients vanish, and less elsewhere

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        if self.frozen and self.preconditioner == "frozen":
            require(
                "square" in self.memory,
                "sampler.preconditioner=frozen learns V in burn-in, and there was none: make chain.burn_in longer than"
                f" the memory of V, 1/(1 − alpha) = {1 / (1 - self.alpha):.0f} steps",
            )
        else:
            self._follow(gradient)
        scale = torch.sqrt(self.memory["square"], out=self.buffer("scale")).add_(self.floor).reciprocal_()  # G
        xi = self.noise()
        if xi is not None:
            xi.mul_(scale.sqrt())
        for lr, theta, g, scale_, xi_ in self.by_group(
            gradient, self.parts(scale), None if xi is None else self.parts(xi)
        ):
            torch._foreach_addcmul_(theta, g, scale_, value=-lr)
            if xi_ is not None:
                torch._foreach_add_(theta, xi_, alpha=(2 * lr * self.kT) ** 0.5)
        return potential

    def _follow(self, gradient: Tensors) -> None:
        """V ← αV + (1 − α) g², from V = g²."""
        first = "square" not in self.memory
        square = self.parts(self.remember("square"))
        torch._foreach_mul_(square, self.alpha)
        torch._foreach_addcmul_(square, gradient, gradient, value=1.0 if first else 1 - self.alpha)
