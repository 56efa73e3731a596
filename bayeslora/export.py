"""python -m bayeslora.export run_dir=… out_dir=…: every draw of a LoRA run as an ordinary PEFT adapter folder.

Examples:
    python -m bayeslora.export run_dir=outputs/mrpc_minilm_sgld/… out_dir=adapters
    python -m bayeslora.export run_dir=… out_dir=adapters chains=0                      # or chains=[0,2]
    python -m bayeslora.export run_dir=… out_dir=adapters last=5                        # of every chain
    python -m bayeslora.export run_dir=… out_dir=adapters push_to_hub=OWNER/NAME
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayeslora.app.cli import run_command
from bayeslora.errors import ConfigError, DataError, require

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from bayeslora.experiment import Experiment
    from bayeslora.runs.directory import RunDirectory

KEYS = {"run_dir", "out_dir", "chains", "last", "push_to_hub", "trust", "dataset"}


def export(cfg: DictConfig) -> list[Path]:
    """Write the adapters that `cfg` names; returns their folders.

    Raises:
        ConfigError: a key is missing or unknown, or the run's model has no adapter.
        DataError: the run holds no draws, or a draw is corrupt.
    """
    from omegaconf import OmegaConf

    unknown = sorted({*cfg} - KEYS) + [f"dataset.{key}" for key in cfg.dataset if key != "path"]
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}: export takes {', '.join(sorted(KEYS))}")
    missing = [key for key in ("run_dir", "out_dir") if OmegaConf.is_missing(cfg, key)]
    require(not missing, f"{' and '.join(missing)} missing: give run_dir=outputs/… of a run and out_dir=FOLDER")
    require(
        cfg.last is None or (type(cfg.last) is int and cfg.last >= 1),
        f"last={cfg.last} must be a number of draws of every chain, at least 1, or null for all",
    )
    chosen = OmegaConf.to_container(cfg.chains) if OmegaConf.is_list(cfg.chains) else cfg.chains
    chains = chosen if chosen is None or isinstance(chosen, list) else [chosen]
    require(
        chains is None or (chains != [] and all(type(chain) is int for chain in chains)),
        f"chains={chosen} must be the number of a chain, a list of them, or null for all",
    )
    from bayeslora.models.upload import check_upload, upload

    if cfg.push_to_hub is not None:
        check_upload(cfg.push_to_hub)
    from bayeslora.app.compose import recorded
    from bayeslora.atomic import user_path
    from bayeslora.models.adapters import HEAD, export_adapters
    from bayeslora.posterior import Posterior
    from bayeslora.runs.directory import RunDirectory

    run = RunDirectory(cfg.run_dir)
    experiment = recorded(run, cfg.trust, cfg.dataset.path)
    posterior = Posterior.load(run.root, experiment.model(), experiment.likelihood)
    stores = [store for store in posterior.stores if chains is None or store.chain in chains]
    lacking = sorted(set(chains or ()) - {store.chain for store in stores})
    if lacking or not stores:
        raise DataError(f"{run.root} holds no draws{f' of chain {lacking[0]}' if lacking else ''}")
    draws = (store.load(record) for store in stores for record in store.records()[-(cfg.last or 0) :])
    described = facts(run, experiment)
    folders = export_adapters(posterior.model, draws, user_path(cfg.out_dir), described)
    onto = "AutoModel" if (folders[0] / HEAD).is_file() else "AutoModelForSequenceClassification"
    print(f"{len(folders)} adapters for {onto} in {cfg.out_dir}; each one's README.md says how to load it", flush=True)  # noqa: T201
    if cfg.push_to_hub is not None:
        print(f"pushed to {upload(folders, cfg.push_to_hub, described['title'])}", flush=True)  # noqa: T201
    return folders


def facts(run: RunDirectory, experiment: Experiment) -> dict[str, str]:
    """The lines of an adapter's model card: what was sampled, how, and what came of it."""
    from bayeslora.evaluation.results import Results
    from bayeslora.report.words import run_settings, run_title

    lines = {"title": run_title(experiment)} | dict(run_settings(experiment))
    if run.metrics_file.is_file():
        results = Results.read(run.metrics_file)
        for label, scores in (("MAP", results.map), ("Ensemble of all draws", results.ensemble)):
            values = {name: value for name, value in vars(scores).items() if value is not None} if scores else {}
            if values:
                lines[label] = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return lines


def main() -> None:
    """Entry point."""
    run_command("export", lambda cfg: export(cfg) and None)


if __name__ == "__main__":
    main()
