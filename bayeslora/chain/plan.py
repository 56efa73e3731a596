"""The plan of a chain: which phase a step belongs to and after which steps a draw is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bayeslora.errors import Problems

Phase = Literal["warm-up", "burn-in", "exploration", "sampling"]


@dataclass(frozen=True)
class Plan:
    """Warm-up, burn-in and sampling, counted in steps; sampling may go in cycles.

    With cycles, each begins with an exploration at large steps and no noise, of which nothing is kept, and ends with
    its share of the draws (cyclical SG-MCMC).

    Attributes:
        warmup: steps of an ordinary optimizer at T = 0, from the initial weights to MAP.
        burn_in: steps of the sampler of which nothing is kept.
        num_draws: draws kept.
        thin: steps of the sampler before each draw.
        cycles: number of cycles, 0 for none.
        exploration: share of a cycle that explores, in [0, 1).

    Raises:
        ConfigError: a negative length, no draws, or cycles that do not divide the draws.

    Source: Zhang et al. (2020), Cyclical stochastic gradient MCMC, for the cycles.
    """

    warmup: int
    burn_in: int
    num_draws: int
    thin: int
    cycles: int = 0
    exploration: float = 0.8

    def __post_init__(self) -> None:
        problems = Problems()
        for name, value, least in (
            ("warmup.steps", self.warmup, 0),
            ("burn_in", self.burn_in, 0),
            ("num_draws", self.num_draws, 1),
            ("thin", self.thin, 1),
            ("cycles", self.cycles, 0),
        ):
            if value < least:
                hint = ": a chain that keeps no draw has no posterior" if name == "num_draws" else ""
                problems.add(f"chain.{name}={value} must be at least {least}{hint}")
        if not 0 <= self.exploration < 1:
            problems.add(f"chain.exploration={self.exploration} must lie in [0, 1)")
        if self.cycles > 0 and self.num_draws % self.cycles:
            problems.add(f"chain.num_draws={self.num_draws} must be a multiple of chain.cycles={self.cycles}")
        problems.raise_if_any()

    @cached_property
    def burnt_in(self) -> int:
        """Steps taken when the part begins of which draws are kept."""
        return self.warmup + self.burn_in

    @cached_property
    def total(self) -> int:
        """Steps of the whole chain."""
        return self.burnt_in + max(1, self.cycles) * self.cycle_length

    @cached_property
    def kept_length(self) -> int:
        """Steps of the sampling part of a cycle (of all of it without cycles)."""
        return self.num_draws // max(1, self.cycles) * self.thin

    @cached_property
    def cycle_length(self) -> int:
        """Steps of a cycle: exploration and sampling (of the sampling phase without cycles)."""
        return round(self.kept_length / (1 - self.exploration)) if self.cycles else self.kept_length

    def phase(self, step: int) -> Phase:
        """Phase of step number `step`, 0 ≤ step < total."""
        if step < self.warmup:
            return "warm-up"
        if step < self.burnt_in:
            return "burn-in"
        within = (step - self.burnt_in) % self.cycle_length
        return "exploration" if within < self.cycle_length - self.kept_length else "sampling"

    def draw_after(self, steps: int) -> int | None:
        """Index of the draw kept when `steps` steps have been taken, or None."""
        if steps <= self.burnt_in:
            return None
        cycle, within = divmod(steps - self.burnt_in - 1, self.cycle_length)
        sampled = within + 1 - (self.cycle_length - self.kept_length)
        if sampled <= 0 or sampled % self.thin:
            return None
        return (cycle * self.kept_length + sampled) // self.thin - 1

    def draws_by(self, steps: int) -> int:
        """How many draws are kept when `steps` steps have been taken."""
        over, within = divmod(max(0, steps - self.burnt_in), self.cycle_length)
        sampled = max(0, within - (self.cycle_length - self.kept_length))
        return (over * self.kept_length + sampled) // self.thin
