"""Step-size schedules: a factor on `lr` as a pure function of the step, so that there is no state to save.

Each factory takes the number of steps it spans and its own settings, and returns `factor(step) -> float` for
0 ≤ step < steps. A step of size ε stands for a time ε of the chain, so under a decreasing schedule late draws stand for
less time than early ones, by the ratio of their step sizes: averages that count draws alike are biased towards the late
ones, and a run warns of it. Schedules that end in a constant are free of that. Cycles that explore without noise have
another bias: what the data leave free shrinks in exploration and is not refilled in time (docs/gotchas.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bayeslora.errors import ConfigError, require

Schedule = Callable[[int], float]


def constant(steps: int) -> Schedule:  # noqa: ARG001
    """1 throughout."""
    return lambda _step: 1.0


def cosine(steps: int, end: float = 0.0) -> Schedule:
    """From 1 down to `end` along half a cosine: end + (1 − end)·½(1 + cos(π t/steps)).

    Draws on the way stand for times in the ratio of their step sizes, ten- to a hundredfold, and count alike in means.
    """
    require(0 <= end <= 1, f"schedule end={end} must lie in [0, 1]")
    return lambda step: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def linear(steps: int, rise: float = 0.0) -> Schedule:
    """From 0 up to 1 over the first `rise` of the steps, then down to 0 along a line."""
    require(0 <= rise < 1, f"schedule rise={rise} must lie in [0, 1)")
    top = rise * steps
    return lambda step: (step + 1) / (top + 1) if step < top else (steps - step) / max(1.0, steps - top)


def polynomial(steps: int, power: float = 0.55, offset: float = 1.0) -> Schedule:  # noqa: ARG001
    """(1 + t/offset)^−power: Welling & Teh's a(b + t)^−γ, whose steps sum to infinity and their squares do not.

    Draws on the way stand for times in the ratio of their step sizes, ten- to a hundredfold, and count alike in means.

    Source: Welling & Teh (2011), eq. 2; power γ in (0.5, 1].
    """
    require(0.5 < power <= 1, f"schedule power={power} must lie in (0.5, 1]")
    require(offset > 0, f"schedule offset={offset} must be positive")
    return lambda step: (1 + step / offset) ** -power


def exponential(steps: int, end: float = 0.1, decay_steps: int | None = None) -> Schedule:
    """From 1 exponentially down to `end` over `decay_steps` (the burn-in), constant from there."""
    require(0 < end <= 1, f"schedule end={end} must lie in (0, 1]")
    over = steps if decay_steps is None else decay_steps
    return lambda step: end ** min(1.0, step / max(1, over))


def cyclical(steps: int, cycle_length: int | None = None, end: float = 0.0) -> Schedule:
    """Cosine restarts: each cycle goes from 1 to `end` as `cosine` does.

    Where exploration has no noise, the last fifth of a cycle leaves what only the prior constrains at .04 to .37 of its
    variance in the shipped CIFAR-10 run (docs/gotchas.md).

    Source: Zhang et al. (2020), eq. 1.
    """
    length = max(1, steps if cycle_length is None else cycle_length)
    within = cosine(length, end)
    return lambda step: within(step % length)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "cyclical": cyclical,
}


def make(name: str, steps: int, **settings: Any) -> Schedule:
    """The schedule called `name` over so many steps.

    Raises:
        ConfigError: unknown name, or settings that it does not take.
    """
    require(name in SCHEDULES, f"schedule={name!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    try:
        return SCHEDULES[name](steps, **settings)
    except TypeError as error:
        raise ConfigError(f"schedule {name}: {error}") from error
