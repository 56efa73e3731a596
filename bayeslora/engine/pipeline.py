"""A run: an experiment prepared, its chains run to their ends, the posterior evaluated."""

from __future__ import annotations

import math
from dataclasses import asdict

import torch

from bayeslora.counts import counted
from bayeslora.diagnostics.relaxation import relaxation_table
from bayeslora.engine.acceleration import accelerate, forecast
from bayeslora.engine.auto_settings import adopted, in_words, settled
from bayeslora.engine.runner import ChainRunner
from bayeslora.engine.trial import tried
from bayeslora.errors import DivergedError, WorkerError
from bayeslora.evaluation.results import Results
from bayeslora.evaluation.run import check_draws, evaluate, not_converged
from bayeslora.evaluation.shift import reference
from bayeslora.experiment import Experiment
from bayeslora.report.words import duration
from bayeslora.runs.directory import RunDirectory
from bayeslora.settings import AUTO

GROWTH = 1.5
"""Factor on the number of draws of a run that has not converged."""


def run_experiment(experiment: Experiment, run: RunDirectory) -> Results | None:
    """Run the chains of an experiment and evaluate them. Returns the results written to `metrics.json`.

    Chains whose draws are all on disk already are left as they are; others go on where they were left. Where
    `chain.index` names some chains only, the run is evaluated by whoever finishes last; None before that.

    Raises:
        ConfigError: the model cannot be sampled, or the folder holds another run; nothing was started.
        DivergedError: a chain diverged; the others are finished and what there is is evaluated.
        InterruptedRunError: the run was asked to stop, and can be resumed.
        WorkerError: a process that ran a chain was killed; the others are finished and what there is is evaluated.
    """
    if experiment.trainer.num_threads is not None:
        torch.set_num_threads(experiment.trainer.num_threads)
    experiment = prepared(experiment, run)
    if "tuning" not in experiment.record and (relaxed := experiment.relaxations()):
        print(relaxation_table(relaxed), flush=True)  # noqa: T201
    if (short := experiment.short_burn_in()) is not None:
        print(f"warning: {short}", flush=True)  # noqa: T201
    stores = [run.store(chain) for chain in range(experiment.chain.num_chains)]
    if todo := [chain for chain in experiment.chain.chosen if len(stores[chain]) < experiment.plan.num_draws]:
        print(announcement(experiment, todo, run), flush=True)  # noqa: T201
    try:
        experiment, stopped = sampled(experiment, run)
    except WorkerError:
        if any(map(len, stores)):
            evaluate(run, experiment)
        raise
    missing = [store for store in stores if len(store) < experiment.plan.num_draws]
    running = [s.chain for s in missing if not any(event["event"] == "diverged" for event in s.events())]
    if experiment.chain.index is not None and running:
        print(f"chains {running} of {run.root} have not ended yet; whoever ends last evaluates the run", flush=True)  # noqa: T201
        return None
    results = evaluate(run, experiment) if any(map(len, stores)) else None
    if stopped:
        again = f"python -m bayeslora.evaluate run_dir={run.root} evaluates them again"
        kept = f"Draws kept: {sum(map(len, stores))}; {again}" if results else "No draw had been kept"
        messages = "; ".join(dict.fromkeys(stopped.values()))
        raise DivergedError(f"{messages}; other settings need another run_dir. {kept}")
    return results


def sampled(experiment: Experiment, run: RunDirectory) -> tuple[Experiment, dict[int, str]]:
    """Run the chains to their last draws, and with `chain.until=converged` on until their criteria are met.

    Returns:
        The experiment with as many draws as it has now, and the chains that diverged and what happened to them.

    Raises:
        As `ChainRunner.run_as_set`.
    """
    while True:
        stopped = ChainRunner(experiment, run).run_as_set(experiment.chain.chosen)
        if stopped or experiment.chain.until != "converged":
            return experiment, stopped
        missing = not_converged(run, experiment)
        plan, most = experiment.plan, experiment.chain.max_steps
        if not missing:
            print(f"converged after {counted(plan.num_draws, 'draw')} a chain", flush=True)  # noqa: T201
            return experiment, {}
        draws = min(math.ceil(GROWTH * plan.num_draws), (most - plan.burnt_in) // plan.thin)
        message = f"not enough with {counted(plan.num_draws, 'draw')} a chain: {'; '.join(missing)}"
        if draws <= plan.num_draws:
            print(f"{message}. chain.max_steps={most:,} ends the run here", flush=True)  # noqa: T201
            return experiment, {}
        print(f"{message}. Going on to {draws:,}", flush=True)  # noqa: T201
        experiment = experiment.longer(draws)
        run.open(dict(experiment.record), experiment.fingerprint)


def announcement(experiment: Experiment, chains: list[int], run: RunDirectory) -> str:
    """What is about to run, for how long, and where it goes."""
    plan = experiment.plan
    many = f"chain{'s' * (len(chains) > 1)} {', '.join(map(str, chains))} of {counted(plan.total, 'step')}"
    time = f"about {duration(forecast(experiment, chains))}, and the evaluation"
    return f"{in_words(experiment)}; {many}, {counted(plan.num_draws, 'draw')} each; {time}; {run.root}"


def prepared(experiment: Experiment, run: RunDirectory) -> Experiment:
    """The experiment after all that is done before its first step: tried, accelerated, recorded, old draws checked.

    Raises:
        ConfigError: the model cannot be sampled, or is not that of the run that is there.
        DataError: draws that are there are not what they were, or a reference is of other examples.
    """
    if experiment.data.class_names and not experiment.data.axes:
        reference(experiment, experiment.data.test.targets)  # what does not fit is told before the chains run
    experiment = settled(accelerated(tried(experiment.identified(run)), run), run)
    run.open(dict(experiment.record), experiment.fingerprint, experiment.fixed)
    if experiment.chain.until == "converged":
        experiment = experiment.longer(run.config["chain"]["num_draws"])
    if experiment.record.get("asked"):
        experiment = adopted(experiment, run)  # another process may have been first
    check_draws(run, experiment)
    return experiment


def accelerated(experiment: Experiment, run: RunDirectory) -> Experiment:
    """The experiment with what a measurement chooses in the place of `auto`, or with what the run that is there has."""
    keys = [key for key in ("precision", "channels_last", "compile") if getattr(experiment.trainer, key) == AUTO]
    if not keys:
        return experiment
    recorded = run.config.get("trainer", {}) if run.config_file.exists() else {}
    if any(recorded.get(key, AUTO) == AUTO for key in keys):
        choice, words = accelerate(experiment)
        recorded = asdict(choice)
        print(words, flush=True)  # noqa: T201
    return experiment.with_trainer(**{key: recorded[key] for key in keys})
