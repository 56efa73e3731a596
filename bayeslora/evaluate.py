"""python -m bayeslora.evaluate run_dir=…: predict with every draw of a run, write metrics.json and the report.

Works on finished and half-finished runs; repeating it writes the same numbers again.

Examples:
    python -m bayeslora.evaluate run_dir=outputs/quickstart/2026-11-24_12-00-00
    python -m bayeslora.evaluate run_dir=… split=validation
    python -m bayeslora.evaluate run_dir=… dataset.path=/data/mine.npz      the data have moved
    python -m bayeslora.evaluate run_dir=… reference=predictive.npz ood=cifar100 ood_path=DATA/cifar100 corruptions=true
    python -m bayeslora.evaluate run_dir=… --strict          exit code 4 unless every criterion is met
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bayeslora.cli import run_command
from bayeslora.errors import ConfigError, CriteriaError, DataError, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.evaluation.predictions import Predictions
    from bayeslora.evaluation.regression import RegressionPass
    from bayeslora.evaluation.results import Provenance, Results
    from bayeslora.evaluation.series import Series
    from bayeslora.rundir import RunDirectory


def evaluate(run: RunDirectory, setup: Setup) -> Results:
    """Evaluate a run: write `metrics.json`, `diagnostics.nc` and `report/`, print the table.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: the run holds no draws, or a draw is corrupt or of another model; a reference does not fit.
        CriteriaError: `evaluate.strict` and a criterion is not met; all is written before.
    """
    from bayeslora.evaluation.classification import evaluate_classes
    from bayeslora.evaluation.criteria import failed, judge
    from bayeslora.evaluation.rechecks import check_recorded_nll
    from bayeslora.evaluation.regression import evaluate_reals
    from bayeslora.evaluation.series import scalar_series
    from bayeslora.evaluation.temperature import with_temperatures
    from bayeslora.loggers import log_evaluation
    from bayeslora.posterior import Posterior

    posterior = Posterior.load(run.root, setup.model(), setup.likelihood)
    if not len(posterior):
        raise DataError(f"{run.root} holds no draws yet; repeat the training command with run_dir={run.root}")
    check_recorded_nll(posterior, setup)
    with run.evaluating():
        series = scalar_series(posterior)
        of_task = evaluate_classes if setup.data.real is None else evaluate_reals
        predictions, results = of_task(posterior, setup, series)
        results = replace(results, diagnostics=with_temperatures(results.diagnostics, posterior, setup, series))
        results = replace(results, provenance=provenance(run, setup, results, series))
        results = replace(results, criteria=judge(results, setup.evaluation.criteria))
        run.write_metrics(results.to_json())
        write_report(run, setup, predictions, series, results)
        log_evaluation(setup.cfg, run, results)
    problems = failed(results.criteria)
    if setup.evaluation.strict and problems:
        raise CriteriaError(*problems)
    return results


def provenance(run: RunDirectory, setup: Setup, results: Results, series: Series) -> Provenance:
    """Where the numbers come from, and how long they took."""
    from bayeslora.codec import decode
    from bayeslora.evaluation.results import Provenance, Tokens

    seconds = run.phase_totals("seconds")
    total, steps = sum(seconds.values()), sum(run.phase_totals("steps").values())
    sampling = sum(spent for phase, spent in seconds.items() if phase != "warm-up")
    ess, counts = results.diagnostics.of("potential").ess_bulk, setup.tokens()
    rate = counts.per_batch * steps / total if counts is not None and total else None
    return replace(
        decode(Provenance, run.config.get("provenance", {}), "provenance"),
        split=setup.evaluation.split,
        draws=sum(len(chain["step"]) for chain in series),
        chains=len(series),
        seconds=seconds,
        ess_per_second=ess / sampling if ess is not None and sampling else None,
        tokens=None if counts is None else Tokens(counts.per_batch, counts.padding, rate),
        short_burn_in=setup.short_burn_in(),
    )


def write_report(
    run: RunDirectory, setup: Setup, predictions: Predictions | RegressionPass, series: Series, results: Results
) -> None:
    """Write `diagnostics.nc` and `report/`; print the table, what became of the criteria, and where the report is."""
    from bayeslora.diagnostics.convergence import to_inference_data
    from bayeslora.report.data import report_data
    from bayeslora.report.page import write_page
    from bayeslora.report.table import print_summary

    data = report_data(run, setup, predictions, series, results)
    to_inference_data(data.series, run.diagnostics_file, predictions.probe_arrays)
    print_summary(results, write_page(data, run.report))


OVERRIDES = ("split", "batch_size", "reference", "ood", "ood_path", "corruptions", "corruption_examples", "strict")
"""Settings of `evaluate` that the command takes; None leaves them as the run has them."""


def evaluate_run(cfg: DictConfig) -> Results:
    """Evaluate the run that `cfg.run_dir` names, with `split` and `batch_size` as given."""
    from omegaconf import OmegaConf

    taken = ("run_dir", "dataset.path", "trust", *OVERRIDES)
    unknown = sorted({*cfg} - {"dataset", *taken}) + [f"dataset.{key}" for key in cfg.dataset if key != "path"]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}: evaluate takes {', '.join(taken)}")
    require(not OmegaConf.is_missing(cfg, "run_dir"), "which run? Give its folder: run_dir=outputs/…")
    from bayeslora.build import build
    from bayeslora.recorded import names
    from bayeslora.rundir import RunDirectory

    run = RunDirectory(cfg.run_dir)
    recorded = run.recorded(names(cfg.trust), cfg.dataset.path)
    for key in OVERRIDES:
        if cfg[key] is not None:
            recorded.evaluate[key] = cfg[key]
    return evaluate(run, build(recorded))


def main() -> None:
    """Entry point."""
    run_command("evaluate", lambda cfg: evaluate_run(cfg) and None)


if __name__ == "__main__":
    main()
