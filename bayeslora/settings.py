"""Settings as frozen dataclasses that check themselves; they are also the schema of their part of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bayeslora.chain.plan import Plan
from bayeslora.errors import ConfigError, Problems, require

AUTO = "auto"
"""The value of a setting that a short measurement chooses."""
PRECISIONS = ("32-true", "bf16-mixed")
PARALLEL = ("sequential", "stacked", "processes", AUTO)
UNTIL = ("planned", "converged")
ON_DIVERGENCE = ("stop", "retry")
STRATEGIES = ("auto", "ddp")
SCHEDULES = ("constant", "cosine", "linear", "polynomial", "exponential", "cyclical")
"""The names of `samplers.schedules.SCHEDULES`, whose import would take seconds."""
SCHEDULES_WITHOUT_END = ("constant", "polynomial", "exponential")
"""Those that do not depend on how many draws are to come."""


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
    precision: str = "32-true"
    reference: str | None = None
    ood: str | None = None
    ood_path: str | None = None
    corruptions: bool = False
    corruption_examples: int = 1000
    strict: bool = False
    report: bool = True
    criteria: Criteria = field(default_factory=Criteria)

    def __post_init__(self) -> None:
        problems = Problems()
        if self.split not in ("test", "validation"):
            problems.add(f"evaluate.split={self.split} must be test or validation")
        if self.precision not in PRECISIONS:
            problems.add(f"evaluate.precision={self.precision} must be {' or '.join(PRECISIONS)}")
        for name in ("batch_size", "corruption_examples"):
            if getattr(self, name) < 1:
                problems.add(f"evaluate.{name}={getattr(self, name)} must be at least 1")
        problems.raise_if_any()


@dataclass(frozen=True)
class WarmupSettings:
    """`chain.warmup`: steps, the optimizer (a node with `_target_`) and its schedule; `ChainSettings` checks them."""

    steps: int = 0
    optimizer: Any = None
    schedule: str = "cosine"
    schedule_settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChainSettings:
    """`chain`: how many chains, their phases in steps, the batch size.

    Raises:
        ConfigError: values are impossible.
    """

    num_chains: int = 4
    parallel: str = "sequential"
    index: Any = None
    batch_size: int | str | None = 128
    bucket: int = 1
    from_prior: tuple[str, ...] = ()
    scale_free: tuple[str, ...] = ()
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    burn_in: int | str = 2000
    num_draws: int = 100
    thin: int | str = 200
    until: str = "planned"
    max_steps: int = 100_000
    schedule: str = "constant"
    schedule_settings: dict[str, Any] = field(default_factory=dict)
    lr_factors: dict[str, float] = field(default_factory=dict)
    cycles: int = 0
    exploration: float = 0.8
    probe_size: int = 1000
    on_divergence: str = "stop"
    max_potential: float = 1e6
    resume_every: float = 60.0

    def __post_init__(self) -> None:
        problems = Problems()
        problems.add(*self._length_problems())
        for key, name in (("chain.schedule", self.schedule), ("chain.warmup.schedule", self.warmup.schedule)):
            if name not in SCHEDULES:
                problems.add(f"{key}={name} is unknown; choose one of {', '.join(SCHEDULES)}")
        if self.parallel not in PARALLEL:
            problems.add(f"chain.parallel={self.parallel} is unknown; choose one of {', '.join(PARALLEL)}")
        if self.on_divergence not in ON_DIVERGENCE:
            problems.add(f"chain.on_divergence={self.on_divergence} is unknown; choose {' or '.join(ON_DIVERGENCE)}")
        if not self.max_potential > 0:
            problems.add(f"chain.max_potential={self.max_potential} must be positive")
        if not self.resume_every >= 0:
            problems.add(f"chain.resume_every={self.resume_every} must be at least 0 (seconds)")
        for key in ("num_chains", "probe_size"):
            if getattr(self, key) < 1:
                problems.add(f"chain.{key}={getattr(self, key)} must be at least 1")
        problems.add(*self._index_problems())
        problems.raise_if_any()

    def _length_problems(self) -> Iterator[str]:
        keys = ("burn_in", "thin", "batch_size")
        wrong = [key for key in keys if isinstance(value := getattr(self, key), str) and value != AUTO]
        yield from (f"chain.{key}={getattr(self, key)} must be a whole number, or auto" for key in wrong)
        if not wrong:
            try:
                _ = self.plan
            except ConfigError as error:
                yield from error.problems
        if self.until not in UNTIL:
            yield f"chain.until={self.until} is unknown; choose {' or '.join(UNTIL)}"
        if self.until == "converged":
            if self.num_chains == 1:
                yield "chain.until=converged: R-hat compares chains, and chain.num_chains=1; choose 2 or more"
            if self.index is not None:
                yield "chain.until=converged judges all chains together: leave chain.index null"
            if self.cycles or self.schedule not in SCHEDULES_WITHOUT_END:
                yield (
                    "chain.until=converged adds draws, on whose number cycles and the schedules that end depend; choose"
                    f" chain.cycles=0 and chain.schedule={' or '.join(SCHEDULES_WITHOUT_END)}"
                )

    def _index_problems(self) -> Iterator[str]:
        chosen, count = [self.index] if isinstance(self.index, int) else self.index, self.num_chains
        if chosen is None:
            return
        if not isinstance(chosen, list | tuple) or not all(isinstance(one, int) for one in chosen) or not chosen:
            yield f"chain.index={self.index} must be the number of a chain, or a list of such, or null for all"
        elif not all(0 <= one < count for one in chosen) or len(set(chosen)) < len(chosen):
            yield f"chain.index={self.index} names chains from 0 to {count - 1}, each once (chain.num_chains={count})"

    @property
    def plan(self) -> Plan:
        """The phases in steps; what is `auto` counts as one step until it is found."""
        burn_in, thin = (1 if isinstance(steps, str) else steps for steps in (self.burn_in, self.thin))
        return Plan(self.warmup.steps, burn_in, self.num_draws, thin, self.cycles, self.exploration)

    @property
    def batch(self) -> int | None:
        """Examples a step; None for all the data, also where `auto` has not been settled."""
        return None if isinstance(self.batch_size, str) else self.batch_size

    @property
    def chosen(self) -> list[int]:
        """Numbers of the chains to run: `index`, or all."""
        if self.index is None:
            return list(range(self.num_chains))
        return [self.index] if isinstance(self.index, int) else list(self.index)


@dataclass(frozen=True)
class TrainerSettings:
    """`trainer`: where and how the steps run.

    Raises:
        ConfigError: values are impossible, or the machine has no such device.
    """

    accelerator: str = "cpu"
    strategy: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    channels_last: Any = False
    compile: Any = False
    num_threads: int | None = None
    noise_ahead: Any = AUTO

    def __post_init__(self) -> None:
        problems = Problems()
        if self.num_threads is not None and self.num_threads < 1:
            problems.add(f"trainer.num_threads={self.num_threads} must be at least 1, or null")
        if self.accelerator not in ("cpu", "gpu"):
            problems.add(f"trainer.accelerator={self.accelerator} must be cpu or gpu")
        for key in ("channels_last", "compile", "noise_ahead"):
            if getattr(self, key) not in (True, False, AUTO):
                problems.add(f"trainer.{key}={getattr(self, key)} must be true, false or auto")
        if self.channels_last is True and self.accelerator == "cpu":
            problems.add(
                "trainer.channels_last=true cannot be used on a CPU: in that layout the gradient of its convolutions"
                " corrupts memory on some of them (torch 2.15). Leave it false; trainer.precision=auto is what helps"
            )
        if self.precision != AUTO:
            with problems.collect():
                check_precision(self.precision)
        problems.add(*self._device_problems())
        problems.raise_if_any()

    def _device_problems(self) -> Iterator[str]:
        strategy, devices, present = self.strategy, self.devices, self.devices
        if self.accelerator == "gpu":
            import torch

            present = torch.cuda.device_count()
            if not torch.cuda.is_available():
                yield "trainer.accelerator=gpu but torch sees no CUDA device; use trainer=cpu, or look at nvidia-smi"
        if strategy.startswith(("fsdp", "deepspeed")):
            yield (
                f"trainer.strategy={strategy} gives each rank a part of the parameters, and a Langevin step needs them"
                " whole: its noise is one stream over all of them, SAM's norms run over all of them. Choose ddp, or"
                " chain.parallel=processes"
            )
        elif strategy not in STRATEGIES:
            yield f"trainer.strategy={strategy} is unknown; choose {' or '.join(STRATEGIES)}"
        elif strategy == "auto" and devices != 1:
            yield (
                f"trainer.devices={devices} needs trainer.strategy=ddp, with which they share each chain's batches"
                " (chain.parallel=processes gives each chain a device of its own)"
            )
        if devices < 1:
            yield f"trainer.devices={devices} must be at least 1"
        if devices > present > 0:
            yield f"trainer.devices={devices}, but torch sees {present}"


def check_precision(precision: str) -> None:
    """Raise `ConfigError` for a precision in which Langevin steps are lost or closures are not called."""
    require(
        precision not in ("64", "64-true"),
        f"trainer.precision={precision} is not needed: a model of your own in float64 (module.double()) is sampled and"
        " evaluated in double precision, its data with it; leave trainer.precision as it is",
    )
    require(
        precision in PRECISIONS,
        f"trainer.precision={precision} cannot be used for sampling: fp16 loss scaling skips and rescales steps, and "
        f"half-precision parameters lose steps of size √(2ε·kT). Choose one of {', '.join(PRECISIONS)}",
    )


def check_together(chain: ChainSettings, trainer: TrainerSettings) -> None:
    """Raise `ConfigError` for chains side by side on devices that share one chain's batches."""
    require(
        trainer.devices == 1 or chain.parallel in ("sequential", AUTO),
        f"chain.parallel={chain.parallel} cannot go with trainer.devices={trainer.devices}: the devices are busy with"
        " one chain's batches. Choose chain.parallel=sequential, or trainer.devices=1",
    )


ARGUMENTS = {
    "chain.warmup.optimizer.lr": "warmup_lr", "chain.warmup.steps": "warmup", "chain.burn_in": "burn_in",
    "chain.thin": "thin", "chain.num_draws": "draws", "chain.num_chains": "chains", "chain.batch_size": "batch_size",
    "chain.parallel": "parallel", "sampler.lr": "lr", "prior.variance": "prior",
    "chain.lr_factors": "chain_settings['lr_factors']", "chain.probe_size": "chain_settings['probe_size']",
    "chain.from_prior": "chain_settings['from_prior']", "chain.scale_free": "chain_settings['scale_free']",
    "dataset.validation_size": "val_dataset",
}  # fmt: skip
"""What `bayeslora.sample` calls the settings that messages name."""
UNNAMED = "a function"
"""What a `lambda` is called."""


@dataclass(frozen=True)
class Component:
    """A part of a run as it is recorded: the name of a class, and the arguments that it is given."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Component:
        """What a node with a `_target_` names."""
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        return cls(spoken(str(node["_target_"])).rsplit(".", 1)[-1], arguments)

    def __str__(self) -> str:
        given = {name: value for name, value in self.arguments.items() if value is not None}
        return ", ".join([self.name, *(f"{name} {short(value)}" for name, value in given.items())])


def in_arguments(message: str) -> str:
    """A message with arguments of `bayeslora.sample` in the place of settings."""
    for setting, argument in ARGUMENTS.items():
        message = re.sub(rf"\b{re.escape(setting)}\b(?!\.\w)", argument, message)
    return message


def spoken(target: str) -> str:
    """A dotted name in words where Python's own has marks: of functions without a name, and what they define."""
    return target.replace("<lambda>", UNNAMED).replace(".<locals>", "")


def short(value: Any) -> str:
    """A value of a setting as text: numbers with six digits, lists in brackets without quotes, yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(short, value))}]" if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
