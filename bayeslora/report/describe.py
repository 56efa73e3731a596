"""A run's settings and provenance in words, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bayeslora.report.words import MISSING, duration

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.potential import Prior


def title(setup: Setup) -> str:
    """Name of the run, sampler and data."""
    return f"{setup.cfg.name}: {_class(setup.cfg.sampler)} on {setup.data.name}"


def settings(setup: Setup) -> list[tuple[str, str]]:
    """(label, value) pairs; temperature, prior and augmentation first, since results mean nothing without them."""
    cfg, data, plan = setup.cfg, setup.data, setup.plan
    count = sum(p.numel() for p in setup.model().parameters() if p.requires_grad)
    return [
        ("Temperature", temperature(run_temperature(setup))),
        ("Prior", prior(setup.potential.prior)),
        ("Likelihood", likelihood(setup.cfg.get("likelihood"))),
        ("Augmentation", data.augmentation),
        ("Data", f"{data.name}: N = {len(data.train):,} training examples; evaluated on {cfg.evaluate.split}"),
        ("Model", f"{_with_arguments(cfg.model)}; {count:,} sampled parameters"),
        ("Sampler", _with_arguments(cfg.sampler)),
        ("Chains", f"{cfg.chain.num_chains} × {plan.total:,} steps of batch {cfg.chain.batch_size or 'full'}"),
        ("Plan of a chain", f"{plan.warmup:,} warm-up, {plan.burn_in:,} burn-in, {plan.num_draws} draws × {plan.thin}"),
        ("Precision", f"{cfg.trainer.precision} on {cfg.trainer.accelerator}"),
        ("Seed", str(cfg.seed)),
    ]  # fmt: skip


def run_temperature(setup: Setup) -> float:
    """T of a run, 0 for MAP."""
    return 0.0 if _class(setup.cfg.sampler) == "MAP" else float(setup.cfg.temperature)


def notes(setup: Setup, draws: Mapping[int, int], diverged: Mapping[int, int] | None = None) -> list[str]:
    """What a reader must know before the numbers.

    Args:
        setup: the run's parts.
        draws: the number kept, by chain.
        diverged: of chains that diverged, in which step.
    """
    return list(_notes(setup, draws, diverged or {}))


def _notes(setup: Setup, draws: Mapping[int, int], diverged: Mapping[int, int]) -> Iterator[str]:
    wanted = setup.plan.num_draws
    for chain, kept in draws.items():
        if kept < wanted:
            step = diverged.get(chain)
            why = "the run is not finished" if step is None else f"it diverged in step {step:,}"
            yield f"Chain {chain} has {kept} of {wanted} draws: {why}."
    if setup.cfg.temperature not in (0.0, 1.0):
        yield f"Temperature {setup.cfg.temperature:g}: a tempered posterior, not the Bayes posterior (T = 1)."
    if setup.data.augment is not None:
        yield "Training images were augmented, which softens the likelihood: the target is not the plain posterior."
    asked, there = setup.cfg.chain.probe_size, len(setup.data.train)
    if asked > there:
        yield f"The probe set is all {there:,} training examples: chain.probe_size={asked} asks for more."
    yield from setup.data.notes


def provenance(recorded: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) pairs on where the numbers come from, but for the command; what is not known here as it is."""
    return list(_provenance(recorded))


def _provenance(recorded: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rest = {key: value for key, value in recorded.items() if key not in ("command", "seconds", "ess_per_second")}
    if "commit" in rest:
        yield "Commit", rest.pop("commit") or f"{MISSING} not a checkout of the repository"
    if "hardware" in rest:
        yield "Hardware", str(rest.pop("hardware"))
    if {"split", "draws", "chains"} <= rest.keys():
        chains = rest.pop("chains")
        yield "Evaluated", f"{rest.pop('draws'):,} draws of {chains} chain{'s' * (chains != 1)}, on {rest.pop('split')}"
    if "seconds" in recorded:
        yield "Time", _time(recorded["seconds"])
    if isinstance(tokens := rest.pop("tokens", None), Mapping):
        rate = f"{tokens['per_second']:,.0f} a second" if tokens["per_second"] else f"{MISSING} no times were noted"
        yield "Tokens", f"{rate}; {tokens['per_batch']:,.0f} a batch, {tokens['padding']:.0%} of padding beside them"
    if isinstance(rest.get("versions"), Mapping):
        python = f"Python {rest.pop('python')}, " if "python" in rest else ""
        yield "Versions", python + ", ".join(f"{name} {value}" for name, value in rest.pop("versions").items())
    yield from _flat(rest)


def _time(seconds: Mapping[str, float]) -> str:
    """Time by phase."""
    if not seconds:
        return f"{MISSING} the chains noted none"
    phases = ", ".join(f"{phase} {duration(spent)}" for phase, spent in seconds.items())
    return f"{phases}; {duration(sum(seconds.values()))} in all, summed over chains"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested entries as (dotted key, text) pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def temperature(value: float) -> str:
    """T with what it means."""
    meaning = {1.0: "the Bayes posterior", 0.0: "MAP"}.get(value, "tempered: not the Bayes posterior")
    return f"{value:g} ({meaning})"


def prior(value: Prior) -> str:
    """The prior's family and variances."""
    scaling = " / fan-in on weights" if value.scaling == "fan_in" else ""
    overrides = "".join(f"; {pattern}: {variance:g}" for pattern, variance in value.overrides.items())
    vectors = "" if value.vectors == value.variance else f"; {value.vectors:g} on biases and norm parameters"
    return f"Gaussian, mean 0, variance {value.variance:g}{scaling}{vectors}{overrides}"


def likelihood(node: DictConfig | None) -> str:
    """The likelihood and its noise."""
    if node is None or _class(node) == "Categorical":
        return "Categorical"
    noise = {"learned": "sampled with the weights", "per_example": "given by the model"}.get(str(node.get("noise")))
    return f"{_class(node)}, noise {noise or _short(node.get('noise'))}"


def _class(node: DictConfig) -> str:
    return str(node._target_).rsplit(".", 1)[-1]


def _with_arguments(node: DictConfig) -> str:
    """A target's class and its arguments."""
    arguments = [f"{key!s} {_short(value)}" for key, value in node.items() if not str(key).startswith("_")]
    return ", ".join([_class(node), *arguments])


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
