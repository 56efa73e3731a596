"""Numbers, lists, settings and provenance in words, for all parts of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayeslora.codec import decode
from bayeslora.counts import counted
from bayeslora.diagnostics.values import ALL, POOLED, Tuning
from bayeslora.evaluation.results import Provenance
from bayeslora.factories import in_memory
from bayeslora.settings import UNNAMED, Component, in_arguments, short

if TYPE_CHECKING:
    from bayeslora.experiment import Experiment
    from bayeslora.potential import Prior
    from bayeslora.runs.directory import RunDirectory

MISSING = "–"
NBSP = "\N{NO-BREAK SPACE}"
MAX_BLOCKS = 12
"""Blocks whose step sizes are shown."""


def finite_or_none(value: Any) -> float | None:
    """A number, or None for what is none: None, NaN, infinities, text."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def number(value: Any, spec: str, unit: str = "") -> str:
    """A number by its format with its unit, or a dash; what rounds to 0 has no sign."""
    finite = finite_or_none(value)
    if finite is None:
        return MISSING
    shown = format(finite, spec)
    return (shown if float(shown.strip("%").replace(",", "")) else shown.removeprefix("-")) + unit


def percent(share: Any, digits: int = 1) -> str:
    """A share as a percentage that does not break across lines, or a dash; 100 % are all, not nearly all."""
    finite = finite_or_none(share)
    while finite is not None and 0.5 < finite < 1 and digits < 6 and round(100 * finite, digits) == 100:
        digits += 1
    return number(None if finite is None else 100 * finite, f".{digits}f", "\N{NO-BREAK SPACE}%")


def block_title(block: str) -> str:
    """What a block, or several together, are called in figures and tables."""
    return {ALL: "whole net", POOLED: "small blocks"}.get(block, block)


def listed(items: Sequence[str]) -> str:
    """Items as "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return text and f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    words = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    return words.replace(" ", NBSP)


def run_title(experiment: Experiment) -> str:
    """Name of the run, sampler, and data where they have a name of their own."""
    what = f"{experiment.name}: {experiment.component('sampler').name}"
    return what if experiment.data.name == experiment.name else f"{what} on {experiment.data.name}"


def run_settings(experiment: Experiment) -> list[tuple[str, str]]:
    """(label, value) pairs; temperature, prior and augmentation first, since results mean nothing without them."""
    data, plan, chain, trainer = experiment.data, experiment.plan, experiment.chain, experiment.trainer
    made, model = experiment.model(), str(experiment.component("model"))
    count = sum(p.numel() for p in made.parameters() if p.requires_grad)
    model = type(made).__name__ if model.startswith(UNNAMED) else model  # what a function without a name makes
    chains, every = counted(chain.num_chains, "chain"), f", one every {counted(plan.thin, 'step')}"
    draws = counted(plan.num_draws, "draw") + ("" if plan.thin == 1 else every)
    precision = "64-true" if any(p.dtype.itemsize == 8 for p in made.parameters()) else trainer.precision
    probes = min(chain.probe_size, len(data.train))
    probe_set = "all " * (probes == len(data.train)) + counted(probes, "training example")
    batches = "all data" if chain.batch_size is None else f"batches of {chain.batch_size:,}"
    examples = counted(len(data.train), "training example")
    return [
        ("Temperature", temperature(experiment.effective_temperature)),
        ("Prior", prior(experiment.potential.prior)),
        ("Likelihood", likelihood(experiment.component("likelihood"))),
        ("Augmentation", data.augmentation),
        ("Data", f"{data.name}: N = {examples}; evaluated on {experiment.evaluation.split}"),
        ("Model", f"{model}; {counted(count, 'sampled parameter')}"),
        ("Sampler", str(experiment.component("sampler"))),
        ("Chains", f"{chains} of {counted(plan.total, 'step')} on {batches}"),
        ("Plan of a chain", f"{counted(plan.warmup, 'step')} of warm-up, {plan.burn_in:,} of burn-in, {draws}"),
        *pilot_pairs(experiment.record.get("tuning")),
        ("Probe set", probe_set),
        ("Precision", f"{precision} on {trainer.accelerator}"),
        ("Seed", str(experiment.seed)),
    ]  # fmt: skip


def pilot_pairs(recorded: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a pilot found, as a pair; none where step sizes were given."""
    if recorded is None:
        return []
    tuning = decode(Tuning, recorded, "tuning")
    by_block = [f"{name}: {one.step_size:.3g} (curvature {one.curvature:.3g})" for name, one in tuning.blocks.items()]
    shown = by_block if len(by_block) <= MAX_BLOCKS else [*by_block[: MAX_BLOCKS - 1], f"{len(by_block)} blocks in all"]
    halved = f", halved {counted(tuning.halvings, 'time')} after it diverged" if tuning.halvings else ""
    slowest = f"slowest relaxation {counted(round(tuning.relaxation), 'step')}"
    return [("Step sizes", f"from a pilot of {counted(tuning.steps, 'step')}{halved}: {', '.join(shown)}; {slowest}")]


def run_notes(run: RunDirectory, experiment: Experiment) -> list[str]:
    """What a reader must know before the numbers."""
    wanted, chain = experiment.plan.num_draws, experiment.chain
    tempered = experiment.effective_temperature
    notes = []
    for store in map(run.store, range(chain.num_chains)):
        if len(store) < wanted:
            diverged = [e["step"] for e in store.events() if e["event"] == "diverged" and "step" in e]
            why = f"it diverged in step {diverged[-1]:,}" if diverged else "the run is not finished"
            notes.append(f"Chain {store.chain} has {len(store)} of {wanted} draws: {why}.")
    if tempered not in (0.0, 1.0):
        notes.append(f"Temperature {tempered:g}: a tempered posterior, not the Bayes posterior (T = 1).")
    if experiment.data.augment is not None:
        notes.append(
            "Training images were augmented, which softens the likelihood: the target is not the plain posterior."
        )
    if (short := experiment.short_burn_in()) is not None:
        notes.append(f"Chains may start off their law: {short}.")
    every = [*notes, *map(sentence, experiment.data.notes)]
    return list(map(in_arguments, every)) if in_memory(experiment.record.get("dataset")) else every


def provenance_pairs(recorded: Provenance) -> Iterator[tuple[str, str]]:
    """(label, value) pairs on where the numbers come from, but for the command; what is not known here as it is."""
    yield "Commit", recorded.commit or f"{MISSING} not a checkout of the repository"
    if recorded.hardware:
        yield "Hardware", recorded.hardware
    if recorded.draws is not None and recorded.chains is not None:
        draws, chains = counted(recorded.draws, "draw"), counted(recorded.chains, "chain")
        yield "Evaluated", f"{draws} of {chains}, on {recorded.split}"
    yield "Time", _time(recorded.seconds)
    if (tokens := recorded.tokens) is not None:
        rate = f"{tokens.per_second:,.0f} a second" if tokens.per_second else f"{MISSING} no times were noted"
        yield "Tokens", f"{rate}; {tokens.per_batch:,.0f} a batch, and {percent(tokens.padding, 0)} padding beside them"
    if recorded.versions:
        python = f"Python {recorded.python}, " if recorded.python else ""
        yield "Versions", python + ", ".join(f"{name} {value}" for name, value in recorded.versions.items())
    yield from _flat({name: value for name, value in recorded.other.items() if name != "layout"})


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


def likelihood(value: Component) -> str:
    """The likelihood and its noise."""
    if "noise" not in value.arguments:
        return value.name
    noise = value.arguments["noise"]
    words = {"learned": "sampled with the weights", "per_example": "given by the model"}.get(str(noise))
    return f"{value.name}, noise {words or short(noise)}"
