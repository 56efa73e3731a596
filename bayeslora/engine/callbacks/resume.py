"""Resume points on disk, and the callback that writes them."""

from __future__ import annotations

import hashlib
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from lightning import Callback, Trainer

from bayeslora.atomic import write_atomically
from bayeslora.chain.chain import Chain
from bayeslora.chain.snapshot import Extra, Snapshot, capture, restore
from bayeslora.counts import counted
from bayeslora.engine.module import SamplingModule
from bayeslora.engine.signals import SIGNALS, hand_on
from bayeslora.engine.writing import Writer
from bayeslora.errors import DataError, InterruptedRunError
from bayeslora.posterior.store import parse_tensors, serialise

KEEP = 2
"""Newest resume points kept: should one be damaged, the one before it serves."""
NAME = re.compile(r"(\d{12})-([0-9a-f]{16})\.safetensors")


class ResumePoints:
    """The resume points of one chain, in `folder`: safetensors files named by step and checksum, the newest ones.

    Reading never executes code; a file whose content is not what its name says is passed over.

    Args:
        folder: the chain's folder for them; made when the first is written.
        lasting: of the steps for which this holds, the newest is kept however old it is.
    """

    def __init__(self, folder: Path, lasting: Callable[[int], bool] = lambda _step: False) -> None:
        self.folder, self.lasting = folder, lasting

    def write(self, snapshot: Snapshot) -> Path:
        """Keep a snapshot and the one before it, and remove older ones."""
        content = serialise(snapshot.tensors, {"step": snapshot.step, "values": snapshot.values})
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = write_atomically(self.folder / f"{snapshot.step:012d}-{digest}.safetensors", content)
        steps = sorted({step for step, _ in self._numbered_files()}, reverse=True)
        kept = {*steps[:KEEP], *[step for step in steps if self.lasting(step)][:1]}
        for step, old in self._numbered_files():
            if step not in kept or (step == snapshot.step and old != path):
                old.unlink(missing_ok=True)
        return path

    def steps(self) -> list[int]:
        """Steps after which there are points that are what they should be, newest first."""
        return [step for step, file in self._numbered_files() if _intact(file)]

    def read(self, step: int) -> Snapshot:
        """The snapshot taken after so many steps.

        Raises:
            DataError: there is none, or it is damaged.
        """
        for taken, file in self._numbered_files():
            if taken == step and _intact(file):
                tensors, metadata = parse_tensors(file)
                values = metadata.get("values")
                if metadata.get("step") != step or not _are_a_samplers(values):
                    raise DataError(f"{file} is no resume point: it does not say where its chain was")
                return Snapshot(step, tensors, values)
        raise DataError(f"{self.folder} holds no whole resume point after {counted(step, 'step')}")

    def _numbered_files(self) -> list[tuple[int, Path]]:
        """Steps and files, newest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else []
        numbered = [(int(match[1]), file) for file in entries if (match := NAME.fullmatch(file.name))]
        return sorted(numbered, reverse=True)


def _are_a_samplers(values: Any) -> TypeGuard[dict[str, Any]]:
    """Whether these are what a sampler remembers in numbers and marks, with the factor on its step size."""
    if not isinstance(values, dict) or not isinstance(values.get("lr_scale"), int | float):
        return False
    return isinstance(values.get("step"), int) and all(isinstance(v, bool | int | float) for v in values.values())


def _intact(file: Path) -> bool:
    """Whether a resume point's content is what its name says."""
    match = NAME.fullmatch(file.name)
    try:
        content = hashlib.file_digest(file.open("rb"), "sha256").hexdigest()
    except OSError:
        return False
    return match is not None and content.startswith(match[2])


class Restore(Callback):
    """Puts a module's chains where their snapshots were taken, before the first step.

    Args:
        start: a snapshot of each chain in the module's order; none for the beginning.
        extras: what else goes on from there.
    """

    def __init__(self, start: Sequence[Snapshot], extras: Sequence[Extra] = ()) -> None:
        self.start, self.extras = list(start), list(extras)

    def on_train_start(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        if self.start:
            restore(module.chain, self.start, self.extras)


class KeepResumePoints(Callback):
    """Writes resume points: every so often, at the end, and when the run is asked to stop. Comes last of the callbacks.

    SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 (time limits of schedulers) let the step end, write the resume point
    and end the run, or are then handed to the handler that was there before (a scheduler's requeueing). A second
    Ctrl-C ends the run at once.

    Args:
        points: of each chain, in the module's order.
        every: seconds between resume points; 0 writes one after every step.
        at_draws: write one with each draw too, from which a chain that diverges may be tried again.
        advice: what to do to go on, for the message.
        extras: what else is kept with the chains' states.
        writer: writes the points after the draws that were taken before them.
    """

    def __init__(
        self,
        points: Sequence[ResumePoints],
        *,
        every: float = 60.0,
        at_draws: bool = False,
        advice: str = "",
        extras: Sequence[Extra] = (),
        writer: Writer | None = None,
    ) -> None:
        self.extras, self.writer = list(extras), writer or Writer()
        self.points, self.every, self.at_draws, self.advice = list(points), every, at_draws, advice
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self._written = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._listen()

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        taken = module.steps_taken
        last = taken == module.plan.total
        drawn = self.at_draws and module.plan.draw_after(taken) is not None
        if self.asked is not None or last or drawn or time.monotonic() - self._written >= self.every:
            self.write(module.chain, wait=self.asked is not None or last)
        if self.asked is not None:
            self._stop(self.asked, taken)

    def write(self, chain: Chain, but: Collection[int] = (), wait: bool = True) -> None:
        """Write a resume point of every chain, `but` those of these numbers; `wait` until it is on disk."""
        works = []
        for number, points, snapshot in zip(chain.chains, self.points, capture(chain, self.extras), strict=True):
            if number not in but:
                own = {name: t.clone() for name, t in snapshot.tensors.items()}  # which the chain does not move
                works.append(partial(points.write, replace(snapshot, tensors=own)))
        self.writer.put(*works)
        if wait:
            self.writer.wait()
        self._written = time.monotonic()

    def on_train_end(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._ignore()

    def on_exception(self, trainer: Trainer, module: SamplingModule, exception: BaseException) -> None:  # type: ignore[override]  # noqa: ARG002
        self._ignore()

    # -- signals ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Take over the signals that ask a run to stop (only the main thread may)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: Any) -> None:  # noqa: ARG002
        if self.asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def _ignore(self) -> None:
        """Give the signals back to those who had them."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _stop(self, number: int, step: int) -> None:
        """End the run, or hand the signal on to a scheduler's handler."""
        handler = self._before.get(number)
        self._ignore()
        hand_on(number, handler)
        name = signal.Signals(number).name
        raise InterruptedRunError(f"stopped by {name} after step {step:,}; nothing is lost. {self.advice}")
