"""How the report's figures look, and what they are drawn with. Nothing global is changed, no display is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#666666")
"""Okabe and Ito's colours but yellow and black, and two more: told apart by the colour-blind, legible on white."""

INK, QUIET, GRID, BACKGROUND = "#222222", "#8a8a8a", "#ececec", "#ffffff"
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
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
ROUND = [1, 2, 2.5, 5, 10]
"""Distances of ticks, times a power of ten."""
WIDTH = 5.4
"""Of a figure, in inches: its text stays legible when a phone shrinks it."""

Curve = tuple[np.ndarray, np.ndarray]


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def new_figure(height: float) -> Figure:
    """An empty figure so many inches high."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(wspace=0.06, hspace=0.06))


def grid(count: int, height: float, columns: int = 2, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure so many inches high of `count` panels, some in a row; `shared` as `Figure.subplots` has it."""
    figure = new_figure(height)
    panels = list(figure.subplots(-(-count // columns), columns, squeeze=False, **shared).ravel())
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def color_of(chain: int) -> str:
    """A chain's colour."""
    return PALETTE[chain % len(PALETTE)]


def finite(x: Sequence[float | None] | np.ndarray, y: Sequence[float | None] | np.ndarray) -> Curve:
    """The points of a curve that are finite, as float64 [points] each; None counts as NaN."""
    length = min(len(x), len(y))
    points = np.array([x[:length], y[:length]], dtype=np.float64)
    kept = points[:, np.isfinite(points).all(0)]
    return kept[0], kept[1]


def line(panel: Axes, curve: Curve, color: str, width: float = 1.6, style: Any = "-") -> None:
    """A curve; with few points these are marked, so that a single one shows."""
    panel.plot(*curve, color=color, linewidth=width, linestyle=style, marker="o" if len(curve[0]) <= 12 else "", ms=4)


def whole_numbers(ticks: int = 5) -> MaxNLocator:
    """Ticks at whole numbers, one if there is but one number to show."""
    return MaxNLocator(ticks, steps=ROUND, integer=True, min_n_ticks=1)


def scale(panel: Axes, percent: bool = False) -> None:
    """Round ticks on the y-axis, as percentages of 1 or as they are, and air above and below."""
    panel.margins(y=0.12)
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %") if percent else ScalarFormatter(useOffset=False))


def legend(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """A legend below all panels."""
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=1.6)


def chain_legend(figure: Figure, chains: Sequence[int]) -> None:
    """The colours of chains by their numbers, where there are several and each has its own."""
    if 1 < len(chains) <= len(PALETTE):
        legend(figure, [Line2D([], [], color=color_of(at), label=f"chain {chain}") for at, chain in enumerate(chains)])
