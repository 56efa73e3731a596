"""metrics.json as types: what is written is read back, keys lie where docs/metrics.md says, wrong files are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bayeslora.errors import DataError
from bayeslora.evaluation.results import (
    Corruption,
    Corruptions,
    Diagnostics,
    Fidelity,
    MeasuredTemperature,
    ReferenceFidelity,
    Results,
)
from bayeslora.evaluation.scores import ChainScores, ClassificationScores, RegressionScores
from tests.cases import each
from tests.unit.report_tools import predictions, report, series

SCORES = ClassificationScores(accuracy=0.5, nll=1.0, ece=0.25, brier=0.75)


def test_what_is_written_is_read_back() -> None:
    results = report(predictions([20, 20], classes=2), series([20, 20])).results
    assert Results.from_json(json.loads(json.dumps(results.to_json(), allow_nan=False))) == results
    assert results["ensemble"]["f1"] == results.ensemble.f1


def test_entries_lie_where_the_documentation_says() -> None:
    fidelity = Fidelity(0.9, 0.01, 0.1, None)
    content = Results(
        ensemble=SCORES,
        chains=[ChainScores(3, SCORES)],
        diagnostics=Diagnostics(temperature={"head": MeasuredTemperature(1.5, 0.1)}),
        reference=ReferenceFidelity(rows={"chain 3": fidelity}),
        corruptions=Corruptions(7, kinds={"jpeg": Corruption([1], [None], [SCORES])}),
    ).to_json()
    assert content["chains"] == [{"chain": 3, "accuracy": 0.5, "nll": 1.0, "ece": 0.25, "brier": 0.75}]
    head = content["diagnostics"]["temperature"]["head"]
    assert [head[key] for key in ("ratio", "se", "reason")] == [1.5, 0.1, None]
    assert content["reference"]["chain 3"]["agreement"] == 0.9
    assert content["corruptions"]["jpeg"]["map"] == [None]
    assert "f1" not in content["ensemble"]
    assert not {"ood", "absent"} & set(content)


def test_scores_of_a_regression_are_told_from_those_of_classes() -> None:
    scores = RegressionScores(nll=1.0, rmse=2.0)
    results = Results("regression", ensemble=scores, chains=[ChainScores(0, scores)])
    assert Results.from_json(results.to_json()) == results


def test_numbers_that_are_not_finite_are_null() -> None:
    content = Results(ensemble=ClassificationScores(nll=math.inf, ece=math.nan)).to_json()
    assert (content["ensemble"]["nll"], content["ensemble"]["ece"]) == (None, None)


@each(
    ("content", "message"),
    [
        (None, "has not been evaluated: python -m bayeslora.evaluate run_dir="),
        ('{"ensemble": ', "cannot read metrics.json"),
        ("[1]", "metrics must be a mapping, not a list"),
        ("{}", "no ensemble"),
        ('{"ensemble": {"nll": "low"}}', "metrics.ensemble.nll must be a number, not 'low'"),
        ('{"chains": [{"nll": 1.0}]}', "metrics.chains[0] lacks chain"),
        ('{"task": "ranking"}', "metrics.task must be one of classification, multilabel, regression, not 'ranking'"),
        ('{"ensembel": {}}', "metrics has the unknown key ensembel"),
        ('{"diagnostics": {"potential": {"rhat": true}}}', "metrics.diagnostics.potential.rhat must be a number"),
    ],
)
def test_a_file_that_holds_no_results_is_refused_with_its_place_and_the_remedy(
    tmp_path: Path, content: Any, message: str
) -> None:
    file = tmp_path / "metrics.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError) as error:
        Results.read(file)
    assert message in str(error.value)
    assert f"python -m bayeslora.evaluate run_dir={tmp_path}" in str(error.value)
