"""Scores of several predictions an example: of each label by itself, and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bayeslora.evaluation.evaluated_split import evaluated_split
from bayeslora.evaluation.predictions import Predictions, class_scores
from bayeslora.evaluation.results import ReferenceFidelity, Results
from bayeslora.evaluation.scores import ClassificationScores, LabelScores, PredictionCount
from bayeslora.experiment import Experiment

SEVERAL = "each example has several predictions, and this needs one"
"""Why some results are not there."""


def with_several(results: Results, predictions: Predictions, experiment: Experiment) -> Results:
    """The results with what is told of several predictions an example; as they are where each has one."""
    if predictions.owners is None:
        return results
    labels, examples = experiment.data.labels, len(evaluated_split(experiment))
    scores = {name: _label_scores(predictions, place) for place, name in enumerate(labels)}
    return replace(
        results,
        task="multilabel" if labels else "classification",
        predicted=PredictionCount("labels" if labels else "positions", len(predictions.targets), examples),
        labels=scores,
        label_average=_average([one for one in scores.values() if one.known]) if labels else None,
        reference=None if experiment.evaluation.reference is None else ReferenceFidelity(reason=SEVERAL),
    )


def _label_scores(predictions: Predictions, label: int) -> LabelScores:
    """Scores of one label, over the examples of which it is known."""
    assert predictions.owners is not None
    rows = predictions.owners[:, 1] == label
    targets = predictions.targets[rows]
    if not len(targets):
        return LabelScores()
    baseline = None if predictions.map is None else class_scores(predictions.map[rows], targets)
    share = targets.double().mean().item()
    return LabelScores(len(targets), share, baseline, class_scores(predictions.ensemble[rows], targets))


def _average(labels: Sequence[LabelScores]) -> LabelScores:
    """Means over labels, each of the same weight."""

    def mean(of: Sequence[ClassificationScores | None]) -> ClassificationScores | None:
        scores = [vars(one) for one in of if one is not None]
        if not scores or len(scores) < len(labels):
            return None
        return ClassificationScores(**{name: sum(one[name] for one in scores) / len(scores) for name in scores[0]})

    if not labels:
        return LabelScores()
    holds = sum(one.holds or 0.0 for one in labels) / len(labels)
    known = sum(one.known for one in labels)
    return LabelScores(known, holds, mean([one.map for one in labels]), mean([one.ensemble for one in labels]))
