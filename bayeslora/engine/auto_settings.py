"""What a run settles before its chains begin where its settings say `auto`: step sizes, momentum, lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayeslora.chain import tuning
from bayeslora.chain.noise_limit import largest_batch
from bayeslora.chain.tuning import FOURS, Tuner, is_trial
from bayeslora.chain.tuning_table import pilot_table
from bayeslora.codec import encode
from bayeslora.diagnostics.noise_heat import FORCES
from bayeslora.diagnostics.values import Tuning
from bayeslora.errors import require
from bayeslora.settings import AUTO

if TYPE_CHECKING:
    from bayeslora.experiment import BatchAt, Experiment
    from bayeslora.runs.directory import RunDirectory

PROBES = 4
"""Minibatches on which curvatures are taken, where a step does not take all the data."""


def settled(experiment: Experiment, run: RunDirectory) -> Experiment:
    """The experiment with numbers in the place of every `auto`: those of the run that is there, or found now.

    Raises:
        ConfigError: the run samples nothing, so that there is nothing to find.
        DivergedError: the pilot diverged at ever smaller step sizes.
    """
    if not experiment.open_settings:
        return experiment
    if run.config_file.exists():
        return adopted(experiment, run)
    if experiment.effective_temperature == 0 and "sampler.momentum" in experiment.open_settings:
        experiment = experiment.settled({"sampler.momentum": 0.9})  # an optimizer's usual one
    asked = experiment.open_settings
    require(
        experiment.effective_temperature > 0 or not asked,
        f"{', '.join(asked)}: auto has no meaning at T = 0, where nothing relaxes; give numbers",
    )
    if not asked:
        return experiment
    found, table = dict[str, Any](), None
    if "sampler.lr" in asked:
        run.check_writable()
        print(f"{in_words(experiment)}; first a pilot, which finds the step sizes", flush=True)  # noqa: T201
        result = pilot(experiment)
        print(pilot_table(result), flush=True)  # noqa: T201
        found, table = pilot_settings(experiment, result), encode(result)
    experiment = experiment.settled(found, table)
    return experiment.settled(lengths(experiment))


def in_words(experiment: Experiment) -> str:
    """What a run is: its name, sampler, temperature, model and data."""
    sampler, model = experiment.component("sampler").name, experiment.component("model").name
    return (
        f"{experiment.name}: {sampler} at T = {experiment.effective_temperature:g}, {model} on {experiment.data.name}"
    )


def adopted(experiment: Experiment, run: RunDirectory) -> Experiment:
    """The experiment with what a run has found, which another process may have done first."""
    recorded = run.config
    ours = {*experiment.open_settings, *experiment.record.get("asked", {}), "chain.lr_factors"}
    keys = [key for key in recorded.get("asked", {}) if key in ours]
    found = {key: recorded[key.split(".")[0]].get(key.split(".")[1]) for key in keys}
    return experiment.settled(found, recorded.get("tuning"))


def pilot(experiment: Experiment) -> Tuning:
    """Run the pilot of an experiment's chains: stacked where they are, else side by side."""
    stacked = experiment.chain.parallel == "stacked" and experiment.chain.num_chains > 1
    numbers = list(range(experiment.chain.num_chains))
    groups: list[Any] = [numbers] if stacked else list(numbers)
    pilots = [experiment.new_pilot(group) for group in groups]
    for one in pilots:
        one.begin()
    fresh = [experiment.batches(group, fresh=True) for group in groups]
    full = experiment.chain.batch_size in (None, len(experiment.data.train))
    given = experiment.chain.burn_in
    burn_in = None if isinstance(given, str) else given
    trial = is_trial(burn_in)
    open_batch = experiment.record.get("asked", {}).get("chain.batch_size") == AUTO

    def of_steps(first: int, count: int) -> list[list[Any]]:
        return [[batches(step) for step in range(first, first + count)] for batches in fresh]

    def batches_of(size: int | None) -> list[BatchAt]:
        sized = experiment.settled({"chain.batch_size": size})
        return [sized.batches(group) for group in groups]

    return Tuner(
        pilots,
        batches_of,
        of_steps(0, 1 if full or trial else PROBES),
        [] if full or trial else of_steps(PROBES, FOURS * FORCES),
        batch_size=experiment.chain.batch,
        largest=largest_batch(experiment.data.train.inputs, len(experiment.data.train)),
        find_batch=open_batch and not full and not trial,
        find_momentum="sampler.momentum" in experiment.open_settings,
        burn_in=burn_in,
        say=lambda line: print(line, flush=True),  # noqa: T201
    ).run()


def pilot_settings(experiment: Experiment, result: Tuning) -> dict[str, Any]:
    """The settings that a pilot's step sizes and momentum come to."""
    names = experiment.new_pilot(0).blocks
    smallest = min(one.step_size for one in result.blocks.values())
    lr = float(f"{smallest:.4g}")
    factors = {
        name: float(f"{result.blocks[b].step_size / lr:.6g}") for b, members in names.items() for name in members
    }
    ordered = dict(sorted(factors.items(), key=lambda item: len(item[0])))  # "0.weight" also means "2.0.weight"
    found: dict[str, Any] = {"sampler.lr": lr, "chain.lr_factors": ordered}
    if result.batch_size != experiment.chain.batch_size:
        found["chain.batch_size"] = result.batch_size
    return found | ({"sampler.momentum": result.momentum} if "sampler.momentum" in experiment.open_settings else {})


def lengths(experiment: Experiment) -> dict[str, Any]:
    """Momentum, burn-in and thin where they are still open, from the relaxation of the slowest block."""
    found: dict[str, Any] = {}
    if "sampler.momentum" in experiment.open_settings:
        tau = experiment.relaxations()[0].steps
        found["sampler.momentum"] = tuning.momentum(1 / (tau * experiment.sampler_of_one().speed))
        experiment = experiment.settled(found)
    tau = max(experiment.relaxations()[0].steps, 2 * experiment.sampler_of_one().speed)
    steps = {"chain.burn_in": tuning.burn_in(tau), "chain.thin": tuning.thin(tau)}
    return found | {key: value for key, value in steps.items() if key in experiment.open_settings}
