"""At what temperature a run sampled: a sentence for the verdict, and the figure of its blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import ScalarFormatter

from bayeslora.diagnostics.values import ALL, POOLED, TOLERANCE, MeasuredTemperature, NoiseHeat, Steepness
from bayeslora.evaluation.results import Criterion, Results
from bayeslora.report.style import INK, PALETTE, QUIET, STYLE, legend, new_figure
from bayeslora.report.words import block_title, percent

MAX_NAMED = 4
"""Blocks that a sentence names."""


DILUTED = (
    " That is the mean over a block's coordinates: minibatch noise heats most the few that the data determine, and half"
    " the step size would tell what that costs."
)

DRAWN = (
    " Of weights whose norm was drawn (chain.scale_free) that is the temperature of the norm: of their directions it"
    " shows nothing."
)


def measured_temperature_verdict(results: Results, heated: bool = False, drawn: bool = False) -> str | None:
    """A sentence on the blocks' temperatures, and how much minibatch noise heats where they do not show it.

    Args:
        results: of the run.
        heated: whether minibatch noise heats its sampler.
        drawn: whether norms of weights were drawn.

    Returns:
        None where nothing was read.
    """
    temperatures = results.diagnostics.temperature
    if not temperatures:
        return None
    tolerance, limit = _tolerance(results), percent(_tolerance(results), 0)
    off = {b: one.ratio for b, one in temperatures.items() if one.status == "measured" and one.ratio is not None}
    hot = sorted((b for b in off if abs(off[b] - 1) > tolerance and b != ALL), key=lambda b: -abs(off[b] - 1))
    unknown = {_name(b): one.reason for b, one in temperatures.items() if one.status == "not shown"}
    if hot:
        words = [f"{_name(block)} runs {_by(off[block])}" for block in hot[:MAX_NAMED]]
        more = f" and {len(hot) - MAX_NAMED} more are off" if len(hot) > MAX_NAMED else ""
        return f"The run does not sample at its temperature: {', '.join(words)}{more}; {limit} are allowed."
    if unknown:
        first, reason = next(iter(unknown.items()))
        more = f", and of {len(unknown) - 1} more," if len(unknown) > 1 else ""
        return f"The temperature of {first}{more} is not shown to be right ({reason or 'no reason was recorded'})."
    worst = max(off, key=lambda block: abs(off[block] - 1))
    well = f"Every block samples within {limit} of its temperature (at most {_by(off[worst])}, {_name(worst)})."
    well += DRAWN if drawn else ""
    if (steepness := results.diagnostics.steepness) is not None and steepness.too_long:
        well += _too_long(steepness)
    if results.diagnostics.noise_heat:
        return well + _where_noise_lies(results.diagnostics.noise_heat, tolerance)
    return well + DILUTED if heated else well


def _too_long(steepness: Steepness) -> str:
    """What steps do that are too long for the steepest directions."""
    return (
        f" But the steps are too long for the steepest directions: ε·λ is {steepness.value:.2g} there, and the sampler"
        f" is accurate up to {steepness.limit:g}. What the data determine best may be too hot, which the block's mean"
        " does not show; the step sizes that a pilot finds (lr = auto) are shorter."
    )


def _where_noise_lies(heats: Mapping[str, NoiseHeat], tolerance: float) -> str:
    """What minibatch noise does where a block's mean does not show it."""
    worst = max(heats, key=lambda block: heats[block].share)
    one = heats[worst]
    if one.share <= tolerance:
        return f" Where minibatch noise lies, it heats by {percent(one.share, 1)} at most (in {_name(worst)})."
    by = f"{percent(one.share, 0)} ± {percent(one.se, 0)}"
    return (
        f" But minibatch noise heats {one.where} of {_name(worst)} by {by}, which the block's mean does not show: what"
        " the data determine is too hot there. A smaller step or a larger batch makes that less; the sampler sglrw is"
        " not heated."
    )


def temperature_figure(results: Results) -> Figure | None:
    """Blocks by temperature in units of T, ± 2 standard errors, with the line at T; None if there is none."""
    temperatures = {b: one for b, one in results.diagnostics.temperature.items() if one.ratio is not None}
    if not temperatures:
        return None
    tolerance = _tolerance(results)
    names = [*(b for b in temperatures if b not in (ALL, POOLED)), *(b for b in (POOLED, ALL) if b in temperatures)]
    kinetic = {b: one for b, one in results.diagnostics.kinetic.items() if b in names}
    with rc_context(STYLE):
        figure = new_figure(min(12.0, 1.3 + 0.24 * len(names)))
        panel = figure.subplots()
        panel.axvspan(1 - tolerance, 1 + tolerance, color=PALETTE[2], alpha=0.15, linewidth=0)
        panel.axvline(1, color=INK, linewidth=1)
        _draw(panel, temperatures, names, 0.0, "o")
        _draw(panel, kinetic, names, 0.28, "D")
        ratios = [one.ratio for one in (*temperatures.values(), *kinetic.values()) if one.ratio is not None]
        if min(ratios) > 0 and max(ratios) > 3:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.set_yticks(range(len(names)), [_label(b, temperatures[b]) for b in names])
        panel.set(ylim=(len(names) - 0.5, -0.5), xlabel="temperature, in units of the one asked for")
        handles = [
            Line2D([], [], color=PALETTE[0], marker="o", linestyle="", ms=4, label="± 2 standard errors"),
            Line2D([], [], color=QUIET, marker="o", linestyle="", ms=4, label="does not decide"),
            Patch(color=PALETTE[2], alpha=0.15, label=f"T ± {percent(tolerance, 0)}"),
        ]
        if kinetic:
            handles.insert(1, Line2D([], [], color=PALETTE[1], marker="D", linestyle="", ms=3, label="from momenta"))
        legend(figure, handles, columns=2)  # four do not fit beside each other
    return figure


def temperature_cell(one: MeasuredTemperature | None) -> str | None:
    """A block's temperature with its standard error, in brackets where it does not decide; None if there is none."""
    if one is None or one.ratio is None or one.se is None:
        return None
    digits = max(0, -math.floor(math.log10(one.se))) if one.se else 3
    shown = f"{one.ratio:z.{digits}f} ± {one.se:.{digits}f}".replace("-", "−")
    return shown if one.status == "measured" else f"({shown})"


def _draw(panel: Axes, of: Mapping[str, MeasuredTemperature], names: list[str], offset: float, marker: str) -> None:
    for place, block in enumerate(names):
        one = of.get(block)
        if one is None or one.ratio is None:
            continue
        color = PALETTE[1] if marker == "D" else PALETTE[0] if one.status == "measured" else QUIET
        panel.errorbar(
            one.ratio, place + offset, xerr=2 * (one.se or 0.0), fmt=marker, color=color, ms=4 if offset == 0 else 3,
            capsize=2, linewidth=1,
        )  # fmt: skip


def _tolerance(results: Results) -> float:
    """The run's criterion, or the usual one."""
    limit = results.criteria.get("temperature", Criterion()).limit
    return TOLERANCE if limit is None else limit


def _by(ratio: float) -> str:
    """How far a temperature is off, in digits that tell it from the few percent that are allowed."""
    if ratio <= 0:
        return f"nowhere near it (reading {ratio:.2g})".replace("-", "−")
    if ratio >= 3:
        return f"{ratio:.2g} times too hot"
    return f"{percent(abs(ratio - 1), 1 if abs(ratio - 1) < 0.1 else 0)} too {'hot' if ratio > 1 else 'cold'}"


def _name(block: str) -> str:
    return {ALL: "the whole net", POOLED: "the pool of small blocks"}.get(block, f"block {block}")


def _label(block: str, one: MeasuredTemperature) -> str:
    """A block with its coordinates."""
    size = "" if one.size is None else f" ({one.size:,})"
    return block_title(block) + size
