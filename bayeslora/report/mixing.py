"""The report's figures of how the chains move: traces, ranks, growth of the ESS, autocorrelation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, ScalarFormatter

from bayeslora.diagnostics.convergence import autocorrelation, growth, rank_counts
from bayeslora.report.style import (
    BACKGROUND,
    INK,
    PALETTE,
    QUIET,
    STYLE,
    Curve,
    chain_legend,
    color_of,
    finite,
    grid,
    legend,
    line,
    new_figure,
    scale,
    whole_numbers,
)

MAX_POINTS = 2_000
"""Points drawn of one chain: more would not fit the width in pixels."""
MIN_FOR_MARGINAL = 20
"""Draws each chain needs for a histogram beside its trace."""
MAX_RANKED = 8
"""Chains whose ranks are shown."""

Series = Mapping[str, Sequence[np.ndarray]]
"""Scalars by the name to show: one array [draws] a chain."""


@rc_context(STYLE)
def trace(
    steps: Sequence[np.ndarray], series: Sequence[np.ndarray], label: str, chains: Sequence[int]
) -> Figure | None:
    """A scalar along the chains, and its histogram by chain beside; None if there is no finite value.

    Args:
        steps: step number of each draw, one array a chain.
        series: value of each draw, one array a chain; values that are not finite are left out.
        label: name and unit of the scalar.
        chains: numbers of the chains.
    """
    curves = [finite(step, values) for step, values in zip(steps, series, strict=False)]
    lengths = [len(values) for _, values in curves if len(values)]
    if not lengths:
        return None
    figure = new_figure(3.5)
    beside = min(lengths) >= MIN_FOR_MARGINAL
    panels = figure.subplots(1, 1 + beside, sharey=True, squeeze=False, width_ratios=[5, 1][: 1 + beside])[0]
    for chain, curve in enumerate(curves):
        line(panels[0], _thinned(curve), color_of(chain), width=0.9)
    panels[0].set(xlabel="step", ylabel=label)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].xaxis.set_major_locator(whole_numbers())
    panels[0].yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    if beside:
        _marginals(panels[1], [values for _, values in curves])
    chain_legend(figure, chains)
    return figure


@rc_context(STYLE)
def ranks(series: Sequence[np.ndarray], chains: Sequence[int]) -> Figure | None:
    """How each chain's draws rank among all, a panel a chain; None where ranks cannot be compared.

    Args:
        series: value of each draw, one array a chain.
        chains: numbers of the chains; at most `MAX_RANKED` are shown.
    """
    counts = rank_counts(series)
    if counts is None:
        return None
    counts, bins = counts[:MAX_RANKED], counts.shape[1]
    expected = counts.sum(1).mean() / bins
    figure, panels = grid(len(counts), 0.9 + 1.3 * -(-len(counts) // 2), sharex=True, sharey=True)
    for at, (panel, row) in enumerate(zip(panels, counts, strict=False)):
        middles = (np.arange(bins) + 0.5) / bins
        panel.bar(middles, row, 1 / bins, color=color_of(at), edgecolor=BACKGROUND, linewidth=0.5)
        panel.axhline(expected, color=INK, linestyle="--", linewidth=1)
        panel.set_title(f"chain {chains[at]}", fontsize=10)
        panel.set(xlim=(0, 1), xlabel="rank among all draws" if at >= len(counts) - 2 else "")
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.tick_params(labelbottom=at >= len(counts) - 2)  # the lowest of its column
        panel.yaxis.set_major_locator(whole_numbers(3))
    figure.supylabel("draws", fontsize=10.5)
    legend(figure, [Line2D([], [], color=INK, linestyle="--", linewidth=1, label="as expected of equal chains")])
    return figure


@rc_context(STYLE)
def ess_growth(series: Series, limits: Mapping[str, float | None]) -> Figure | None:
    """Bulk and tail ESS against the number of draws, a panel a scalar; None if none can be computed.

    Args:
        series: the scalars.
        limits: ESS that is asked for, by the same name.
    """
    grown = {name: growth(chains) for name, chains in series.items()}
    curves_of = {
        name: {kind: finite(curves["draws"], curves[f"ess_{kind}"]) for kind in ("bulk", "tail")}
        for name, curves in grown.items()
    }
    curves_of = {name: curves for name, curves in curves_of.items() if len(curves["bulk"][0])}
    if not curves_of:
        return None
    figure, panels = _side_by_side(list(curves_of), 3.0)
    for panel, (name, curves) in zip(panels, curves_of.items(), strict=True):
        line(panel, curves["bulk"], PALETTE[0])
        line(panel, curves["tail"], PALETTE[1])
        limit = limits.get(name)
        if limit is not None:
            panel.axhline(limit, color=INK, linestyle="--", linewidth=1)
        panel.set(xlabel="draws", ylabel="" if panel is not panels[0] else "ESS")
        panel.xaxis.set_major_locator(whole_numbers(4))
        scale(panel)
        panel.set_ylim(bottom=0)
    handles = [Line2D([], [], color=PALETTE[at], label=kind) for at, kind in enumerate(("bulk", "tail"))]
    if any(limits.get(name) is not None for name in curves_of):
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label="asked for"))
    legend(figure, handles)
    return figure


@rc_context(STYLE)
def autocorrelations(series: Series, chains: Sequence[int]) -> Figure | None:
    """Autocorrelation of each chain against the lag in draws, a panel a scalar; None if none can be computed."""
    curves_of = {name: autocorrelation(one) for name, one in series.items()}
    curves_of = {name: curves for name, curves in curves_of.items() if any(len(curve) for curve in curves)}
    if not curves_of:
        return None
    figure, panels = _side_by_side(list(curves_of), 3.2)
    for panel, curves in zip(panels, curves_of.values(), strict=True):
        for chain, curve in enumerate(curves):
            if len(curve):
                line(panel, (np.arange(len(curve)), curve), color_of(chain), width=1.2)
        panel.axhline(0, color=QUIET, linewidth=0.8)
        panel.set(xlabel="lag (draws)", ylabel="" if panel is not panels[0] else "autocorrelation")
        panel.xaxis.set_major_locator(whole_numbers(4))
        scale(panel)
    chain_legend(figure, chains)
    return figure


def _side_by_side(titles: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure of a panel a title."""
    figure, panels = grid(len(titles), height, len(titles))
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
    return figure, panels


def _thinned(curve: Curve) -> Curve:
    """At most `MAX_POINTS` points of a curve, evenly spread, the ends among them."""
    length = len(curve[0])
    index = np.linspace(0, length - 1, min(length, MAX_POINTS)).astype(int)
    return curve[0][index], curve[1][index]


def _marginals(panel: Axes, chains: Sequence[np.ndarray]) -> None:
    """A horizontal histogram of each chain [draws] in common bins, on the trace's axis."""
    shortest = min(len(values) for values in chains if len(values))
    edges = np.histogram_bin_edges(np.concatenate(chains), bins=min(30, int(1.5 * shortest**0.5)))
    for chain, values in enumerate(chains):
        if len(values):
            density = np.histogram(values, edges)[0] / len(values)
            panel.stairs(density, edges, orientation="horizontal", color=color_of(chain), linewidth=1)
    panel.grid(visible=False)
    panel.set_xticks([])
    panel.set_xlim(left=0)
    panel.spines["bottom"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("share")
