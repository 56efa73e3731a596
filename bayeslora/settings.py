"""Settings as frozen dataclasses that check themselves; they are also the schema of their part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bayeslora.errors import Problems


@dataclass(frozen=True)
class Criteria:
    """`evaluate.criteria`: limits by name of `evaluation.criteria.CRITERIA`; None leaves one out."""

    potential_rhat: float | None = 1.01
    function_space_rhat: float | None = 1.01
    l2_norm_rhat: float | None = 1.05
    potential_ess: float | None = 200.0
    l2_norm_ess: float | None = 200.0
    nll_above_map: float | None = 0.0
    ece_above_map: float | None = 0.0
    accuracy_below_map: float | None = 0.003
    temperature: float | None = 0.05


@dataclass(frozen=True)
class Evaluation:
    """`evaluate`: which split is predicted, in what batches, against what, and the limits to meet.

    Raises:
        ConfigError: a value is impossible.
    """

    split: str = "test"
    batch_size: int = 500
    reference: str | None = None
    ood: str | None = None
    ood_path: str | None = None
    corruptions: bool = False
    corruption_examples: int = 1000
    strict: bool = False
    criteria: Criteria = field(default_factory=Criteria)

    def __post_init__(self) -> None:
        problems = Problems()
        if self.split not in ("test", "validation"):
            problems.add(f"evaluate.split={self.split} must be test or validation")
        for name in ("batch_size", "corruption_examples"):
            if getattr(self, name) < 1:
                problems.add(f"evaluate.{name}={getattr(self, name)} must be at least 1")
        problems.raise_if_any()


@dataclass(frozen=True)
class Component:
    """A part of a run as its configuration names it: the name of a class, and the arguments that it is given."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{name} {short(value)}" for name, value in self.arguments.items())])


@dataclass(frozen=True)
class RunSettings:
    """What a report says of a run's settings.

    Attributes:
        temperature: T, 0 for MAP.
        batch_size: None for the whole training set.
        precision, accelerator: of the trainer.
    """

    name: str
    seed: int
    temperature: float
    sampler: Component
    model: Component
    likelihood: Component
    num_chains: int
    batch_size: int | None
    probe_size: int
    precision: str
    accelerator: str


def short(value: Any) -> str:
    """A value of a setting as text, numbers with six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)
