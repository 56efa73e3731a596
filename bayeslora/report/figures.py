"""Which figures a report has, with their captions, or why one is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from bayeslora.diagnostics.convergence import convergence, growth
from bayeslora.evaluation.results import Criterion, ReferenceFidelity
from bayeslora.report import mixing, plots, reals
from bayeslora.report.data import ReportData
from bayeslora.report.reals import Reals
from bayeslora.report.shift_rows import corruption_curves
from bayeslora.report.style import Curve, finite, png
from bayeslora.report.table import ALL_COLUMNS
from bayeslora.report.temperature import temperature_figure
from bayeslora.report.vector import svg
from bayeslora.report.words import listed

SCALARS = {"potential": ("Potential", "potential (nats)"), "l2_norm": ("Parameter norm", "parameter norm")}
"""Scalars that are drawn: heading, and label of the axis."""


@dataclass(frozen=True)
class Plot:
    """A figure of the page: its file's name, caption and content, twice; or, in words, why there is none.

    One that was not asked for has neither.
    """

    name: str
    title: str
    caption: str
    png: bytes | None
    svg: str
    missing: str


def figures(data: ReportData) -> dict[str, list[Plot]]:
    """All figures by section."""
    predictions = [_reliability(data)] if data.reals is None else _of_reals(data.reals)
    return {
        "predictions": [_cumulative(data), *predictions],
        "convergence": [*_traces(data), *_ranks(data), _growth(data), _autocorrelation(data), _temperature(data)],
        "uncertainty": [_selective(data)] if data.reals is None else [],
        "corruptions": [_corruptions(data)],
        "reference": [_fidelity(data)],
    }


def _plot(name: str, title: str, caption: str, figure: Figure | None, missing: str) -> Plot:
    """A plot from its figure, which may be None."""
    if figure is None:
        return Plot(name, title, caption, None, "", missing)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out now; again for each format would take most of a report's time
    return Plot(name, title, caption, png(figure), svg(figure, name, title), missing)


def _cumulative(data: ReportData) -> Plot:
    results = data.results
    chains = results.chains if len(results.chains) > 1 else []
    ends = [(len(steps), chain.scores) for steps, chain in zip(data.steps, chains, strict=False)]
    errors, band = cumulative_errors(data)
    caption = (
        "The ensemble of the first draws of every chain; a curve still moving at the right wants more draws." + band
    )
    dots = " Dots: the ensembles of single chains, at their number of draws." if ends else ""
    figure = plots.cumulative(results, errors, ends)
    return _plot(
        "cumulative",
        "The ensemble as it grows",
        caption + dots,
        figure,
        "no ensemble of part of the draws was evaluated",
    )


def cumulative_errors(data: ReportData) -> tuple[dict[str, Curve], str]:
    """Errors of the growing ensemble's scores, by key (draws, error), and a sentence on what they are.

    The standard error over the chains' own ensembles, `<score>_se` of the curve, where the run has it.
    """
    curve = data.results.cumulative
    errors = {c.key: curve.scores.get(f"{c.key}_se", []) for c in ALL_COLUMNS}
    over_chains = {key: finite(curve.draws, error) for key, error in errors.items()}
    over_chains = {key: error for key, error in over_chains.items() if len(error[0])}
    if over_chains:
        return over_chains, " The band is ± the Monte Carlo standard error, from the chains' ensembles of these draws."
    grown = {c.key: growth(data.singles[c.key]) for c in ALL_COLUMNS if c.key in data.singles}
    single = {key: finite(one["draws"], one["mcse_mean"]) for key, one in grown.items()}
    single = {key: error for key, error in single.items() if len(error[0])}
    if single:
        return single, (
            " The band is ± the Monte Carlo standard error of the mean over these single draws; averaging their"
            " probabilities damps it, so that of the ensemble is usually smaller."
        )
    reason = _reason(data.singles.get("nll"))
    return {}, f" Without the band of its Monte Carlo error: {reason}."


def _reliability(data: ReportData) -> Plot:
    return _plot(
        "reliability",
        "Reliability, before and after",
        "Bars below the diagonal: overconfident; above: underconfident. The more examples a bar holds, the stronger its"
        " colour; beneath, its share.",
        plots.reliability_diagrams(data.reliability, data.results.scored),
        data.absent,
    )


def _of_reals(predicted: Reals) -> list[Plot]:
    several = f" The first {reals.MAX_SHOWN:,} examples." if len(predicted.truth) > reals.MAX_SHOWN else ""
    return [
        _plot(
            "predicted",
            "Predicted against true",
            f"Points on the line are right; 95 % of the bars, ± 2 predictive sd, should reach it.{several}",
            reals.predicted(predicted),
            "",
        ),
        _plot(
            "residuals",
            "Residuals",
            "True less predicted, in predictive standard deviations: without pattern along the axis, 95 % within the"
            f" dashed lines.{several}",
            reals.residuals(predicted),
            "",
        ),
        _plot(
            "coverage",
            "Coverage of the predictive intervals",
            "Above the diagonal: intervals too wide, less sure than it should be; below: too narrow, too sure.",
            reals.coverage(predicted),
            "",
        ),
    ]


def _traces(data: ReportData) -> list[Plot]:
    caption = "One line a chain. Chains that agree cover the same band without drift.{}"
    return [
        _plot(
            f"trace_{name}",
            f"{title} of the draws",
            caption.format(_omitted(data.series.get(name, []))),
            mixing.trace(data.steps, data.series.get(name, []), label, data.chain_numbers),
            "no finite value was recorded",
        )
        for name, (title, label) in SCALARS.items()
    ]


def _ranks(data: ReportData) -> list[Plot]:
    more = len(data.steps) - mixing.MAX_RANKED
    caption = "Where a chain's draws rank among all draws. Chains of one distribution have level bars.{}"
    first = f" The first {mixing.MAX_RANKED} of {len(data.steps)} chains." if more > 0 else ""
    return [
        _plot(
            f"rank_{name}",
            f"{title}, ranks by chain",
            caption.format(first),
            mixing.ranks(data.series.get(name, []), data.chain_numbers),
            "ranks compare chains and there is only one" if len(data.steps) == 1 else _reason(data.series.get(name)),
        )
        for name, (title, _) in SCALARS.items()
    ]


def _growth(data: ReportData) -> Plot:
    series, left_out = _drawable(data)
    criteria = data.results.criteria
    limits = {title: criteria.get(f"{name}_ess", Criterion()).limit for name, (title, _) in SCALARS.items()}
    return _plot(
        "ess_growth",
        "Effective draws as the chains grow",
        "ESS of all chains together. A line that rises steadily: more draws buy more; one that lies flat: the chains do"
        f" not mix.{left_out}",
        mixing.ess_growth(series, limits),
        _reason(data.series.get("potential")),
    )


def _autocorrelation(data: ReportData) -> Plot:
    series, left_out = _drawable(data)
    return _plot(
        "autocorrelation",
        "Autocorrelation",
        "One line a chain: how far a draw resembles one so many draws later. The sooner it falls to 0, the better."
        f"{left_out}",
        mixing.autocorrelations(series, data.chain_numbers),
        _reason(data.series.get("potential")),
    )


def _temperature(data: ReportData) -> Plot:
    temperatures = data.results.diagnostics.temperature
    about = {one.c for one in temperatures.values()} - {None}
    center = " with θ taken about the mean of the other chains' draws" if about == {"other chains"} else ""
    reasons = [one.reason for one in temperatures.values() if one.reason]
    return _plot(
        "temperature",
        "The temperature of each block",
        "N⟨θ, g⟩/(D·T) over the draws, g the sampler's force on a fresh batch"
        f"{center}: 1 where a block of D coordinates is sampled at the temperature asked for. Right of the line: heated"
        " by minibatch noise or too large a step; left: not burnt in, or not mixed.",
        temperature_figure(data.results),
        reasons[0] if reasons else "the draws hold no readings",
    )


def _selective(data: ReportData) -> Plot:
    return _plot(
        "selective",
        "Answering only where confident",
        f"The error rate if only the most confident part of the {data.results.scored} is answered: lower is better, as"
        " is the area under the curve.",
        plots.selective(data.results.selective, data.results.scored),
        "no curve was recorded" if data.absent.startswith("no") else data.absent,
    )


def _corruptions(data: ReportData) -> Plot:
    curves = corruption_curves(data.results)
    caption = "Means over all corruptions, by severity. NLL and ECE that rise less: better calibrated under shift."
    return _plot("corruptions", "Under corruption", caption, plots.severity_curves(curves), "")


def _fidelity(data: ReportData) -> Plot:
    reference = data.results.reference or ReferenceFidelity()
    figure = plots.fidelity_curves(reference.curve, data.gradients, reference.rows.get("map"))
    caption = (
        "The ensemble of the first draws of every chain against the reference: agreement should rise, distance fall."
    )
    return _plot(
        "fidelity",
        "Closer to the reference",
        caption,
        figure,
        "no curve was recorded" if data.results.reference else "",
    )


def _drawable(data: ReportData) -> tuple[dict[str, Sequence[np.ndarray]], str]:
    """The scalars that something can be computed of, by heading, and a sentence on the others."""
    drawable: dict[str, Sequence[np.ndarray]] = {}
    reasons = []
    for name, (title, _) in SCALARS.items():
        series = data.series.get(name, [])
        if series and convergence(series).ess_bulk is not None:
            drawable[title] = series
        else:
            reasons.append(f"{title.lower()} ({_reason(series)})")
    return drawable, f" Left out: {listed(reasons)}." if reasons else ""


def _reason(series: Sequence[np.ndarray] | None) -> str:
    """Why nothing can be said of a scalar."""
    return (convergence(series).reason if series else None) or "it was not recorded"


def _omitted(series: Sequence[np.ndarray]) -> str:
    """A sentence on the values that cannot be drawn, empty if there are none."""
    count = sum(int((~np.isfinite(np.asarray(values, dtype=np.float64))).sum()) for values in series)
    return f" Not drawn: {count:,} values that are not finite." if count else ""
