"""How long each phase of a chain took, noted beside its draws: the manifest itself is the same on every machine."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from bayeslora.chains.module import SamplingModule


class Timing(Callback):
    """Appends lines `{"phase", "steps", "seconds"}` to each chain's `timing.jsonl`; a stack's time is shared out.

    Args:
        files: one a chain, in the module's order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.steps: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._last = 0.0
        self._phase = ""

    def on_train_start(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._last = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        self._phase = module.phase

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        now = time.monotonic()
        self.steps[self._phase] += 1
        self.seconds[self._phase] += now - self._last  # type: ignore[assignment]
        self._last = now

    def on_train_end(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._note()

    def on_exception(self, trainer: Trainer, module: SamplingModule, exception: BaseException) -> None:  # type: ignore[override]  # noqa: ARG002
        self._note()

    def _note(self) -> None:
        for phase, steps in self.steps.items():
            entry = {"phase": phase, "steps": steps, "seconds": self.seconds[phase] / len(self.files)}
            for file in self.files:
                with file.open("a") as out:
                    out.write(json.dumps(entry) + "\n")
        self.steps.clear()
        self.seconds.clear()
