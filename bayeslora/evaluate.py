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

from typing import TYPE_CHECKING

from bayeslora.app.cli import run_command
from bayeslora.errors import ConfigError, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.evaluation.results import Results

OVERRIDES = (
    "split", "batch_size", "precision", "reference", "ood", "ood_path", "corruptions", "corruption_examples", "strict",
)  # fmt: skip
"""Settings of `evaluate` that the command takes; None leaves them as the run has them."""


def evaluate_run(cfg: DictConfig) -> Results:
    """Evaluate the run that `cfg.run_dir` names, with `split` and `batch_size` as given."""
    from omegaconf import OmegaConf

    taken = ("run_dir", "dataset.path", "trust", *OVERRIDES)
    unknown = sorted({*cfg} - {"dataset", *taken}) + [f"dataset.{key}" for key in cfg.dataset if key != "path"]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}: evaluate takes {', '.join(taken)}")
    require(not OmegaConf.is_missing(cfg, "run_dir"), "which run? Give its folder: run_dir=outputs/…")
    from bayeslora.app.compose import recorded
    from bayeslora.evaluation.run import evaluate
    from bayeslora.runs.directory import RunDirectory

    run = RunDirectory(cfg.run_dir)
    return evaluate(run, recorded(run, cfg.trust, cfg.dataset.path, **{key: cfg[key] for key in OVERRIDES}))


def main() -> None:
    """Entry point."""
    run_command("evaluate", lambda cfg: evaluate_run(cfg) and None)


if __name__ == "__main__":
    main()
