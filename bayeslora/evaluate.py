"""python -m bayeslora.evaluate run_dir=…: predict with every draw of a run, write metrics.json and the report.

Works on finished and half-finished runs; repeating it writes the same numbers again.

Examples:
    python -m bayeslora.evaluate run_dir=outputs/quickstart/2026-11-24_12-00-00
    python -m bayeslora.evaluate run_dir=… split=validation
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bayeslora.cli import run_command
from bayeslora.errors import ConfigError, DataError, require

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig
    from torch import Tensor

    from bayeslora.build import Setup
    from bayeslora.diagnostics.uncertainty import Entropy
    from bayeslora.posterior import Posterior
    from bayeslora.rundir import RunDirectory


@dataclass
class Predictions:
    """What one streamed pass over all draws leaves.

    Attributes:
        targets: true classes [N].
        map: log p [N, C] of the MAP baseline, or None.
        ensemble: log p [N, C] of all draws.
        chains: metrics of each chain's ensemble.
        draws: metrics of the single draws of each chain, by name: [draws].
        cumulative: metrics of the ensemble of the first so many draws (in rounds over the chains).
        probes: log p of each chain's draws on part of the probe set, [draws, P, C].
        entropy: the ensemble's predictive entropy and its parts, [N] each.
    """

    targets: Tensor
    map: Tensor | None
    ensemble: Tensor
    chains: list[dict[str, float]]
    draws: list[dict[str, list[float]]]
    cumulative: dict[str, list[float]] = field(default_factory=dict)
    probes: list[np.ndarray] = field(default_factory=list)
    entropy: Entropy | None = None


def evaluate(run: RunDirectory, setup: Setup) -> dict[str, Any]:
    """Evaluate a run: write `metrics.json`, `diagnostics.nc` and `report/`, print the table.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: the run holds no draws, or a draw is corrupt or of another model.
    """
    from bayeslora.posterior import Posterior

    posterior = Posterior.load(run.root, setup.model())
    if not len(posterior):
        raise DataError(f"{run.root} holds no draws yet; repeat the training command with run_dir={run.root}")
    with run.evaluating():
        predictions = predict(posterior, setup)
        series = scalar_series(posterior)
        provenance = run.config.get("provenance", {})
        counts = {"split": setup.cfg.evaluate.split, "draws": len(posterior), "chains": len(series)}
        metrics = summarise(predictions, series) | {"provenance": provenance | counts}
        run.write_metrics(metrics)
        _write_report(run, setup, predictions, series, metrics)
    return metrics


def predict(posterior: Posterior, setup: Setup) -> Predictions:
    """One pass over all draws; holds one [N, C] tensor a chain, and of each draw some 2,000 predictions."""
    import numpy as np

    from bayeslora.diagnostics.metrics import metrics
    from bayeslora.diagnostics.uncertainty import EntropySplit
    from bayeslora.posterior import Mixture
    from bayeslora.posterior.predictive import log_probs as predicted

    split = setup.evaluation_split()
    loader, targets = setup.loader(split), split.targets.cpu()
    whole, chains = Mixture(), {store.chain: Mixture() for store in posterior.stores}
    singles: dict[int, dict[str, list[float]]] = {chain: defaultdict(list) for chain in chains}
    curve: dict[str, list[float]] = defaultdict(list)
    entropy = EntropySplit()
    probe_loader, probes = setup.function_probe(), {chain: [] for chain in chains}  # type: ignore[var-annotated]
    for draws in posterior.rounds():
        for draw in draws:
            model = posterior.model_of(draw)
            log_probs = predicted(model, loader())
            probes[draw.chain].append(predicted(model, probe_loader()).numpy())
            chains[draw.chain].add(log_probs)
            whole.add(log_probs)
            entropy.add(log_probs)
            for name, value in metrics(log_probs, targets).items():
                singles[draw.chain][name].append(value)
        for name, value in ({"draws": whole.count} | metrics(whole.log_probs, targets)).items():
            curve[name].append(value)
    per_chain = [metrics(mixture.log_probs, targets) for mixture in chains.values()]
    baseline = posterior.predict_map(loader)
    stacked = [np.stack(rows) for rows in probes.values()]
    return Predictions(
        targets, baseline, whole.log_probs, per_chain, list(singles.values()), curve, stacked, entropy.entropy
    )


def summarise(predictions: Predictions, series: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `metrics.json` but for its provenance."""
    import numpy as np

    from bayeslora.diagnostics.convergence import convergence, function_space
    from bayeslora.diagnostics.metrics import metrics

    def single(name: str) -> dict[str, float | None]:
        chains = [np.array(draws[name]) for draws in predictions.draws]
        values = np.concatenate(chains)
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return {"mean": float(values.mean()), "sd": sd, "mcse": convergence(chains).mcse_mean}

    return {
        "map": None if predictions.map is None else metrics(predictions.map, predictions.targets),
        "draw": {name: single(name) for name in predictions.draws[0]},
        "ensemble": metrics(predictions.ensemble, predictions.targets),
        "uncertainty": _uncertainty(predictions),
        "chains": predictions.chains,
        "diagnostics": {name: convergence([s[name] for s in series]).to_json() for name in ("potential", "l2_norm")}
        | {"function_space": function_space(predictions.probes).to_json()},
    }


def _uncertainty(predictions: Predictions) -> dict[str, Any]:
    """Mean predictive entropies in nats: MAP's, the ensemble's, and the latter split into its two parts."""
    from bayeslora.diagnostics.uncertainty import predictive_entropy

    entropy, baseline = predictions.entropy, predictions.map
    parts = ("total", "aleatoric", "mutual_information")
    return {
        "map": None if baseline is None else {"total": predictive_entropy(baseline).mean().item()},
        "ensemble": None if entropy is None else {name: getattr(entropy, name).mean().item() for name in parts},
    }


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
    """Write `diagnostics.nc` and `report/`; print the table and where the report is."""
    from rich.console import Console

    from bayeslora.diagnostics.convergence import to_inference_data
    from bayeslora.diagnostics.metrics import reliability
    from bayeslora.report.describe import settings, title
    from bayeslora.report.page import ReportData, write_report
    from bayeslora.report.table import metrics_table

    to_inference_data({name: [s[name] for s in series] for name in series[0] if name != "step"}, run.diagnostics_file)
    diagrams = {"MAP": predictions.map, "Ensemble": predictions.ensemble}
    data = ReportData(
        title=title(setup),
        settings=settings(setup),
        metrics=metrics,
        steps=[s["step"] for s in series],
        potential=[s["potential"] for s in series],
        l2_norm=[s["l2_norm"] for s in series],
        cumulative=predictions.cumulative,
        reliability={name: reliability(p, predictions.targets) for name, p in diagrams.items() if p is not None},
        notes=_notes(run, setup),
    )
    page = write_report(data, run.report)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no width; the table must not be cut to a guess of it
    console.print(metrics_table(metrics))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


def _notes(run: RunDirectory, setup: Setup) -> list[str]:
    """What a reader must know before the numbers."""
    from bayeslora.report.describe import notes

    stores = [run.store(chain) for chain in range(setup.cfg.chain.num_chains)]
    diverged = {s.chain: e["step"] for s in stores for e in s.events() if e["event"] == "diverged" and "step" in e}
    return notes(setup, {store.chain: len(store) for store in stores}, diverged)


def evaluate_run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate the run that `cfg.run_dir` names, with `split` and `batch_size` as given."""
    from omegaconf import OmegaConf

    from bayeslora.build import build
    from bayeslora.rundir import RunDirectory

    unknown = sorted(set(cfg) - {"run_dir", "split", "batch_size"})
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}: evaluate takes run_dir, split and batch_size")
    require(not OmegaConf.is_missing(cfg, "run_dir"), "which run? Give its folder: run_dir=outputs/…")
    run = RunDirectory(cfg.run_dir)
    recorded = run.recorded()
    for key in ("split", "batch_size"):
        if cfg[key] is not None:
            recorded.evaluate[key] = cfg[key]
    return evaluate(run, build(recorded))


def main() -> None:
    """Entry point."""
    run_command("evaluate", lambda cfg: evaluate_run(cfg) and None)


if __name__ == "__main__":
    main()
