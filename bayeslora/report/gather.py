"""From a run that was evaluated to what its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bayeslora.diagnostics.calibration import scaled
from bayeslora.diagnostics.metrics import Reliability, reliability
from bayeslora.evaluation.predictions import Predictions
from bayeslora.evaluation.regression import ABSENT, LEVELS, RegressionPass
from bayeslora.report.classes import class_rows
from bayeslora.report.describe import run_temperature, settings, title
from bayeslora.report.examples import Gallery, Shown, confident_errors, most_uncertain
from bayeslora.report.page import ReportData

if TYPE_CHECKING:
    from bayeslora.build import Setup

Series = Sequence[Mapping[str, Any]]
"""Scalars of the kept draws with `step`, [draws] by name, one mapping a chain."""


def report_data(
    setup: Setup, predictions: Predictions, series: Series, metrics: dict[str, Any], notes: list[str]
) -> ReportData:
    """All that the report of a run shows.

    Args:
        setup: the run's parts.
        predictions: of all its draws.
        series: scalars of the kept draws.
        metrics: the content of `metrics.json`.
        notes: warnings for the top of the page.
    """
    names = [name for name in series[0] if name != "step" and all(name in s for s in series)]
    split, draws = setup.cfg.evaluate.split, sum(len(s["step"]) for s in series)
    shown = Shown(
        getattr(setup.data, split).inputs, setup.data.texts.get(split, ()), setup.data.class_names,
        predictions.targets, predictions.ensemble, predictions.map, predictions.entropy,
    )  # fmt: skip
    return ReportData(
        title=title(setup),
        settings=settings(setup),
        metrics=metrics,
        temperature=run_temperature(setup),
        chains=list(predictions.chains),
        steps=[s["step"] for s in series],
        series={name: [s[name] for s in series] for name in names},
        singles={name: [np.asarray(d[name]) for d in predictions.draws] for name in predictions.draws[0]},
        gradients=gradients(setup, [s["step"] for s in series]),
        reliability=diagrams(predictions, metrics),
        classes=class_rows(predictions.ensemble, predictions.targets, setup.data.class_names),
        uncertain=most_uncertain(shown, draws),
        errors=confident_errors(shown),
        notes=notes,
    )


def regression_report_data(
    setup: Setup, found: RegressionPass, series: Series, metrics: dict[str, Any], notes: list[str]
) -> ReportData:
    """All that the report of a regression shows; what needs classes is left out, with the reason."""
    chains = sorted(found.chains)
    names = [name for name in series[0] if name != "step" and all(name in s for s in series)]
    held = ", ".join(f"{100 * metrics['ensemble'][f'coverage_{p}']:.1f} % in the central {p} %" for p in LEVELS)
    return ReportData(
        title=title(setup),
        settings=settings(setup),
        metrics=metrics,
        temperature=run_temperature(setup),
        chains=chains,
        steps=[s["step"] for s in series],
        series={name: [s[name] for s in series] for name in names},
        singles={name: [np.asarray(found.singles[k][name]) for k in chains] for name in found.singles[chains[0]]},
        uncertain=Gallery(missing=ABSENT),
        errors=Gallery(missing=ABSENT),
        notes=[f"Of the targets lie, by the ensemble: {held} interval.", *notes],
        absent=ABSENT,
    )


def diagrams(predictions: Predictions, metrics: Mapping[str, Any]) -> dict[str, Reliability]:
    """Reliability of MAP, of MAP with its fitted temperature, and of the ensemble; what is at hand."""
    fitted = (metrics.get("map_tempered") or {}).get("temperature")
    found: dict[str, Tensor | None] = {"MAP": predictions.map}
    if predictions.map is not None and fitted is not None:
        found["MAP, scaled"] = scaled(predictions.map, fitted)
    found["Ensemble"] = predictions.ensemble
    return {name: reliability(p, predictions.targets) for name, p in found.items() if p is not None}


def gradients(setup: Setup, steps: Sequence[np.ndarray]) -> list[float]:
    """Minibatch gradients that all chains together took from the warm-up's end to each round of draws."""
    total = setup.plan.total - setup.plan.warmup
    each = setup.gradients([0]) / total if total else 0.0
    rounds = max((len(chain) for chain in steps), default=0)
    taken = [
        [chain[min(at, len(chain) - 1)] - setup.plan.warmup for chain in steps if len(chain)] for at in range(rounds)
    ]
    return [float(each * sum(one)) for one in taken]
