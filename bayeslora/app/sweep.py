"""What a sweep says when its jobs have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class TellComparison(Callback):
    """Prints the command that compares a sweep's runs, where several were evaluated."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:  # noqa: ARG002
        folder = Path(str(config.hydra.sweep.dir))
        if len([*folder.glob("*/metrics.json")]) > 1:
            print(f"compare them: python -m bayeslora.compare 'run_dirs={folder}/*'", flush=True)  # noqa: T201
