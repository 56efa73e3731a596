"""Runs side by side: what differs in their settings, their predictions, diagnostics and criteria, as rows of text."""

from __future__ import annotations

import csv
import io
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from bayeslora.diagnostics.paired import between
from bayeslora.diagnostics.values import Difference
from bayeslora.evaluation.results import TIE, Criterion, Results
from bayeslora.evaluation.scores import DrawScore, MapEnsemble, TemperedMap
from bayeslora.factories import in_memory
from bayeslora.report.table import Cell, ScoreColumn, columns, entry, score_cells
from bayeslora.report.temperature import temperature_cell
from bayeslora.report.words import MISSING, block_title, finite_or_none, listed, number
from bayeslora.runs.provenance import ADDED, as_asked
from bayeslora.settings import Component, spoken

SILENT = {"run_dir", "resume", "logger", "callbacks", "name", *ADDED}
"""Parts of a configuration whose differences change no number (the run's name is its title)."""
PREDICTIONS = {
    "ensemble": "Ensemble of all draws",
    "draw": "Single draws, mean ± sd",
    "map": "MAP",
    "map_ensemble": "MAP × K, the deep ensemble of the chains' warm-up ends",
    "map_tempered": "MAP, scaled by a temperature fitted on validation",
}
OWN_DATA = ("Csv", "Npz", "ImageFolder", "Hub")
"""Datasets that are called by the file, folder or name of the hub that they read."""
LONGEST_NAME = 16
"""Characters of a run's name in tables."""
LONGEST_LABEL = 28
"""Characters on a line of what a row of a table in the terminal is called; criteria take two lines."""
DIAGNOSTICS = {
    ("potential", "rhat"): ("Potential R-hat", ".3f"),
    ("potential", "ess_bulk"): ("Potential bulk ESS", ",.0f"),
    ("potential", "ess_tail"): ("Potential tail ESS", ",.0f"),
    ("l2_norm", "rhat"): ("Norm R-hat", ".3f"),
    ("l2_norm", "ess_bulk"): ("Norm bulk ESS", ",.0f"),
    ("function_space", "rhat_median"): ("Predictions median R-hat", ".3f"),
    ("function_space", "rhat_q95"): ("Predictions 95 % R-hat", ".3f"),
    ("function_space", "ess_median"): ("Predictions median ESS", ",.0f"),
}
"""By place in `metrics.json`: heading and format."""


@dataclass(frozen=True)
class Compared:
    """One run of a comparison.

    Attributes:
        mark: a short name for it within the comparison.
        label: what tells its folder from the others'.
        folder: the run directory.
        config: the content of `config.yaml`.
        results: the content of `metrics.json`.
        draws: by chain, the number of draws on disk.
        examples: what each evaluated example adds to the ensemble's scores, if the run has it.
    """

    mark: str
    label: str
    folder: Path
    config: dict[str, Any]
    results: Results
    draws: dict[int, int]
    examples: dict[str, np.ndarray] | None = None

    @property
    def report(self) -> Path | None:
        """The page of its own report, if it has one."""
        return page if (page := self.folder / "report" / "index.html").exists() else None

    @property
    def title(self) -> str:
        """Name, sampler and data of the run."""
        sampler = _kind(self.config.get("sampler"))
        return f"{self.config.get('name')}: {sampler} on {self.data}, T = {_text(self.config.get('temperature'))}"

    @property
    def data(self) -> str:
        """What its data are called: one's own by their file or folder, others by their kind and task."""
        dataset = self.config.get("dataset") or {}
        if in_memory(dataset):
            return "examples of a program"
        kind, path, task = _kind(dataset), dataset.get("path"), dataset.get("task")
        if path and kind in OWN_DATA:
            return Path(str(path)).stem if kind in ("Csv", "Npz") else Path(str(path)).name
        return f"{kind} {task}" if task and kind not in OWN_DATA else kind

    def scores(self, source: str, column: ScoreColumn) -> DrawScore:
        """A score of `map`, `map_tempered`, `map_ensemble`, `draw` or `ensemble`."""
        part = getattr(self.results, source)
        return entry(part.scores if isinstance(part, TemperedMap | MapEnsemble) else part, column.key)


def _kind(node: Any) -> str:
    """The name of the class that a part of a configuration names."""
    return Component.of(node).name if node and "_target_" in node else "?"


@dataclass(frozen=True)
class Grid:
    """A table: what its rows and columns are called, and its cells.

    Attributes:
        title: what is in it.
        columns: headings.
        rows: what each row is called.
        cells: one list a row.
    """

    title: str
    columns: list[str]
    rows: list[str]
    cells: list[list[Cell]]


def marks(count: int) -> list[str]:
    """A, B, C, … for so many runs; numbers where the letters do not last."""
    return list(string.ascii_uppercase[:count]) if count <= 26 else [str(number) for number in range(1, count + 1)]


def with_marks(runs: Sequence[Compared]) -> list[Compared]:
    """The runs under short names for tables: their own where these tell them apart, or what differs; else letters."""
    names = [str(run.config.get("name")) for run in runs]
    differing = settings_grid(runs)
    chosen = [at for at, name in enumerate(differing.rows) if not name.startswith("provenance.")]
    if len(chosen) == 1:
        key = differing.rows[chosen[0]].rsplit(".", 1)[-1]
        is_ = "T = " if key == "temperature" else f"{key}="
        values = [f"{is_}{cell.text}" for cell in differing.cells[chosen[0]]]
        names = names if _tell_apart(names) else values
    short = names if _tell_apart(names) else marks(len(runs))
    return [replace(run, mark=name) for run, name in zip(runs, short, strict=True)]


def _tell_apart(names: Sequence[str]) -> bool:
    return len({*names}) == len(names) and max(map(len, names)) <= LONGEST_NAME


def grids(runs: Sequence[Compared]) -> list[Grid]:
    """All tables of a comparison that have rows: first what differs in the settings."""
    ensembles, *others = score_grids(runs)
    tables = [settings_grid(runs), ensembles, difference_grid(runs), *others]
    tables += [convergence_grid(runs), temperature_grid(runs), criteria_grid(runs)]
    return [table for table in tables if table.rows]


def difference_grid(runs: Sequence[Compared]) -> Grid:
    """The ensembles' scores less those of the first run, each ± its standard error; bold where better, and no tie."""
    first, shown = runs[0], shown_columns(runs)
    rows, cells = [], []
    for run in runs[1:]:
        differences = between(run.examples, first.examples)
        if differences:
            rows.append(run.mark)
            cells.append([_difference(column, differences.get(column.key, Difference())) for column in shown])
    title = f"Ensemble less that of {first.mark}, ± standard error over examples (paired)"
    return Grid(title, [column.title for column in shown], rows, cells)


def _difference(column: ScoreColumn, one: Difference) -> Cell:
    if finite_or_none(one.value) is None:
        return Cell(MISSING)
    assert one.value is not None
    better = (one.value > 0) == column.higher_is_better
    return Cell(column.signed(one), best=better and not one.tie)


def score_grids(runs: Sequence[Compared]) -> Iterator[Grid]:
    """A table each for the ensembles, single draws and MAP of the runs; the best of a column marked."""
    shown = shown_columns(runs)
    for source, title in PREDICTIONS.items():
        having = [run for run in runs if any(run.scores(source, column) != DrawScore() for column in shown)]
        paired = {run.mark: run.examples for run in having} if source == "ensemble" else {}
        scored = [_cells(column, {run.mark: run.scores(source, column) for run in having}, paired) for column in shown]
        cells = [list(row) for row in zip(*scored, strict=True)]
        yield Grid(title, [column.title for column in shown], [run.mark for run in having], cells)


def _cells(
    column: ScoreColumn, entries: Mapping[str, DrawScore], examples: Mapping[str, dict[str, np.ndarray] | None]
) -> list[Cell]:
    """One column's cells, the best marked and what ties with it; none where all do, or all that is shown is equal."""
    means = {name: mean for name, one in entries.items() if (mean := finite_or_none(one.mean)) is not None}
    level: set[str] = set()
    if means:
        best = (max if column.higher_is_better else min)(means, key=lambda name: means[name])
        level = {
            name
            for name, mean in means.items()
            if column.show(mean) == column.show(means[best])
            or between(examples.get(name), examples.get(best)).get(column.key, Difference()).tie
            or _within_sampling_error(entries[name], entries[best])
        }
    level = level if len(level) < len(means) else set()
    return score_cells(column, list(entries.values()), [name in level for name in entries])


def _within_sampling_error(one: DrawScore, other: DrawScore) -> bool:
    """Whether two means over draws differ by no more than two standard errors of the difference, where known."""
    if one.mean is None or other.mean is None or one.mcse is None or other.mcse is None:
        return False
    return abs(one.mean - other.mean) <= 2 * math.hypot(one.mcse, other.mcse)


def convergence_grid(runs: Sequence[Compared]) -> Grid:
    """R-hat and effective sample sizes of each run, and how many draws and chains there are."""
    columns = []
    for run in runs:
        diagnostics = run.results.diagnostics
        of = diagnostics.scalars | {"function_space": diagnostics.function_space}
        numbers = [number(getattr(of.get(name), key, None), spec) for (name, key), (_, spec) in DIAGNOSTICS.items()]
        columns.append([Cell(text) for text in (*numbers, str(sum(run.draws.values())), str(len(run.draws)))])
    headings = [*(heading for heading, _ in DIAGNOSTICS.values()), "Draws", "Chains"]
    return Grid("Convergence", [run.mark for run in runs], headings, [list(row) for row in zip(*columns, strict=True)])


def temperature_grid(runs: Sequence[Compared]) -> Grid:
    """The temperature of each block that any run measured, in units of the one asked for."""
    measured = [run.results.diagnostics.temperature for run in runs]
    cells = {
        block: [temperature_cell(one.get(block)) for one in measured]
        for block in dict.fromkeys(name for one in measured for name in one)
    }
    shown = {block_title(block): [Cell(cell or MISSING) for cell in row] for block, row in cells.items() if any(row)}
    title = "Measured temperature in units of T, ± standard error (in brackets: not judged)"
    return Grid(title, [run.mark for run in runs], list(shown), list(shown.values()))


def criteria_grid(runs: Sequence[Compared]) -> Grid:
    """The criteria that any run was held to: its value, and whether it is met."""
    judged = [run.results.criteria for run in runs]
    names = list(dict.fromkeys(name for criteria in judged for name in criteria))
    titles = [next(criteria[name].title for criteria in judged if name in criteria) or name for name in names]
    cells = [[_verdict(criteria.get(name)) for criteria in judged] for name in names]
    return Grid("Criteria", [run.mark for run in runs], titles, cells)


def settings_grid(runs: Sequence[Compared]) -> Grid:
    """The settings in which the runs differ, in the order of the configuration."""
    held = [_settings(run) for run in runs]
    every = dict.fromkeys(name for one in held for name in one)
    names = [name for name in every if len({one.get(name) for one in held}) > 1]
    cells = [[Cell(one.get(name, MISSING)) for one in held] for name in names]
    return Grid("Settings that differ", [run.mark for run in runs], names, cells)


def caveats(runs: Sequence[Compared]) -> list[str]:
    """What makes the runs' numbers less comparable than they look."""
    sentences = []
    data = {run.data for run in runs}
    splits = {run.results.provenance.split for run in runs}
    if len(data) > 1:
        sentences.append("The runs are of different datasets: their scores cannot be compared.")
    if len(splits) > 1:
        each = ", ".join(f"{run.mark} on {run.results.provenance.split}" for run in runs)
        sentences.append(f"The runs were evaluated on different splits ({each}).")
    for run in runs:
        chain = run.config["chain"]
        wanted, kept = chain.get("num_chains", 0) * chain.get("num_draws", 0), sum(run.draws.values())
        evaluated = run.results.provenance.draws
        if kept < wanted:
            sentences.append(f"{run.mark} has {kept} of {wanted} draws.")
        if evaluated is not None and evaluated != kept:
            sentences.append(f"{run.mark} was evaluated with {evaluated} draws and has {kept}: evaluate it again.")
    for run in runs[1:]:
        if len(data) == len(splits) == 1 and not between(run.examples, runs[0].examples):
            lacking = [one.mark for one in (runs[0], run) if one.examples is None]
            why = f"{listed(lacking)} to be evaluated again" if lacking else "runs on the same examples"
            sentences.append(f"Differences of {run.mark} to {runs[0].mark} have no standard error: that takes {why}.")
    return sentences


def text_tables(runs: Sequence[Compared], width: int = 80) -> Iterator[Table | Text]:
    """The comparison for the terminal: which run is which and where its report is, notes, and the tables.

    Args:
        runs: with names for tables (see `with_marks`).
        width: characters that a table may be wide.
    """
    longest = max(len(run.mark) for run in runs)
    for run in runs:
        yield Text.assemble((f"{run.mark:{longest}}", "bold"), f"  {run.title}  {run.label}")
        yield Text(f"{'':{longest}}  {run.report or run.folder}")
    for note in caveats(runs):
        yield Text(f"Note: {note}", style="yellow")
    for grid in grids(runs):
        for part in _within(grid, width):
            yield Text(f"\n{part.title}", style="bold")
            yield _table(part)


def _table(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", width=_label_width(grid))
    for column in grid.columns:
        table.add_column(column, justify="right", overflow="fold", vertical="bottom")
    for name, cells in zip(grid.rows, grid.cells, strict=True):
        table.add_row(name, *(Text(cell.text, style="bold" if cell.best else "") for cell in cells))
    return table


def _label_width(grid: Grid) -> int:
    """Characters of the first column: names of settings and blocks are not broken, for they hold no spaces."""
    words = [word for name in grid.rows for word in name.split()]
    return max(min(LONGEST_LABEL, max(map(len, grid.rows))), *map(len, words))


def _within(grid: Grid, width: int) -> Iterator[Grid]:
    """A table as several that are no wider than so many characters, as far as one column each can be."""
    room = width - _label_width(grid)
    widths = [
        2 + min(40, max(len(column), *(len(row[at].text) for row in grid.cells)))
        for at, column in enumerate(grid.columns)
    ]
    start = 0
    while start < len(widths):
        end = start + 1
        while end < len(widths) and sum(widths[start : end + 1]) <= room:
            end += 1
        yield replace(grid, columns=grid.columns[start:end], cells=[row[start:end] for row in grid.cells])
        start = end


def csv_text(runs: Sequence[Compared]) -> str:
    """One line a run: marks, settings that differ, every number of predictions, diagnostics and criteria."""
    rows = [dict(_flat_run(run, settings_grid(runs))) for run in runs]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat_run(run: Compared, differing: Grid) -> Iterator[tuple[str, Any]]:
    """A run's columns in the CSV file; a number that there is none of is left empty."""
    yield from {"run": run.mark, "run_dir": str(run.folder), "title": run.title}.items()
    yield from {"draws": sum(run.draws.values()), "chains": len(run.draws)}.items()
    held = _settings(run)
    for name in differing.rows:
        yield f"setting.{name}", held.get(name)
    content = run.results.to_json()
    for part in (*PREDICTIONS, "diagnostics", "criteria"):
        for name, value in _leaves(content[part] or {}, part):
            if isinstance(value, int | float):
                yield name, value


def _settings(run: Compared) -> dict[str, str]:
    """Settings that may change a run's numbers, as text by dotted name, with the code and the machine it ran on.

    They are as they were asked for: the step sizes that a pilot found are `auto`.
    """
    config = {key: value for key, value in as_asked(run.config).items() if key not in SILENT}
    settings = {name: _text(value) for name, value in _leaves(config, "") if name != "evaluate.report"}
    for name in ("commit", "hardware"):
        settings[f"provenance.{name}"] = str((run.config.get("provenance") or {}).get(name))
    return settings | {"evaluate.split": str(run.results.provenance.split)}


def _text(value: Any) -> str:
    """A setting as one writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else spoken(str(value))


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Values by dotted name; lists count as values."""
    if not isinstance(node, Mapping):
        yield name, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _verdict(criterion: Criterion | None) -> Cell:
    """A criterion's value, a tie, and whether it is met; a dash where the run was not held to it."""
    if criterion is None:
        return Cell(MISSING)
    shown = criterion.shown.replace(TIE, " tie")  # two runs are to stand side by side
    return Cell(f"{shown} {'✓' if criterion.passed else '✗'}")


def shown_columns(runs: Sequence[Compared]) -> tuple[ScoreColumn, ...]:
    """The scores that any of the runs has."""
    return max((columns(run.results) for run in runs), key=len)
