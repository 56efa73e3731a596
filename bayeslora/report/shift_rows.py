"""Rows on uncertainty, other data, corruptions, and fidelity to a reference posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bayeslora.evaluation.results import Corruption, Corruptions, Fidelity, Results
from bayeslora.evaluation.scores import Number, Scores, score
from bayeslora.report.table import COLUMNS, ScoreColumn, map_ensemble_label
from bayeslora.report.words import MISSING, finite_or_none, number

Rows = list[tuple[str, list[str]]]
"""Lines of a table: a label, and cells."""

CORRUPTED = COLUMNS[:3]
"""Scores shown of corrupted images."""


def uncertainty_rows(results: Results, draws: int) -> Rows:
    """Mean entropies in nats: in all, what single draws have, and what draws disagree about."""
    rows: Rows = []
    baseline, ensemble = results.uncertainty.map, results.uncertainty.ensemble
    if baseline is not None:
        rows.append(("MAP", [number(baseline.total, ".4f"), MISSING, MISSING]))
    if ensemble is not None:
        information = ensemble.mutual_information if draws > 1 else None  # of one draw it is 0 by construction
        rows.append(("Ensemble", [number(v, ".4f") for v in (ensemble.total, ensemble.aleatoric, information)]))
    return rows


def variance_rows(results: Results) -> Rows:
    """Mean predictive variance of a regression: in all, noise, and what draws disagree about; and the mean sd."""
    variance, sd = results.uncertainty.variance, score(results.ensemble, "sharpness")
    if variance is None:
        return []
    cells = [number(value, ".4g") for value in (variance.total, variance.aleatoric, variance.epistemic, sd)]
    return [("Ensemble", cells)]


def detection_rows(results: Results) -> Rows:
    """AUROC and AUPR of telling the second dataset from the run's own, by score."""
    ood = results.ood
    if ood is None:
        return []
    scores = {
        "Entropy of MAP": ood.map_entropy,
        "Entropy of the ensemble": ood.entropy,
        "Mutual information": ood.mutual_information,
    }
    if ood.map_entropy is None:
        del scores["Entropy of MAP"]
    return [
        (label, [MISSING, MISSING] if one is None else [number(one.auroc, ".4f"), number(one.aupr, ".4f")])
        for label, one in scores.items()
    ]


def severity_rows(results: Results) -> Rows:
    """By severity the mean over all corruptions, MAP beside the ensemble."""
    kinds = corruption_kinds(results)
    return [
        (f"Severity {severity}", [_pair(column, *_means(kinds, column, severity)) for column in CORRUPTED])
        for severity in _severities(kinds)
    ]


def corruption_rows(results: Results) -> Rows:
    """By corruption and severity, MAP beside the ensemble."""
    return [
        (
            f"{kind.replace('_', ' ').capitalize()}, {severity}",
            [_pair(c, _value(row.map, at, c), _value(row.ensemble, at, c)) for c in CORRUPTED],
        )
        for kind, row in corruption_kinds(results).items()
        for at, severity in enumerate(row.severity)
    ]


def corruption_curves(results: Results) -> dict[str, dict[str, list[Number]]]:
    """Means over all corruptions against `severity`: by score, of `map` and `ensemble`; empty without any."""
    kinds = corruption_kinds(results)
    severities = _severities(kinds)
    if not severities:
        return {}
    curves: dict[str, dict[str, list[Number]]] = {"severity": {"all": [float(one) for one in severities]}}
    for column in CORRUPTED:
        pairs = [_means(kinds, column, severity) for severity in severities]
        curves[column.key] = {"map": [one for one, _ in pairs], "ensemble": [other for _, other in pairs]}
    return curves


def corruption_kinds(results: Results) -> dict[str, Corruption]:
    """What is known of each corruption."""
    return (results.corruptions or Corruptions()).kinds


def reference_rows(results: Results) -> Rows:
    """Agreement with a reference posterior and distance from it, each ± its standard error over examples."""
    by_name = {} if results.reference is None else results.reference.rows
    labels = {"map": "MAP", "map_ensemble": map_ensemble_label(results), "draw": "Single draw, mean"}
    chains = sorted(name for name in by_name if name.startswith("chain "))
    return [
        (labels.get(name, name.capitalize()), _fidelity_cells(one))
        for name in ("map", "map_ensemble", "draw", *chains, "ensemble")
        if (one := by_name.get(name)) is not None
    ]


def missing(results: Results) -> dict[str, str | None]:
    """Why parts of the results are not there although they were asked for; None where they are, or were not."""
    parts = {"ood": results.ood, "corruptions": results.corruptions, "reference": results.reference}
    return {name: None if part is None else part.reason for name, part in parts.items()}


def _fidelity_cells(one: Fidelity) -> list[str]:
    pairs = [(one.agreement, one.agreement_se), (one.total_variation, one.total_variation_se)]
    return [number(value, ".4f") + ("" if finite_or_none(se) is None else f" ± {se:.4f}") for value, se in pairs]


def _severities(kinds: Mapping[str, Corruption]) -> list[int]:
    return sorted({severity for row in kinds.values() for severity in row.severity})


def _value(rows: Sequence[Scores | None], at: int, column: ScoreColumn) -> Number:
    return finite_or_none(score(rows[at], column.key)) if at < len(rows) else None


def _means(kinds: Mapping[str, Corruption], column: ScoreColumn, severity: int) -> tuple[Number, Number]:
    """A score's mean over corruptions of one severity, MAP's and the ensemble's."""
    places = [(row, row.severity.index(severity)) for row in kinds.values() if severity in row.severity]
    return (
        _mean([_value(row.map, at, column) for row, at in places]),
        _mean([_value(row.ensemble, at, column) for row, at in places]),
    )


def _mean(values: Sequence[Number]) -> Number:
    """The mean; None if any is missing."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present and len(present) == len(values) else None


def _pair(column: ScoreColumn, baseline: Number, ensemble: Number) -> str:
    """MAP's value and the ensemble's."""
    shown = [MISSING if value is None else column.show(value, 3) for value in (baseline, ensemble)]
    return shown[1] if baseline is None else " → ".join([shown[0].removesuffix(" %"), shown[1]])
