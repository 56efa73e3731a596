"""Live progress of a chain: a bar in a terminal, plain lines elsewhere; and the same numbers for the loggers."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, Trainer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from bayeslora.engine.callbacks.draws import DrawCollector
from bayeslora.engine.module import SamplingModule
from bayeslora.loggers import ChainLoggers


class Progress(Callback):
    """Shows phase, step of how many, potential per example, step size, draws kept and time left; logs the two.

    Args:
        num_chains: how many chains the run has.
        every: seconds between plain lines where there is no terminal.
        log_every: steps between logged values.
        loggers: to whom they go, or None.
    """

    def __init__(
        self, num_chains: int = 1, every: float = 5.0, log_every: int = 50, loggers: ChainLoggers | None = None
    ) -> None:
        self.num_chains, self.every, self.log_every = num_chains, every, log_every
        self.loggers = loggers or ChainLoggers()
        self.console = Console()
        self._live: Live | None = None
        self._shown = self._started = 0.0

    def on_train_start(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self._started, self._shown, self._first = time.monotonic(), 0.0, module.steps_taken
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]
        taken, last = module.steps_taken, module.steps_taken == module.plan.total
        if taken % self.log_every == 0 or last:
            module.chain.check_finite()
            for chain, potential in zip(
                module.chain.chains, module.chain.last_potential.reshape(-1).tolist(), strict=True
            ):
                self.loggers.log(
                    chain, {"train/potential_per_example": potential, "train/lr": module.chain.step_size}, taken
                )
        pause = 0.2 if self._live else self.every
        if last or time.monotonic() - self._shown > pause:
            self._shown = time.monotonic()
            self._show(trainer, module)

    def teardown(self, trainer: Trainer, module: SamplingModule, stage: str) -> None:  # type: ignore[override]  # noqa: ARG002
        self._stop()

    def on_exception(self, trainer: Trainer, module: SamplingModule, exception: BaseException) -> None:  # type: ignore[override]  # noqa: ARG002
        self._stop()

    def _stop(self) -> None:
        """Give the terminal back, with its cursor."""
        if self._live:
            self._live.stop()
            self._live = None

    def _show(self, trainer: Trainer, module: SamplingModule) -> None:
        place, numbers = self._words(trainer, module)
        if self._live is None:
            self.console.print(f"{place}  {numbers}", highlight=False, soft_wrap=True)
            return
        bar = Table.grid(padding=(0, 1))
        bar.add_row(place, ProgressBar(module.plan.total, module.steps_taken, width=24))
        self._live.update(Group(bar, numbers), refresh=True)

    def _words(self, trainer: Trainer, module: SamplingModule) -> tuple[str, str]:
        """Where the chain is, and what its numbers are."""
        chain, taken, plan = module.chain, module.steps_taken, module.plan
        kept = next((c.kept for c in trainer.callbacks if isinstance(c, DrawCollector)), 0)  # type: ignore[attr-defined]
        rate = (time.monotonic() - self._started) / max(1, taken - self._first)
        first, last = chain.chains[0] + 1, chain.chains[-1] + 1
        which = f"chain {first}" if first == last else f"chains {first}–{last}"
        place = f"{which}/{self.num_chains}  {module.phase:<8}  step {taken:,}/{plan.total:,}"
        return place, (
            f"potential_per_example {float(chain.last_potential.mean()):.4f}  step size {chain.step_size:.2e}  "
            f"draws {kept}/{plan.num_draws}  {clock(rate * (plan.total - taken))} left"
        )


def clock(seconds: float) -> str:
    """A duration as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
