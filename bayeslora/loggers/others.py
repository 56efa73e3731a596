"""Loggers, each chain's apart: csv by default, TensorBoard, or W&B (offline where there is no account)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from bayeslora.factories import offer, settings_of
from bayeslora.loggers.wandb import WandbRun, has_wandb_account
from bayeslora.runs.directory import RunDirectory

if TYPE_CHECKING:
    from bayeslora.evaluation.results import Results
    from bayeslora.experiment import Experiment


class Logger(Protocol):
    """What is asked of a logger; Lightning's offer it."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record values by key."""

    def save(self) -> None:
        """Write out what is pending."""

    def finalize(self, status: str) -> None:
        """End with the status `success` or `failed`."""


class ChainLoggers:
    """The loggers of chains that run together, each chain's apart. A context that ends them when the chains end.

    Args:
        of: loggers by number of the chain; for chains that are not named nothing is logged.
    """

    def __init__(self, of: Mapping[int, Sequence[Logger]] | None = None) -> None:
        self.of = dict(of or {})

    def log(self, chain: int, values: Mapping[str, float], step: int) -> None:
        """Record values of a chain after `step` steps of its plan. Their keys are those of `bayeslora.loggers.keys`."""
        for logger in self.of.get(chain, ()):
            logger.log_metrics(dict(values), step=step)

    def close(self, status: str = "success") -> None:
        """End all loggers, also where one of them fails to; `status` is `success` or `failed`."""
        with ExitStack() as ending:
            for loggers in self.of.values():
                for logger in loggers:
                    ending.callback(logger.finalize, status)
                    ending.callback(logger.save)
        self.of = {}

    def __enter__(self) -> ChainLoggers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close("success" if kind is None else "failed")


def make_loggers(experiment: Experiment, root: Path, chains: Sequence[int], step: int = 0) -> ChainLoggers:
    """The configured loggers of each of these chains, from a step on. Earlier logs of a chain stay as they are.

    Args:
        experiment: whose loggers.
        root: the run directory.
        chains: their numbers.
        step: at which they go on.
    """

    def of(chain: int) -> list[Logger]:
        version = f"chain_{chain}" + (f"_from_{step}" if step else "")
        makes = experiment.loggers.values()
        return [_make(make, experiment.name, root, f"chain_{chain}", _free(make, version)) for make in makes]

    return ChainLoggers({chain: of(chain) for chain in chains})


def log_evaluation(experiment: Experiment, run: RunDirectory, results: Results) -> None:
    """Log what an evaluation found, as a part `evaluation` beside the chains; its steps count draws.

    All loggers get the final scalars, W&B also the tables, the plots, the report and the posterior.
    """
    if not experiment.loggers:
        return
    quiet_lightning()
    makes = experiment.loggers.values()
    loggers = [_make(make, experiment.name, run.root, "evaluation", "evaluation") for make in makes]
    with ChainLoggers({0: loggers}) as opened:
        for draws, values in _growth(results):
            opened.log(0, values, draws)
        opened.log(0, final_scalars(results), results.provenance.draws or 0)
        for logger in loggers:
            if isinstance(logger, WandbRun):
                logger.log_report(run, results)


def final_scalars(results: Results) -> dict[str, float]:
    """The scalars of `metrics.json` that are logged, by their key: `evaluation/` and where they lie in the file."""
    from bayeslora.loggers.keys import KEYS

    scalars, content = {}, results.to_json()
    for key in KEYS:
        kind, *path = key.split("/")
        value: Any = content if kind == "evaluation" else None
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            scalars[key] = float(value)
    for block, one in results.diagnostics.temperature.items():
        if one.ratio is not None:
            scalars[f"evaluation/diagnostics/temperature/{block}/ratio"] = one.ratio
    return scalars


def _growth(results: Results) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of the ensemble of the first so many draws, where `metrics.json` holds them."""
    from bayeslora.report.table import columns

    curve = results.cumulative
    for place, draws in enumerate(curve.draws):
        shown = [column.key for column in columns(results) if column.key in curve.scores]
        values = {f"cumulative/{key}": curve.scores[key][place] for key in shown}
        yield int(draws), {key: value for key, value in values.items() if value is not None}


def _make(make: Callable[..., Logger], name: str, root: Path, part: str, version: str) -> Logger:
    """A logger for a part of a run, told what it takes of these and is not told already."""
    group = run_label(name, root)
    return offer(
        make,
        version=version,
        name=f"{group}/{part}",
        run_name=f"{group}/{part}",
        group=group,
        flush_logs_every_n_steps=1,
        offline=not has_wandb_account(),
        part=part,
        run_dir=str(root),
    )


def run_label(name: str, root: Path) -> str:
    """A run's name with what tells its directory from those of others: the time, in a sweep with the job's number."""
    parts = root.parts
    after = parts[len(parts) - parts[::-1].index(name) :] if name in parts[:-1] else parts[-1:]
    return "/".join([name, *after])


def _free(make: Callable[..., Logger], version: str) -> str:
    """The version, or the first of `version_2`, `version_3`, … where another process has logged under it before."""
    settings = settings_of(make)
    folder = Path(settings.get("save_dir") or "", settings.get("name") or "")
    names = (version if number == 1 else f"{version}_{number}" for number in count(1))
    return next(name for name in names if not settings.get("save_dir") or not (folder / name).exists())


def quiet_lightning() -> None:
    """Silence Lightning's advice on data loaders, hardware and log folders, which does not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


MLFLOW_ADDRESS, OWN_ADDRESS = "MLFLOW_TRACKING_URI", "BAYESLORA_MLFLOW_STORE"
"""MLflow puts the store in use into its variable, where the next run, and worker processes, would take it for the
user's: the second variable says that it is a run's own folder."""


def mlflow(experiment_name: str = "bayeslora", tracking_uri: str | None = None, *, run_dir: str, run_name: str) -> Any:
    """A run of MLflow.

    Args:
        experiment_name: where MLflow files it.
        tracking_uri: of a server or a database; None: MLFLOW_TRACKING_URI, or files in `run_dir/logs/mlruns`.
        run_dir, run_name: the application fills these in.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    if os.environ.get(MLFLOW_ADDRESS) == os.environ.get(OWN_ADDRESS):
        os.environ.pop(MLFLOW_ADDRESS, None)
    address = tracking_uri or os.environ.get(MLFLOW_ADDRESS)
    if address is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 asks for
        address = Path(run_dir, "logs", "mlruns").absolute().as_uri()
        os.environ[OWN_ADDRESS] = address
    return MLFlowLogger(experiment_name, run_name=run_name, tracking_uri=address)


def comet(
    project: str = "bayeslora",
    workspace: str | None = None,
    tags: Sequence[str] | None = None,
    *,
    run_dir: str,
    run_name: str,
) -> Any:
    """An experiment of Comet: online where there is a key (COMET_API_KEY), else an archive in `run_dir/comet`.

    Args:
        project, workspace: where Comet files it.
        tags: None: the settings given on the command line.
        run_dir, run_name: the application fills these in.
    """
    from lightning.pytorch.loggers import CometLogger

    class CometRun(CometLogger):
        """Ends its experiment with its chain."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            self.experiment.end()

    folder = Path(run_dir, "comet")
    folder.mkdir(parents=True, exist_ok=True)  # Comet does not make it
    online: Any = bool(os.environ.get("COMET_API_KEY")) or 0  # of False Lightning makes an experiment that logs nothing
    return CometRun(
        project=project, workspace=workspace, mode="create", online=online,
        name=run_name, tags=[*(tags or ())], offline_directory=str(folder),
    )  # fmt: skip
