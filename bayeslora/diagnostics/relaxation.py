"""Relaxation of what the data do not constrain: how long a burn-in must be before a chain is at its law.

Under the prior alone Ũ has curvature 1/(Nσ²), and a step of size ε moves a parameter by ε·s times the gradient, where
s is what a sampler makes of a weak, lasting force (`Sampler.speed`: 1 for SGLD, 1/(1 − μ) with momentum). A parameter
forgets its start in Nσ²/(ε·s) steps, to first order in ε. That start, the end of a warm-up, is far too cold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bayeslora.chain.plan import Plan
from bayeslora.counts import counted
from bayeslora.diagnostics.projections import block_of

ENOUGH = 3.0
"""Relaxation times that a burn-in should have: the start's deficit in variance is then exp(−6), a quarter percent."""


@dataclass(frozen=True)
class Relaxation:
    """The relaxation time of a block beside the steps that a chain has for it.

    Attributes:
        block: as `block_of` names it.
        steps: its relaxation time, the longest of its tensors, in steps at the full step size.
        burn_in: steps before the first draw, in units of the full step size: a schedule's smaller ones count less.
    """

    block: str
    steps: float
    burn_in: float

    @property
    def enough(self) -> bool:
        """Whether the chain has time to forget its start."""
        return self.burn_in >= ENOUGH * self.steps


def relaxations(
    plan: Plan,
    variances: Mapping[str, float],
    step_sizes: Mapping[str, float],
    num_data: int,
    speed: float = 1.0,
    schedule: Callable[[int], float] = lambda _step: 1.0,
) -> list[Relaxation]:
    """The relaxation time of every block, the slowest first.

    With cycles, whose exploration has no noise, a chain must relax anew in the steps before each cycle's first draw.

    Args:
        plan: the phases.
        variances: the prior's σ² of each sampled tensor, by name.
        step_sizes: ε of each, by name.
        num_data: N.
        speed: s, `Sampler.speed`.
        schedule: factor on the step sizes by step of the sampler, the burn-in's first being 0.
    """
    sampled = plan.burn_in + plan.cycle_length - plan.kept_length
    steps = range(sampled, sampled + plan.thin) if plan.cycles else range(plan.burn_in)
    burn_in = sum(map(schedule, steps))
    longest: dict[str, float] = {}
    for name, variance in variances.items():
        block = block_of(name)
        longest[block] = max(longest.get(block, 0.0), num_data * variance / (step_sizes[name] * speed))
    return [Relaxation(block, time, burn_in) for block, time in sorted(longest.items(), key=lambda item: -item[1])]


def relaxation_table(times: list[Relaxation], most: int = 12) -> str:
    """The blocks' relaxation times and the burn-in that each calls for, in lines of text, the slowest first."""
    width = max(5, *(len(one.block) for one in times))
    head = f"  {'block':{width}}  relaxation  burn-in it calls for"
    rows = [f"  {one.block:{width}}  {one.steps:10,.0f}  {ENOUGH * one.steps:20,.0f}" for one in times[:most]]
    more = [f"  and {len(times) - most} faster ones"] if len(times) > most else []
    return "\n".join(
        ["steps in which blocks forget their start where the data do not constrain them:", head, *rows, *more]
    )


def too_short(times: list[Relaxation], cycles: bool = False) -> str | None:
    """One sentence on the blocks for which the burn-in is too short, with the numbers; None where it is enough."""
    short = [one for one in times if not one.enough]
    if not short:
        return None
    worst = short[0]
    more = len(short) - 1
    others = f", and {more} more of {len(times)} blocks {'is' if more == 1 else 'are'} too slow" if more else ""
    of = ("sampling step", "before a cycle's first draw", "thin") if cycles else ("step", "of burn-in", "burn_in")
    step, before, key = of
    few = f"{counted(round(worst.burn_in), step)} {before} {'is' if round(worst.burn_in) == 1 else 'are'} too few"
    time = counted(round(worst.steps), "step")
    return (
        f"{few}: where the data do not constrain block {worst.block}, it forgets its start in N·σ²/ε = {time}, and"
        f" needs {ENOUGH:g} times that{others}. Until then draws are colder than the posterior; make"
        f" chain.{key} {ENOUGH * worst.steps:,.0f}, or sampler.lr (chain.lr_factors of"
        " the block) larger, or choose a sampler with momentum, or a smaller prior.variance"
    )
