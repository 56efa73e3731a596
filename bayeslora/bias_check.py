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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.app.cli import run_command
from bayeslora.app.commands import OfRun
from bayeslora.errors import CriteriaError, DataError, require
from bayeslora.evaluation.results import Results
from bayeslora.evaluation.scores import Scores, score

if TYPE_CHECKING:
    from rich.table import Table

    from bayeslora.runs.directory import RunDirectory

METRICS = {"classification": ("nll", "ece"), "multilabel": ("nll", "ece"), "regression": ("nll", "calibration_error")}
"""What is compared, by the run's task."""
IN_STEPS = ("offset", "decay_steps", "cycle_length")
"""Settings of schedules that count steps."""


@dataclass(frozen=True)
class Limits:
    """By metric, changes below which pass."""

    nll: float = 0.01
    ece: float = 0.005
    calibration_error: float = 0.005


@dataclass(frozen=True, kw_only=True)
class BiasSettings(OfRun):
    """Settings of the command beside those of a run.

    Attributes:
        out_dir: where the run at half the step size goes; None: beside it.
        keep_time: twice the steps, so that the chains cover the same time.
        limits: changes that pass.
        strict: exit code 4 unless all do.
    """

    out_dir: str | None = None
    keep_time: bool = True
    limits: Limits = field(default_factory=Limits)
    strict: bool = False


def bias_check(settings: BiasSettings) -> dict[str, Any]:
    """Run the chains of a run again at half the step size, compare, and write `bias.json` into the run.

    Repeating the command goes on where it was left, or compares again.

    Returns:
        The content of `bias.json`.

    Raises:
        ConfigError: the run has no step size to halve, or `out_dir` is taken.
        DataError: the run is not finished, or not evaluated.
        DivergedError: a chain diverged at half the step size.
        CriteriaError: `strict` and a change is not small, or cannot be told from chance; all is written before.
    """
    from rich.console import Console

    from bayeslora.app.compose import of_settings, recorded_settings
    from bayeslora.atomic import write_atomically
    from bayeslora.diagnostics.paired import between, read
    from bayeslora.engine.pipeline import run_experiment
    from bayeslora.runs.directory import RunDirectory

    run = RunDirectory(settings.run_dir)
    before = _finished_results(run)
    other = RunDirectory(settings.out_dir or f"{run.root}_half_step")
    given = recorded_settings(run, settings.trust, settings.dataset.path)
    changed = half_step(given, other.root, before.provenance.split or "test", settings.keep_time)
    after = run_experiment(of_settings(changed, other), other)
    assert after is not None  # it ran every chain
    comparison: dict[str, Any] = metric_changes(before, after, vars(settings.limits))
    over_examples = between(read(other.examples_file), read(run.examples_file))
    for name in _compared(comparison):
        comparison[name]["test_se"] = over_examples[name].se if name in over_examples else None
    acceptance = [results.diagnostics.acceptance for results in (before, after)]
    comparison["acceptance"] = [None if one is None else one.mean for one in acceptance]
    comparison |= {"run_dir": str(other.root), "lr": [given["sampler"]["lr"], changed["sampler"]["lr"]]}
    where = write_atomically(
        run.root / "bias.json", (json.dumps(comparison, indent=2, allow_nan=False) + "\n").encode()
    )
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no width; the table must not be cut to a guess of it
    console.print(change_table(comparison))
    for line in change_lines(comparison):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"bias check: {where}", soft_wrap=True, highlight=False)
    problems = list(_problems(comparison))
    if settings.strict and problems:
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


def metric_changes(before: Results, after: Results, limits: Mapping[str, float]) -> dict[str, Any]:
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
    comparison = {}
    for name in METRICS[before.task]:
        changes = [
            _required_score(new[chain], name) - _required_score(old[chain], name) for chain in old.keys() & new.keys()
        ]
        was, becomes = _required_score(before.ensemble, name), _required_score(after.ensemble, name)
        change = becomes - was
        several = len(changes) > 1
        comparison[name] = {
            "before": was,
            "after": becomes,
            "change": change,
            "chains_change": statistics.fmean(changes) if changes else None,
            "se": statistics.stdev(changes) / math.sqrt(len(changes)) if several else None,
            "limit": float(limits[name]),
            "passed": abs(change) < limits[name] if several else None,
            "reason": None if several else "one chain does not tell a change from chance: it needs at least two",
        }
    return comparison


def change_table(comparison: Mapping[str, Any]) -> Table:
    """The comparison's numbers for the terminal."""
    from rich import box
    from rich.table import Table

    old, new = comparison["lr"]
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    rows.add_column("", no_wrap=True)
    for title in (f"ε = {old:.3g}", f"ε = {new:.3g}", "change", "± chains", "± examples"):
        rows.add_column(title, justify="right", no_wrap=True)
    numbers = {metric_title(name): comparison[name] for name in _compared(comparison)}
    cells = {
        title: [one["before"], one["after"], one["change"], one["se"], one.get("test_se")]
        for title, one in numbers.items()
    }
    if None not in (accepted := comparison.get("acceptance", [None])):
        was, becomes = accepted
        cells["acceptance"] = [was, becomes, becomes - was, None, None]
    for title, values in cells.items():
        specs = (".4f", ".4f", "+.4f", ".4f", ".4f")
        shown = ["–" if value is None else format(value, spec) for value, spec in zip(values, specs, strict=True)]
        rows.add_row(title, *(text.replace("-", "−") for text in shown))
    return rows


def change_lines(comparison: Mapping[str, Any]) -> list[str]:
    """What each row of the table says, in words."""
    named = {name: comparison[name] for name in _compared(comparison)}
    lines = [f"{metric_title(name)}: {change_verdict(one)} (limit {one['limit']:g})" for name, one in named.items()]
    if None not in comparison.get("acceptance", [None]):
        lines.append("acceptance: of steps on all data, had they a Metropolis test; 1 without a bias")
    return lines


def change_verdict(one: Mapping[str, Any]) -> str:
    """What a metric's change says, in words."""
    if one["passed"] is None:
        return str(one["reason"])
    words = "small" if one["passed"] else "too large"
    return f"{words}, but chains differ by as much" if 2 * one["se"] > one["limit"] else words


def metric_title(name: str) -> str:
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
            yield f"{metric_title(name)} changes by {one['change']:+.4f} at half the step size ({why})"


def _by_chain(results: Results) -> dict[int, Scores]:
    """Scores of each chain's ensemble, by its number."""
    return {one.chain: one.scores for one in results.chains}


def _required_score(scores: Scores | None, name: str) -> float:
    """A score that the run has.

    Raises:
        DataError: it has none.
    """
    value = score(scores, name)
    if value is None:
        raise DataError(f"the run has no {name.upper()}, and cannot be compared by it")
    return value


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


def main() -> None:
    """Entry point."""
    run_command("bias_check", __doc__, bias_check, BiasSettings)


if __name__ == "__main__":
    main()
