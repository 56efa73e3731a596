"""python -m bayeslora.bias_check run_dir=…: repeat a run at half the step size and report what changes.

Samplers of finite step size have the law of the posterior up to a bias that shrinks with the step. If half the step
size gives the same NLL and ECE, the bias does not matter there.

Examples:
    python -m bayeslora.bias_check run_dir=outputs/quickstart/2026-11-24_12-00-00
    python -m bayeslora.bias_check run_dir=… out_dir=outputs/half limits.nll=0.005
    python -m bayeslora.bias_check run_dir=… strict=true          exit code 4 unless both changes are small
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.app.cli import run_command
from bayeslora.errors import ConfigError, CriteriaError, DataError, require
from bayeslora.evaluation.results import Results, Scores, score

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.table import Table
    from torch import Tensor

    from bayeslora.experiment import Experiment
    from bayeslora.runs.directory import RunDirectory

KEYS = {"run_dir", "out_dir", "keep_time", "bootstrap", "limits", "strict", "trust", "dataset"}
METRICS = {"classification": ("nll", "ece"), "multilabel": ("nll", "ece"), "regression": ("nll", "calibration_error")}
"""What is compared, by the run's task."""
Scoring = Callable[["Tensor"], Mapping[str, float]]
"""The metrics of an ensemble on the examples of an index [N]."""
IN_STEPS = ("offset", "decay_steps", "cycle_length")
"""Settings of schedules that count steps."""


def bias_check(cfg: DictConfig) -> dict[str, Any]:
    """Run the chains of `cfg.run_dir` again at half the step size, compare, and write `bias.json` into the run.

    Repeating the command goes on where it was left, or compares again.

    Returns:
        The content of `bias.json`.

    Raises:
        ConfigError: a key is missing or unknown, the run has no step size to halve, or `out_dir` is taken.
        DataError: the run is not finished, or not evaluated.
        DivergedError: a chain diverged at half the step size.
        CriteriaError: `cfg.strict` and a change is not small, or cannot be told from chance; all is written before.
    """
    _check(cfg)
    from omegaconf import OmegaConf
    from rich.console import Console

    from bayeslora.app.compose import recorded_settings, to_experiment
    from bayeslora.atomic import write_atomically
    from bayeslora.engine.pipeline import run_experiment
    from bayeslora.runs.directory import RunDirectory

    run = RunDirectory(cfg.run_dir)
    before = _finished_results(run)
    other = RunDirectory(cfg.out_dir or f"{run.root}_half_step")
    settings = recorded_settings(run, cfg.trust, cfg.dataset.path)
    changed = half_step(settings, other.root, before.provenance.split or "test", cfg.keep_time)
    experiment = to_experiment(OmegaConf.create(changed), other)
    after = run_experiment(experiment, other)
    assert after is not None  # it ran every chain
    comparison: dict[str, Any] = compare(before, after, cfg.limits)
    if cfg.bootstrap:
        for name, error in _example_errors(run, other, experiment, cfg.bootstrap).items():
            comparison[name]["test_se"] = error
    comparison |= {"run_dir": str(other.root), "lr": [settings["sampler"]["lr"], changed["sampler"]["lr"]]}
    where = write_atomically(
        run.root / "bias.json", (json.dumps(comparison, indent=2, allow_nan=False) + "\n").encode()
    )
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no width; the table must not be cut to a guess of it
    console.print(table(comparison))
    console.print(f"bias check: {where}", soft_wrap=True, highlight=False)
    problems = list(_problems(comparison))
    if cfg.strict and problems:
        raise CriteriaError(*problems)
    return comparison


def half_step(recorded: dict[str, Any], folder: Path, split: str, keep_time: bool = True) -> dict[str, Any]:
    """The settings of a run at half the step size; seeds, warm-up and number of draws stay.

    Args:
        recorded: the run's settings.
        folder: where the new run goes.
        split: what it is evaluated on.
        keep_time: twice the steps, so that the chains cover the same time.

    Raises:
        ConfigError: the sampler has no step size, or samples nothing (temperature 0).
    """
    from bayeslora.runs.directory import relocated

    sampler, chain = recorded["sampler"], recorded["chain"] | {"index": None}
    lr = sampler.get("lr")
    require(isinstance(lr, int | float), "bias_check halves sampler.lr, and the run's sampler has none")
    cold = recorded["temperature"] == 0 or sampler["_target_"].rsplit(".", 1)[-1] == "MAP"
    require(not cold, "the run is at temperature 0: it samples no distribution that a step size could bias")
    if keep_time:
        settings = {"offset": 1.0} if chain["schedule"] == "polynomial" else {}
        settings |= chain.get("schedule_settings") or {}
        settings |= {name: 2 * settings[name] for name in IN_STEPS if name in settings}
        chain |= {"burn_in": 2 * chain["burn_in"], "thin": 2 * chain["thin"], "schedule_settings": settings}
    return relocated(recorded, folder) | {
        "run_dir": str(folder),
        "resume": False,
        "chain": chain,
        "sampler": sampler | {"lr": lr / 2},
        "evaluate": recorded["evaluate"] | {"split": split, "strict": False},
    }


def compare(before: Results, after: Results, limits: Mapping[str, float]) -> dict[str, Any]:
    """The change of the ensemble's NLL and calibration from one run to the other, by metric.

    `se` is the standard error of the mean change of single chains' ensembles: chains of one number share their initial
    weights and warm-up, and their changes are independent of those of the others. The change of the whole ensemble,
    which the limit is for, is about as uncertain in NLL, and somewhat more in calibration, which is the ensemble's own.

    Args:
        before, after: results of the two runs.
        limits: by metric, changes below which pass.

    Returns:
        For each metric `before`, `after`, `change`, `chains_change` (the mean over chains), `se`, `limit` and `passed`;
        `se` and `passed` are None, with a `reason`, for fewer than two chains.
    """
    old, new = _by_chain(before), _by_chain(after)
    found = {}
    for name in METRICS[before.task]:
        changes = [_known(new[chain], name) - _known(old[chain], name) for chain in old.keys() & new.keys()]
        was, becomes = _known(before.ensemble, name), _known(after.ensemble, name)
        change = becomes - was
        several = len(changes) > 1
        found[name] = {
            "before": was,
            "after": becomes,
            "change": change,
            "chains_change": statistics.fmean(changes) if changes else None,
            "se": statistics.stdev(changes) / math.sqrt(len(changes)) if several else None,
            "limit": float(limits[name]),
            "passed": abs(change) < limits[name] if several else None,
            "reason": None if several else "one chain does not tell a change from chance: it needs at least two",
        }
    return found


def bootstrap(
    one: Scoring, other: Scoring, names: Sequence[str], examples: int, resamples: int, seed: int
) -> dict[str, float]:
    """Standard errors of the change from one ensemble to another by bootstrap over the examples, by metric.

    Args:
        one, other: give the metrics of an ensemble on the examples of an index [N].
        names: of the metrics.
        examples: N.
        resamples: how many.
        seed: of the resamples.
    """
    import torch

    from bayeslora.rng import generator

    changes: dict[str, list[float]] = {name: [] for name in names}
    for number in range(resamples):
        index = torch.randint(examples, (examples,), generator=generator(seed, 0, number, "bootstrap"))
        before, after = one(index), other(index)
        for name in names:
            changes[name].append(after[name] - before[name])
    return {name: statistics.stdev(values) for name, values in changes.items()}


def table(comparison: Mapping[str, Any]) -> Table:
    """The comparison for the terminal."""
    from rich import box
    from rich.table import Table

    old, new = comparison["lr"]
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows.add_column("", no_wrap=True)
    for title in (f"ε = {old:g}", f"ε = {new:g}", "change", "± chains", "± examples", "limit"):
        rows.add_column(title, justify="right", no_wrap=True)
    rows.add_column("verdict")
    for name in _compared(comparison):
        one = comparison[name]
        numbers = [one["before"], one["after"], one["change"], one["se"], one.get("test_se"), one["limit"]]
        specs = (".4f", ".4f", "+.4f", ".4f", ".4f", "g")
        shown = ["–" if value is None else format(value, spec) for value, spec in zip(numbers, specs, strict=True)]
        rows.add_row(label(name), *shown, verdict(one))
    return rows


def verdict(one: Mapping[str, Any]) -> str:
    """What a metric's change says, in words."""
    if one["passed"] is None:
        return str(one["reason"])
    words = "small" if one["passed"] else "too large"
    return f"{words}, but chains differ by as much" if 2 * one["se"] > one["limit"] else words


def label(name: str) -> str:
    """What a metric is called in tables."""
    return name.replace("_", " ") if "_" in name else name.upper()


def _compared(comparison: Mapping[str, Any]) -> list[str]:
    """The metrics that a comparison holds."""
    return [name for name, one in comparison.items() if isinstance(one, Mapping) and "passed" in one]


def _problems(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on the metrics that do not pass."""
    for name in _compared(comparison):
        one = comparison[name]
        if not one["passed"]:
            why = one["reason"] or f"it must be below {one['limit']:g}"
            yield f"{label(name)} changes by {one['change']:+.4f} at half the step size ({why})"


def _by_chain(results: Results) -> dict[int, Scores]:
    """Scores of each chain's ensemble, by its number."""
    return {one.chain: one.scores for one in results.chains}


def _known(scores: Scores | None, name: str) -> float:
    """A score that the run has.

    Raises:
        DataError: it has none.
    """
    value = score(scores, name)
    if value is None:
        raise DataError(f"the run has no {name.upper()}, and cannot be compared by it")
    return value


def _check(cfg: DictConfig) -> None:
    """Raise `ConfigError` for keys that are missing, unknown or wrong."""
    from omegaconf import OmegaConf

    limits = {*METRICS["classification"], *METRICS["regression"]}
    unknown = sorted({*cfg} - KEYS)
    unknown += [f"dataset.{key}" for key in cfg.dataset if key != "path"]
    unknown += [f"limits.{name}" for name in cfg.limits if name not in limits]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}: bias_check takes {', '.join(sorted(KEYS))}")
    require(not OmegaConf.is_missing(cfg, "run_dir"), "which run? Give its folder: run_dir=outputs/…")
    whole = isinstance(cfg.bootstrap, int) and (cfg.bootstrap == 0 or cfg.bootstrap > 1)
    require(whole, f"bootstrap={cfg.bootstrap} must be a number of resamples, at least 2, or 0")


def _finished_results(run: RunDirectory) -> Results:
    """The results of a run whose draws are all there and were all evaluated.

    Raises:
        DataError: it is not that far.
    """
    chain = run.config["chain"]
    wanted = chain["num_chains"] * chain["num_draws"]
    kept = sum(len(run.store(number)) for number in range(chain["num_chains"]))
    again = f"repeat the training command with run_dir={run.root}"
    if kept < wanted:
        raise DataError(f"{run.root} has {kept} of {wanted} draws, and cannot be compared yet; {again}")
    results = Results.read(run.metrics_file) if run.metrics_file.exists() else Results()
    evaluated = results.provenance.draws or 0
    if evaluated != wanted:
        raise DataError(f"{run.root} was evaluated with {evaluated} of {wanted} draws: python -m bayeslora.evaluate "
                        f"run_dir={run.root}")  # fmt: skip
    return results


def _example_errors(run: RunDirectory, other: RunDirectory, experiment: Experiment, resamples: int) -> dict[str, float]:
    """`bootstrap` of the ensembles of two runs, which are predicted once more."""
    of_a_run = _class_scores if experiment.data.real is None else _density_scores
    one, other_one = (of_a_run(folder, experiment) for folder in (run, other))
    names = METRICS["classification" if experiment.data.real is None else "regression"]
    return bootstrap(one, other_one, names, len(experiment.evaluation_split()), resamples, experiment.seed)


def _class_scores(run: RunDirectory, experiment: Experiment) -> Scoring:
    """Metrics of a classifier's ensemble on some of the examples."""
    import torch

    from bayeslora.diagnostics.metrics import metrics
    from bayeslora.evaluation.predictions import known
    from bayeslora.posterior import Mixture, Posterior
    from bayeslora.posterior.predictive import log_probs

    split, likelihood = experiment.evaluation_split(), experiment.likelihood
    posterior, loader = Posterior.load(run.root, experiment.model(), likelihood), experiment.loader(split)
    targets, owners = known(split.targets.cpu(), likelihood)
    mixture = Mixture()
    for draw in posterior.draws():
        mixture.add(log_probs(posterior.model_of(draw), loader(), likelihood, observed=owners is not None))
    log_p = mixture.log_probs
    if owners is None:
        return lambda index: metrics(log_p[index], targets[index])
    rows = [(owners[:, 0] == example).nonzero()[:, 0] for example in range(len(split))]

    def of_examples(index: Any) -> dict[str, float]:
        chosen = torch.cat([rows[int(example)] for example in index])
        return metrics(log_p[chosen], targets[chosen])

    return of_examples


def _density_scores(run: RunDirectory, experiment: Experiment) -> Scoring:
    """Metrics of a regression's ensemble on some of the examples."""
    from bayeslora.evaluation.regression import calibration_error, run_through
    from bayeslora.posterior import Posterior

    mixture = run_through(Posterior.load(run.root, experiment.model(), experiment.likelihood), experiment).whole
    nll, pit = mixture.nll, mixture.pit
    return lambda index: {"nll": nll[index].mean().item(), "calibration_error": calibration_error(pit[index])}


def main() -> None:
    """Entry point."""
    run_command("bias_check", lambda cfg: bias_check(cfg) and None)


if __name__ == "__main__":
    main()
