"""python -m bayeslora.evaluate run_dir=…: predict with every draw of a run, write metrics.json and the report.

Works on finished and half-finished runs; repeating it writes the same numbers again.

Examples:
    python -m bayeslora.evaluate run_dir=outputs/quickstart/2026-11-24_12-00-00
    python -m bayeslora.evaluate run_dir=… split=validation
    python -m bayeslora.evaluate run_dir=… reference=predictive.npz ood=cifar100 ood_path=DATA/cifar100 corruptions=true
    python -m bayeslora.evaluate run_dir=… --strict          exit code 4 unless every criterion is met
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bayeslora.cli import run_command
from bayeslora.errors import ConfigError, CriteriaError, DataError, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.posterior import Posterior
    from bayeslora.report.page import ReportData
    from bayeslora.rundir import RunDirectory


def evaluate(run: RunDirectory, setup: Setup) -> dict[str, Any]:
    """Evaluate a run: write `metrics.json`, `diagnostics.nc` and `report/`, print the table.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: the run holds no draws, or a draw is corrupt or of another model; a reference does not fit.
        CriteriaError: `evaluate.strict` and a criterion is not met; all is written before.
    """
    from bayeslora.evaluation.criteria import failed, judge
    from bayeslora.loggers import log_evaluation
    from bayeslora.posterior import Posterior

    posterior = Posterior.load(run.root, setup.model(), setup.likelihood)
    if not len(posterior):
        raise DataError(f"{run.root} holds no draws yet; repeat the training command with run_dir={run.root}")
    with run.evaluating():
        series = scalar_series(posterior)
        look = _classes if setup.data.real is None else _real_numbers
        found = look(run, setup, posterior, series)
        metrics = found.summary | {"provenance": _provenance(run, setup, found.summary, series)}
        metrics |= {"criteria": judge(metrics, setup.cfg.evaluate.criteria)}
        run.write_metrics(metrics)
        _write_report(run, found, metrics)
        log_evaluation(setup.cfg, run, metrics)
    problems = failed(metrics["criteria"])
    if setup.cfg.evaluate.strict and problems:
        raise CriteriaError(*problems)
    return metrics


@dataclass
class Found:
    """What one pass over the draws gives.

    Attributes:
        summary: of `metrics.json` all but criteria and provenance.
        report: makes the report's data from the content of `metrics.json`.
        probes: predictions of each chain's draws on part of the probe set, [draws, P, C].
    """

    summary: dict[str, Any]
    report: Callable[[dict[str, Any]], ReportData]
    probes: list[Any]


def _classes(run: RunDirectory, setup: Setup, posterior: Posterior, series: list[dict[str, Any]]) -> Found:
    """Evaluate a classifier."""
    from bayeslora.evaluation.beyond import beyond, further_views, load_fitting_reference
    from bayeslora.evaluation.predictions import Pass, predict
    from bayeslora.evaluation.summary import summarise
    from bayeslora.report.gather import report_data

    split = setup.evaluation_split()
    targets, loader = split.targets.cpu(), setup.loader(split)
    further, reference = further_views(setup), load_fitting_reference(setup, targets)
    asked = Pass(targets, loader, setup.function_probe(), further.views, reference)
    predictions = predict(posterior, asked, setup.validation_set())
    summary = summarise(predictions, series, setup.gradients(predictions.chains))
    summary |= beyond(setup, predictions, further.missing)
    return Found(
        summary,
        lambda metrics: report_data(setup, predictions, series, metrics, _notes(run, setup)),
        predictions.probes,
    )


def _real_numbers(run: RunDirectory, setup: Setup, posterior: Posterior, series: list[dict[str, Any]]) -> Found:
    """Evaluate a regression."""
    import numpy as np

    from bayeslora.evaluation.regression import run_through, summarise
    from bayeslora.report.gather import regression_report_data

    found = run_through(posterior, setup)
    chains = sorted(found.chains)
    summary = summarise(found, posterior, series, setup)
    return Found(
        summary,
        lambda metrics: regression_report_data(setup, found, series, metrics, _notes(run, setup)),
        [np.stack(found.probes[chain]) for chain in chains],
    )


def _provenance(
    run: RunDirectory, setup: Setup, summary: dict[str, Any], series: list[dict[str, Any]]
) -> dict[str, Any]:
    """Where the numbers come from, and how long they took."""
    seconds = run.phase_totals("seconds")
    sampling = sum(spent for phase, spent in seconds.items() if phase != "warm-up")
    ess = summary["diagnostics"]["potential"]["ess_bulk"]
    timing = {"seconds": seconds, "ess_per_second": ess / sampling if ess is not None and sampling else None}
    timing |= _tokens(run, setup)
    counts = {"split": setup.cfg.evaluate.split, "draws": sum(len(s["step"]) for s in series), "chains": len(series)}
    recorded: dict[str, Any] = run.config.get("provenance", {})
    return recorded | counts | timing


def _tokens(run: RunDirectory, setup: Setup) -> dict[str, Any]:
    """Of a run on texts: tokens a batch, the fraction of padding beside them, tokens per second of all steps."""
    counts = setup.tokens()
    if counts is None:
        return {}
    steps, seconds = (sum(run.phase_totals(of).values()) for of in ("steps", "seconds"))
    rate = counts.per_batch * steps / seconds if seconds else None
    return {"tokens": {"per_batch": counts.per_batch, "padding": counts.padding, "per_second": rate}}


def scalar_series(posterior: Posterior) -> list[dict[str, Any]]:
    """Scalars of the kept draws as arrays [draws], one dictionary a chain; with `step`."""
    import numpy as np

    def arrays(records: list[Any]) -> dict[str, Any]:
        scalars = {name: np.array([r.scalars.get(name, np.nan) for r in records]) for name in records[0].scalars}
        return scalars | {"step": np.array([r.step for r in records])}

    return [arrays(store.records()) for store in posterior.stores]


def _write_report(run: RunDirectory, found: Found, metrics: dict[str, Any]) -> None:
    """Write `diagnostics.nc` and `report/`; print the table, what became of the criteria, and where the report is."""
    from rich.console import Console

    from bayeslora.diagnostics.convergence import to_inference_data
    from bayeslora.report.page import write_report
    from bayeslora.report.table import criteria_lines, metrics_table

    data = found.report(metrics)
    to_inference_data(data.series, run.diagnostics_file, found.probes)
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
