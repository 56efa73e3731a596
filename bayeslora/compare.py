"""python -m bayeslora.compare run_dirs=[RUN,RUN,…]: evaluated runs side by side, as text, CSV and HTML.

Reads metrics, configurations and manifests only; no model is built.

Examples:
    python -m bayeslora.compare 'run_dirs=outputs/quickstart/*'
    python -m bayeslora.compare run_dirs=[outputs/a,outputs/b]
    python -m bayeslora.compare run_dirs=[outputs/a,outputs/b] out_dir=comparison      also as CSV and HTML
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.app.cli import run_command
from bayeslora.atomic import user_path
from bayeslora.errors import DataError, Problems, require
from bayeslora.runs.trust import read_config

if TYPE_CHECKING:
    from bayeslora.report.comparison import Compared


@dataclass(frozen=True)
class CompareSettings:
    """`run_dirs`: folders, or one pattern; `out_dir`: where CSV and HTML go, None: nowhere."""

    run_dirs: Any = field(metadata={"question": "which runs? Give their folders: run_dirs=[outputs/…,outputs/…]"})
    out_dir: str | None = None


def compare(settings: CompareSettings) -> list[Compared]:
    """Print runs side by side; with `out_dir`, write CSV and HTML there.

    Raises:
        ConfigError: a pattern matches no run.
        DataError: folders that are no runs, are not evaluated or are corrupt; all of them are named.
    """
    from rich.console import Console
    from rich.text import Text

    from bayeslora.report.comparison import text_tables

    runs = read_runs(folders(settings.run_dirs))
    written = None if settings.out_dir is None else write(runs, user_path(settings.out_dir))
    console = Console()
    if not console.is_terminal:
        console.width = 100  # a file has no width
    for part in text_tables(runs, min(console.width, 100)):
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
    if written is not None:
        console.print(f"comparison: {written}", soft_wrap=True, highlight=False)
    return runs


def write(runs: Sequence[Compared], folder: Path) -> Path:
    """Write `comparison.csv` and `comparison.html`; returns the page's path."""
    from bayeslora.atomic import write_atomically
    from bayeslora.report.comparison import csv_text
    from bayeslora.report.comparison_page import comparison_page

    write_atomically(folder / "comparison.csv", csv_text(runs).encode())
    return write_atomically(folder / "comparison.html", comparison_page(runs, folder).encode())


def folders(run_dirs: str | Sequence[str]) -> list[Path]:
    """The folders that are meant, each once: paths as they are, of patterns the runs that match.

    Raises:
        ConfigError: a pattern matches no run, or none is given.
    """
    paths: list[Path] = []
    for entry in [run_dirs] if isinstance(run_dirs, str) else run_dirs:
        matches = [user_path(str(entry))]
        if glob.has_magic(str(entry)):
            matching = map(Path, sorted(glob.glob(str(matches[0]))))  # noqa: PTH207
            matches = [path for path in matching if (path / "config.yaml").is_file()]
            require(bool(matches), f"run_dirs={entry} matches no run directory")
        paths += matches
    require(bool(paths), "run_dirs names no run: give a list of folders, or a pattern such as outputs/quickstart/*")
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def read_runs(paths: Sequence[Path]) -> list[Compared]:
    """What is recorded of these runs.

    Raises:
        DataError: what is wrong with each that cannot be read.
    """
    from bayeslora.diagnostics.paired import EXAMPLES_FILE, read
    from bayeslora.evaluation.results import Results
    from bayeslora.report.comparison import Compared, marks, with_marks

    problems, runs = Problems(), []
    for mark, label, path in zip(marks(len(paths)), labels(paths), paths, strict=True):
        with problems.collect():
            config, results = _config(path), Results.read(path / "metrics.json")
            runs.append(Compared(mark, label, path, config, results, draws(path), read(path / EXAMPLES_FILE)))
    problems.raise_if_any(DataError)
    return with_marks(runs)


def labels(paths: Sequence[Path]) -> list[str]:
    """What tells the paths apart: each without the folders that all share."""
    whole = [path.resolve() for path in paths]
    shared = os.path.commonpath([path.parent for path in whole])
    return [str(path.relative_to(shared)) for path in whole]


def draws(path: Path) -> dict[int, int]:
    """The number of draws that the manifest of each chain lists."""
    return {
        int(manifest.parent.name): len(set(_indices(manifest)))
        for manifest in sorted(path.glob("chains/*/manifest.jsonl"))
        if manifest.parent.name.isdigit()
    }


def _indices(manifest: Path) -> list[int]:
    """Numbers of the draws listed; lines that are cut off, or are no draws, are passed over."""
    indices = []
    for line in manifest.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("index"), int):
            indices.append(entry["index"])
    return indices


def _config(path: Path) -> dict[str, Any]:
    config = read_config(path / "config.yaml")
    if not isinstance(config.get("chain"), dict):
        raise DataError(f"{path}: config.yaml does not hold a run's configuration")
    return config


def main() -> None:
    """Entry point."""
    run_command("compare", __doc__, compare, CompareSettings)


if __name__ == "__main__":
    main()
