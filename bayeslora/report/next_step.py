"""What to do next with a run: one command to paste, by which criterion failed and by how much."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bayeslora.chain.tuning import burn_in, thin
from bayeslora.diagnostics.relaxation import ENOUGH
from bayeslora.diagnostics.values import TOLERANCE
from bayeslora.evaluation.criteria import AGAINST_MAP
from bayeslora.evaluation.results import Criterion, Results
from bayeslora.experiment import Experiment
from bayeslora.factories import in_memory
from bayeslora.report.words import listed, percent
from bayeslora.runs.directory import SCHEDULES_WITHOUT_END, RunDirectory
from bayeslora.settings import ARGUMENTS, AUTO

LONGEST = 8.0
"""Factor on a run's length, or on its step size, beyond which another cure is looked for."""
ROOM = 1.2
"""What is taken more than what is just enough."""
DRAWS = 50
"""Draws of a chain that is sampled where there was only MAP."""
SAMPLE = ARGUMENTS | {name: name for name in ("sampler", "seed", "temperature", "run_dir")}
"""Settings by their names as arguments of `bayeslora.sample`."""


OF_THE_JOB = {"run_dir", "resume", "chain.index", "search"}
"""Settings that say which part of the work a process did, and where: the next run has its own."""


@dataclass(frozen=True)
class Step:
    """What to do next.

    Attributes:
        why: a sentence.
        command: to paste.
    """

    why: str
    command: str


def next_step(results: Results, experiment: Experiment, run: RunDirectory) -> Step:
    """The cure of the criterion that stands in the way of the others; where all are met, the check of the step size.

    Unfinished and diverged chains come first, then temperatures, then agreement of the chains, then scores.
    """
    settings = _Settings(results, experiment, str(run.root))
    if (compared := _bias_checked(results.provenance.command)) is not None:
        runs = shlex.quote(f"run_dirs=[{compared},{run.root}]")
        return Step(
            "This run is another's, at half its step size. The two side by side:",
            f"python -m bayeslora.compare {runs}",
        )
    if "size=smoke" in settings.tokens:
        return Step("This was a trial of a few steps. The run itself:", settings.command({"size": None}))
    for store in map(run.store, range(experiment.chain.num_chains)):
        if len(store) < experiment.plan.num_draws:
            if any(event["event"] == "diverged" for event in store.events()):
                smaller = {"sampler.lr": _rounded(settings.lr / 2)}
                return Step(f"Chain {store.chain} diverged. At half the step size:", settings.command(smaller))
            return Step("The run is not finished. It goes on with:", settings.command({}, longer=True))
    if experiment.effective_temperature == 0:
        return Step(
            "This is MAP. To sample the posterior around it, at step sizes that a pilot finds:",
            settings.command(_posterior_around(experiment)),
        )
    unmet = {name: one for name, one in results.criteria.items() if not one.passed}
    return (
        _cure_of_temperature(results, unmet, settings)
        or _cure_of_chains(unmet, settings)
        or _cure_of_scores(results, unmet, settings)
        or _check_of_the_step(settings)
    )


def _posterior_around(experiment: Experiment) -> dict[str, Any]:
    """Settings that sample where a run at T = 0 ended: as many steps of warm-up as all of its own, the rest found."""
    chain, plan = experiment.chain, experiment.plan
    found = dict.fromkeys(("sampler.lr", "sampler.momentum", "chain.burn_in", "chain.thin"), AUTO)
    steps = {"chain.warmup.steps": plan.total, "chain.num_draws": max(plan.num_draws, DRAWS)}
    usual = {"chain.schedule": "constant", "chain.cycles": 0}
    other = {key: value for key, value in usual.items() if getattr(chain, key.partition(".")[2]) != value}
    return {"sampler": "baoab", "temperature": 1.0, **found, **steps, **other}


def _bias_checked(command: str | None) -> str | None:
    """The folder of the run that a bias check repeated; None for the command of anything else."""
    tokens = shlex.split(command or "")
    folders = [token.partition("=")[2] for token in tokens if token.startswith("run_dir=")]
    return folders[-1] if "bayeslora.bias_check" in tokens and folders else None


@dataclass(frozen=True)
class _Settings:
    """The run's settings, and its command with other ones."""

    results: Results
    experiment: Experiment
    root: str

    @property
    def tokens(self) -> list[str]:
        """The arguments of its command; none where another program made it."""
        tokens = shlex.split(self.results.provenance.command or "")
        return tokens[tokens.index("bayeslora.train") + 1 :] if "bayeslora.train" in tokens else []

    @property
    def lr(self) -> float:
        """The step size ε."""
        value = self.experiment.component("sampler").arguments.get("lr")
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def of_program(self) -> bool:
        """Whether `bayeslora.sample` made the run, which no command can repeat."""
        return in_memory(self.experiment.record.get("dataset")) is not None

    @property
    def is_kept(self) -> bool:
        """Whether its folder is one that stays."""
        return not self.of_program or self.experiment.record.get("run_dir") is not None

    @property
    def can_be_longer(self) -> bool:
        """Whether draws can be added to the run as it is."""
        chain = self.experiment.chain
        return self.is_kept and chain.schedule in SCHEDULES_WITHOUT_END and not chain.cycles

    def command(self, changes: Mapping[str, Any], *, longer: bool = False, sweep: bool = False) -> str:
        """The run's command with other settings (None: left out), on the run's own folder if `longer`."""
        changes = dict(changes) | ({"run_dir": self.root} if longer and self.is_kept else {})
        if not self.results.provenance.command or not self.tokens:
            return self._call(changes)
        kept = []
        for token in self.tokens:
            key = token.lstrip("+").partition("=")[0]
            if token not in ("-m", "--multirun") and key not in OF_THE_JOB | changes.keys():
                kept.append(token)
        added = [f"{key}={value}" for key, value in changes.items() if value is not None]
        return shlex.join(["python", "-m", "bayeslora.train", *(["-m"] if sweep else []), *kept, *added])

    def _call(self, changes: Mapping[str, Any]) -> str:
        """The same for a run of `bayeslora.sample`, and as settings for one of another program."""
        changed = {key: value for key, value in changes.items() if value is not None}
        if self.of_program:
            given = {SAMPLE[key]: value for key, value in changed.items() if key in SAMPLE}
            swept = {name: value.replace(",", ", ") for name, value in given.items() if "," in str(value)}
            loop = "".join(f"for {name} in ({values}): " for name, values in swept.items())
            named = ", ".join(f"{name}={name if name in swept else repr(value)}" for name, value in given.items())
            return f"{loop}bayeslora.sample({', '.join(['…', *filter(None, [named])])})"
        return f"python -m bayeslora.train … {shlex.join(f'{key}={value}' for key, value in changed.items())}"


def _check_of_the_step(settings: _Settings) -> Step:
    """The same at half the step size, or where a program left it to the pilot, of another seed."""
    met = "All criteria are met. Does"
    if not settings.of_program:
        command = f"python -m bayeslora.bias_check run_dir={shlex.quote(settings.root)}"
        return Step(f"{met} half the step size give the same answer?", command)
    if "tuning" in settings.experiment.record:
        other = {"seed": int(settings.experiment.seed) + 1}
        return Step(f"{met} another seed give the same answer?", settings.command(other))
    plan = settings.experiment.plan
    half = {"sampler.lr": _rounded(settings.lr / 2), "chain.burn_in": 2 * plan.burn_in, "chain.thin": 2 * plan.thin}
    return Step(f"{met} half the step size give the same answer?", settings.command(half))


def _cure_of_temperature(results: Results, unmet: Mapping[str, Criterion], settings: _Settings) -> Step | None:
    """A smaller step for blocks that are too hot, a longer burn-in for those that are too cold."""
    limit = unmet["temperature"].limit if "temperature" in unmet else None
    off = [one.ratio - 1 for one in results.diagnostics.temperature.values() if one.status == "measured" and one.ratio]
    if limit is None or not off or max(map(abs, off)) <= limit:
        return None
    experiment, plan, worst = settings.experiment, settings.experiment.plan, max(off, key=abs)
    count = experiment.potential.num_data
    batch, tuned = experiment.chain.batch or count, "tuning" in experiment.record
    if worst < 0 or (tuned and (batch >= count or "chain.burn_in" in _short_lengths(experiment))):
        return _longer_burn_in(worst, settings)
    factor = min(LONGEST, max(1.5, worst / limit))
    if tuned:
        why = f"A block is {percent(worst, 0)} too hot: minibatch noise brings more than the pilot saw."
        return _larger_batches(why, factor, batch, settings)
    smaller = {
        "sampler.lr": _rounded(settings.lr / factor),
        "chain.burn_in": _count(factor * plan.burn_in),
        "chain.thin": _count(factor * plan.thin),
    }
    return Step(
        f"A block is {percent(worst, 0)} too hot, and heat falls with the step size. With ε / {factor:.2g} and"
        f" {factor:.2g} times the steps:",
        settings.command(smaller),
    )


def _short_lengths(experiment: Experiment) -> set[str]:
    """Which of burn-in and thin were given, and are shorter than the pilot's slowest block calls for."""
    tau, asked = (experiment.record.get("tuning") or {}).get("relaxation"), experiment.record.get("asked", {})
    due = {"chain.burn_in": burn_in(tau), "chain.thin": thin(tau)} if tau else {}
    given = {"chain.burn_in": experiment.plan.burn_in, "chain.thin": experiment.plan.thin}
    return {key for key, steps in due.items() if asked.get(key) != AUTO and given[key] < steps}


def _longer_burn_in(worst: float, settings: _Settings) -> Step:
    """For chains still on their way from their start: too cold, or at step sizes of a pilot, too hot."""
    experiment, plan = settings.experiment, settings.experiment.plan
    four, times = 4 * max(plan.burn_in, plan.thin), [] if plan.cycles else experiment.relaxations()
    due = max((ENOUGH * one.steps for one in times), default=0)
    state = f"is {percent(abs(worst), 0)} too {'cold' if worst < 0 else 'hot'}"
    state = state if worst > -1 else "reads a temperature below 0"
    own = "chain.burn_in" in _short_lengths(experiment)
    longer = "the burn-in that its slowest block calls for" if own or due > four else "four times the burn-in"
    return Step(
        f"A block {state}: it has not forgotten its start. With {longer}:",
        settings.command({"chain.burn_in": AUTO if own else _count(max(due, four))}),
    )


def _cure_of_chains(unmet: Mapping[str, Criterion], settings: _Settings) -> Step | None:
    """More draws where so many times as many would do; else longer burn-in and longer ways between draws."""
    chain, limits = settings.experiment.chain, {n: c for n, c in unmet.items() if n.endswith(("_rhat", "_ess"))}
    if not limits and "temperature" not in unmet:
        return None
    if chain.num_chains == 1:
        return Step(
            "One chain cannot be compared with any. Three more beside it:",
            settings.command({"chain.num_chains": 4}, longer=True),
        )
    plan, factors = settings.experiment.plan, {name: _length_for(name, one) for name, one in limits.items()}
    factor = ROOM * max(factors.values(), default=2.0)
    if factor > LONGEST:
        worst = limits[max(factors, key=lambda name: factors[name])]
        far = f"{worst.title} is {worst.shown}, far from {worst.limit:g}: more of the same draws will not do."
        if short := _short_lengths(settings.experiment):
            return Step(
                f"{far} With as many steps as the slowest block calls for:",
                settings.command(dict.fromkeys(sorted(short), AUTO)),
            )
        longer = {"chain.burn_in": _count(4 * max(plan.burn_in, plan.thin)), "chain.thin": _count(4 * plan.thin)}
        return Step(f"{far} With four times the burn-in and the steps between draws:", settings.command(longer))
    more = {"chain.num_draws": _count(factor * chain.num_draws)}
    titles = [one.title for one in limits.values()][:2] or ["The temperature of a block"]
    want, goes_on = "wants" if len(titles) == 1 else "want", "goes on" if settings.can_be_longer else "again, longer,"
    return Step(
        f"{listed(titles)} {want} about {factor:.1f} times the draws. The run {goes_on} with:",
        settings.command(more, longer=settings.can_be_longer),
    )


def _cure_of_scores(results: Results, unmet: Mapping[str, Criterion], settings: _Settings) -> Step | None:
    """Temperatures, or priors, to choose from on a validation set."""
    failed = [name for name in AGAINST_MAP if name in unmet]
    if not failed or results.map is None:
        return None
    if (quieter := _cure_of_steepness(results, settings) or _cure_of_noise(results, settings)) is not None:
        return quieter
    experiment = settings.experiment
    data = experiment.record.get("dataset") or {}
    changes: dict[str, Any] = {"evaluate.split": "validation"}
    if "validation_size" in data and not data["validation_size"]:
        held_out = max(1, len(experiment.data.train) // 10)
        changes = {"dataset.validation_size": held_out} | changes
    tied = (
        all(results.differences.get("map", {})[AGAINST_MAP[name][0]].tie for name in failed)
        if (results.differences.get("map"))
        else False
    )
    stands = "is not told from MAP" if tied else "predicts worse than MAP"
    if experiment.temperature == 1:
        changes = {"temperature": "0.1,0.3,1"} | changes
        what = "Colder posteriors, which are other targets, compared on held-out training examples:"
    else:
        variance = experiment.prior.variance
        changes = {"prior.variance": ",".join(f"{_rounded(variance * by):g}" for by in (0.3, 1, 3))} | changes
        what = "Other priors, compared on held-out training examples:"
    return Step(f"The chains agree and their ensemble {stands}. {what}", settings.command(changes, sweep=True))


def _cure_of_steepness(results: Results, settings: _Settings) -> Step | None:
    """Step sizes of a pilot, where those of the run are too long for the steepest directions."""
    steepness = results.diagnostics.steepness
    if steepness is None or not steepness.too_long or "tuning" in settings.experiment.record:
        return None
    why = (
        f"The chains agree, and their steps are too long for the steepest directions (ε·λ = {steepness.value:.2g},"
        f" accurate up to {steepness.limit:g}). With those that a pilot finds:"
    )
    return Step(why, settings.command(dict.fromkeys(("sampler.lr", "chain.burn_in", "chain.thin"), AUTO)))


def _cure_of_noise(results: Results, settings: _Settings) -> Step | None:
    """Larger batches, where minibatch noise heats the directions in which it lies and the blocks' means hide it."""
    worst = max((one.share for one in results.diagnostics.noise_heat.values()), default=0.0)
    limit, chain = settings.experiment.evaluation.criteria.temperature or TOLERANCE, settings.experiment.chain
    if worst <= limit or chain.batch is None:
        return None
    why = f"The chains agree, and minibatch noise heats what the data determine by {percent(worst, 0)}."
    return _larger_batches(why, min(LONGEST, max(1.5, worst / limit)), chain.batch, settings)


def _larger_batches(why: str, factor: float, batch: int, settings: _Settings) -> Step:
    """The same on batches of so many times the examples, of all of them at most."""
    size = min(settings.experiment.potential.num_data, _count(factor * batch))
    less = f"On batches of {factor:.2g} times the examples, with less of it:"
    return Step(f"{why} {less}", settings.command({"chain.batch_size": size}))


def _length_for(name: str, one: Criterion) -> float:
    """How many times as long chains would meet a limit: R-hat − 1 falls as 1 / n, ESS rises as n."""
    if one.value is None or one.limit is None:
        return 2.0
    if name.endswith("_ess"):
        return one.limit / max(one.value, 1e-9)
    return (one.value - 1) / max(one.limit - 1, 1e-9)


def _rounded(value: float) -> float:
    """Two digits."""
    return float(f"{value:.2g}")


def _count(value: float) -> int:
    """A whole number of two digits, not below the value."""
    size = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return math.ceil(round(value / size, 6)) * size
