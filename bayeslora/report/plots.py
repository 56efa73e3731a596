"""The report's figures of what is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from bayeslora.diagnostics.metrics import Reliability
from bayeslora.evaluation.results import Fidelity, FidelityCurve, Results, Selective
from bayeslora.evaluation.scores import MapEnsemble, Scores, TemperedMap, score
from bayeslora.report.style import (
    BACKGROUND,
    INK,
    PALETTE,
    QUIET,
    ROUND,
    STYLE,
    Curve,
    finite,
    grid,
    legend,
    line,
    new_figure,
    scale,
    whole_numbers,
)
from bayeslora.report.table import ALL_COLUMNS, COLUMNS, ScoreColumn, map_ensemble_label

BAR: dict[str, Any] = {"facecolor": PALETTE[5], "edgecolor": BACKGROUND, "linewidth": 0.8}
GAP: dict[str, Any] = {"facecolor": "none", "edgecolor": PALETTE[1], "linewidth": 0.9, "hatch": "/////"}
PALEST = 0.15
"""Opacity of a bar that holds hardly any of the examples."""
BAND: dict[str, Any] = {"facecolor": PALETTE[0], "alpha": 0.18, "linewidth": 0}
MAP_LINE, TEMPERED_LINE, ENDS_LINE = (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))
SOURCES: dict[str, tuple[str, str, Any]] = {"map": (INK, "MAP", "--"), "ensemble": (PALETTE[0], "ensemble", "-")}


@rc_context(STYLE)
def cumulative(
    results: Results, errors: Mapping[str, Curve], chains: Sequence[tuple[int, Scores]] = ()
) -> Figure | None:
    """Each score of the ensemble against its number of draws; None if there is nothing to show.

    Args:
        results: of the run, with the growing ensemble and the baselines.
        errors: half the width of the band, by key: numbers of draws and the error there; none, no band.
        chains: number of draws and scores of each chain's own ensemble, where there are several.
    """
    growing = results.cumulative
    curves = {column: finite(growing.draws, growing.scores.get(column.key, ())) for column in ALL_COLUMNS}
    curves = {column: curve for column, curve in curves.items() if len(curve[0])}
    if not curves:
        return None
    figure, panels = grid(len(curves), 4.9)
    banded = False
    for panel, (column, curve) in zip(panels, curves.items(), strict=False):
        banded |= _band(panel, curve, errors.get(column.key))
        line(panel, curve, PALETTE[0])
        for at, scores in chains:
            value = score(scores, column.key)
            panel.plot([at], [np.nan if value is None else value], "o", color=PALETTE[1], ms=3.5, alpha=0.9)
        _levels(panel, column, results)
        panel.set(title=column.title, xlabel="draws")
        panel.xaxis.set_major_locator(whole_numbers())
        scale(panel, column.percent)
    legend(figure, _growth_handles(results, banded, bool(chains)), 3)
    return figure


@rc_context(STYLE)
def reliability_diagrams(diagrams: Mapping[str, Reliability], scored: str = "examples") -> Figure | None:
    """Accuracy by confidence, and how often each occurs among the `scored`, side by side; None if none are."""
    if not diagrams:
        return None
    figure = new_figure(4.2)
    panels = figure.subplots(2, len(diagrams), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for (name, diagram), (upper, lower) in zip(diagrams.items(), panels.T, strict=True):
        _calibration(upper, diagram)
        upper.set_title(f"{name}\nECE {diagram.ece:.4f}")
        upper.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        _histogram(lower, diagram)
        lower.set_xlabel("confidence")
    panels[0, 0].set_ylabel("accuracy")
    panels[1, 0].set_ylabel(scored)
    handles = [
        Patch(**BAR, label="accuracy"),
        Patch(**GAP, label="gap to confidence"),
        Line2D([], [], color=INK, linestyle="--", linewidth=1, label="calibrated"),
    ]
    legend(figure, handles, 3)
    return figure


@rc_context(STYLE)
def selective(curves: Selective, scored: str = "examples") -> Figure | None:
    """Error rate among the most confident examples, against the share answered; None if there is nothing to show."""
    shown = {name: curve for name, curve in (("map", curves.map), ("ensemble", curves.ensemble)) if curve is not None}
    if not shown:
        return None
    figure = new_figure(3.4)
    panel = figure.subplots()
    for name, curve in shown.items():
        color, _, style = SOURCES[name]
        line(panel, finite(curve.coverage, curve.risk), color, style=style)
    panel.set(xlabel=f"share of {scored} answered, most confident first", ylabel="error rate", xlim=(0, 1.01))
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    scale(panel, percent=True)
    handles = [_handle(name, f" (area {curve.aurc:.3g})") for name, curve in shown.items()]
    legend(figure, handles)
    return figure


@rc_context(STYLE)
def severity_curves(curves: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Figure | None:
    """Accuracy, NLL and ECE against the severity of corruptions, MAP beside the ensemble; None without any.

    Args:
        curves: from `shift_rows.corruption_curves`.
    """
    columns = [column for column in COLUMNS if column.key in curves]
    if not columns:
        return None
    figure, panels = grid(len(columns), 2.9, len(columns))
    sources = set()
    for panel, column in zip(panels, columns, strict=True):
        for name, values in curves[column.key].items():
            curve = finite(curves["severity"]["all"], values)
            if len(curve[0]):
                sources.add(name)
                line(panel, curve, SOURCES[name][0], style=SOURCES[name][2])
        panel.set(title=column.title, xlabel="severity")
        panel.xaxis.set_major_locator(whole_numbers())
        scale(panel, column.percent)
        if column.percent:
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    legend(figure, [_handle(name) for name in SOURCES if name in sources])
    return figure


@rc_context(STYLE)
def fidelity_curves(curve: FidelityCurve, gradients: Sequence[float], baseline: Fidelity | None) -> Figure | None:
    """Agreement with a reference and distance from it, against draws and gradients; None if there is nothing to show.

    Args:
        curve: of the growing ensemble.
        gradients: minibatch gradients taken until then, of the same length; empty where that is not known.
        baseline: MAP's fidelity, or None.
    """
    titles = {"agreement": "Agreement", "total_variation": "Total variation"}
    axes = [(name, values) for name, values in (("draws", curve.draws), ("gradients", gradients)) if len(values)]
    if not (axes and curve.agreement and curve.total_variation):
        return None
    figure = new_figure(2.7 * len(axes))
    panels = figure.subplots(len(axes), 2, sharey="col", squeeze=False)
    for (name, places), row in zip(axes, panels, strict=True):
        for (key, title), panel in zip(titles.items(), row, strict=True):
            line(panel, finite(places, getattr(curve, key)), PALETTE[0])
            if baseline is not None:
                panel.axhline(getattr(baseline, key), color=INK, linestyle="--", linewidth=1)
            panel.set(title=title, xlabel=name)
            panel.xaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            scale(panel, percent=key == "agreement")
    legend(figure, [_handle(name) for name in SOURCES if name == "ensemble" or baseline is not None])
    return figure


def _handle(source: str, remark: str = "") -> Line2D:
    color, label, style = SOURCES[source]
    return Line2D([], [], color=color, linestyle=style, label=f"{label}{remark}")


def _band(panel: Axes, curve: Curve, error: Curve | None) -> bool:
    """± the error, interpolated where it is known; whether there is any."""
    if error is None or not len(error[0]):
        return False
    inside = (curve[0] >= error[0].min()) & (curve[0] <= error[0].max())
    x, y = curve[0][inside], curve[1][inside]
    width = np.interp(x, *error)
    panel.fill_between(x, y - width, y + width, **BAND)
    return bool(inside.any())


def _levels(panel: Axes, column: ScoreColumn, results: Results) -> None:
    """The values of MAP, of MAP × K, and of MAP with a fitted temperature, which leaves the accuracy as it is."""
    tempered = None if column.of_predicted_class else (results.map_tempered or TemperedMap()).scores
    ends = (results.map_ensemble or MapEnsemble()).scores
    levels = (results.map, INK, MAP_LINE), (tempered, INK, TEMPERED_LINE), (ends, PALETTE[2], ENDS_LINE)
    for scores, color, style in levels:
        value = score(scores, column.key)
        if value is not None and np.isfinite(value):
            panel.axhline(value, color=color, linestyle=style, linewidth=1)


def _growth_handles(results: Results, banded: bool, chains: bool) -> list[Any]:
    handles: list[Any] = [Line2D([], [], color=PALETTE[0], label="ensemble")]
    if banded:
        handles.append(Patch(**BAND, label="± MCSE"))
    if chains:
        handles.append(Line2D([], [], color=PALETTE[1], marker="o", linestyle="", ms=4, label="one chain"))
    if results.map is not None:
        handles.append(Line2D([], [], color=INK, linestyle=MAP_LINE, linewidth=1, label="MAP"))
    if (results.map_tempered or TemperedMap()).scores is not None:
        handles.append(Line2D([], [], color=INK, linestyle=TEMPERED_LINE, linewidth=1, label="MAP, scaled"))
    if (results.map_ensemble or MapEnsemble()).scores is not None:
        name = map_ensemble_label(results)
        handles.append(Line2D([], [], color=PALETTE[2], linestyle=ENDS_LINE, linewidth=1, label=name))
    return handles


def _calibration(panel: Axes, diagram: Reliability) -> None:
    """Bars of accuracy, the gap between accuracy and confidence outlined, and the diagonal of perfect calibration."""
    filled: Any = [
        (left, right - left, accuracy, confidence, count)
        for left, right, accuracy, confidence, count in zip(
            diagram.edges[:-1], diagram.edges[1:], diagram.accuracy, diagram.confidence, diagram.count, strict=True
        )
        if accuracy is not None
    ]
    left, width, accuracy, confidence, count = np.array(filled, dtype=np.float64).T
    weight = PALEST + (1 - PALEST) * count / count.max()
    shades, edges = ([to_rgba(color, w) for w in weight] for color in (BAR["facecolor"], GAP["edgecolor"]))
    panel.bar(left, accuracy, width, align="edge", **BAR | {"facecolor": shades})
    panel.bar(left, confidence - accuracy, width, bottom=accuracy, align="edge", **GAP | {"edgecolor": edges})
    panel.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    panel.set(xlim=(0, 1), ylim=(0, 1))


def _histogram(panel: Axes, diagram: Reliability) -> None:
    """The share of examples in each confidence bin."""
    share = np.array(diagram.count) / sum(diagram.count)
    look: dict[str, Any] = {"color": QUIET, "edgecolor": BACKGROUND, "linewidth": 0.8}
    panel.bar(diagram.edges[:-1], share, np.diff(diagram.edges), align="edge", **look)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    panel.yaxis.set_major_locator(MaxNLocator(3))
