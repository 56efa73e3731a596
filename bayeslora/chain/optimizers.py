"""How a chain's optimizers step: plainly, by step sizes of groups, on a schedule; and what is wrong with one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from bayeslora.chain.plan import Plan
from bayeslora.errors import require
from bayeslora.potential import last_match
from bayeslora.samplers import Sampler, schedules


def plain_step(optimizer: Optimizer, closure: Callable[[], Tensor]) -> Tensor:
    """A step of an optimizer; where it has no hooks, without the mark for profilers that torch puts around it."""
    step: Any = type(optimizer).step
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or "step" in vars(optimizer)
    if hooked or getattr(step, "__code__", None) is not _MARKED:
        return optimizer.step(closure)  # type: ignore[return-value, arg-type]
    potential: Tensor = step.__wrapped__(optimizer, closure)
    return potential


_MARKED = Optimizer.profile_hook_step(lambda: None).__code__
"""What torch puts in the place of every optimizer's `step`."""


def parameter_groups(params: Mapping[str, Tensor], factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameter groups by factor on the step size, each with its `factor`; parameters keep their order within a group.

    Raises:
        ConfigError: a factor that is not positive and finite.
    """
    for pattern, factor in factors.items():
        valid = math.isfinite(factor) and factor > 0
        require(valid, f"chain.lr_factors[{pattern}]={factor} must be a positive finite number")
    groups: dict[float, list[Tensor]] = {}
    for name, p in params.items():
        groups.setdefault(last_match(name, factors, 1.0), []).append(p)
    return [{"params": members, "factor": factor} for factor, members in groups.items()]


def sampler_schedule(name: str, plan: Plan, settings: dict[str, Any]) -> schedules.Schedule:
    """The sampler's schedule, counted from the end of the warm-up, with the lengths that it takes from the plan."""
    spans = {"exponential": {"decay_steps": plan.burn_in}, "cyclical": {"cycle_length": plan.cycle_length}}
    factor = schedules.make(name, plan.total - plan.warmup, **spans.get(name, {}) | settings)
    if name != "cyclical":
        return factor
    return lambda step: factor(max(0, step - plan.burn_in))  # the first cycle begins when burn-in is over


def warn_of_bias(plan: Plan, factor: schedules.Schedule, sampler: Sampler, slowest: Callable[[], float]) -> None:
    """Warn where draws count alike that should not, or where the cycles do not refill what the data leave free.

    Args:
        plan: of the chain.
        factor: the sampler's schedule.
        sampler: made.
        slowest: gives the smallest product of a parameter's step size and its prior's precision, by N.
    """
    if sampler.kT == 0:
        return
    sizes = [factor(step) for step in range(plan.burn_in + plan.thin - 1, plan.total - plan.warmup, plan.thin)]
    if not plan.cycles and max(sizes) > 1.2 * min(sizes):
        warnings.warn(
            "chain.schedule changes the step size by a factor of "
            f"{max(sizes) / max(min(sizes), 1e-300):.2g} between draws that count alike: early draws stand for "
            "more time of the chain than late ones. Choose constant, or exponential (constant after burn-in)",
            RuntimeWarning,
            stacklevel=2,
        )
    if plan.cycles:
        refilled = _refilled(plan, factor, slowest(), getattr(sampler, "momentum", 0.0))
        if refilled < 0.95:
            warnings.warn(
                f"chain.cycles: the part of a cycle that samples is too short: at a cycle's last draw, directions "
                f"that only the prior constrains have {refilled:.2f} of their variance. Choose chain.exploration "
                "smaller, chain.thin larger, or sampling without cycles",
                RuntimeWarning,
                stacklevel=2,
            )


def _refilled(plan: Plan, factor: schedules.Schedule, slowest: float, persistence: float) -> float:
    """Variance at a cycle's last draw of a coordinate that only the widest prior constrains, over its posterior's.

    Time counts t = Σε/(1 − μ), curvature is λ/N. Variance decays by exp(−2tλ/N); the part with noise adds what it
    decays from 1. Cycles repeat: v = v·exp(−2λ t_cycle/N) + 1 − exp(−2λ t_sampling/N).
    """
    end = plan.burn_in + plan.cycle_length
    cycle, sampling = (
        -2 * slowest * sum(map(factor, range(end - steps, end))) / (1 - persistence)
        for steps in (plan.cycle_length, plan.kept_length)
    )
    return math.expm1(sampling) / math.expm1(cycle)
