"""python -m bayeslora.export run_dir=… out_dir=…: every draw of a LoRA run as an ordinary PEFT adapter folder.

Examples:
    python -m bayeslora.export run_dir=outputs/mrpc_minilm_sgld/… out_dir=adapters
    python -m bayeslora.export run_dir=… out_dir=adapters chains=0                      # or chains=[0,2]
    python -m bayeslora.export run_dir=… out_dir=adapters last=5                        # of every chain
    python -m bayeslora.export run_dir=… out_dir=adapters push_to_hub=OWNER/NAME
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bayeslora.app.cli import run_command
from bayeslora.app.commands import OfRun
from bayeslora.counts import counted
from bayeslora.errors import DataError, Problems

if TYPE_CHECKING:
    from pathlib import Path

    from bayeslora.experiment import Experiment
    from bayeslora.runs.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class ExportSettings(OfRun):
    """Settings of the command beside those of a run.

    Attributes:
        out_dir: where the adapters go.
        chains: the number of a chain, or a list of them; None: all.
        last: only so many draws of every chain; None: all.
        push_to_hub: OWNER/NAME of a model of the hub to upload to, or None.

    Raises:
        ConfigError: a value is impossible.
    """

    out_dir: str = field(metadata={"question": "where to? Give a folder: out_dir=FOLDER"})
    chains: Any = None
    last: Any = None
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        problems = Problems()
        if self.last is not None and not (type(self.last) is int and self.last >= 1):
            problems.add(f"last={self.last} must be a number of draws of every chain, at least 1, or null for all")
        chosen = self.chosen
        if chosen is not None and not (chosen and all(type(chain) is int for chain in chosen)):
            problems.add(f"chains={self.chains} must be the number of a chain, a list of them, or null for all")
        problems.raise_if_any()

    @property
    def chosen(self) -> list[Any] | None:
        """Numbers of the chains whose draws are written; None for all."""
        return self.chains if self.chains is None or isinstance(self.chains, list) else [self.chains]


def export(settings: ExportSettings) -> list[Path]:
    """Write adapters; returns their folders.

    Raises:
        ConfigError: the run's model has no adapter.
        DataError: the run holds no draws, or a draw is corrupt.
    """
    from bayeslora.models.adapters import check_upload, upload

    if settings.push_to_hub is not None:
        check_upload(settings.push_to_hub)
    from bayeslora.atomic import user_path
    from bayeslora.models.adapters import export_adapters, read_origin
    from bayeslora.posterior import Posterior
    from bayeslora.runs.directory import RunDirectory

    run = RunDirectory(settings.run_dir)
    experiment, chains = settings.experiment(run), settings.chosen
    posterior = Posterior.load(run.root, experiment.model(), experiment.likelihood)
    stores = [store for store in posterior.stores if chains is None or store.chain in chains]
    lacking = sorted(set(chains or ()) - {store.chain for store in stores})
    if lacking or not stores:
        raise DataError(f"{run.root} holds no draws{f' of chain {lacking[0]}' if lacking else ''}")
    draws = (store.load(record) for store in stores for record in store.records()[-(settings.last or 0) :])
    described = facts(run, experiment)
    folders = export_adapters(posterior.model, draws, user_path(settings.out_dir), described)
    onto = read_origin(folders[0])["base_class"]
    message = (
        f"{counted(len(folders), 'adapter')} for {onto} in {settings.out_dir}; each one's README.md says how to load it"
    )
    print(message, flush=True)  # noqa: T201
    if settings.push_to_hub is not None:
        print(f"pushed to {upload(folders, settings.push_to_hub, described['title'])}", flush=True)  # noqa: T201
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
    run_command("export", __doc__, export, ExportSettings)


if __name__ == "__main__":
    main()
