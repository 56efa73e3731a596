"""Lightning's loggers for MLflow and Comet, a run a chain, in the run directory where there is no server to go to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def mlflow(experiment_name: str = "bayeslora", tracking_uri: str | None = None, *, run_dir: str, run_name: str) -> Any:
    """A run of MLflow.

    Args:
        experiment_name: where MLflow files it.
        tracking_uri: of a server or a database; None: MLFLOW_TRACKING_URI, or files in `run_dir/logs/mlruns`.
        run_dir, run_name: the application fills these in.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 asks for
    folder = str(Path(run_dir, "logs", "mlruns"))
    return MLFlowLogger(experiment_name, run_name=run_name, tracking_uri=address, save_dir=folder)


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

    return CometRun(
        project=project, workspace=workspace, mode="create", online=bool(os.environ.get("COMET_API_KEY")),
        name=run_name, tags=[*(tags or ())], offline_directory=str(Path(run_dir, "comet")),
    )  # fmt: skip
