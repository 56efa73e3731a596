"""The report: one self-contained page on how the ensemble fares, whether the chains agree, and how it was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from bayeslora.diagnostics.metrics import Reliability
from bayeslora.files import write_atomically
from bayeslora.report import beyond, classes, scalars, table, verdict
from bayeslora.report.classes import ClassRow
from bayeslora.report.describe import provenance
from bayeslora.report.examples import Gallery
from bayeslora.report.figures import Plot, figures


@dataclass
class ReportData:
    """All that the page shows.

    Attributes:
        title: heading of the page.
        settings: (label, value) pairs in the order to show, e.g. `("Temperature", "1.0 (the Bayes posterior)")`.
        metrics: the content of `metrics.json`; `map` may be None.
        temperature: T of the run, 0 for MAP; None if it is not known.
        chains: numbers of the chains, in the order of the lists below; none: 0, 1, ….
        steps: step number of each draw, one array a chain.
        series: scalars of each draw by name, e.g. `"potential"`: one array [draws] a chain.
        singles: metrics of each single draw by name, e.g. `"nll"`: one array [draws] a chain.
        gradients: minibatch gradients taken for the ensembles of `metrics["reference"]["curve"]`; may be empty.
        reliability: diagrams by name, in the order to show, e.g. `"MAP"` and `"Ensemble"`.
        classes: how each class fares, in their order.
        uncertain, errors: the examples that draws disagree about most, and the most confident errors.
        notes: warnings for the top of the page.
        absent: why there are no tables and figures of classes.
    """

    title: str
    settings: list[tuple[str, str]]
    metrics: dict[str, Any]
    temperature: float | None = None
    chains: list[int] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    series: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    singles: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    gradients: list[float] = field(default_factory=list)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    classes: list[ClassRow] = field(default_factory=list)
    uncertain: Gallery = field(default_factory=lambda: Gallery(missing="no predictions were recorded"))
    errors: Gallery = field(default_factory=lambda: Gallery(missing="no predictions were recorded"))
    notes: list[str] = field(default_factory=list)
    absent: str = "no predictions were recorded"

    @property
    def draws(self) -> int:
        """Draws of all chains."""
        return sum(len(steps) for steps in self.steps)

    @property
    def chain_numbers(self) -> list[int]:
        """The chains' numbers."""
        return self.chains or list(range(len(self.steps)))


def write_report(data: ReportData, folder: Path) -> Path:
    """Write `index.html` and one PNG a plot; return the page's path.

    Files appear whole or not at all; the PNG of a plot that can no longer be drawn is removed.

    Args:
        data: what to show.
        folder: where to write; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = figures(data)
    for plot in (plot for section in found.values() for plot in section):
        target = folder / f"{plot.name}.png"
        if plot.png is None:
            target.unlink(missing_ok=True)
        else:
            write_atomically(target, plot.png)
    return write_atomically(folder / "index.html", _page(data, found).encode())


def _page(data: ReportData, found: Mapping[str, list[Plot]]) -> str:
    """The page as HTML; all text is escaped."""
    loader = PackageLoader("bayeslora.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    recorded = data.metrics.get("provenance") or {}
    return environment.get_template("page.html.j2").render(
        data=data,
        plots=found,
        provenance=provenance(recorded),
        command=recorded.get("command"),
        **_header(data),
        **_predictions(data),
        **_convergence(data),
        **_beyond(data),
    )


def _header(data: ReportData) -> dict[str, Any]:
    """What the top of the page says."""
    met, count, problems = verdict.criteria_verdict(data.metrics)
    sentences = [
        verdict.verdict(data.metrics, data.draws),
        verdict.tempered_verdict(data.metrics),
        verdict.convergence_verdict(data.metrics),
        verdict.temperature_verdict(data.metrics, data.temperature),
    ]
    return {"met": met, "count": count, "problems": problems, "sentences": [words for words in sentences if words]}


def _predictions(data: ReportData) -> dict[str, Any]:
    """Tables of what is predicted, and of the criteria."""
    columns = table.columns(data.metrics)
    return {
        "columns": columns,
        "regression": data.metrics.get("task") == "regression",
        "rows": table.rows(data.metrics, columns),
        "tempering": table.tempering(data.metrics),
        "criteria": table.criteria_rows(data.metrics),
    }


def _convergence(data: ReportData) -> dict[str, Any]:
    """Tables of the chains."""
    headings, parts = scalars.part_rows(data.metrics)
    return {
        "scalars": scalars.scalar_rows(data.metrics),
        "every_scalar": scalars.scalar_rows(data.metrics, grouped=False),
        "function_space": scalars.function_pairs(data.metrics),
        "part_headings": headings,
        "parts": parts,
        "limits": {"rhat": scalars.RHAT_LIMIT, "ess": scalars.ESS_A_CHAIN},
    }


def _beyond(data: ReportData) -> dict[str, Any]:
    """Tables by class, of uncertainty, other data, corruptions and a reference."""
    worst, best = classes.worst_and_best(data.classes)
    return {
        "worst": worst,
        "best": best,
        "uncertainty": beyond.uncertainty_rows(data.metrics, data.draws),
        "detection": beyond.detection_rows(data.metrics),
        "other": (data.metrics.get("ood") or {}).get("dataset") or "other data",
        "kinds": len(beyond.corruption_kinds(data.metrics)),
        "corrupted": (data.metrics.get("corruptions") or {}).get("examples"),
        "severities": beyond.severity_rows(data.metrics),
        "corruptions": beyond.corruption_rows(data.metrics),
        "reference": beyond.reference_rows(data.metrics),
        "missing": {key: beyond.missing(data.metrics, key) for key in ("ood", "corruptions", "reference")},
    }
