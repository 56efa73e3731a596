"""Sampling: the samplers against their exact laws; chains that run, share nothing, and repeat bit for bit."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora.app.choices import train_with
from bayeslora.atomic import digest
from bayeslora.doctor.finding import Finding, failure, ok
from bayeslora.evaluation.results import Results

if TYPE_CHECKING:
    from bayeslora.laws.checks import LawCheck
    from bayeslora.laws.simulate import Moment
    from bayeslora.runs.directory import RunDirectory

SHORT = 100
"""Steps observed in the short version; the whole one observes 300, of four times as many chains."""


def laws() -> int:
    """Run all checks and print a table. Returns 0 if every law holds, else 1."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from bayeslora.laws.checks import all_checks

    torch.set_num_threads(1)  # tensors are small: threads only cost
    console = Console(width=max(130, Console().width))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("sampler", "target", "worst moment", "expected", "sampled", "z", "verdict"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("expected", "sampled", "z") else "left")
    checks, failed = all_checks(), 0
    with console.status("simulating…") if console.is_terminal else nullcontext():
        for check in checks:
            worst = _worst(check.run())
            table.add_row(*_row(check, worst))
            failed += not worst.agrees
    console.print(table)
    verdict = "every sampler has its law" if not failed else f"{failed} of {len(checks)} checks failed"
    console.print(f"{len(checks)} checks: {verdict}", highlight=False)
    return 1 if failed else 0


def law_findings(*, short: bool = True) -> Iterator[Finding]:
    """The samplers against their exact laws: a line for all that have them, one for each other.

    Args:
        short: a quarter of the chains and a third of the steps: errors of a few per cent are seen, not of one.
    """
    import torch

    from bayeslora.laws.checks import all_checks

    torch.set_num_threads(1)  # as in `laws`

    def sampler(check: LawCheck) -> str:
        return check.sampler.__name__

    fine: list[str] = []
    for name, group in groupby(sorted(all_checks(), key=sampler), key=sampler):
        checks = list(group)
        moments = [
            (check, _worst(check.run(chains=max(64, check.chains // 4), steps=SHORT) if short else check.run()))
            for check in checks
        ]
        check, worst = max(moments, key=lambda one: abs(one[1].z))
        if worst.agrees:
            fine.append(name)
        else:
            yield failure(f"law {name}", f"{check.target}: {worst}", "see `law` in docs/troubleshooting.md")
    if fine:
        yield ok("law", f"{', '.join(fine)}: as their exact laws say")


def _worst(moments: list[Moment]) -> Moment:
    return max(moments, key=lambda moment: abs(moment.z))


def _row(check: LawCheck, worst: Moment) -> list[str]:
    """The table's line for a check."""
    verdict = "[green]ok[/]" if worst.agrees else "[bold red]WRONG[/]"
    numbers = [f"{worst.expected:.4f}", f"{worst.sampled:.4f} ± {worst.standard_error:.4f}", f"{worst.z:+.1f}"]
    return [check.name, check.target, worst.name, *numbers, verdict]


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
    ensemble = Results.read(run.metrics_file)["ensemble"]
    if None in ensemble.values():  # as which NaN and infinity are written
        return failure("run", f"its metrics are not finite: {ensemble}", "see `run` in docs/troubleshooting.md")
    return ok("run", "two chains of two draws, evaluated, with a report; nothing of it is kept")
