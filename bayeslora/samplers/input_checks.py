"""What samplers check: settings, parameters, and gradients that are there and finite, without a wait for the GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora.errors import require

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Integers as wide as a number, by its type."""


def require_non_negative(name: str, value: float, at_zero: str) -> None:
    """Raise `ConfigError` unless a setting is finite and at least 0, where the sampler is `at_zero`."""
    require(
        math.isfinite(value) and value >= 0,
        f"sampler.{name}={value} must be finite and at least 0 (0 is {at_zero})",
    )


def check_params(theta: Sequence[Tensor], stacked: int | None) -> None:
    """Raise `ConfigError` for parameters that no sampler takes; `stacked` is how many chains they are of, or None."""
    require(len({(p.dtype, p.device) for p in theta}) == 1, "sampled parameters must share one dtype and device")
    require(
        theta[0].dtype in BITS,
        f"sampled parameters are {theta[0].dtype}: a Langevin step is lost in half precision. Keep the "
        "parameters in float32 and run the forward pass under bf16 autocast (trainer.precision=bf16-mixed)",
    )
    require(
        stacked is None or {p.shape[:1] for p in theta} == {torch.Size([stacked])},
        f"chain names {stacked} stacked chains, so every parameter must have a leading axis of that size",
    )


def dense_gradients(theta: Sequence[Tensor]) -> list[Tensor]:
    """The parameters' gradients.

    Raises:
        RuntimeError: one is missing or sparse.
    """
    gradients = [p.grad for p in theta if p.grad is not None]
    if len(gradients) < len(theta):
        missing = [i for i, p in enumerate(theta) if p.grad is None]
        raise RuntimeError(
            f"{len(missing)} of {len(theta)} parameters got no gradient (first: number {missing[0]}, shape "
            f"{tuple(theta[missing[0]].shape)}). Does the closure call backward()? Does the potential hold "
            "every sampled parameter (its prior term does)?"
        )
    if any(g.is_sparse for g in gradients):
        raise RuntimeError("a gradient is sparse; samplers need dense gradients (set sparse=False on the embedding)")
    return gradients


def chains_not_finite(chains: Sequence[int], gradients: Sequence[Tensor], potential: Tensor) -> list[int]:
    """Numbers of the chains whose Ũ or gradient is not finite; all where that is not known."""
    finite = torch.stack([g.reshape(len(chains), -1).isfinite().all(1) for g in gradients]).all(0)
    finite &= potential.reshape(-1).isfinite().expand(len(chains))
    return [chain for chain, good in zip(chains, finite.tolist(), strict=True) if not good] or list(chains)


def bits(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors' bits as integers: times 0 they are 0 whatever they were, while 0 · NaN is NaN."""
    return [t.detach().view(BITS[t.dtype]) for t in tensors]


def replace_unless(tensors: list[Tensor], others: list[Tensor], first: Tensor) -> None:
    """Where `first` is false, put `others` in the place of `tensors`, without a look at it; spends `others`."""
    chosen, left = bits(tensors), bits(others)
    torch._foreach_mul_(chosen, first.to(chosen[0].dtype))
    torch._foreach_mul_(left, (~first).to(chosen[0].dtype))
    torch._foreach_add_(chosen, left)
