"""The command: which checks run, how their lines are printed, the exit code."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bayeslora.counts import counted
from bayeslora.doctor.finding import Check, Finding, Status

DESCRIPTION = """\
Does everything that bayeslora needs work on this machine? One line a check: ok, warning (something
is left out, nothing is wrong) or failure, with the fix. docs/troubleshooting.md follows the checks.
"""
EPILOG = """\
examples:
  python -m bayeslora.doctor --quick             versions, disk, data and models in a quarter of a minute
  python -m bayeslora.doctor --data DATA         all checks; data sets in DATA/cifar10, DATA/mrpc, ...
  python -m bayeslora.doctor --json > doctor.json

exit codes: 0 no failure, 1 a failure, 2 a wrong option. Warnings do not fail.
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 if nothing fails, else 1."""
    chosen = _parser().parse_args(arguments)
    if chosen.laws and not chosen.json:
        from bayeslora.doctor.sampling import laws

        return laws()
    started, findings = time.perf_counter(), []
    with _quiet():
        for finding in run_checks(chosen.quick, chosen.data, only_laws=chosen.laws):
            findings.append(finding)
            if not chosen.json:
                _show(finding)
    failed = any(finding.status is Status.FAILURE for finding in findings)
    seconds = round(time.perf_counter() - started, 1)
    if chosen.json:
        print(json.dumps(json_report(findings, seconds), indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print(last_line(findings, seconds))  # noqa: T201
    return 1 if failed else 0


def checks(quick: bool, data: Path | None = None, *, only_laws: bool = False) -> Iterator[Check]:
    """The checks in their order, imported when their turn comes.

    Args:
        quick: those that take seconds together.
        data: folder with datasets under their names.
        only_laws: the samplers against their laws, in full, and nothing else.
    """
    if only_laws:
        from bayeslora.doctor.sampling import law_findings

        yield Check("laws", partial(law_findings, short=False))
        return
    from bayeslora.doctor import machine

    yield Check("python", machine.python)
    yield Check("torch", machine.torch_works)
    yield Check("cuda", machine.cuda)
    yield Check("versions", machine.versions)
    yield Check("disk", machine.disk)
    from bayeslora.doctor.config_groups import datasets, models
    from bayeslora.doctor.machine import wandb

    yield Check("datasets", partial(datasets, data))
    yield Check("models", partial(models, quick=quick))
    yield Check("wandb", wandb)
    if not quick:
        from bayeslora.doctor.config_groups import experiments
        from bayeslora.doctor.sampling import law_findings, run_and_repeat

        yield Check("experiments", experiments)
        yield Check("laws", law_findings)
        yield Check("run", run_and_repeat)


def run_checks(quick: bool, data: Path | None = None, *, only_laws: bool = False) -> Iterator[Finding]:
    """What `checks` finds. Where their code cannot even be imported, that is the last finding."""
    from bayeslora.doctor.finding import failure

    try:
        for check in checks(quick, data, only_laws=only_laws):
            yield from check.run()
    except ImportError as error:
        yield failure("import", f"{error}: no further check can run", "make install")


def json_report(findings: list[Finding], seconds: float) -> dict[str, object]:
    """What `--json` prints: `{"ok", "counts", "seconds", "findings": [{"status", "name", "message", "fix"}, …]}`."""
    counts = Counter(finding.status for finding in findings)
    return {
        "ok": not counts[Status.FAILURE],
        "counts": {status.value: counts[status] for status in Status},
        "seconds": seconds,
        "findings": [asdict(finding) for finding in findings],
    }


def last_line(findings: list[Finding], seconds: float) -> str:
    """The last line."""
    counts = Counter(finding.status for finding in findings)
    parts = [f"{counts[status]} {word}" for status, word in WORDS.items() if counts[status]]
    return f"{counted(len(findings), 'line')} in {seconds:.0f} s: {', '.join(parts)}"


WORDS = {Status.OK: "ok", Status.WARNING: "with a warning", Status.FAILURE: "failed"}
COLOURS = {Status.OK: "32", Status.WARNING: "33", Status.FAILURE: "1;31"}
"""ANSI codes of a status in a terminal."""


def _show(finding: Finding) -> None:
    """Print a line."""
    status = f"{finding.status.value:8}"
    if sys.stdout.isatty():
        status = f"\033[{COLOURS[finding.status]}m{status}\033[0m"
    fix = f" -> {finding.fix}" if finding.fix else ""
    print(f"{status} {finding.name:21} {finding.message}{fix}", flush=True)  # noqa: T201


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings and log lines: what matters here is a line of its own."""
    logger = logging.getLogger("bayeslora")
    before = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bayeslora.doctor",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of a minute: no experiments, no laws, no run")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")
    parser.add_argument("--laws", action="store_true", help="only the samplers against their exact laws, in full")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where datasets lie under their names")
    return parser
