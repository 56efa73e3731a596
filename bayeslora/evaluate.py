"""python -m bayeslora.evaluate run_dir=…: predict with every draw of a run, write metrics.json and the report.

Works on finished and half-finished runs; repeating it writes the same numbers again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bayeslora.cli import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from bayeslora.build import Setup
    from bayeslora.posterior import Posterior
    from bayeslora.rundir import RunDirectory

METRICS = ("accuracy", "nll", "ece", "brier")


@dataclass
class Predictions:
    """What one streamed pass over all draws leaves.

    Attributes:
        map: log p [N, C] of the MAP baseline, or None.
        ensemble: log p [N, C] of all draws.
        chains: metrics of each chain's ensemble.
        draws: metrics of each single draw.
        cumulative: metrics of the ensemble of the first so many draws (in rounds over the chains).
        steps, scalars: step and scalars of each draw, chain by chain.
    """

    map: Tensor | None
    ensemble: Tensor
    chains: list[dict[str, float]]
    draws: list[dict[str, float]]
    cumulative: dict[str, list[float]] = field(default_factory=dict)


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
        from bayeslora.errors import DataError

        raise DataError(f"{run.root} holds no draws yet; repeat the training command with run_dir={run.root}")
    split = setup.evaluation_split()
    predictions = predict(posterior, setup, split.targets.cpu())
    metrics = summarise(posterior, predictions, split.targets.cpu(), run.config.get("provenance", {}))
    run.write_metrics(metrics)
    _write_report(run, setup, posterior, predictions, metrics, split.targets.cpu())
    return metrics


def predict(posterior: Posterior, setup: Setup, targets: Tensor) -> Predictions:
    """One pass over all draws; holds one [N, C] tensor a chain, whatever the number of draws."""
    from bayeslora.diagnostics.metrics import metrics
    from bayeslora.posterior import Mixture

    loader = setup.loader(setup.evaluation_split())
    mixtures = {store.chain: Mixture() for store in posterior.stores}
    whole, singles, curve = Mixture(), [], {name: [] for name in ("draws", *METRICS)}  # type: ignore[var-annotated]
    for draws in posterior.rounds():
        for draw in draws:
            log_probs = posterior.predict_draw(draw, loader)
            mixtures[draw.chain].add(log_probs)
            whole.add(log_probs)
            singles.append(metrics(log_probs, targets))
        values: dict[str, float] = {"draws": whole.count} | metrics(whole.log_probs, targets)
        for name, series in curve.items():
            series.append(values[name])
    chains = [metrics(mixture.log_probs, targets) for mixture in mixtures.values()]
    return Predictions(posterior.predict_map(loader), whole.log_probs, chains, singles, curve)


def summarise(
    posterior: Posterior, predictions: Predictions, targets: Tensor, provenance: dict[str, Any]
) -> dict[str, Any]:
    """The content of `metrics.json`."""
    import numpy as np

    from bayeslora.diagnostics.convergence import convergence
    from bayeslora.diagnostics.metrics import metrics

    draws = {name: np.array([draw[name] for draw in predictions.draws]) for name in METRICS}
    return {
        "map": None if predictions.map is None else metrics(predictions.map, targets),
        "draw": {
            name: {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            }
            for name, values in draws.items()
        },
        "ensemble": metrics(predictions.ensemble, targets),
        "chains": predictions.chains,
        "diagnostics": {
            name: convergence([scalars[name] for scalars in scalar_series(posterior)]).to_json()
            for name in ("potential", "l2_norm")
        },
        "provenance": provenance | {"examples": len(targets), "draws": len(posterior), "chains": len(posterior.stores)},
    }


def scalar_series(posterior: Posterior) -> list[dict[str, Any]]:
    """Scalars of the kept draws as arrays [draws], one dictionary a chain; with `step`."""
    import numpy as np

    series = []
    for store in posterior.stores:
        records = store.records()
        names = records[0].scalars if records else {}
        series.append(
            {name: np.array([record.scalars.get(name, np.nan) for record in records]) for name in names}
            | {"step": np.array([record.step for record in records])}
        )
    return series


def describe(setup: Setup) -> list[tuple[str, str]]:
    """Settings for the report, temperature, prior and augmentation first."""
    cfg, data, plan, prior = setup.cfg, setup.data, setup.plan, setup.potential.prior
    temperature = {1.0: "1 (the Bayes posterior)", 0.0: "0 (MAP)"}.get(cfg.temperature, f"{cfg.temperature:g}")
    if cfg.temperature not in (0.0, 1.0):
        temperature += " (tempered: not the Bayes posterior)"
    scaling = " / fan-in on weights" if prior.scaling == "fan_in" else ""
    overrides = "".join(f"; {pattern}: {value:g}" for pattern, value in prior.overrides.items())
    params = sum(p.numel() for p in setup.model().parameters() if p.requires_grad)
    sampler = {key: value for key, value in cfg.sampler.items() if not str(key).startswith("_")}
    return [
        ("Temperature", temperature),
        ("Prior", f"Gaussian, variance {prior.variance:g}{scaling}{overrides}"),
        ("Augmentation", data.augmentation),
        ("Data", f"{data.name}: N = {len(data.train):,} training examples; evaluated on {cfg.evaluate.split}"),
        ("Model", f"{cfg.model._target_.rsplit('.', 1)[-1]}, {params:,} parameters"
                  + "".join(f", {k} {v}" for k, v in cfg.model.items() if not str(k).startswith("_"))),
        ("Sampler", cfg.sampler._target_.rsplit(".", 1)[-1] + "".join(f", {k} {v:g}" if isinstance(v, float) else
                                                                       f", {k} {v}" for k, v in sampler.items())),
        ("Chains", f"{cfg.chain.num_chains} × ({plan.warmup:,} warm-up + {plan.burn_in:,} burn-in + "
                   f"{plan.num_draws:,} draws × {plan.thin:,} steps), batch {cfg.chain.batch_size or 'full'}"),
        ("Precision", f"{cfg.trainer.precision} on {cfg.trainer.accelerator}"),
        ("Seed", str(cfg.seed)),
    ]  # fmt: skip


def notes(setup: Setup, posterior: Posterior) -> list[str]:
    """What a reader must know before the numbers."""
    cfg = setup.cfg
    found = {store.chain: len(store) for store in posterior.stores}
    wanted = setup.plan.num_draws
    out = [
        f"Chain {chain} has {found.get(chain, 0)} of {wanted} draws: the run is not finished."
        for chain in range(cfg.chain.num_chains)
        if found.get(chain, 0) < wanted
    ]
    if cfg.temperature not in (0.0, 1.0):
        out.append(f"Temperature {cfg.temperature:g}: this is a tempered posterior, not the Bayes posterior (T = 1).")
    if setup.data.augment is not None:
        out.append("Training images were augmented, which softens the likelihood: the target is not the plain posterior.")
    return [*out, *setup.data.notes]


def _write_report(
    run: RunDirectory, setup: Setup, posterior: Posterior, predictions: Predictions, metrics: dict[str, Any], targets: Tensor
) -> None:
    from rich.console import Console

    from bayeslora.diagnostics.convergence import to_inference_data
    from bayeslora.diagnostics.metrics import reliability
    from bayeslora.report.page import ReportData, write_report
    from bayeslora.report.table import metrics_table

    series = scalar_series(posterior)
    to_inference_data({name: [s[name] for s in series] for name in series[0] if name != "step"}, run.diagnostics_file)
    diagrams = {"MAP": predictions.map, "Ensemble": predictions.ensemble}
    cfg = setup.cfg
    data = ReportData(
        title=f"{cfg.name}: {cfg.sampler._target_.rsplit('.', 1)[-1]} on {setup.data.name}",
        settings=describe(setup),
        metrics=metrics,
        steps=[s["step"] for s in series],
        potential=[s["potential"] for s in series],
        l2_norm=[s["l2_norm"] for s in series],
        cumulative=predictions.cumulative,
        reliability={name: reliability(p, targets) for name, p in diagrams.items() if p is not None},
        notes=notes(setup, posterior),
    )
    page = write_report(data, run.report)
    console = Console()
    console.print(metrics_table(metrics))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)


def evaluate_run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate the run that `cfg.run_dir` names, with `split` and `batch_size` as given."""
    from omegaconf import OmegaConf

    from bayeslora.build import build
    from bayeslora.errors import ConfigError
    from bayeslora.rundir import RunDirectory

    unknown = set(cfg) - {"run_dir", "split", "batch_size"}
    if unknown:
        raise ConfigError(f"unknown key {', '.join(sorted(unknown))}: evaluate takes run_dir, split and batch_size")
    run = RunDirectory(cfg.run_dir)
    config = {key: value for key, value in run.config.items() if key != "provenance"}
    recorded = OmegaConf.create(config)
    for key in ("split", "batch_size"):
        if cfg[key] is not None:
            recorded.evaluate[key] = cfg[key]
    return evaluate(run, build(recorded))


def main() -> None:
    """Entry point."""
    run_command("evaluate", lambda cfg: evaluate_run(cfg) and None)


if __name__ == "__main__":
    main()
