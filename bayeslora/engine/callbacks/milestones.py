"""The callback that follows convergence while chains run, from running state alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from bayeslora.chain.snapshot import Extra
from bayeslora.diagnostics.online import Estimate, OnlineSeries, is_milestone, summary
from bayeslora.engine.module import SamplingModule
from bayeslora.loggers import ChainLoggers

SCALARS = ("potential_per_example", "l2_norm")
"""Followed at every step of the sampling phase: Ũ = U/N on the minibatch (nats per example), and ‖θ‖."""
WAITING = 256
"""Most steps whose values wait on the device until they are read."""


class Online(Callback, Extra):
    """Autocorrelation time, ESS and Monte Carlo error of the potential and the norm over every sampling step.

    Memory is constant in the number of steps. At milestones (1, 2 or 5 times a power of ten steps, or those given) the
    estimates are logged and written to each chain's `online.jsonl`, and printed if asked; R-hat then compares the
    chains that move together and those that reached the same milestone before.

    Args:
        milestones: sampling steps at which to report; None: 1, 2 or 5 times a power of ten from 1,000 on.
        folders: of the chains, in the module's order.
        loggers: what logs the chains' numbers, or None.
        show: print them too.
    """

    def __init__(
        self,
        milestones: Sequence[int] | None = None,
        folders: Sequence[Path] = (),
        loggers: ChainLoggers | None = None,
        *,
        show: bool = False,
    ) -> None:
        self.milestones, self.show = None if milestones is None else set(milestones), show
        self.folders, self.loggers = list(folders), loggers
        self.series = [OnlineSeries(len(SCALARS)) for _ in self.folders]
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        if module.plan.phase(module.steps_taken - 1) != "sampling":
            return
        self._waiting.append((module.chain.last_potential, module.chain.l2_norm()))
        count = self.series[0].count + len(self._waiting)
        due = is_milestone(count) if self.milestones is None else count in self.milestones
        if due or len(self._waiting) == WAITING:
            self._read()
        if due:
            self._report(module, count)

    def _read(self) -> None:
        """Hand what waits on the device to the estimators, all at once: the host waits for the device here."""
        if self._waiting:
            columns = [torch.stack(one).reshape(len(self._waiting), -1) for one in zip(*self._waiting, strict=True)]
            rows = torch.stack(columns, dim=-1).double().cpu().numpy()  # [steps, chains, scalars]
            for place, series in enumerate(self.series):
                series.extend(rows[:, place])
            self._waiting.clear()

    def _report(self, module: SamplingModule, count: int) -> None:
        """Print, log and keep what is known after so many steps."""
        estimates = [series.estimates() for series in self.series]
        for folder, chain, known in zip(self.folders, module.chain.chains, estimates, strict=True):
            entry = {"count": count} | {name: vars(e) for name, e in zip(SCALARS, known, strict=True)}
            _append_once(folder / "online.jsonl", entry)
            if self.loggers is not None:
                self.loggers.log(chain, _logged(known), module.steps_taken)
        parts = []
        words = {"potential_per_example": "the potential", "l2_norm": "the parameter norm"}
        for place, name in enumerate(SCALARS):
            others = _reached(self.folders, count, name)
            over_chains = summary([known[place] for known in estimates] + others)
            if self.loggers is not None and over_chains.rhat is not None:
                for chain in module.chain.chains:
                    self.loggers.log(chain, {f"online/{name}/rhat": over_chains.rhat}, module.steps_taken)
            values = {
                "R-hat {:.3f} (1 where chains agree)": over_chains.rhat,
                "worth {:,.0f} independent values (ESS)": over_chains.ess,
                "forgotten in {:,.0f} steps": over_chains.tau,
            }
            numbers = ", ".join(text.format(value) for text, value in values.items() if value is not None)
            parts.append(f"{words[name]}: {numbers or over_chains.reason}")
        if self.show:
            print(f"after {count:,} sampling steps, {'; '.join(parts)}", flush=True)  # noqa: T201

    # -- what a resume point keeps of it -------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Tensor]]:
        """The estimators' state, by chain."""
        self._read()
        return [
            {name: torch.as_tensor(value, dtype=torch.float64).clone() for name, value in series.state_dict().items()}
            for series in self.series
        ]

    def load_rows(self, rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from `rows`."""
        self._waiting.clear()
        for series, row in zip(self.series, rows, strict=True):
            series.load_state_dict({n: int(t) if n == "count" else t.numpy() for n, t in row.items()})


def _logged(known: Sequence[Estimate]) -> dict[str, float]:
    """The keys that loggers get of one chain."""
    values = {
        f"online/{name}/{key}": getattr(estimate, key)
        for name, estimate in zip(SCALARS, known, strict=True)
        for key in ("tau", "ess", "mcse")
    }
    return {key: value for key, value in values.items() if value is not None}


def _append_once(file: Path, entry: dict[str, Any]) -> None:
    """Add a line to a file, unless it is there: a resumed chain passes its milestones again."""
    line = json.dumps(entry, sort_keys=True)
    if not file.exists() or line not in file.read_text().splitlines():
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(line + "\n")


def _reached(folders: Sequence[Path], count: int, name: str) -> list[Estimate]:
    """What chains that do not move here knew at the same milestone."""
    estimates = []
    for file in sorted(folders[0].parent.glob("*/online.jsonl")):
        if file.parent in folders:
            continue
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        estimates += [Estimate(**entry[name]) for entry in entries if entry["count"] == count and name in entry][:1]
    return estimates
