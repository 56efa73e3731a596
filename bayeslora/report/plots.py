"""The report's figures, by matplotlib's objects: nothing global is changed, no display is needed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, ScalarFormatter

from bayeslora.diagnostics.metrics import Reliability
from bayeslora.report.table import COLUMNS, Column

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#666666")
"""Okabe and Ito's colours but yellow and black, and two more: told apart by the colour-blind, legible on white."""

INK, QUIET = "#222222", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titlepad": 8,
    "figure.dpi": 160,
    "font.size": 10.5,
    "hatch.linewidth": 0.7,
    "grid.color": "#ececec",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
BAR: dict[str, Any] = {"facecolor": "#8fc3e6", "edgecolor": "white", "linewidth": 0.8}
GAP: dict[str, Any] = {"facecolor": "none", "edgecolor": PALETTE[1], "linewidth": 0.9, "hatch": "/////"}
ROUND = [1, 2, 2.5, 5, 10]
"""Distances of ticks, times a power of ten."""
MAX_POINTS = 2_000
"""Points drawn of one chain: more would not fit the width in pixels."""
MIN_FOR_MARGINAL = 20
"""Draws each chain needs for a histogram beside its trace."""

Curve = tuple[np.ndarray, np.ndarray]


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


@rc_context(STYLE)
def trace(steps: Sequence[np.ndarray], series: Sequence[np.ndarray], label: str) -> Figure | None:
    """A scalar along the chains, and its histogram by chain beside; None if there is no finite value.

    Args:
        steps: step number of each draw, one array a chain.
        series: value of each draw, one array a chain; values that are not finite are left out.
        label: name and unit of the scalar.
    """
    curves = [_finite(step, values) for step, values in zip(steps, series, strict=False)]
    lengths = [len(values) for _, values in curves if len(values)]
    if not lengths:
        return None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    beside = min(lengths) >= MIN_FOR_MARGINAL
    panels = figure.subplots(1, 1 + beside, sharey=True, squeeze=False, width_ratios=[5, 1][: 1 + beside])[0]
    for chain, curve in enumerate(curves):
        _line(panels[0], *_thinned(curve), color=PALETTE[chain % len(PALETTE)], width=0.9)
    panels[0].set(xlabel="step", ylabel=label)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].xaxis.set_major_locator(_whole_numbers())
    panels[0].yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    if beside:
        _marginals(panels[1], [values for _, values in curves])
    if 1 < len(curves) <= len(PALETTE):
        handles = [
            Line2D([], [], color=color, label=f"chain {chain}") for chain, color in enumerate(PALETTE[: len(curves)])
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(curves)), handlelength=1.4)
    return figure


@rc_context(STYLE)
def cumulative(curves: Mapping[str, Sequence[float]], baseline: Mapping[str, float] | None) -> Figure | None:
    """Each metric of the ensemble against its number of draws, MAP dashed; None if there is nothing to show.

    Args:
        curves: `draws` (number of draws) and, of the same length, the metrics by their key.
        baseline: MAP's metrics, or None.
    """
    draws = curves.get("draws", ())
    found = [(column, _finite(draws, curves.get(column.key, ()))) for column in COLUMNS]
    found = [(column, curve) for column, curve in found if len(curve[0])]
    if not found:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.06))
    panels = figure.subplots(-(-len(found) // 2), 2, squeeze=False).ravel()
    for panel, (column, curve) in zip(panels, found, strict=False):
        _progress(panel, column, curve, (baseline or {}).get(column.key))
    for spare in panels[len(found) :]:
        spare.remove()
    handles = [Line2D([], [], color=PALETTE[0], label="ensemble")]
    if baseline:
        handles.append(Line2D([], [], color=INK, linestyle="--", label="MAP"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@rc_context(STYLE)
def reliability(diagrams: Mapping[str, Reliability]) -> Figure | None:
    """Accuracy by confidence, and how often each confidence occurs, diagrams side by side; None if there are none."""
    if not diagrams:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.04))
    panels = figure.subplots(2, len(diagrams), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for (name, diagram), (upper, lower) in zip(diagrams.items(), panels.T, strict=True):
        _calibration(upper, diagram)
        upper.set_title(f"{name} · ECE {diagram.ece:.4f}")
        _histogram(lower, diagram)
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel("examples")
    handles = [
        Patch(**BAR, label="accuracy"),
        Patch(**GAP, label="gap to confidence"),
        Line2D([], [], color=INK, linestyle="--", linewidth=1, label="calibrated"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.6)
    return figure


def _finite(x: Sequence[float] | np.ndarray, y: Sequence[float | None] | np.ndarray) -> Curve:
    """The points of a curve that are finite, as float64 [points] each; None counts as NaN."""
    length = min(len(x), len(y))
    points = np.array([x[:length], y[:length]], dtype=np.float64)
    kept = points[:, np.isfinite(points).all(0)]
    return kept[0], kept[1]


def _thinned(curve: Curve) -> Curve:
    """At most `MAX_POINTS` points of a curve, evenly spread, the ends among them."""
    length = len(curve[0])
    index = np.linspace(0, length - 1, min(length, MAX_POINTS)).astype(int)
    return curve[0][index], curve[1][index]


def _line(panel: Axes, x: np.ndarray, y: np.ndarray, color: str, width: float) -> None:
    """A curve; with few points these are marked, so that a single one shows."""
    panel.plot(x, y, color=color, linewidth=width, marker="o" if len(x) <= 12 else "", markersize=4)


def _whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers, one if there is but one number to show."""
    return MaxNLocator(5, steps=ROUND, integer=True, min_n_ticks=1)


def _marginals(panel: Axes, chains: Sequence[np.ndarray]) -> None:
    """A horizontal histogram of each chain [draws] in common bins, on the trace's axis."""
    shortest = min(len(values) for values in chains if len(values))
    edges = np.histogram_bin_edges(np.concatenate(chains), bins=min(30, int(1.5 * shortest**0.5)))
    for chain, values in enumerate(chains):
        if len(values):
            density = np.histogram(values, edges)[0] / len(values)
            panel.stairs(density, edges, orientation="horizontal", color=PALETTE[chain % len(PALETTE)], linewidth=1)
    panel.grid(visible=False)
    panel.set_xticks([])
    panel.set_xlim(left=0)
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("share")


def _progress(panel: Axes, column: Column, curve: Curve, baseline: float | None) -> None:
    """One metric against the number of draws."""
    _line(panel, *curve, color=PALETTE[0], width=1.6)
    if baseline is not None and np.isfinite(baseline):
        panel.axhline(baseline, color=INK, linestyle="--", linewidth=1)
    panel.set(title=column.title, xlabel="draws")
    panel.margins(y=0.12)
    panel.xaxis.set_major_locator(_whole_numbers())
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    panel.yaxis.set_major_formatter(
        PercentFormatter(1.0, symbol=" %") if column.percent else ScalarFormatter(useOffset=False)
    )


def _calibration(panel: Axes, diagram: Reliability) -> None:
    """Bars of accuracy, the gap between accuracy and confidence outlined, and the diagonal of perfect calibration."""
    filled: Any = [
        (left, right - left, accuracy, confidence)
        for left, right, accuracy, confidence in zip(
            diagram.edges[:-1], diagram.edges[1:], diagram.accuracy, diagram.confidence, strict=True
        )
        if accuracy is not None
    ]
    left, width, accuracy, confidence = np.array(filled, dtype=np.float64).T
    panel.bar(left, accuracy, width, align="edge", **BAR)
    panel.bar(left, confidence - accuracy, width, bottom=accuracy, align="edge", **GAP)
    panel.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    panel.set(xlim=(0, 1), ylim=(0, 1))


def _histogram(panel: Axes, diagram: Reliability) -> None:
    """The share of examples in each confidence bin."""
    share = np.array(diagram.count) / sum(diagram.count)
    panel.bar(
        diagram.edges[:-1], share, np.diff(diagram.edges), align="edge", color=QUIET, edgecolor="white", linewidth=0.8
    )
    panel.set_xlabel("confidence")
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    panel.yaxis.set_major_locator(MaxNLocator(3))
