"""Step-size schedules: a factor on `lr` as a pure function of the step, so that there is no state to save.

Each factory takes the number of steps of its phase and returns `factor(step) -> float` for 0 ≤ step < steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from bayeslora.errors import require

Schedule = Callable[[int], float]
Name = Literal["constant", "cosine"]


def constant(steps: int) -> Schedule:  # noqa: ARG001
    """1 throughout."""
    return lambda _step: 1.0


def cosine(steps: int, end: float = 0.0) -> Schedule:
    """From 1 down to `end` along half a cosine: end + (1 − end)·½(1 + cos(π t/steps))."""
    return lambda step: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


SCHEDULES = {"constant": constant, "cosine": cosine}


def make(name: str, steps: int) -> Schedule:
    """The schedule called `name` over so many steps.

    Raises:
        ConfigError: unknown name.
    """
    require(name in SCHEDULES, f"schedule={name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](steps)
