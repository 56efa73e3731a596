"""How long each phase of a chain took, noted beside its draws: the manifest itself is the same on every machine."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from bayeslora.engine.module import SamplingModule


class Timing(Callback):
    """Appends to each chain's `timing.jsonl` how long its draws and phases took; a stack's time is shared out.

    Lines are `{"draw", "step", "seconds"}` as draws are kept, with the seconds since the draw before (before the first:
    since this process took the chain up), and `{"phase", "steps", "seconds"}` when the process leaves the chain.

    Args:
        files: one a chain, in the module's order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.steps: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._last = self._drawn = 0.0
        self._phase = ""

    def on_train_start(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._last = self._drawn = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        self._phase = module.phase

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        now = time.monotonic()
        self.steps[self._phase] += 1
        self.seconds[self._phase] += now - self._last  # type: ignore[assignment]
        self._last = now
        draw = module.plan.draw_after(module.steps_taken)
        if draw is not None:
            self._write({"draw": draw, "step": module.steps_taken, "seconds": (now - self._drawn) / len(self.files)})
            self._drawn = now

    def on_train_end(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._note()

    def on_exception(self, trainer: Trainer, module: SamplingModule, exception: BaseException) -> None:  # type: ignore[override]  # noqa: ARG002
        self._note()

    def _note(self) -> None:
        for phase, steps in self.steps.items():
            self._write({"phase": phase, "steps": steps, "seconds": self.seconds[phase] / len(self.files)})
        self.steps.clear()
        self.seconds.clear()

    def _write(self, entry: dict[str, Any]) -> None:
        for file in self.files:
            with file.open("a") as out:
                out.write(json.dumps(entry) + "\n")
