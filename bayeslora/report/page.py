"""The report: one self-contained page on how the ensemble fares, whether the chains agree, and how it was run."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from bayeslora.diagnostics.metrics import Reliability
from bayeslora.files import write_atomically
from bayeslora.report import plots, table


@dataclass
class ReportData:
    """All that the page shows.

    Attributes:
        title: heading of the page.
        settings: (label, value) pairs in the order to show, e.g. `("Temperature", "1.0 (the Bayes posterior)")`.
        metrics: the content of `metrics.json`; `map` may be None.
        steps: step number of each draw, one array a chain.
        potential: potential of each draw in nats, one array a chain.
        l2_norm: norm of the sampled parameters of each draw, one array a chain.
        cumulative: `draws`, `accuracy`, `nll`, `ece`, `brier` of ensembles of ever more draws, lists of one length.
        reliability: diagrams by name, in the order to show, e.g. `"MAP"` and `"Ensemble"`.
        notes: warnings for the top of the page.
    """

    title: str
    settings: list[tuple[str, str]]
    metrics: dict[str, Any]
    steps: list[np.ndarray]
    potential: list[np.ndarray]
    l2_norm: list[np.ndarray]
    cumulative: dict[str, list[float]]
    reliability: dict[str, Reliability]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its file's name, caption and content; or, in words, why there is none."""

    name: str
    title: str
    caption: str
    png: bytes | None
    missing: str

    @property
    def source(self) -> str:
        """The image as a data address."""
        return f"data:image/png;base64,{base64.b64encode(self.png or b'').decode()}"


def write_report(data: ReportData, folder: Path) -> Path:
    """Write `index.html` and one PNG a plot; return the page's path.

    Files appear whole or not at all; the PNG of a plot that can no longer be drawn is removed.

    Args:
        data: what to show.
        folder: where to write; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predictive, traces = _predictive(data), _traces(data)
    for plot in (*predictive, *traces):
        target = folder / f"{plot.name}.png"
        if plot.png is None:
            target.unlink(missing_ok=True)
        else:
            write_atomically(target, plot.png)
    return write_atomically(folder / "index.html", _page(data, predictive, traces).encode())


def _page(data: ReportData, predictive: list[Plot], traces: list[Plot]) -> str:
    """The page as HTML; all text is escaped."""
    loader = PackageLoader("bayeslora.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        data=data,
        verdict=table.verdict(data.metrics, sum(len(steps) for steps in data.steps)),
        agreement=table.convergence_verdict(data.metrics),
        columns=table.COLUMNS,
        rows=table.rows(data.metrics),
        convergence=table.convergence_rows(data.metrics),
        probes=table.probe_verdict(data.metrics),
        limits={"rhat": table.RHAT_LIMIT, "ess": table.ESS_A_CHAIN},
        criteria=table.criteria_rows(data.metrics),
        provenance=list(_flat(data.metrics.get("provenance") or {})),
        predictive=predictive,
        traces=traces,
    )


def _predictive(data: ReportData) -> list[Plot]:
    """The plots of what is predicted."""
    return [
        _plot(
            "cumulative",
            "The ensemble as it grows",
            "The ensemble of the first draws of every chain. A curve still moving at the right wants more draws.",
            plots.cumulative(data.cumulative, data.metrics.get("map")),
            "no ensemble of part of the draws was evaluated",
        ),
        _plot(
            "reliability",
            "Reliability",
            "Bars below the diagonal: overconfident; above: underconfident. Beneath: the share of examples a bar has.",
            plots.reliability(data.reliability),
            "no predictions were recorded",
        ),
    ]


def _traces(data: ReportData) -> list[Plot]:
    """The plots of scalars along the chains."""
    scalars = [
        ("trace_potential", "Potential of the draws", "potential (nats)", data.potential),
        ("trace_l2_norm", "Norm of the sampled parameters", "parameter norm", data.l2_norm),
    ]
    caption = "One line a chain. Chains that agree cover the same band without drift.{}"
    return [
        _plot(
            name,
            title,
            caption.format(_omitted(series)),
            plots.trace(data.steps, series, label),
            "no finite value was recorded",
        )
        for name, title, label, series in scalars
    ]


def _plot(name: str, title: str, caption: str, figure: Figure | None, missing: str) -> Plot:
    """A plot from its figure, which may be None."""
    return Plot(name, title, caption, None if figure is None else plots.png(figure), missing)


def _omitted(series: list[np.ndarray]) -> str:
    """A sentence on the values that cannot be drawn, empty if there are none."""
    count = sum(int((~np.isfinite(np.asarray(values, dtype=np.float64))).sum()) for values in series)
    return f" Not drawn: {count:,} values that are not finite." if count else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested entries as (dotted key, text) pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
