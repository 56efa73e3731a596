"""The stochastic-gradient lattice random walk."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from bayeslora.samplers.sampler import Evaluate, Sampler, Tensors


class SGLRW(Sampler):
    """Lattice random walk: θᵢ ← θᵢ − δ sign(ε gᵢ/δ + rᵢ),  δ = √(2ε·kT),  rᵢ ~ U(−1, 1).

    A step is ±δ, up with probability P(+) = ½ (1 − clip(ε gᵢ/δ, −1, 1)); r has 16 bits, and P is rounded to 2⁻¹⁶.

    Targets exp(−U/T) as ε → 0. Its mean step is −ε g and its square is δ² whatever the noise of the gradient, so on a
    separable quadratic the variance is *exactly* kT/a at every ε and under any minibatch noise, while nothing is
    clipped; with correlations only the off-diagonal entries err, by O(ε). This is the answer to the heating that SGLD
    suffers. It needs |gᵢ| < √(2kT/ε): clipped coordinates feel too weak a force, the variance is
    kT/a/(1 − c) at a clipped share c, and skewed gradients move the mean. At kT = 0 it takes SGD's step.

    Args: as `Sampler`.

    Warns:
        RuntimeWarning: more than 1 % of the coordinates were clipped over 100 steps; make ε smaller. Said again only
            once the share has doubled.

    Examples:
        >>> sampler = SGLRW(model.parameters(), lr=1e-2, kT=potential.kT(1.0), seed=0)     # doctest: +SKIP
        >>> for x, y in loader:                                                            # doctest: +SKIP
        ...     sampler.step(lambda: backward(potential(nll(model(x), y), params)))
        ...     draws.append(copy_of(params))

    Source: Mensch, Holdijk, Duffield, …, Welling & Cheng (2026), arXiv 2602.15925.
    """

    WINDOW, EVERY = 100, 20
    _tolerated = 0.01  # share clipped beyond which to warn

    @property
    def heated(self) -> bool:
        """False, while nothing is clipped."""
        return False

    @property
    def heat_limit(self) -> float:
        """0.1: no noise heats the walk by itself; where SGLD would be this much too hot it clips a few thousandths."""
        return 0.1

    def update(self, evaluate: Evaluate) -> Tensor:
        potential, gradient = evaluate()
        r = self.noise()
        if r is None:
            for lr, theta, g in self.by_group(gradient):
                torch._foreach_add_(theta, g, alpha=-lr)
            return potential
        self._count(gradient)
        signs = self.parts(r)
        for lr, _, g, sign in self.by_group(gradient, signs):
            torch._foreach_add_(sign, g, alpha=2**15 * lr / (2 * lr * self.kT) ** 0.5)  # 2¹⁵ (ε g/δ + r)
        r.sign_()
        for lr, theta, sign in self.by_group(signs):
            torch._foreach_add_(theta, sign, alpha=-((2 * lr * self.kT) ** 0.5))  # θ ← θ − δ sign(ε g/δ + r)
        return potential

    def fill_noise(self, out: Tensor, step: int) -> Tensor:
        """2¹⁵ r, r ~ U(−1, 1), as s + ½ with s of 16 random bits: four of an integer of 64."""
        rows = len(self.chains)
        words = -(-out.shape[-1] // 4)
        bits = self.buffer(f"bits {step % 2}", torch.int64, (rows, words))
        self.draw(bits, "random_", step=step)
        out.view(rows, -1).copy_(bits.view(torch.int16)[:, : out.shape[-1]])
        return out.add_(0.5)

    def diagnostics(self) -> dict[str, Tensor]:
        """`clipped`: share of coordinates whose force was clipped, over the last window of 100 steps with noise."""
        return {"clipped": self.memory["clipped"]} if "clipped" in self.memory else {}

    def _count(self, gradient: Tensors) -> None:
        """Average the clipped share over windows of 100 steps with noise, every twentieth of them; warn above 1 %."""
        counted = self.memory["counted"] = self.memory.get("counted", 0) + 1
        if counted % self.EVERY == 1:
            rows, total = len(self.chains), torch.zeros((), device=gradient[0].device)
            for lr, _, g_ in self.by_group(gradient):
                limit = (2 * self.kT / lr) ** 0.5
                total = total + sum(g.abs().gt(limit).reshape(rows, -1).count_nonzero(1) for g in g_)
            seen = total / self.dim
            self.memory["clipping"] = self.memory.get("clipping", 0) + (seen if self.stacked else seen[0])
        if counted < self.WINDOW:
            return
        self.memory["counted"] = 0
        self.memory["clipped"] = self.memory.pop("clipping") * self.EVERY / self.WINDOW
        share = float(self.memory["clipped"].mean())
        if share > self._tolerated:
            self._tolerated = 2 * share
            warnings.warn(
                f"SGLRW clips {share:.1%} of the coordinates (limit 1 %): the law is no longer that of the posterior. "
                "Make sampler.lr smaller or the batch larger",
                RuntimeWarning,
                stacklevel=4,
            )
