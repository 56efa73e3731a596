"""The samplers against their exact laws: the whole table of `--laws`, and a short version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

from bayeslora.doctor.finding import Finding, failure, ok

if TYPE_CHECKING:
    from bayeslora.laws.checks import Check
    from bayeslora.laws.simulate import Moment

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

    def sampler(check: Check) -> str:
        return check.sampler.__name__

    fine: list[str] = []
    for name, group in groupby(sorted(all_checks(), key=sampler), key=sampler):
        checks = list(group)
        moments = [(check, _worst(_short(check) if short else check.run())) for check in checks]
        check, worst = max(moments, key=lambda one: abs(one[1].z))
        if worst.agrees:
            fine.append(name)
        else:
            yield failure(f"law {name}", f"{check.target}: {worst}", "see `law` in docs/troubleshooting.md")
    if fine:
        yield ok("law", f"{', '.join(fine)}: as their exact laws say")


def _short(check: Check) -> list[Moment]:
    return check.run(chains=max(64, check.chains // 4), steps=SHORT)


def _worst(moments: list[Moment]) -> Moment:
    return max(moments, key=lambda moment: abs(moment.z))


def _row(check: Check, worst: Moment) -> list[str]:
    """The table's line for a check."""
    verdict = "[green]ok[/]" if worst.agrees else "[bold red]WRONG[/]"
    numbers = [f"{worst.expected:.4f}", f"{worst.sampled:.4f} ± {worst.standard_error:.4f}", f"{worst.z:+.1f}"]
    return [check.name, check.target, worst.name, *numbers, verdict]
