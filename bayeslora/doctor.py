"""python -m bayeslora.doctor --laws: check on this machine that every sampler has the law that it says it has.

Simulates thousands of short chains on targets whose exact law is known, the discretisation's bias included, and prints
one line a check: target, worst moment as expected and as sampled, its z-score, verdict. About a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayeslora.laws.checks import Check


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 if all is well, 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m bayeslora.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--laws", action="store_true", required=True, help="check every sampler against its exact law")
    parser.parse_args(arguments)
    return laws()


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
            row, passed = _row(check)
            table.add_row(*row)
            failed += not passed
    console.print(table)
    verdict = "every sampler has its law" if not failed else f"{failed} of {len(checks)} checks failed"
    console.print(f"{len(checks)} checks: {verdict}", highlight=False)
    return 1 if failed else 0


def _row(check: Check) -> tuple[list[str], bool]:
    """The table's line for a check, and whether it passed."""
    moments = check.run()
    worst = max(moments, key=lambda moment: abs(moment.z))
    verdict = "[green]ok[/]" if worst.agrees else "[bold red]WRONG[/]"
    numbers = [f"{worst.expected:.4f}", f"{worst.sampled:.4f} ± {worst.standard_error:.4f}", f"{worst.z:+.1f}"]
    return [check.name, check.target, worst.name, *numbers, verdict], worst.agrees


if __name__ == "__main__":
    sys.exit(main())
