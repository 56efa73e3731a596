"""Predictions under shift: a second dataset, corrupted images; and fidelity to a reference posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Split
from bayeslora.datasets.corruptions import CORRUPTIONS, SEVERITIES
from bayeslora.diagnostics.fidelity import Reference, load_reference
from bayeslora.diagnostics.uncertainty import ONE_DRAW, detection, predictive_entropy
from bayeslora.errors import require
from bayeslora.evaluation.evaluated_split import evaluated_split, is_whole_test_set
from bayeslora.evaluation.labels import SEVERAL
from bayeslora.evaluation.predictions import Predictions, View, ViewPredictions, class_scores
from bayeslora.evaluation.results import Corruption, Corruptions, Detection, OutOfDistribution, Results
from bayeslora.experiment import Experiment

OTHER = "out of distribution"


def reference(experiment: Experiment, targets: Tensor) -> Reference | None:
    """The reference that `evaluate.reference` names, if any.

    Raises:
        ConfigError: the evaluated split is not the whole test set, to whose order a reference's `index` refers.
        DataError: it is of other examples, classes or order.
    """
    file = experiment.evaluation.reference
    if file is None:
        return None
    require(
        is_whole_test_set(experiment),
        "evaluate.reference needs the whole test set in its order: set evaluate.split=test and dataset.limit_test=null",
    )
    return load_reference(file, targets, experiment.data.num_classes)


def views(experiment: Experiment) -> tuple[list[View], dict[str, str]]:
    """A second dataset and corrupted test images, as far as the settings ask for them.

    Returns:
        What MAP and every draw are asked about, and why `ood` or `corruptions` cannot be had.

    Raises:
        ConfigError: there is no such dataset.
        DataError: its files are not where they should be.
    """
    wanted: list[View] = []
    missing: dict[str, str] = {}
    if experiment.data.labels or experiment.data.axes:
        for_classes = {"ood": experiment.make_ood is not None, "corruptions": experiment.evaluation.corruptions}
        return [], {name: SEVERAL for name, wants in for_classes.items() if wants}
    if experiment.make_ood is not None:
        other = experiment.make_ood()
        problem = _does_not_fit(experiment.data, other)
        if problem is None:
            wanted.append(_view_of(experiment, other))
        else:
            missing["ood"] = f"{experiment.evaluation.ood} holds {problem}; choose a dataset of the same kind and size"
    if experiment.evaluation.corruptions:
        kind = experiment.data.kind
        if kind == "images" and experiment.data.train.inputs.dtype != torch.uint8:
            kind = "images of fractions"
        elif kind == "images" and experiment.data.in_channels not in (1, 3):
            kind = f"images of {experiment.data.in_channels} channels, not 1 or 3"
        if kind == "images":
            wanted += _corrupted(experiment)
        else:
            missing["corruptions"] = f"the data are {kind}, and corruptions are of images"
    return wanted, missing


def with_shift(
    results: Results, predictions: Predictions, experiment: Experiment, missing: Mapping[str, str]
) -> Results:
    """The results with those under shift; None, with a reason, for what cannot be had."""
    corrupted = dict(predictions.views)
    other = corrupted.pop(OTHER, None)
    if other is not None:
        results = replace(results, ood=out_of_distribution(predictions, other, experiment.evaluation.ood))
    elif "ood" in missing:
        results = replace(results, ood=OutOfDistribution(experiment.evaluation.ood, reason=missing["ood"]))
    if corrupted:
        results = replace(results, corruptions=corruptions(corrupted, _to_corrupt(experiment).targets.cpu()))
    elif "corruptions" in missing:
        results = replace(results, corruptions=Corruptions(reason=missing["corruptions"]))
    return results


def out_of_distribution(predictions: Predictions, other: ViewPredictions, dataset: str | None) -> OutOfDistribution:
    """How well another dataset, the positive class, is told by predictive entropy and mutual information."""
    ours, theirs = predictions.entropy, other.entropy
    one = predictions.num_draws < 2
    by_map = None
    if predictions.map is not None and other.map is not None:
        by_map = _detection(predictive_entropy(predictions.map), predictive_entropy(other.map))
    return OutOfDistribution(
        dataset,
        entropy=_detection(ours.total, theirs.total),
        mutual_information=None if one else _detection(ours.mutual_information, theirs.mutual_information),
        map_entropy=by_map,
        reason=ONE_DRAW if one else None,
    )


def corruptions(views: Mapping[str, ViewPredictions], targets: Tensor) -> Corruptions:
    """Scores of corrupted examples, MAP's and the ensemble's.

    Args:
        views: named `corruption/<name>/<severity>`.
        targets: true classes [N] of each of them.
    """
    kinds: dict[str, Corruption] = {}
    for name, view in views.items():
        _, kind, severity = name.split("/")
        row = kinds.setdefault(kind, Corruption())
        row.severity.append(int(severity))
        row.map.append(None if view.map is None else class_scores(view.map, targets))
        row.ensemble.append(class_scores(view.ensemble, targets))
    return Corruptions(len(targets), kinds=kinds)


def _detection(score_in: Tensor, score_out: Tensor) -> Detection:
    return Detection(**detection(score_in, score_out))


def _does_not_fit(ours: Data, theirs: Data) -> str | None:
    """What another dataset holds that a model for ours cannot take, beside ours; None if it can."""

    def kind(data: Data) -> str:
        if data.texts:
            return f"{'single texts' if data.test.inputs.shape[1] == 1 else 'pairs of texts'}"
        if data.kind == "tables":
            return f"rows of {data.in_features} numbers"
        channels, height, width = data.test.inputs.shape[1:]
        return f"images of {height} × {width} pixels in {counted(channels, 'channel')}"

    return None if kind(ours) == kind(theirs) else f"{kind(theirs)}, and {ours.name} {kind(ours)}"


def _view_of(experiment: Experiment, data: Data) -> View:
    """The test set of another dataset; images through the run's own transform."""
    none = data.train.take(slice(0))
    data = experiment.as_taken(replace(data, train=none, validation=none))
    transform = data.transform if data.texts else experiment.data.transform
    return View(OTHER, experiment.loader(experiment.by_length(data.test).to(experiment.device), transform), None)


def _corrupted(experiment: Experiment) -> list[View]:
    """The test images under every corruption and severity."""
    clean = _to_corrupt(experiment)
    wanted = []
    for name, corrupt in CORRUPTIONS.items():
        for severity in SEVERITIES:
            images = corrupt(clean.inputs.cpu(), severity)
            split = Split(images, clean.targets.cpu()).to(experiment.device)
            wanted.append(View(f"corruption/{name}/{severity}", experiment.loader(split), clean.targets.cpu()))
    return wanted


def _to_corrupt(experiment: Experiment) -> Split:
    """The images that are corrupted."""
    return evaluated_split(experiment).take(slice(experiment.evaluation.corruption_examples))
