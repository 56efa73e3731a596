"""The plan of a chain: which phase a step belongs to and after which steps a draw is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bayeslora.errors import Problems

Phase = Literal["warm-up", "burn-in", "sampling"]


@dataclass(frozen=True)
class Plan:
    """Warm-up, burn-in and sampling, counted in steps.

    Attributes:
        warmup: steps of an ordinary optimizer at T = 0, from the initial weights to MAP.
        burn_in: steps of the sampler of which nothing is kept.
        num_draws: draws kept.
        thin: steps of the sampler before each draw.

    Raises:
        ConfigError: a negative length, or no draws.
    """

    warmup: int
    burn_in: int
    num_draws: int
    thin: int

    def __post_init__(self) -> None:
        problems = Problems()
        for name, value, least in (
            ("warmup.steps", self.warmup, 0),
            ("burn_in", self.burn_in, 0),
            ("num_draws", self.num_draws, 1),
            ("thin", self.thin, 1),
        ):
            if value < least:
                hint = ": a chain that keeps no draw has no posterior" if name == "num_draws" else ""
                problems.add(f"chain.{name}={value} must be at least {least}{hint}")
        problems.raise_if_any()

    @property
    def burnt_in(self) -> int:
        """Steps taken when sampling begins."""
        return self.warmup + self.burn_in

    @property
    def total(self) -> int:
        """Steps of the whole chain."""
        return self.burnt_in + self.num_draws * self.thin

    def phase(self, step: int) -> Phase:
        """Phase of step number `step`, 0 ≤ step < total."""
        if step < self.warmup:
            return "warm-up"
        return "burn-in" if step < self.burnt_in else "sampling"

    def draw_after(self, steps: int) -> int | None:
        """Index of the draw kept when `steps` steps have been taken, or None."""
        sampled = steps - self.burnt_in
        return sampled // self.thin - 1 if sampled > 0 and sampled % self.thin == 0 else None
