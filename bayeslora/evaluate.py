"""python -m bayeslora.evaluate run_dir=…: predict with every draw of a run, write metrics.json and the report.

Works on finished and half-finished runs; repeating it writes the same numbers again.

Examples:
    python -m bayeslora.evaluate run_dir=outputs/quickstart/2026-11-24_12-00-00
    python -m bayeslora.evaluate run_dir=… split=validation
    python -m bayeslora.evaluate run_dir=… dataset.path=/data/mine.npz      the data have moved
    python -m bayeslora.evaluate run_dir=… reference=predictive.npz ood=cifar100 ood_path=DATA/cifar100 corruptions=true
    python -m bayeslora.evaluate run_dir=… --strict          exit code 4 unless every criterion is met
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from bayeslora.app.cli import run_command
from bayeslora.app.commands import OfRun

if TYPE_CHECKING:
    from bayeslora.evaluation.results import Results


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(OfRun):
    """Settings of `evaluate` that the command takes beside those of a run; None leaves one as the run has it."""

    split: Any = None
    batch_size: Any = None
    precision: Any = None
    reference: Any = None
    ood: Any = None
    ood_path: Any = None
    corruptions: Any = None
    corruption_examples: Any = None
    strict: Any = None
    report: Any = None


def evaluate_run(settings: EvaluateSettings) -> Results:
    """Evaluate a run with the settings that are given."""
    from bayeslora.evaluation.run import evaluate
    from bayeslora.runs.directory import RunDirectory

    run = RunDirectory(settings.run_dir)
    given = {one.name: getattr(settings, one.name) for one in fields(settings)[len(fields(OfRun)) :]}
    return evaluate(run, settings.experiment(run, **given))


def main() -> None:
    """Entry point."""
    run_command("evaluate", __doc__, evaluate_run, EvaluateSettings)


if __name__ == "__main__":
    main()
