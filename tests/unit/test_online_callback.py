"""Convergence followed while chains run: milestones from running state, the same after a restart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bayeslora.chain.plan import Plan
from bayeslora.diagnostics.online import OnlineSeries
from bayeslora.engine.callbacks.milestones import Online

BURN_IN = 5


def chain_values(chain: int, steps: int) -> torch.Tensor:
    """Potential and norm of every sampling step, [steps, 2]."""
    return torch.randn(steps, 2, generator=torch.Generator().manual_seed(chain), dtype=torch.float64) + 3


def play(
    online: Online, values: list[torch.Tensor], chains: list[int], start: int = 0, stop: int | None = None
) -> None:
    """Let chains take their steps under the callback, one not of the sampling phase before each start."""
    plan = Plan(0, BURN_IN, len(values[0]), 1)
    module = SimpleNamespace(plan=plan, chain=SimpleNamespace(chains=chains))
    for step in range(start, len(values[0]) if stop is None else stop):
        row = torch.stack([v[step] for v in values])
        module.steps_taken, module.chain.last_potential = BURN_IN + step + 1, row[:, 0]
        module.chain.l2_norm = lambda row=row: row[:, 1]
        online.on_train_batch_end(None, module)


def rhats(text: str) -> list[float]:
    """The R-hats of a printed milestone, the potential's and the norm's."""
    assert text.startswith("after 1,000 sampling steps, the potential: R-hat ")
    return [float(found) for found in re.findall(r"R-hat ([\d.]+)", text)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "online.jsonl").read_text().splitlines()]


def test_milestones_say_what_the_estimators_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [tmp_path / "0", tmp_path / "1"]
    values = [chain_values(chain, 1500) for chain in (0, 1)]
    logged = []
    logger = SimpleNamespace(log=lambda *entry: logged.append(entry))
    play(Online(None, folders, logger, show=True), values, [0, 1])
    alone = OnlineSeries(2)
    alone.extend(values[0][:1000].numpy())
    (entry,) = lines(folders[0])
    assert entry["count"] == 1000
    assert entry["potential_per_example"] == vars(alone.estimates()[0])
    assert entry["l2_norm"] == vars(alone.estimates()[1])
    assert rhats(capsys.readouterr().out) == [pytest.approx(1.0, abs=0.01)] * 2
    keys = {key for _, values, _ in logged for key in values}
    assert keys == {
        f"online/{s}/{k}" for s in ("potential_per_example", "l2_norm") for k in ("tau", "ess", "mcse", "rhat")
    }
    assert {step for _, _, step in logged} == {BURN_IN + 1000}


def test_burn_in_is_left_out(tmp_path: Path):
    online = Online([2], [tmp_path / "0"])
    module = SimpleNamespace(plan=Plan(0, BURN_IN, 3, 1), chain=SimpleNamespace(chains=[0]), steps_taken=BURN_IN)
    online.on_train_batch_end(None, module)
    assert online.series[0].count == 0


def test_a_resumed_chain_reports_the_same_and_no_line_twice(tmp_path: Path):
    values = [chain_values(0, 1200)]
    whole, parts = tmp_path / "whole" / "0", tmp_path / "parts" / "0"
    play(Online([700, 1100], [whole]), values, [0])
    first = Online([700, 1100], [parts])
    play(first, values, [0], stop=600)
    kept = first.rows()
    play(first, values, [0], start=600, stop=900)  # goes on past a milestone, is killed, and starts again from `kept`
    second = Online([700, 1100], [parts])
    second.load_rows(kept)
    play(second, values, [0], start=600)
    assert (parts / "online.jsonl").read_bytes() == (whole / "online.jsonl").read_bytes()


def test_chains_that_run_one_after_the_other_are_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for chain in (0, 1):
        play(Online([1000], [tmp_path / str(chain)], show=True), [chain_values(chain, 1000)], [chain])
    first, second = capsys.readouterr().out.splitlines()
    assert "R-hat" not in first
    assert rhats(second) == [pytest.approx(1.0, abs=0.01)] * 2
