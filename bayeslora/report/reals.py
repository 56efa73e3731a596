"""A regression's predictions in its report: predicted against true, residuals, coverage, the worst examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from bayeslora.evaluation.regression import RegressionPass
from bayeslora.report.style import INK, PALETTE, QUIET, STYLE, grid, legend, line, new_figure
from bayeslora.report.words import number

MAX_SHOWN = 1_000
"""Examples that are drawn: the first ones."""
MAX_TARGETS = 4
WORST = 8


@dataclass(frozen=True)
class Reals:
    """Predictions of real numbers, in their own units.

    Attributes:
        truth, mean, sd: targets, predictive means and standard deviations of the ensemble, [N, D] each.
        pit: the predictive distribution function at each target, [N, D], by source: `MAP`, `ensemble`.
        names: of the D targets.
        spread: share of the predictive variance that draws disagree about, a mean over examples and targets.
    """

    truth: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    pit: dict[str, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ("target",)
    spread: float = 0.0

    @classmethod
    def of(cls, work: RegressionPass) -> Reals:
        """From the pass over a run's draws."""
        density = work.whole.normals
        pit = {} if work.point is None else {"MAP": work.point.pit.numpy()}
        share = (density.spread / (density.spread + density.noise)).mean().item()
        return cls(
            work.targets.numpy(), density.mean.numpy(), density.sd.numpy(), pit | {"ensemble": work.whole.pit.numpy()},
            work.names, share,
        )  # fmt: skip

    @property
    def residuals(self) -> np.ndarray:
        """True less predicted, in predictive standard deviations, [N, D]."""
        return (self.truth - self.mean) / self.sd

    def worst(self) -> list[tuple[str, list[str]]]:
        """The examples whose targets lie furthest out in their predictive densities."""
        far = np.abs(self.residuals).max(1)
        rows = []
        for at in np.argsort(-far)[:WORST]:
            target = int(np.abs(self.residuals[at]).argmax())
            which = f"{at:,}" + (f", {self.names[target]}" if self.truth.shape[1] > 1 else "")
            cells = [(self.truth, ".4g"), (self.mean, ".4g"), (self.sd, ".3g"), (self.residuals, "+.1f")]
            rows.append(
                (f"Example {which}", [number(values[at, target], spec).replace("-", "−") for values, spec in cells])
            )
        return rows


@rc_context(STYLE)
def predicted(reals: Reals) -> Figure:
    """True values against predicted ones with ± 2 predictive standard deviations, a panel a target."""
    targets = min(reals.truth.shape[1], MAX_TARGETS)
    figure, panels = grid(targets, 0.8 + 3.4 * -(-targets // 2), min(targets, 2))
    for at, panel in enumerate(panels):
        mean, truth, sd = (values[:MAX_SHOWN, at] for values in (reals.mean, reals.truth, reals.sd))
        panel.hlines(truth, mean - 2 * sd, mean + 2 * sd, color=PALETTE[5], linewidth=0.8, alpha=0.5)
        panel.plot(mean, truth, "o", color=PALETTE[0], ms=3)
        ends = [min(mean.min(), truth.min()), max(mean.max(), truth.max())]
        panel.axline((ends[0], ends[0]), slope=1, color=INK, linestyle="--", linewidth=1)
        panel.set(xlabel="predicted", ylabel="true", title=reals.names[at] if targets > 1 else "")
    handles = [
        Line2D([], [], color=PALETTE[0], marker="o", linestyle="", ms=4, label="an example"),
        Line2D([], [], color=PALETTE[5], linewidth=1, label="± 2 predictive sd"),
        Line2D([], [], color=INK, linestyle="--", linewidth=1, label="predicted = true"),
    ]
    legend(figure, handles, 3)
    return figure


@rc_context(STYLE)
def residuals(reals: Reals) -> Figure:
    """Residuals in predictive standard deviations against the predicted value."""
    figure = new_figure(3.4)
    panel = figure.subplots()
    for at in range(min(reals.truth.shape[1], MAX_TARGETS)):
        panel.plot(reals.mean[:MAX_SHOWN, at], reals.residuals[:MAX_SHOWN, at], "o", color=PALETTE[at], ms=3)
    for level, style in ((0, "-"), (-2, "--"), (2, "--")):
        panel.axhline(level, color=INK if level else QUIET, linestyle=style, linewidth=1)
    panel.set(xlabel="predicted", ylabel="residual, in predictive sds")
    shown = reals.names[:MAX_TARGETS] if len(reals.names) > 1 else ("an example",)
    handles = [
        *(Line2D([], [], color=PALETTE[at], marker="o", linestyle="", ms=4, label=s) for at, s in enumerate(shown)),
        Line2D([], [], color=INK, linestyle="--", linewidth=1, label="95 % lie within"),
    ]
    legend(figure, handles, 3)
    return figure


@rc_context(STYLE)
def coverage(reals: Reals) -> Figure:
    """The share of targets in central predictive intervals against what it should be."""
    levels = np.arange(1, 20) / 20
    figure = new_figure(3.6)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    looks: dict[str, tuple[str, Any]] = {"MAP": (INK, "--"), "ensemble": (PALETTE[0], "-")}
    for name, pit in reals.pit.items():
        shares = [(np.abs(2 * pit - 1) <= level).mean() for level in levels]
        line(panel, (levels, np.array(shares)), looks[name][0], style=looks[name][1])
    panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="central interval", ylabel="targets inside")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    legend(figure, [Line2D([], [], color=looks[n][0], linestyle=looks[n][1], label=n) for n in reals.pit])
    return figure
