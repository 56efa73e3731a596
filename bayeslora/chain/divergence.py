"""Which chains left the finite numbers, why, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from bayeslora.chain.plan import Plan
from bayeslora.errors import DivergedError


def at_fault(chains: Sequence[int], potential: Tensor, limit: float, params: Iterable[Tensor]) -> list[int]:
    """Numbers of the chains whose potential, or gradient, is why a step could not be taken.

    Args:
        chains: numbers of the chains, K.
        potential: of the step, scalar or [K].
        limit: `chain.max_potential`.
        params: of all chains, with their gradients.
    """
    bad = ~(potential.reshape(-1).abs() <= limit)
    if not bad.any():
        gradients = [p.grad.reshape(len(chains), -1) for p in params if p.grad is not None]
        bad = torch.stack([~g.isfinite().all(-1) for g in gradients]).any(0)
    return [chain for chain, wrong in zip(chains, bad.tolist(), strict=True) if wrong]


def cause(potential: float, limit: float) -> str:
    """What was wrong with a potential, in nats per example, or else with its gradient."""
    what = "its gradient is not finite"
    if not math.isfinite(potential):
        what = "it is not finite"
    elif abs(potential) > limit:
        what = f"beyond chain.max_potential={limit:g}"
    return f"potential_per_example {potential:g}, {what}"


def diverged(what: str, chains: Sequence[int], plan: Plan, step: int, first: bool) -> DivergedError:
    """The error for what left the finite numbers, with the fix.

    Args:
        what: happened.
        chains: their numbers.
        plan: of the chains.
        step: in which it was seen; the first is number 1.
        first: whether no step was taken before.
    """
    phase = plan.phase(step - 1)
    remedy = "chain.warmup.optimizer.lr smaller" if phase == "warm-up" else "sampler.lr smaller or the warm-up longer"
    fix = f"Make {remedy}"
    if first:
        fix = (
            "No step was taken yet, so it is not the step size: standardise the inputs and, for regression, the"
            " targets, or make the initial weights smaller"
        )
    numbers = ", ".join(map(str, chains))
    return DivergedError(f"chain {numbers} diverged in step {step:,} ({phase}): {what}. {fix}", chains, step)
