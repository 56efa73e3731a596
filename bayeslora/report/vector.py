"""A figure as inline SVG that follows the page's colours, with its values for the page's script to tell on hover."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from bayeslora.report.style import BACKGROUND, GRID, INK, PALETTE, QUIET

MAX_TOLD = 300
"""Points of a curve whose values are told."""
VARIABLES = {INK: "--ink", QUIET: "--axis", GRID: "--grid", BACKGROUND: "--card"} | {
    color: f"--c{at}" for at, color in enumerate(PALETTE)
}
"""Colours of figures that the page sets, so that they follow its dark mode."""


def svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        figure: drawn with the colours of `style`, and laid out.
        name: unique on its page, from which names within the picture are made.
        title: what it shows, for those who hear the page.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify_threshold": 0.3}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawn, flags=re.S)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    size = re.search(r'viewBox="([^"]*)"', drawn)
    values = escape(json.dumps(list(_panels(figure)), separators=(",", ":")), quote=True)
    opening = (
        f'<svg viewBox="{size[1] if size else ""}" role="img" aria-label="{escape(title)}" data-panels="{values}">'
    )
    drawn = opening + drawn[drawn.index(">") + 1 :]
    drawn = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawn)
    drawn = re.sub("#[0-9a-f]{6}", lambda match: f"var({LOWER[match[0]]})" if match[0] in LOWER else match[0], drawn)
    return re.sub(r"\n\s*", "\n", drawn)


LOWER = {color.lower(): variable for color, variable in VARIABLES.items()}


def _panels(figure: Figure) -> Iterator[dict[str, Any]]:
    """Of each panel where it lies (shares of the figure, from the top), its axes, and the points that are drawn."""
    names = {
        to_hex(handle.get_color() if isinstance(handle, Line2D) else handle.get_facecolor()): handle.get_label()
        for legend in figure.legends
        for handle in legend.legend_handles
        if isinstance(handle, Line2D | Patch)
    }
    for panel in figure.axes:
        box = panel.get_position()
        marks = list(_marks(panel, names))
        if marks:
            yield {
                "box": [round(v, 4) for v in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)],
                "x": [*panel.get_xlim(), panel.get_xscale() == "log"],
                "y": [*panel.get_ylim(), panel.get_yscale() == "log"],
                "labels": [panel.get_xlabel(), panel.get_title(loc="left") or panel.get_ylabel()],
                "ticks": [t.get_text() for t in panel.get_yticklabels()] if panel.yaxis_inverted() else [],
                "marks": marks,
            }


def _marks(panel: Axes, names: dict[str, Any]) -> Iterator[list[Any]]:
    """Name, places and values of every curve or set of points, and of every row of bars."""
    bars: dict[str, list[tuple[float, float]]] = {}
    for line in panel.lines:
        points = np.asarray(line.get_xydata(), dtype=np.float64)
        if line.get_transform() != panel.transData or not len(points):
            continue  # a level across the whole panel
        points = points[np.linspace(0, len(points) - 1, min(len(points), MAX_TOLD)).astype(int)]
        yield [names.get(to_hex(line.get_color()), ""), *_rounded(points[np.isfinite(points).all(1)])]
    for patch in panel.patches:
        if (
            isinstance(patch, Rectangle)
            and patch.get_hatch() is None
            and patch.get_width()
            and patch.get_alpha() is None
        ):
            middle = patch.get_x() + patch.get_width() / 2
            bars.setdefault(to_hex(patch.get_facecolor()), []).append((middle, patch.get_y() + patch.get_height()))
    for color, tops in bars.items():
        yield [names.get(color, ""), *_rounded(np.array(tops))]


def _rounded(points: np.ndarray) -> tuple[list[float], list[float]]:
    return [float(f"{x:.5g}") for x in points[:, 0]], [float(f"{y:.5g}") for y in points[:, 1]]
