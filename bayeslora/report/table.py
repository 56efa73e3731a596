"""A run's numbers as rows and in words, shared by the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

Metrics = Mapping[str, Any]
"""The content of `metrics.json`."""

RHAT_LIMIT, RHAT_BAD = 1.01, 1.1
"""R-hat up to the first: chains agree. Above the second: they disagree. Between: not shown to agree."""
ESS_A_CHAIN = 100
"""Effective draws a chain below which estimates are called noisy."""
MISSING = "–"
AGAINST_MAP = {
    "beats": "beats MAP",
    "is worse": "is worse than MAP",
    "ties": "ties with MAP",
    "cannot be compared": "cannot be compared with MAP",
}
"""How the ensemble can stand against MAP: the outcome, and its words where MAP must be named."""


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


@dataclass(frozen=True)
class Cell:
    """A number as shown; `best` if no other row shows a better one."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the results: what was evaluated, and a cell for each of `COLUMNS`."""

    label: str
    cells: tuple[Cell, ...]


def rows(metrics: Metrics) -> list[Row]:
    """MAP, the mean single draw ± sd, each chain's ensemble if there are several, and the whole; what is at hand."""
    sources = _sources(metrics)
    table = [_cells(column, [values.get(column.key) for _, values in sources]) for column in COLUMNS]
    return [Row(label, cells) for (label, _), cells in zip(sources, zip(*table, strict=True), strict=True)]


def metrics_table(metrics: Metrics) -> Table:
    """The rows as a table for the terminal, the best of each column in bold."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in rows(metrics):
        table.add_row(row.label, *(Text(cell.text, style="bold" if cell.best else "") for cell in row.cells))
    return table


def verdict(metrics: Metrics, draws: int) -> str:
    """One sentence comparing the ensemble of `draws` draws with MAP; equal at the digits shown is a tie."""
    subject = f"The ensemble of {draws:,} draws" if draws != 1 else "The only draw"
    ensemble, baseline = metrics.get("ensemble"), metrics.get("map")
    if not ensemble:
        return "No draw has been evaluated, so there is nothing to compare."
    if not baseline:
        reached = [
            f"{column.name} {column.show(ensemble[column.key], 3)}" for column in COLUMNS if column.key in ensemble
        ]
        return f"{subject} reaches {_list(reached)}; there is no MAP baseline to compare it with."
    outcomes: dict[str, list[str]] = {outcome: [] for outcome in AGAINST_MAP}
    for column in COLUMNS:
        outcome, numbers = _compare(column, ensemble.get(column.key), baseline.get(column.key))
        outcomes[outcome].append(f"{column.name} ({numbers})")
    found = [(outcome, names) for outcome, names in outcomes.items() if names]
    clauses = [
        f"{outcome if at else AGAINST_MAP[outcome]} on {_list(names)}" for at, (outcome, names) in enumerate(found)
    ]
    return f"{subject} {', '.join(clauses[:-1])}{', and ' if clauses[1:] else ''}{clauses[-1]}."


def convergence_verdict(metrics: Metrics) -> str:
    """One sentence on whether the chains agree: the largest R-hat of the scalars and the median one of predictions."""
    scalars, probes = _scalars(metrics), _probes(metrics)
    known = [
        rhat
        for rhat in (*(values["rhat"] for values in scalars.values()), probes.get("rhat_median"))
        if rhat is not None
    ]
    if not known:
        reasons = sorted({values["reason"] for values in (*scalars.values(), probes) if values.get("reason")})
        return f"Convergence was not assessed: {'; '.join(reasons) or 'nothing was recorded'}."
    if max(known) <= RHAT_LIMIT:
        return f"The chains agree on what was compared (R-hat at most {max(known):.3f})."
    words = "disagree" if max(known) > RHAT_BAD else "are not shown to agree yet"
    return f"The chains {words} (R-hat up to {max(known):.3f}): this is an ensemble, not a sample of the posterior."


def probe_verdict(metrics: Metrics) -> str | None:
    """One sentence on the convergence of predictions on the probe set; None if that was not looked at."""
    probes = _probes(metrics)
    if not probes:
        return None
    if probes.get("rhat_median") is None:
        return f"Predictions on the probe set were not assessed: {probes.get('reason') or 'no reason was recorded'}."
    parts = [
        ("median R-hat {:.3f}", "rhat_median"),
        ("95 % quantile {:.3f}", "rhat_q95"),
        (f"{{:.0%}} of them at most {RHAT_LIMIT}", "fraction_below_1_01"),
        ("{:.0%} at most 1.05", "fraction_below_1_05"),
        ("median ESS {:,.0f}", "ess_median"),
    ]
    words = [text.format(probes[key]) for text, key in parts if probes.get(key) is not None]
    return f"Predictions on the probe set: {', '.join(words)}."


def convergence_rows(metrics: Metrics) -> list[tuple[str, str, str, str, str]]:
    """For each scalar its name, R-hat, bulk ESS, tail ESS, and in words what they say or why they are missing."""
    labels = {"potential": "Potential", "l2_norm": "Parameter norm"}
    return [
        (
            labels.get(name, name.replace("_", " ").capitalize()),
            _number(values.get("rhat"), ".3f"),
            _number(values.get("ess_bulk"), ",.0f"),
            _number(values.get("ess_tail"), ",.0f"),
            _reading(values, len(metrics.get("chains") or [None])),
        )
        for name, values in _scalars(metrics).items()
    ]


def criteria_rows(metrics: Metrics) -> list[tuple[str, str, str, str]]:
    """For each criterion its name, value, limit and whether it passed."""
    return [
        (
            name,
            _number(found.get("value"), ".4g"),
            _number(found.get("limit"), ".4g"),
            "yes" if found.get("passed") else "no",
        )
        for name, found in (metrics.get("criteria") or {}).items()
    ]


def _sources(metrics: Metrics) -> list[tuple[str, Metrics]]:
    """Labels and metrics of the rows; of those only what was evaluated."""
    chains = metrics.get("chains") or []
    candidates = [
        ("MAP", metrics.get("map")),
        ("Draw ± sd", metrics.get("draw")),
        *((f"Chain {index}", chain) for index, chain in enumerate(chains) if len(chains) > 1),
        ("Ensemble", metrics.get("ensemble")),
    ]
    return [(label, values) for label, values in candidates if values]


def _cells(column: Column, entries: Sequence[Any]) -> list[Cell]:
    """One column's cells; the best is marked unless all that is shown is equal."""
    means, sds = zip(*(_mean_sd(entry) for entry in entries), strict=True) if entries else ((), ())
    shown = {value: column.show(value) for value in means if value is not None and math.isfinite(value)}
    best = (max if column.higher_is_better else min)(shown, default=None)
    distinct = len(set(shown.values())) > 1
    return [
        Cell(
            MISSING if mean is None else column.show(mean, sd=sd), best=distinct and shown.get(mean, "") == shown[best]
        )
        for mean, sd in zip(means, sds, strict=True)
    ]


def _mean_sd(entry: Any) -> tuple[float | None, float | None]:
    """A metric's value and, for single draws, its sd; NaN counts as missing."""
    mean, sd = (entry.get("mean"), entry.get("sd")) if isinstance(entry, Mapping) else (entry, None)
    known = [None if value is None or math.isnan(value) else float(value) for value in (mean, sd)]
    return known[0], known[1]


def _compare(column: Column, value: float | None, baseline: float | None) -> tuple[str, str]:
    """How a value stands against the baseline, and both in digits."""
    if value is None or baseline is None or math.isnan(value) or math.isnan(baseline):
        return "cannot be compared", "a value is missing"
    shown, against = column.show(value, 3), column.show(baseline, 3)
    if shown == against:
        return "ties", shown
    return "beats" if (value > baseline) == column.higher_is_better else "is worse", f"{shown} vs {against}"


def _list(items: Sequence[str]) -> str:
    """Items as "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _scalars(metrics: Metrics) -> dict[str, Metrics]:
    """The diagnostics that are of one scalar (those that have an R-hat, be it None)."""
    return {name: values for name, values in (metrics.get("diagnostics") or {}).items() if values and "rhat" in values}


def _probes(metrics: Metrics) -> Metrics:
    """The diagnostics of predictions on the probe set, empty if there are none."""
    return (metrics.get("diagnostics") or {}).get("function_space") or {}


def _number(value: float | None, spec: str) -> str:
    """A number by its format, or a dash."""
    return MISSING if value is None else format(value, spec)


def _reading(values: Metrics, chains: int) -> str:
    """What a scalar's diagnostics say, in words."""
    words = []
    rhat, sizes = (
        values.get("rhat"),
        [size for size in (values.get("ess_bulk"), values.get("ess_tail")) if size is not None],
    )
    if rhat is not None:
        apart = "chains disagree" if rhat > RHAT_BAD else "chains not shown to agree"
        words.append("chains agree" if rhat <= RHAT_LIMIT else apart)
    if sizes:
        words.append(
            "enough draws" if min(sizes) >= ESS_A_CHAIN * chains else f"below {ESS_A_CHAIN} effective draws a chain"
        )
    if values.get("reason"):
        words.append(values["reason"])
    text = "; ".join(words)
    return text[:1].upper() + text[1:]
