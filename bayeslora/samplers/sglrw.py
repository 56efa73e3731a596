"""The stochastic-gradient lattice random walk."""

from __future__ import annotations

import warnings

from torch import Tensor

from bayeslora.samplers import functional
from bayeslora.samplers.base import Evaluate, Sampler


class SGLRW(Sampler):
    """Lattice random walk: θᵢ ← θᵢ ± δ,  δ = √(2ε·kT),  P(+) = ½ (1 − clip(ε gᵢ/δ, −1, 1)).

    Targets exp(−U/T) as ε → 0. Its mean step is −ε g and its square is δ² whatever the noise of the gradient, so on a
    separable quadratic the variance is *exactly* kT/a at every ε and under any minibatch noise, while nothing is
    clipped; with correlations only the off-diagonal entries err, by O(ε). This is the answer to the heating that SGLD
    suffers. It needs |gᵢ| < √(2kT/ε): clipped coordinates feel too weak a force, the variance is
    kT/a/(1 − c) at a clipped share c, and skewed gradients move the mean. At kT = 0 it takes SGD's step.

    Args: as `Sampler`.

    Warns:
        RuntimeWarning: more than 1 % of the coordinates were clipped over 100 steps; make ε smaller. Said again only
            once the share has doubled.

    Example:
        >>> sampler = SGLRW(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Mensch, Holdijk, Duffield, …, Welling & Cheng (2026), arXiv 2602.15925.
    """

    WINDOW = 100
    _tolerated = 0.01  # share clipped beyond which to warn

    def update(self, theta: Tensor, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
        potential, gradient = evaluate()
        if not self.noisy:
            return potential, functional.descend(theta, gradient, self.lr)
        moved, clipped = functional.lattice_walk(theta, gradient, self.draw(theta, "uniform_"), self.lr, self.kT)
        self._count(clipped)
        return potential, moved

    def diagnostics(self) -> dict[str, Tensor]:
        """`clipped`: share of coordinates whose force was clipped, over the last full window of 100 steps."""
        return {"clipped": self.memory["clipped"]} if "clipped" in self.memory else {}

    def _count(self, clipped: Tensor) -> None:
        """Average the clipped share over windows of 100 steps with noise; warn where it is above 1 %."""
        self.memory["clipping"] = self.memory.get("clipping", 0) + clipped
        self.memory["counted"] = self.memory.get("counted", 0) + 1
        if self.memory["counted"] < self.WINDOW:
            return
        self.memory["counted"] = 0
        self.memory["clipped"] = self.memory.pop("clipping") / self.WINDOW
        share = float(self.memory["clipped"].mean())
        if share > self._tolerated:
            self._tolerated = 2 * share
            warnings.warn(
                f"SGLRW clips {share:.1%} of the coordinates (limit 1 %): the law is no longer that of the posterior. "
                "Make sampler.lr smaller or the batch larger",
                RuntimeWarning,
                stacklevel=4,
            )
