"""The configurations: every experiment composes, and every key of it means something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bayeslora.app.choices import experiment_problems, options
from bayeslora.app.config import CONF_DIR
from bayeslora.doctor.finding import Finding, failure, ok


def experiments(conf: Path = Path(CONF_DIR)) -> Iterator[Finding]:
    """Whether every experiment of a folder of configurations composes, with every key known."""
    names = options("experiment", conf)
    wrong = {name: problems for name in names if (problems := experiment_problems(name, conf))}
    for name, problems in wrong.items():
        yield failure(f"experiment {name}", "; ".join(problems), f"mend {conf / 'experiment' / name}.yaml")
    if not wrong:
        yield ok("experiments", f"all {len(names)} compose, and every key means something")
