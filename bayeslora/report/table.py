"""A run's predictive metrics and criteria as rows, shared by the page, the terminal and W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bayeslora.evaluation.criteria import failed
from bayeslora.report.scalars import diagnostic
from bayeslora.report.words import MISSING, Metrics, known, number


@dataclass(frozen=True)
class Column:
    """One predictive metric: its key in `metrics.json`, its heading, and which way is better."""

    key: str
    title: str
    higher_is_better: bool = False
    percent: bool = False

    def show(self, value: float, digits: int = 4, sd: float | None = None) -> str:
        """The value with so many digits as a fraction (two fewer as a percentage), its sd and its unit."""
        scale, digits, unit = (100, digits - 2, " %") if self.percent else (1, digits, "")
        spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
        return f"{scale * value:.{digits}f}{spread}{unit}"

    @property
    def name(self) -> str:
        """The metric within a sentence."""
        return "accuracy" if self.key == "accuracy" else self.title


COLUMNS = (
    Column("accuracy", "Accuracy", higher_is_better=True, percent=True),
    Column("nll", "NLL"),
    Column("ece", "ECE"),
    Column("brier", "Brier score"),
)
F1 = Column("f1", "F1", higher_is_better=True)
"""Of two classes only."""
REGRESSION = (
    Column("rmse", "RMSE"),
    Column("nll", "NLL"),
    Column("calibration_error", "Calibration error"),
    Column("sharpness", "Predictive sd"),
)
ALL_COLUMNS = (*COLUMNS, *(column for column in REGRESSION if column.key != "nll"))


@dataclass(frozen=True)
class Cell:
    """A number as shown, a remark on it, and whether no other row shows a better one."""

    text: str
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the results: what was evaluated, and a cell for each column."""

    label: str
    cells: tuple[Cell, ...]


def columns(metrics: Metrics) -> tuple[Column, ...]:
    """The metrics that this run has."""
    if metrics.get("task") == "regression":
        return REGRESSION
    return (*COLUMNS, F1) if any(F1.key in values for _, values in _sources(metrics)) else COLUMNS


def rows(metrics: Metrics, shown: Sequence[Column] = COLUMNS) -> list[Row]:
    """MAP, MAP at its fitted temperature, the mean single draw ± sd, each of several chains' ensembles, and all."""
    sources = _sources(metrics)
    table = [_cells(column, [values.get(column.key) for _, values in sources]) for column in shown]
    return [Row(label, cells) for (label, _), cells in zip(sources, zip(*table, strict=True), strict=True)]


def metrics_table(metrics: Metrics) -> Table:
    """The rows as a table for the terminal, the best of each column in bold."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns(metrics):
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in rows(metrics, columns(metrics)):
        table.add_row(row.label, *(Text(cell.text, style="bold" if cell.best else "") for cell in row.cells))
    return table


def tempering(metrics: Metrics) -> str | None:
    """A sentence on the temperature fitted to MAP, or why there is none; None without a baseline."""
    found = metrics.get("map_tempered")
    if not found:
        return None
    fitted = known(found.get("temperature"))
    if fitted is None:
        return f"MAP with a fitted temperature is left out: {found.get('reason') or 'no reason was recorded'}."
    remark = f" ({found['reason']})" if found.get("reason") else ""
    return f"MAP, scaled: its logits divided by a temperature fitted on the validation set, {fitted:.3g}{remark}."


def criteria_rows(metrics: Metrics) -> list[tuple[str, str, str, str]]:
    """For each criterion what it says, its value, its limit, and whether it is met or why that is not known."""
    return [
        (
            found.get("title", name),
            number(found.get("value"), ".4g"),
            f"{found.get('relation', '')} {number(found.get('limit'), '.4g')}".strip(),
            _outcome(metrics, name, found),
        )
        for name, found in (metrics.get("criteria") or {}).items()
    ]


def criteria_lines(metrics: Metrics, most: int = 4) -> list[str]:
    """How many criteria are met and which are not, in so many lines at most, for the terminal."""
    criteria = metrics.get("criteria") or {}
    problems = failed(criteria)
    if not criteria:
        return []
    first = f"criteria: {len(criteria) - len(problems)} of {len(criteria)} met"
    if len(problems) < most:
        return [first, *(f"  {problem}" for problem in problems)]
    rest = len(problems) - most + 2
    return [first, *(f"  {problem}" for problem in problems[: most - 2]), f"  and {rest} more are not, see the report"]


def criterion_reason(metrics: Metrics, name: str) -> str | None:
    """Why a criterion's value is not known."""
    if name.endswith("_map"):
        return "there is no MAP baseline" if not metrics.get("map") else "a metric is missing"
    return diagnostic(metrics, name.rsplit("_", 1)[0]).get("reason")


def _outcome(metrics: Metrics, name: str, found: Metrics) -> str:
    if found.get("passed"):
        return "met"
    if known(found.get("value")) is not None:
        return "not met"
    return f"not known: {criterion_reason(metrics, name) or 'no reason was recorded'}"


def _sources(metrics: Metrics) -> list[tuple[str, Metrics]]:
    """Labels and metrics of the rows; of those only what was evaluated."""
    chains = metrics.get("chains") or []
    tempered = metrics.get("map_tempered") or {}
    candidates = [
        ("MAP", metrics.get("map")),
        ("MAP, scaled", tempered if "nll" in tempered else None),
        ("Draw ± sd", metrics.get("draw")),
        *((f"Chain {chain.get('chain', at)}", chain) for at, chain in enumerate(chains) if len(chains) > 1),
        ("Ensemble", metrics.get("ensemble")),
    ]
    return [(label, values) for label, values in candidates if values]


def _cells(column: Column, entries: Sequence[Any]) -> list[Cell]:
    """One column's cells; the best is marked unless all that is shown is equal."""
    found = [_parts(entry) for entry in entries]
    shown = {mean: column.show(mean) for mean, _, _ in found if mean is not None}
    best = (max if column.higher_is_better else min)(shown, default=None)
    distinct = len(set(shown.values())) > 1
    return [
        Cell(
            MISSING if mean is None else column.show(mean, sd=sd),
            best=distinct and mean is not None and best is not None and shown[mean] == shown[best],
            note="" if mcse is None else f"MCSE {column.show(mcse)}",
        )
        for mean, sd, mcse in found
    ]


def _parts(entry: Any) -> tuple[float | None, float | None, float | None]:
    """A metric's value and, for single draws, its sd and its Monte Carlo error."""
    if not isinstance(entry, Mapping):
        return known(entry), None, None
    return known(entry.get("mean")), known(entry.get("sd")), known(entry.get("mcse"))
