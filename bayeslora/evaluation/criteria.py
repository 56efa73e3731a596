"""Pass or fail: limits on a run's metrics. What cannot be computed does not pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Metrics = Mapping[str, Any]


def _diagnostic(name: str, key: str) -> Callable[[Metrics], Any]:
    return lambda metrics: (metrics.get("diagnostics") or {}).get(name, {}).get(key)


def _against_map(key: str, sign: float = 1.0) -> Callable[[Metrics], float | None]:
    """sign × (ensemble − MAP) of a metric; None without a baseline."""

    def difference(metrics: Metrics) -> float | None:
        ensemble, baseline = ((metrics.get(source) or {}).get(key) for source in ("ensemble", "map"))
        return None if ensemble is None or baseline is None else sign * (ensemble - baseline)

    return difference


CRITERIA: dict[str, tuple[str, Callable[[Metrics], float | None], str]] = {
    "potential_rhat": ("R-hat of the potential", _diagnostic("potential", "rhat"), "at most"),
    "function_space_rhat": ("R-hat of 95 % of the predictions", _diagnostic("function_space", "rhat_q95"), "at most"),
    "l2_norm_rhat": ("R-hat of the parameter norm", _diagnostic("l2_norm", "rhat"), "at most"),
    "potential_ess": ("Bulk ESS of the potential", _diagnostic("potential", "ess_bulk"), "at least"),
    "l2_norm_ess": ("Bulk ESS of the parameter norm", _diagnostic("l2_norm", "ess_bulk"), "at least"),
    "nll_above_map": ("NLL, ensemble less MAP", _against_map("nll"), "below"),
    "ece_above_map": ("ECE, ensemble less MAP", _against_map("ece"), "below"),
    "accuracy_below_map": ("Accuracy, MAP less ensemble", _against_map("accuracy", -1.0), "at most"),
}
"""By name: the criterion in words, its value, and how the value must lie to its limit."""

OF_CLASSES = ("ece_above_map", "accuracy_below_map")
"""What a regression cannot be judged by."""

HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at most": lambda value, limit: value <= limit,
    "at least": lambda value, limit: value >= limit,
    "below": lambda value, limit: value < limit,
}


def judge(metrics: Metrics, limits: Mapping[str, float | None]) -> dict[str, dict[str, Any]]:
    """Each criterion that has a limit: its value, the limit, how they must lie, and whether they do.

    Args:
        metrics: the content of `metrics.json`.
        limits: by name of `CRITERIA`; None leaves a criterion out.
    """
    found = {}
    for name, (title, measure, relation) in CRITERIA.items():
        limit = limits.get(name)
        if limit is None or (metrics.get("task") == "regression" and name in OF_CLASSES):
            continue
        value = measure(metrics)
        value = value if value is not None and math.isfinite(value) else None
        passed = value is not None and HOLDS[relation](value, limit)
        found[name] = {"title": title, "value": value, "limit": limit, "relation": relation, "passed": passed}
    return found


def failed(criteria: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on the criteria that are not met."""
    return [
        f"{c['title']} is {'not known' if c['value'] is None else format(c['value'], '.4g')} and must be"
        f" {c['relation']} {c['limit']:g}"
        for c in criteria.values()
        if not c["passed"]
    ]
