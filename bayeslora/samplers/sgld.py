"""Stochastic-gradient Langevin dynamics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bayeslora.errors import require
from bayeslora.samplers.input_checks import dense_gradients
from bayeslora.samplers.sampler import Closure, Evaluate, Sampler, Tensors


class SGLD(Sampler):
    """Stochastic-gradient Langevin dynamics: θ ← θ − ε g + √(2ε·kT) ξ.

    Targets exp(−Ũ/kT) = exp(−U/T) as ε → 0. At a finite step on a quadratic of curvature a the variance is
    (kT/a)/(1 − εa/2), and independent minibatches, whose gradients have variance V, heat it to
    (2ε·kT + ε²V)/(2εa − ε²a²); minibatches of reshuffled epochs heat 2.5 to 7 times less (docs/samplers.md).
    With `integrator="leimkuhler_matthews"` the noise is (ξₙ + ξₙ₊₁)/2 and a quadratic is sampled exactly at any stable
    ε; the heating remains. Control variates (`anchor`) replace g by g(θ) − g(θ₀) + ∇Ũ(θ₀) on the same minibatch, which
    removes the heating near an anchor θ₀ at the price of a second gradient. At kT = 0 this is plain SGD, bit for bit.

    Args:
        params, lr, kT, seed, chain: as `Sampler`.
        integrator: `"euler"` or `"leimkuhler_matthews"`.
        control_variates: the step needs an `anchor` before it; `SamplingModule` sets it at the end of the warm-up.

    Raises:
        ConfigError: unknown integrator.

    Examples:
        >>> sampler = SGLD(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0)      # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Welling & Teh (2011); Leimkuhler & Matthews (2013); Baker et al. (2019) for control variates.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
        *,
        integrator: Literal["euler", "leimkuhler_matthews"] = "euler",
        control_variates: bool = False,
    ) -> None:
        self.integrator, self.control_variates = integrator, control_variates
        self.gradients_per_step = 2 if control_variates else 1
        self._ahead = -1
        super().__init__(params, lr, kT, seed, chain)

    @property
    def curvature_limit(self) -> float:
        return 0.5 if self.integrator == "leimkuhler_matthews" else super().curvature_limit

    @property
    def plain_noise(self) -> bool:
        return not self.control_variates

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        require(
            self.integrator in ("euler", "leimkuhler_matthews"),
            f"sampler.integrator={self.integrator!r} is unknown; choose euler or leimkuhler_matthews",
        )

    @torch.no_grad()
    def anchor(self, full_closure: Closure) -> None:
        """Take the present parameters as θ₀ of the control variates.

        Args:
            full_closure: as the closure of `step`, but on all the data.
        """
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            full_closure()
        torch._foreach_copy_(self.parts(self.remember("anchor_gradient")), dense_gradients(self.theta))
        torch._foreach_copy_(self.parts(self.remember("anchor")), self.theta)

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        if self.control_variates:
            gradient = self._with_control_variates(gradient, evaluate)
        if self.integrator == "leimkuhler_matthews":
            for lr, theta, g, before, after in self.by_group(gradient, *self._pair()):
                torch._foreach_add_(theta, g, alpha=-lr)  # θ ← θ − ε g + √(2ε·kT) (ξₙ + ξₙ₊₁)/2
                for xi in (before, after):
                    if xi is not None:
                        torch._foreach_add_(theta, xi, alpha=(2 * lr * self.kT) ** 0.5 / 2)
            return potential
        self.langevin(gradient)
        return potential

    def _with_control_variates(self, gradient: Tensors, evaluate: Evaluate) -> Tensors:
        """g(θ) − g(θ₀) + ∇Ũ(θ₀), the first two on the same minibatch."""
        require("anchor" in self.memory, "control variates need SGLD.anchor(full_closure) before the first step")
        here = self.parts(self.buffer("here"))
        torch._foreach_copy_(here, gradient)
        self.leave()
        torch._foreach_copy_(self.theta, self.parts(self.memory["anchor"]))
        _, at_anchor = evaluate()
        self.come_back()
        torch._foreach_sub_(here, at_anchor)
        torch._foreach_add_(here, self.parts(self.memory["anchor_gradient"]))
        return here

    def _pair(self) -> tuple[Tensors | None, Tensors | None]:
        """(ξₙ, ξₙ₊₁); ξₙ is kept from the last step, or drawn again after a restart."""
        if not self.noisy:
            return None, None
        before, after = (self.buffer(f"pair {(self.steps + i) % 2}") for i in (0, 1))
        if self._ahead != self.steps:
            self.draw(before)
        self.draw(after, step=self.steps + 1)
        self._ahead = self.steps + 1
        return self.parts(before), self.parts(after)
