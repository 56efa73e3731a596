"""Chains: a run of two draws from end to end, chains that share nothing, and a chain that repeats bit for bit."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora.app.choices import train_with
from bayeslora.atomic import digest
from bayeslora.doctor.finding import Finding, failure, ok

if TYPE_CHECKING:
    from bayeslora.runs.directory import RunDirectory

SMALL = (
    "experiment=digits_resnet", "size=smoke", "trainer=cpu", "logger=none", "chain.parallel=sequential",
    "chain.num_chains=2", "chain.num_draws=2",
)  # fmt: skip
"""A run of seconds: two chains of two draws on handwritten digits."""


def run_and_repeat(*overrides: str) -> Iterator[Finding]:
    """Two chains of two draws, evaluated; then the first chain once more.

    Args:
        overrides: settings beside those of `SMALL`.
    """
    with tempfile.TemporaryDirectory() as made:
        first, again = (_trained(Path(made, name), *more, *overrides) for name, more in RUNS.items())
        yield _whole(first)
        one, other, repeated = _draws(first, 0), _draws(first, 1), _draws(again, 0)
    if len({*one, *other}) == len(one) + len(other):
        yield ok("chains apart", "two chains of one run share no draw")
    else:
        yield failure("chains apart", "two chains of one run share draws", SHARED)
    if one == repeated:
        yield ok("chains repeat", "a chain run again gives the same draws, bit for bit")
    else:
        yield failure("chains repeat", "a chain run again gives other draws", REPEAT)


RUNS = {"whole": (), "again": ("chain.index=0",)}
SHARED = "report it: R-hat and ESS of such runs mean nothing; see `chains` in docs/troubleshooting.md"
REPEAT = "see `chains` in docs/troubleshooting.md: resumed runs would not be exact here"


def _trained(folder: Path, *overrides: str) -> RunDirectory:
    """A run in a folder, without what it prints."""
    from bayeslora.loggers import quiet_lightning
    from bayeslora.runs.directory import RunDirectory

    quiet_lightning()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        train_with(*SMALL, *overrides, f"run_dir={folder}")
    return RunDirectory(folder)


def _draws(run: RunDirectory, chain: int) -> list[str]:
    """A digest of the tensors of each draw of a chain; the files also hold the chain's number."""
    return [digest(draw.tensors) for draw in run.store(chain)]


def _whole(run: RunDirectory) -> Finding:
    """Whether a finished run has left what it should, with finite numbers."""
    files = (run.config_file, run.map_file(), run.metrics_file, run.diagnostics_file, run.report / "index.html")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        return failure(
            "run", f"a run of two draws left no {', '.join(missing)}", "see `run` in docs/troubleshooting.md"
        )
    ensemble = json.loads(run.metrics_file.read_text())["ensemble"]
    if not all(math.isfinite(value) for value in ensemble.values()):
        return failure("run", f"its metrics are not finite: {ensemble}", "see `run` in docs/troubleshooting.md")
    return ok("run", "two chains of two draws, evaluated, with a report; nothing of it is kept")
