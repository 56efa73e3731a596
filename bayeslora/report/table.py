"""A run's scores and criteria as rows, shared by the page, the terminal and W&B."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayeslora.diagnostics.values import Difference
from bayeslora.evaluation.criteria import failed
from bayeslora.evaluation.results import FunctionSpace, Results
from bayeslora.evaluation.scores import DrawScore, MapEnsemble, Scores, TemperedMap, score
from bayeslora.report.words import MISSING, block_title, finite_or_none, number

if TYPE_CHECKING:
    from bayeslora.report.next_step import Step


@dataclass(frozen=True)
class ScoreColumn:
    """One score: its key in `metrics.json`, its heading, and which way is better."""

    key: str
    title: str
    higher_is_better: bool = False
    percent: bool = False

    @property
    def of_predicted_class(self) -> bool:
        """Whether it looks at the predicted class alone, which a temperature leaves as it is."""
        return self.key in ("accuracy", "f1")

    def show(self, value: float, digits: int = 4, sd: float | None = None) -> str:
        """The value with so many digits as a fraction (two fewer as a percentage), its sd and its unit."""
        scale, digits, unit = (100, digits - 2, " %") if self.percent else (1, digits, "")
        spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
        return f"{scale * value:.{digits}f}{spread}{unit}".replace("-", "−")

    def signed(self, difference: Difference) -> str:
        """A difference with its sign and standard error, in digits that show the latter."""
        scale, digits, unit = (100, 1, " %") if self.percent else (1, 3, "")
        if difference.se:
            digits = max(digits, min(6, math.ceil(-math.log10(scale * difference.se))))
        value = f"{scale * (difference.value or 0.0):+z.{digits}f}".replace("-", "−")
        return f"{value}{'' if difference.se is None else f' ± {scale * difference.se:.{digits}f}'}{unit}"

    @property
    def name(self) -> str:
        """The metric within a sentence."""
        return self.title if self.key in ("brier", "f1") or self.title.isupper() else self.title.lower()


COLUMNS = (
    ScoreColumn("accuracy", "Accuracy", higher_is_better=True, percent=True),
    ScoreColumn("nll", "NLL"),
    ScoreColumn("ece", "ECE"),
    ScoreColumn("brier", "Brier score"),
)
F1 = ScoreColumn("f1", "F1", higher_is_better=True)
"""Of two classes only."""
REGRESSION = (
    ScoreColumn("rmse", "RMSE"),
    ScoreColumn("nll", "NLL"),
    ScoreColumn("calibration_error", "Calibration error"),
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
    """One line of the results: what was evaluated, a cell for each column, and whether they are differences."""

    label: str
    cells: tuple[Cell, ...]
    difference: bool = False


def columns(results: Results) -> tuple[ScoreColumn, ...]:
    """The scores that this run has."""
    if results.task == "regression":
        return REGRESSION
    return COLUMNS if score(results.ensemble, "f1") is None else (*COLUMNS, F1)


def rows(results: Results) -> list[Row]:
    """MAP, MAP at its fitted temperature, MAP × K, the mean single draw ± sd, each chain's ensemble, that of all draws.

    Then the ensemble's differences to MAP and to MAP × K. Bold: the best of MAP, MAP × K and ensemble, and its ties.
    """
    chains = results.chains if len(results.chains) > 1 else []
    sources: dict[str, tuple[str, Scores | Mapping[str, DrawScore] | None]] = {
        "map": ("MAP", results.map),
        "map_tempered": ("MAP, scaled", (results.map_tempered or TemperedMap()).scores),
        "map_ensemble": (map_ensemble_label(results), (results.map_ensemble or MapEnsemble()).scores),
        "draw": ("Draw ± sd", results.draw),
        **{f"chain {one.chain}": (f"Chain {one.chain}", one.scores) for one in chains},
        "ensemble": ("Ensemble", results.ensemble),
    }
    present = {name: source for name, source in sources.items() if source[1]}
    table = []
    for column in columns(results):
        best = leaders(results, column)
        entries = [entry(source, column.key) for _, source in present.values()]
        table.append(score_cells(column, entries, [name in best for name in present]))
    lines = [Row(label, cells) for (label, _), cells in zip(present.values(), zip(*table, strict=True), strict=True)]
    return lines + [_difference_row(results, name) for name in ("map", "map_ensemble") if name in results.differences]


def map_ensemble_label(results: Results) -> str:
    """The deep ensemble's name in tables."""
    return f"MAP × {(results.map_ensemble or MapEnsemble()).members}"


def leaders(results: Results, column: ScoreColumn) -> set[str]:
    """Which of `map`, `map_ensemble` and `ensemble` are best by a score or tie with the best; none where all do."""
    ends = (results.map_ensemble or MapEnsemble()).scores
    scores = {"map": results.map, "map_ensemble": ends, "ensemble": results.ensemble}
    values_of = {name: finite_or_none(score(one, column.key)) for name, one in scores.items()}
    values = {name: value for name, value in values_of.items() if value is not None}
    if not values:
        return set()
    best = (max if column.higher_is_better else min)(values, key=lambda name: values[name])
    level = {name for name in values if name == best or tie(results, column, best, name)}
    return level if len(level) < len(values) else set()


def tie(results: Results, column: ScoreColumn, one: str, other: str) -> bool:
    """Whether two of `map`, `map_tempered`, `map_ensemble` and `ensemble` differ by no more than two standard errors.

    Where no difference is known: whether they are equal at the digits shown.
    """
    pair = {one, other}
    names = (*pair - {"ensemble"}, "") if "ensemble" in pair else ("map_ensemble_less_map",)
    difference = results.differences.get(names[0], {}).get(column.key)
    if difference is not None and difference.value is not None:
        return difference.tie
    parts = {"map": results.map, "ensemble": results.ensemble}
    for name, part in (("map_tempered", results.map_tempered), ("map_ensemble", results.map_ensemble)):
        parts[name] = None if part is None else part.scores
    shown = {column.show(value, 3) for name in pair if (value := score(parts[name], column.key)) is not None}
    return len(shown) == 1


def _difference_row(results: Results, name: str) -> Row:
    """The ensemble's scores less a baseline's, each ± its standard error."""
    baseline = "MAP" if name == "map" else map_ensemble_label(results)
    cells = []
    for column in columns(results):
        one = results.differences[name].get(column.key, Difference())
        cells.append(Cell(MISSING if finite_or_none(one.value) is None else column.signed(one)))
    return Row(f"Ensemble − {baseline}", tuple(cells), difference=True)


def entry(source: Scores | Mapping[str, DrawScore] | None, name: str) -> DrawScore:
    """A score as its mean, with sd and Monte Carlo error where it is of single draws; all None where it is missing."""
    if isinstance(source, Mapping):
        return source.get(name, DrawScore())
    return DrawScore(score(source, name))


def results_table(results: Results, folded: bool = False) -> Table:
    """The rows as a table for the terminal, the best of each column in bold; `folded`: with "± …" on a second line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns(results):
        table.add_column(column.title, justify="right", no_wrap=True)
    lines = rows(results)
    for at, row in enumerate(lines):
        before_differences = not row.difference and any(one.difference for one in lines[at + 1 : at + 2])
        texts = [cell.text.replace(" ± ", "\n± ") if folded else cell.text for cell in row.cells]
        cells = [Text(text, style="bold" if cell.best else "") for text, cell in zip(texts, row.cells, strict=True)]
        label = row.label.removeprefix("Ensemble ") if row.difference else row.label  # for narrow terminals
        table.add_row(label, *cells, end_section=before_differences)
    return table


def print_summary(results: Results, page: Path | None, step: Step | None = None) -> None:
    """Print the table, what became of the criteria, where the report is (if there is one), and what to do next."""
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a file has no width; the table must not be cut to a guess of it
    table = results_table(results)
    if console.measure(table, options=console.options.update(max_width=1000)).maximum > console.width:
        table = results_table(results, folded=True)
    console.print(table)
    written = [] if page is None else [f"report: {page}"]
    following = [] if step is None else [f"next: {step.why}", f"  {step.command}"]
    for line in (*criteria_lines(results), *written, *following):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def tempering(results: Results) -> str | None:
    """A sentence on the temperature fitted to MAP, or why there is none; None without a baseline or classes."""
    fitted = results.map_tempered
    if fitted is None or results.task == "regression":  # which has no logits to scale
        return None
    if finite_or_none(fitted.temperature) is None:
        return f"MAP with a fitted temperature is left out: {fitted.reason or 'no reason was recorded'}."
    remark = f" ({fitted.reason})" if fitted.reason else ""
    return (
        "MAP, scaled: its logits divided by a temperature fitted on the validation set,"
        f" {fitted.temperature:.3g}{remark}."
    )


def criteria_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """For each criterion what it says, its value, its limit, and whether it is met or why that is not known."""
    return [
        (
            one.title or name,
            one.shown,
            f"{one.relation} {number(one.limit, '.4g')}".strip(),
            _outcome(results, name),
        )
        for name, one in results.criteria.items()
    ]


def criteria_lines(results: Results, most: int = 4) -> list[str]:
    """How many criteria are met and which are not, in so many lines at most, for the terminal."""
    criteria, problems = results.criteria, failed(results.criteria)
    if not criteria:
        return []
    first = f"criteria: {len(criteria) - len(problems)} of {len(criteria)} met"
    if len(problems) < most:
        return [first, *(f"  {problem}" for problem in problems)]
    rest = len(problems) - most + 2
    return [first, *(f"  {problem}" for problem in problems[: most - 2]), f"  and {rest} more are not met"]


def criterion_reason(results: Results, name: str) -> str | None:
    """Why a criterion's value is not known."""
    if name.endswith("_map"):
        if any(one.of_one_example for one in results.differences.get("map", {}).values()):
            return "a difference on one example has no standard error"
        return "there is no MAP baseline" if results.map is None else "a score is missing"
    scalar = name.rsplit("_", 1)[0]
    if scalar == "function_space":
        return (results.diagnostics.function_space or FunctionSpace()).reason
    if scalar == "temperature":
        unknown = {b: one.reason for b, one in results.diagnostics.temperature.items() if one.status == "not shown"}
        return (
            "; ".join(f"{block_title(block)}: {reason}" for block, reason in unknown.items())
            or "draws without readings"
        )
    return results.diagnostics.of(scalar).reason


def _outcome(results: Results, name: str) -> str:
    criterion = results.criteria[name]
    if criterion.passed:
        return "met"
    if finite_or_none(criterion.value) is not None:
        return "not met"
    return f"not known: {criterion_reason(results, name) or 'no reason was recorded'}"


def score_cells(column: ScoreColumn, entries: Sequence[DrawScore], best: Sequence[bool]) -> list[Cell]:
    """One column's cells, with sd where there is one, marked where they are among the best."""
    return [
        Cell(MISSING)
        if (mean := finite_or_none(one.mean)) is None
        else Cell(
            column.show(mean, sd=finite_or_none(one.sd)),
            best=leads,
            note="" if one.mcse is None else f"MCSE {column.show(one.mcse)}",
        )
        for one, leads in zip(entries, best, strict=True)
    ]
