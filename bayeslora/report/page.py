"""The report: one self-contained page on the ensemble's scores, whether the chains agree, and how it was run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bayeslora.atomic import write_atomically
from bayeslora.report import chain_rows, classes, shift_rows, table, verdict
from bayeslora.report.data import ReportData
from bayeslora.report.figures import Plot, figures
from bayeslora.report.temperature import measured_temperature_verdict
from bayeslora.report.words import provenance_pairs
from bayeslora.settings import in_arguments

TERMS: tuple[tuple[str, str, bool | None], ...] = (
    ("MAP", "the end point of chain 0's warm-up: one network, without sampling", None),
    ("MAP × K", "the warm-up ends of all K chains, their predictions averaged: a deep ensemble", None),
    ("Draw", "one kept state of a chain; all draws of all chains are the ensemble", None),
    ("NLL", "mean negative log of what was predicted for the truth, in nats", None),
    ("ECE", "mean distance of accuracy from confidence, over 15 bins of confidence", False),
    ("Brier score", "squared error of the probabilities, summed over classes: 0 to 2", False),
    ("Mutual information", "what draws disagree about, of the entropy of a prediction, in nats", False),
    ("RMSE", "root of the mean squared error of the predictive mean, in the target's unit", True),
    (
        "Calibration error",
        "mean distance of the share of targets below each predictive quantile from what is due",
        True,
    ),
    ("Predictive sd", "standard deviation of a prediction, noise included", True),
    ("± of a difference", "its standard error over examples, paired; within two of them it is a tie", None),
    ("Potential", "U(θ), the negative log posterior in nats", None),
    ("R-hat", "spread between chains against spread within: 1 where they cannot be told apart", None),
    ("ESS", "number of independent draws that the correlated ones are worth", None),
    ("MCSE", "standard error of a mean over draws", None),
    ("Temperature", "T = 1 samples the Bayes posterior, below 1 a colder one; measured block by block", None),
)
"""The glossary: a term, what it means, and whether it is of regressions (True), of classes (False), or of both."""


def environment() -> Environment:
    """Templates of this folder, with all text escaped; `dotted` lets names break after their dots."""
    made = Environment(
        loader=PackageLoader("bayeslora.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["dotted"] = lambda name: Markup(re.sub(r"\.(?=[A-Za-z_])", ".<wbr>", str(escape(name))))
    return made


def write_page(data: ReportData, folder: Path) -> Path:
    """Write `index.html` and one PNG a plot; return the page's path.

    Files appear whole or not at all; the PNG of a plot that can no longer be drawn is removed.

    Args:
        data: what to show.
        folder: where to write; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = figures(data)
    for plot in (plot for section in plots.values() for plot in section):
        target = folder / f"{plot.name}.png"
        if plot.png is None:
            target.unlink(missing_ok=True)
        else:
            write_atomically(target, plot.png)
    return write_atomically(folder / "index.html", _page(data, plots).encode())


def _page(data: ReportData, plots: Mapping[str, list[Plot]]) -> str:
    """The page as HTML; all text is escaped."""
    results = data.results
    met, count, problems = verdict.criteria_verdict(results)
    sentences = [
        verdict.verdict(results, data.draws),
        verdict.baselines_verdict(results),
        verdict.convergence_verdict(results),
        measured_temperature_verdict(results, data.heated, data.drawn_norms) if data.temperature != 0 else None,
        verdict.temperature_verdict(results, data.temperature),
    ]
    headings, parts = chain_rows.part_rows(results)
    worst, best = classes.worst_and_best(data.classes)
    tempering = table.tempering(results) or ""
    shown: dict[str, Any] = {
        "met": met,
        "count": count,
        "problems": problems,
        "sentences": [words for words in sentences if words],
        "columns": table.columns(results),
        "regression": data.reals is not None,
        "worst_predicted": [] if data.reals is None else data.reals.worst(),
        "variance": shift_rows.variance_rows(results),
        "terms": [(term, text) for term, text, real in TERMS if real in (None, data.reals is not None)],
        "rows": table.rows(results),
        "deep": results.map_ensemble is not None,
        "tempering": in_arguments(tempering) if data.of_program else tempering,
        "criteria": table.criteria_rows(results),
        "scalars": chain_rows.scalar_rows(results),
        "every_scalar": chain_rows.scalar_rows(results, grouped=False),
        "function_space": chain_rows.function_pairs(results),
        "part_headings": headings,
        "parts": parts,
        "limits": {"rhat": chain_rows.RHAT_LIMIT, "ess": chain_rows.ESS_A_CHAIN},
        "labels": classes.label_rows(results),
        "unit": "example" if results.predicted is None else results.predicted.of.removesuffix("s"),
        "worst": worst,
        "best": best,
        "uncertainty": shift_rows.uncertainty_rows(results, data.draws),
        "detection": shift_rows.detection_rows(results),
        "other": (results.ood.dataset if results.ood else None) or "other data",
        "kinds": len(shift_rows.corruption_kinds(results)),
        "corrupted": results.corruptions and results.corruptions.examples,
        "severities": shift_rows.severity_rows(results),
        "corruptions": shift_rows.corruption_rows(results),
        "reference": shift_rows.reference_rows(results),
        "missing": shift_rows.missing(results),
        "provenance": list(provenance_pairs(results.provenance)),
        "command": results.provenance.command,
    }
    return environment().get_template("page.html.j2").render(data=data, plots=plots, **shown)
