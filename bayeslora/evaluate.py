"""python -m bayeslora.evaluate run_dir=…: predict with every draw of a run, write metrics.json and the report.

Works on finished and half-finished runs; repeating it writes the same numbers again.

Examples:
    python -m bayeslora.evaluate run_dir=outputs/quickstart/2026-11-24_12-00-00
    python -m bayeslora.evaluate run_dir=… split=validation
    python -m bayeslora.evaluate run_dir=… reference=predictive.npz ood=cifar100 ood_path=DATA/cifar100 corruptions=true
    python -m bayeslora.evaluate run_dir=… --strict          exit code 4 unless every criterion is met
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayeslora.cli import run_command
from bayeslora.errors import ConfigError, CriteriaError, DataError, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.evaluation.predictions import Predictions
    from bayeslora.posterior import Posterior
    from bayeslora.rundir import RunDirectory


def evaluate(run: RunDirectory, setup: Setup) -> dict[str, Any]:
    """Evaluate a run: write `metrics.json`, `diagnostics.nc` and `report/`, print the table.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: the run holds no draws, or a draw is corrupt or of another model; a reference or a second dataset
            does not fit.
        CriteriaError: `evaluate.strict` and a criterion is not met; all is written before.
    """
    from bayeslora.evaluation.beyond import further_views, load_fitting_reference
    from bayeslora.evaluation.criteria import failed, judge
    from bayeslora.evaluation.predictions import Pass, predict
    from bayeslora.loggers import log_evaluation
    from bayeslora.posterior import Posterior

    posterior = Posterior.load(run.root, setup.model())
    if not len(posterior):
        raise DataError(f"{run.root} holds no draws yet; repeat the training command with run_dir={run.root}")
    with run.evaluating():
        split = setup.evaluation_split()
        targets, loader = split.targets.cpu(), setup.loader(split)
        asked = Pass(
            targets, loader, setup.function_probe(), further_views(setup), load_fitting_reference(setup, targets)
        )
        predictions = predict(posterior, asked, setup.validation_set())
        series = scalar_series(posterior)
        metrics = _metrics(run, setup, predictions, series)
        metrics |= {"criteria": judge(metrics, setup.cfg.evaluate.criteria)}
        run.write_metrics(metrics)
        _write_report(run, setup, predictions, series, metrics)
        log_evaluation(setup.cfg, run, metrics)
    problems = failed(metrics["criteria"])
    if setup.cfg.evaluate.strict and problems:
        raise CriteriaError(*problems)
    return metrics


def _metrics(run: RunDirectory, setup: Setup, predictions: Predictions, series: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `metrics.json` but for its criteria."""
    from bayeslora.evaluation.beyond import beyond
    from bayeslora.evaluation.summary import summarise

    summary = summarise(predictions, series, setup.gradients(predictions.chains))
    seconds = run.phase_seconds()
    sampling = sum(spent for phase, spent in seconds.items() if phase != "warm-up")
    ess = summary["diagnostics"]["potential"]["ess_bulk"]
    timing = {"seconds": seconds, "ess_per_second": ess / sampling if ess is not None and sampling else None}
    counts = {"split": setup.cfg.evaluate.split, "draws": sum(len(s["step"]) for s in series), "chains": len(series)}
    provenance = run.config.get("provenance", {}) | counts | timing
    return summary | beyond(setup, predictions) | {"provenance": provenance}


def scalar_series(posterior: Posterior) -> list[dict[str, Any]]:
    """Scalars of the kept draws as arrays [draws], one dictionary a chain; with `step`."""
    import numpy as np

    def arrays(records: list[Any]) -> dict[str, Any]:
        scalars = {name: np.array([r.scalars.get(name, np.nan) for r in records]) for name in records[0].scalars}
        return scalars | {"step": np.array([r.step for r in records])}

    return [arrays(store.records()) for store in posterior.stores]


def _write_report(
    run: RunDirectory, setup: Setup, predictions: Predictions, series: list[dict[str, Any]], metrics: dict[str, Any]
) -> None:
    """Write `diagnostics.nc` and `report/`; print the table, what became of the criteria, and where the report is."""
    from rich.console import Console

    from bayeslora.diagnostics.convergence import to_inference_data
    from bayeslora.report.gather import report_data
    from bayeslora.report.page import write_report
    from bayeslora.report.table import criteria_lines, metrics_table

    data = report_data(setup, predictions, series, metrics, _notes(run, setup))
    to_inference_data(data.series, run.diagnostics_file, predictions.probes)
    page = write_report(data, run.report)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no width; the table must not be cut to a guess of it
    console.print(metrics_table(metrics))
    for line in (*criteria_lines(metrics), f"report: {page}"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _notes(run: RunDirectory, setup: Setup) -> list[str]:
    """What a reader must know before the numbers."""
    from bayeslora.report.describe import notes

    stores = [run.store(chain) for chain in range(setup.cfg.chain.num_chains)]
    diverged = {s.chain: e["step"] for s in stores for e in s.events() if e["event"] == "diverged" and "step" in e}
    return notes(setup, {store.chain: len(store) for store in stores}, diverged)


OVERRIDES = ("split", "batch_size", "reference", "ood", "ood_path", "corruptions", "corruption_examples", "strict")
"""Settings of `evaluate` that the command takes; None leaves them as the run has them."""


def evaluate_run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate the run that `cfg.run_dir` names, with `split` and `batch_size` as given."""
    from omegaconf import OmegaConf

    from bayeslora.build import build
    from bayeslora.recorded import names
    from bayeslora.rundir import RunDirectory

    unknown = sorted(set(cfg) - {"run_dir", "trust", *OVERRIDES})
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}: evaluate takes run_dir, trust, {', '.join(OVERRIDES)}")
    require(not OmegaConf.is_missing(cfg, "run_dir"), "which run? Give its folder: run_dir=outputs/…")
    run = RunDirectory(cfg.run_dir)
    recorded = run.recorded(names(cfg.trust))
    for key in OVERRIDES:
        if cfg[key] is not None:
            recorded.evaluate[key] = cfg[key]
    return evaluate(run, build(recorded))


def main() -> None:
    """Entry point."""
    run_command("evaluate", lambda cfg: evaluate_run(cfg) and None)


if __name__ == "__main__":
    main()
