"""Criteria: each has value, limit and verdict, and what cannot be computed does not pass."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest

from bayeslora.diagnostics.values import MeasuredTemperature
from bayeslora.evaluation.classification import classification_results
from bayeslora.evaluation.criteria import CRITERIA, failed, judge
from bayeslora.evaluation.results import Criterion, Diagnostics, Results
from bayeslora.settings import Criteria
from tests.cases import each
from tests.unit.report_tools import LIMITS, predictions, series

GOOD: dict[str, float] = {
    "potential_rhat": 1.01,
    "function_space_rhat": 1.01,
    "l2_norm_rhat": 1.05,
    "potential_ess": 200.0,
    "l2_norm_ess": 200.0,
    "nll_above_map": -1e-9,
    "ece_above_map": -1e-9,
    "accuracy_below_map": 0.003,
    "temperature": 0.0499,
}
"""The least good value of each that meets its default limit."""
BETTER = {name: (1 if name.endswith("ess") else -1) for name in GOOD}
"""The side of the limit on which a criterion is met."""


def content(**values: float | None) -> dict[str, Any]:
    """Of `metrics.json`, what gives each criterion this value, the others the least good ones."""
    wanted: dict[str, Any] = GOOD | values
    names = {"potential": "rhat", "l2_norm": "rhat", "function_space": "rhat_q95"}
    diagnostics: dict[str, Any] = {name: {key: wanted[f"{name}_rhat"]} for name, key in names.items()}
    for name in ("potential", "l2_norm"):
        diagnostics[name]["ess_bulk"] = wanted[f"{name}_ess"]
    off = wanted["temperature"]
    hot = {"ratio": None if off is None else 1 + off, "status": "not shown" if off is None else "measured"}
    diagnostics["temperature"] = {"stem": {"ratio": 1.0, "status": "measured"}, "all": hot}
    ensemble = {"nll": wanted["nll_above_map"], "ece": wanted["ece_above_map"]}
    ensemble["accuracy"] = None if wanted["accuracy_below_map"] is None else -wanted["accuracy_below_map"]
    return {"map": {"nll": 0.0, "ece": 0.0, "accuracy": 0.0}, "ensemble": ensemble, "diagnostics": diagnostics}


def holding(**values: float | None) -> Results:
    return Results.from_json(content(**values))


def test_at_the_limits_all_are_met() -> None:
    found = judge(holding(), LIMITS)
    assert list(found) == list(CRITERIA) == list(asdict(LIMITS))
    assert {name: one.value for name, one in found.items()} == pytest.approx(GOOD)
    assert {name: one.limit for name, one in found.items()} == asdict(LIMITS)
    assert all(one.passed is True for one in found.values())
    assert failed(found) == []


@each("name", GOOD)
def test_beyond_its_limit_a_criterion_is_not_met_and_the_others_are(name: str) -> None:
    value = getattr(LIMITS, name) - BETTER[name] * 0.002
    found = judge(holding(**{name: value}), LIMITS)
    assert [key for key, one in found.items() if not one.passed] == [name]
    (problem,) = failed(found)
    assert problem == f"{CRITERIA[name][0]} is {value:.4g} and must be {CRITERIA[name][2]} {getattr(LIMITS, name):g}"


@each("name", ["nll_above_map", "ece_above_map"])
def test_as_good_as_map_is_not_better_than_map(name: str) -> None:
    assert judge(holding(**{name: 0.0}), LIMITS)[name].passed is False


@each("value", [None, math.nan, math.inf, -math.inf])
@each("name", [name for name in GOOD if not name.endswith("_map")])
def test_a_diagnostic_that_is_not_known_does_not_pass(name: str, value: float | None) -> None:
    found = judge(holding(**{name: value}), LIMITS)
    assert (found[name].value, found[name].passed) == (None, False)
    assert f"{CRITERIA[name][0]} is not known" in failed(found)[0]


@each("missing", ["map", "ensemble", "diagnostics"])
def test_without_its_part_of_the_metrics_nothing_passes(missing: str) -> None:
    whole = content()
    for metrics in (whole | {missing: None}, {key: part for key, part in whole.items() if key != missing}):
        found = judge(Results.from_json(metrics), LIMITS)
        lost = {name for name in GOOD if name.endswith("_map") == (missing != "diagnostics")}
        assert {name for name, one in found.items() if not one.passed} == lost
        assert {found[name].value for name in lost} == {None}


def test_criteria_without_a_limit_are_left_out() -> None:
    found = judge(holding(potential_ess=1.0), Criteria(potential_ess=None))
    assert "potential_ess" not in found
    assert len(found) == len(GOOD) - 1
    assert judge(holding(), Criteria(**dict.fromkeys(GOOD))) == {}


def test_the_values_are_those_of_a_summary() -> None:
    results = classification_results(predictions([40, 40]), series([40, 40]), gradients=100)
    found = {name: one.value for name, one in judge(results, LIMITS).items()}
    metrics = results.to_json()
    diagnostics = metrics["diagnostics"]
    assert found == {
        "potential_rhat": diagnostics["potential"]["rhat"],
        "function_space_rhat": diagnostics["function_space"]["rhat_q95"],
        "l2_norm_rhat": diagnostics["l2_norm"]["rhat"],
        "potential_ess": diagnostics["potential"]["ess_bulk"],
        "l2_norm_ess": diagnostics["l2_norm"]["ess_bulk"],
        "nll_above_map": metrics["ensemble"]["nll"] - metrics["map"]["nll"],
        "ece_above_map": metrics["ensemble"]["ece"] - metrics["map"]["ece"],
        "accuracy_below_map": metrics["map"]["accuracy"] - metrics["ensemble"]["accuracy"],
        "temperature": None,
    }


def test_what_is_not_shown_or_pooled_does_not_pass_for_a_temperature() -> None:
    def judged(**blocks: MeasuredTemperature) -> float | None:
        results = Results(diagnostics=Diagnostics(temperature=blocks))
        return judge(results, LIMITS)["temperature"].value

    right, off = MeasuredTemperature(1.01, 0.01, status="measured"), MeasuredTemperature(0.7, 0.01, status="measured")
    noisy, unknown = MeasuredTemperature(1.4, 0.3, status="pooled"), MeasuredTemperature(1.0, 0.03)
    assert judged(stem=right, head=off) == pytest.approx(0.3)
    assert judged(stem=right, noise=noisy, pooled=right) == pytest.approx(0.01)
    assert judged(stem=right, head=unknown) is None
    assert judged(stem=off, head=unknown) == pytest.approx(0.3)  # at least
    assert judged(stem=noisy) is None


@each(("name", "passes"), [("nll_above_map", False), ("ece_above_map", False), ("accuracy_below_map", True)])
def test_a_difference_to_map_within_two_standard_errors_counts_as_none(name: str, passes: bool) -> None:
    good = {"nll_above_map": -0.01, "ece_above_map": -0.01, "accuracy_below_map": 0.01}[name]
    scored = {"nll_above_map": "nll", "ece_above_map": "ece", "accuracy_below_map": "accuracy"}[name]

    def judged(se: float | None) -> Criterion:
        differences = {"map": {scored: {"value": good, "se": se}}}
        return judge(Results.from_json(content(**{name: good}) | {"differences": differences}), LIMITS)[name]

    sure, unsure = judged(0.001), judged(0.006)
    assert (sure.passed, unsure.passed) == (not passes, passes)
    assert (sure.value, unsure.value, unsure.se) == (pytest.approx(good), pytest.approx(good), 0.006)
    assert unsure.shown == f"{good:.4f} ± 0.0060 (a tie)".replace("-", "−")
    of_one_example = judged(None)
    assert (of_one_example.passed, of_one_example.value) == (False, None)
