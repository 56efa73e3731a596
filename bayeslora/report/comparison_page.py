"""The page of a comparison of runs: its tables, and figures of scores and of growing ensembles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from bayeslora.report.comparison import Compared, caveats, grids, shown_columns
from bayeslora.report.page import environment
from bayeslora.report.style import (
    INK,
    PALETTE,
    STYLE,
    color_of,
    finite,
    grid,
    legend,
    line,
    scale,
    whole_numbers,
)  # fmt: skip
from bayeslora.report.table import ScoreColumn
from bayeslora.report.vector import svg
from bayeslora.report.words import finite_or_none, listed


def comparison_page(runs: Sequence[Compared], folder: Path) -> str:
    """The comparison as one self-contained HTML page for a folder; all text is escaped."""
    higher = [column.name for column in shown_columns(runs) if column.higher_is_better]
    better = f"Lower is better{f', but for {listed(higher)}' if higher else ''}."
    figures = [
        ("Scores", better, score_figure(runs)),
        ("The ensembles as they grow", "The ensemble of the first so many draws of every chain.", growth_figure(runs)),
    ]
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            runs=runs,
            better=better,
            notes=caveats(runs),
            grids=grids(runs),
            plots=[
                (title, caption, svg(figure, f"figure{at}", title))
                for at, (title, caption, figure) in enumerate(figures)
                if figure is not None
            ],
            reports=[run.report and os.path.relpath(run.report.resolve(), folder.resolve()) for run in runs],
        )
    )


def score_figure(runs: Sequence[Compared]) -> Figure:
    """Each score of MAP, single draws (± sd) and ensemble, a line a run."""
    looks = {"map": ("D", INK), "draw": ("s", PALETTE[1]), "ensemble": ("o", PALETTE[0])}
    with rc_context(STYLE):
        figure, panels = _panels(runs, 0.8 + 0.3 * len(runs))
        for column, panel in panels.items():
            for offset, (part, (marker, color)) in zip((-0.2, 0, 0.2), looks.items(), strict=True):
                for place, run in enumerate(runs):
                    one = run.scores(part, column)
                    if finite_or_none(one.mean) is not None:
                        at = place + offset
                        panel.errorbar(one.mean, at, xerr=one.sd, fmt=marker, color=color, markersize=4, capsize=2)
            panel.set_yticks(range(len(runs)), [run.mark for run in runs])
            panel.set(title=column.title, ylim=(len(runs) - 0.5, -0.5))
            _across(panel.xaxis, column.percent)
        names = {"map": "MAP", "draw": "single draws ± sd", "ensemble": "ensemble"}
        _legend(figure, [(names[part], color, marker) for part, (marker, color) in looks.items()])
    return figure


def growth_figure(runs: Sequence[Compared]) -> Figure | None:
    """Each score of the ensemble against its number of draws, a curve a run; None where no run holds it."""
    growing = [(run, color_of(at)) for at, run in enumerate(runs) if run.results.cumulative.draws]
    if not growing:
        return None
    with rc_context(STYLE):
        figure, panels = _panels(runs, 2.2)
        for column, panel in panels.items():
            for run, color in growing:
                curve = run.results.cumulative
                line(panel, finite(curve.draws, curve.scores.get(column.key, ())), color)
            panel.set(title=column.title, xlabel="draws")
            panel.xaxis.set_major_locator(whole_numbers())
            scale(panel, column.percent)
        _legend(figure, [(run.mark, color, "") for run, color in growing])
    return figure


def _panels(runs: Sequence[Compared], height: float) -> tuple[Figure, dict[ScoreColumn, Any]]:
    """A figure with a panel for each score, two in a row, `height` inches each."""
    shown = shown_columns(runs)
    figure, panels = grid(len(shown), -(-len(shown) // 2) * height + 0.6)
    return figure, dict(zip(shown, panels, strict=True))


def _across(axis: Any, percent: bool) -> None:
    """Few ticks on the x-axis, as percentages of 1 or as they are."""
    axis.set_major_locator(MaxNLocator(3))
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %") if percent else ScalarFormatter(useOffset=False))


def _legend(figure: Figure, looks: Sequence[tuple[str, str, str]]) -> None:
    """A legend beneath the panels of (label, colour, marker); a line where there is no marker."""
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="" if marker else "-", markersize=4, label=label)
        for label, color, marker in looks
    ]
    legend(figure, handles, columns=8)
