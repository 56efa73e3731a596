"""Rows of what goes beyond plain predictions: uncertainty, other data, corruptions, a reference posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora.report.table import COLUMNS, Column
from bayeslora.report.words import MISSING, Metrics, known, number

Rows = list[tuple[str, list[str]]]
"""Lines of a table: a label, and cells."""

CORRUPTED = COLUMNS[:3]
"""Metrics shown of corrupted images."""


def uncertainty_rows(metrics: Metrics, draws: int) -> Rows:
    """Mean entropies in nats: in all, what single draws have, and what draws disagree about."""
    found = metrics.get("uncertainty") or {}
    rows: Rows = []
    if found.get("map"):
        rows.append(("MAP", [number(found["map"].get("total"), ".4f"), MISSING, MISSING]))
    if found.get("ensemble"):
        parts = dict(found["ensemble"])
        if draws < 2:  # then it is 0 by construction
            parts["mutual_information"] = None
        names = ("total", "aleatoric", "mutual_information")
        rows.append(("Ensemble", [number(parts.get(name), ".4f") for name in names]))
    return rows


def detection_rows(metrics: Metrics) -> Rows:
    """AUROC and AUPR of telling the second dataset from the run's own, by score."""
    found = metrics.get("ood") or {}
    labels = {
        "map_entropy": "Entropy of MAP",
        "entropy": "Entropy of the ensemble",
        "mutual_information": "Mutual information",
    }
    return [
        (label, [number((found[key] or {}).get(name), ".4f") for name in ("auroc", "aupr")])
        for key, label in labels.items()
        if key in found
    ]


def severity_rows(metrics: Metrics) -> Rows:
    """By severity the mean over all corruptions, MAP beside the ensemble."""
    kinds = corruption_kinds(metrics)
    severities = sorted({severity for row in kinds.values() for severity in row.get("severity") or []})
    return [
        (f"Severity {severity}", [_pair(column, *_means(kinds, column, severity)) for column in CORRUPTED])
        for severity in severities
    ]


def corruption_rows(metrics: Metrics) -> Rows:
    """By corruption and severity, MAP beside the ensemble."""
    return [
        (
            f"{kind.replace('_', ' ').capitalize()}, {severity}",
            [_pair(c, _value(row, "map", at, c), _value(row, "ensemble", at, c)) for c in CORRUPTED],
        )
        for kind, row in corruption_kinds(metrics).items()
        for at, severity in enumerate(row.get("severity") or [])
    ]


def corruption_curves(metrics: Metrics) -> dict[str, dict[str, list[float | None]]]:
    """Means over all corruptions against `severity`: by metric, of `map` and `ensemble`; empty without any."""
    kinds = corruption_kinds(metrics)
    severities = sorted({severity for row in kinds.values() for severity in row.get("severity") or []})
    if not severities:
        return {}
    pairs = {column.key: [_means(kinds, column, severity) for severity in severities] for column in CORRUPTED}
    curves: dict[str, dict[str, list[float | None]]] = {"severity": {"all": [float(one) for one in severities]}}
    for key, found in pairs.items():
        curves[key] = {"map": [one for one, _ in found], "ensemble": [other for _, other in found]}
    return curves


def corruption_kinds(metrics: Metrics) -> dict[str, Metrics]:
    """What is known of each corruption."""
    return {kind: row for kind, row in (metrics.get("corruptions") or {}).items() if isinstance(row, Mapping)}


def reference_rows(metrics: Metrics) -> Rows:
    """Agreement with a reference posterior and distance from it, each ± its standard error over examples."""
    found = metrics.get("reference") or {}
    labels = {"map": "MAP", "draw": "Single draw, mean"}
    chains = sorted(name for name in found if name.startswith("chain "))
    keys = ("agreement", "total_variation")
    return [
        (labels.get(name, name.capitalize()), [_with_se(found[name], key) for key in keys])
        for name in ("map", "draw", *chains, "ensemble")
        if found.get(name)
    ]


def missing(metrics: Metrics, key: str) -> str | None:
    """Why a part of the metrics is not there although it was asked for; None where it is, or was not asked for."""
    found = metrics.get(key)
    reason = found.get("reason") if isinstance(found, Mapping) else None
    return str(reason) if reason else None


def _with_se(values: Metrics, key: str) -> str:
    spread = known(values.get(f"{key}_se"))
    return number(values.get(key), ".4f") + ("" if spread is None else f" ± {spread:.4f}")


def _value(row: Metrics, source: str, at: int, column: Column) -> float | None:
    values: Sequence[Any] = row.get(source) or []
    return known((values[at] or {}).get(column.key)) if at < len(values) else None


def _means(kinds: Mapping[str, Metrics], column: Column, severity: int) -> tuple[float | None, float | None]:
    """A metric's mean over corruptions of one severity, MAP's and the ensemble's."""
    places = [(row, list(row["severity"]).index(severity)) for row in kinds.values() if severity in row["severity"]]
    return (
        _mean([_value(row, "map", at, column) for row, at in places]),
        _mean([_value(row, "ensemble", at, column) for row, at in places]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if any is missing."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there and len(there) == len(values) else None


def _pair(column: Column, baseline: float | None, ensemble: float | None) -> str:
    """MAP's value and the ensemble's."""
    shown = [MISSING if value is None else column.show(value, 3) for value in (baseline, ensemble)]
    return shown[1] if baseline is None else " → ".join([shown[0].removesuffix(" %"), shown[1]])
