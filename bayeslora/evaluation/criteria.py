"""Pass or fail: limits on a run's results. What cannot be computed does not pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from bayeslora.diagnostics.values import Difference
from bayeslora.evaluation.results import Criterion, FunctionSpace, Results
from bayeslora.evaluation.scores import score
from bayeslora.settings import Criteria

AGAINST_MAP = {"nll_above_map": ("nll", 1.0), "ece_above_map": ("ece", 1.0), "accuracy_below_map": ("accuracy", -1.0)}
"""Criteria on differences of the ensemble to MAP: the score, and the difference's sign."""


def _against_map(criterion: str) -> Callable[[Results], float | None]:
    """sign × (ensemble − MAP) of a criterion's score; None without a baseline."""
    name, sign = AGAINST_MAP[criterion]

    def difference(results: Results) -> float | None:
        ensemble, baseline = score(results.ensemble, name), score(results.map, name)
        return None if ensemble is None or baseline is None else sign * (ensemble - baseline)

    return difference


def off_temperature(results: Results) -> float | None:
    """How far the block that is furthest from the temperature asked for is, of those whose temperature is shown."""
    temperatures = results.diagnostics.temperature.values()
    off = [abs(one.ratio - 1) for one in temperatures if one.status == "measured" and one.ratio is not None]
    return max(off) if off and all(map(math.isfinite, off)) else None


def all_temperatures_shown(results: Results) -> bool:
    """Whether no block may be further off than those whose temperature is shown."""
    return all(one.status != "not shown" for one in results.diagnostics.temperature.values())


CRITERIA: dict[str, tuple[str, Callable[[Results], float | None], str]] = {
    "potential_rhat": ("R-hat of the potential", lambda r: r.diagnostics.of("potential").rhat, "at most"),
    "function_space_rhat": (
        "R-hat of 95 % of the predictions",
        lambda r: (r.diagnostics.function_space or FunctionSpace()).rhat_q95,
        "at most",
    ),
    "l2_norm_rhat": ("R-hat of the parameter norm", lambda r: r.diagnostics.of("l2_norm").rhat, "at most"),
    "potential_ess": ("Bulk ESS of the potential", lambda r: r.diagnostics.of("potential").ess_bulk, "at least"),
    "l2_norm_ess": ("Bulk ESS of the parameter norm", lambda r: r.diagnostics.of("l2_norm").ess_bulk, "at least"),
    "nll_above_map": ("NLL, ensemble less MAP", _against_map("nll_above_map"), "below"),
    "ece_above_map": ("ECE, ensemble less MAP", _against_map("ece_above_map"), "below"),
    "accuracy_below_map": ("Accuracy, MAP less ensemble", _against_map("accuracy_below_map"), "at most"),
    "temperature": ("Largest relative error of a block's temperature", off_temperature, "at most"),
}
"""By name: the criterion in words, its value, and how the value must lie to its limit."""

OF_CHAINS = (
    "potential_rhat", "function_space_rhat", "l2_norm_rhat", "potential_ess", "l2_norm_ess", "temperature"
)  # fmt: skip
"""What more draws can meet: whether chains agree, how much they say, at what temperature they sample."""

OF_CLASSES = ("ece_above_map", "accuracy_below_map")
"""What a regression cannot be judged by."""

HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at most": lambda value, limit: value <= limit,
    "at least": lambda value, limit: value >= limit,
    "below": lambda value, limit: value < limit,
}


def judge(results: Results, limits: Criteria) -> dict[str, Criterion]:
    """Each criterion that has a limit: its value, the limit, how they must lie, and whether they do.

    A difference to MAP within two of its standard errors counts as none; on one example, which gives no standard error,
    it is not known. Nor is the largest error of a temperature where one is not shown and all others meet the limit.
    """
    judged = {}
    for name, (title, measure, relation) in CRITERIA.items():
        limit = getattr(limits, name)
        if limit is None or (results.task == "regression" and name in OF_CLASSES):
            continue
        value = measure(results)
        against = results.differences.get("map", {}).get(AGAINST_MAP.get(name, ("", 0.0))[0], Difference())
        value = None if value is None or not math.isfinite(value) or against.of_one_example else value
        passed = value is not None and HOLDS[relation](0.0 if against.tie else value, limit)
        if passed and name == "temperature" and not all_temperatures_shown(results):
            value, passed = None, False
        judged[name] = Criterion(title, value, limit, relation, passed, against.se)
    return judged


def failed(criteria: Mapping[str, Criterion]) -> list[str]:
    """Sentences on the criteria that are not met."""
    return [
        f"{c.title} is {'not known' if c.value is None else c.shown} and must be {c.relation}"
        f"{'' if c.limit is None else f' {c.limit:g}'}"
        for c in criteria.values()
        if not c.passed
    ]
