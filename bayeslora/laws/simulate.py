"""Run a sampler on many stacked chains and compare moments with their exact values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bayeslora.rng import fill, generator
from bayeslora.samplers import Sampler

Observe = Callable[[], dict[str, Tensor]]
"""Reads the state of all chains: one value a chain [K] for each observed quantity."""


@dataclass(frozen=True)
class Moment:
    """A sampled moment beside its exact value.

    Attributes:
        name: what is averaged, e.g. `"variance"`.
        expected: the exact value.
        sampled: mean over chains and time.
        standard_error: of `sampled`, from the spread of the independent chains' time averages.
    """

    name: str
    expected: float
    sampled: float
    standard_error: float

    @property
    def z(self) -> float:
        """(sampled − expected) / standard error: beyond ±4 the law is broken."""
        return (self.sampled - self.expected) / self.standard_error

    @property
    def agrees(self) -> bool:
        return abs(self.z) < 4

    def __str__(self) -> str:
        sampled = f"{self.sampled:.5g} ± {self.standard_error:.2g}"
        return f"{self.name}: expected {self.expected:.5g}, sampled {sampled}, z = {self.z:+.1f}"


def one_stream(sampler_class: type[Sampler]) -> type[Sampler]:
    """The same sampler with one noise stream for all its stacked chains: thousands of chains at the price of one call.

    The chains stay independent of each other; what is given up is only that each equals the same chain run alone.
    """

    class OneStream(sampler_class):  # type: ignore[valid-type, misc]
        def draw(self, out: Tensor, method: str = "normal_", purpose: str = "noise", step: int | None = None) -> Tensor:
            return fill(out, method, generator(self.seed, 0, self.steps if step is None else step, purpose, out.device))

    OneStream.__name__ = sampler_class.__name__
    return OneStream


class Target(Protocol):
    """What is sampled: gives the closure of each step, on a fresh minibatch."""

    def minibatch(self) -> Callable[[], Tensor]: ...


def simulate(sampler: Sampler, target: Target, observe: Observe, *, burn_in: int, steps: int) -> dict[str, Tensor]:
    """Time averages of observed quantities, per chain.

    Args:
        sampler: over the stacked chains.
        target: gives the closures.
        observe: see `Observe`.
        burn_in: steps before the first observation.
        steps: steps observed.

    Returns:
        Quantity -> [K] time averages, one an independent chain.
    """
    for _ in range(burn_in):
        sampler.step(target.minibatch())
    totals: dict[str, Tensor] = {}
    for _ in range(steps):
        sampler.step(target.minibatch())
        for name, value in observe().items():
            totals[name] = totals.get(name, 0) + value
    return {name: total / steps for name, total in totals.items()}


def compare_moments(averages: dict[str, Tensor], expected: dict[str, float]) -> list[Moment]:
    """Moments of `simulate`'s averages [K] beside their exact values."""
    return [
        Moment(name, value, averages[name].mean().item(), averages[name].std().item() / len(averages[name]) ** 0.5)
        for name, value in expected.items()
    ]
