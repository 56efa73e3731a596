"""Evaluation of a classifier: scores, uncertainty and agreement, from the predictions of one pass over the draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from torch import Tensor

from bayeslora.diagnostics.calibration import fit_temperature, scaled
from bayeslora.diagnostics.uncertainty import ONE_DRAW, predictive_entropy, risk_coverage
from bayeslora.diagnostics.values import Difference
from bayeslora.evaluation import shift
from bayeslora.evaluation.evaluated_split import evaluated_split, precision, validation_set
from bayeslora.evaluation.labels import with_several
from bayeslora.evaluation.predictions import Pass, Predictions, class_scores, predict
from bayeslora.evaluation.results import (
    Agreement,
    EnsembleEntropy,
    FidelityCurve,
    MapEntropy,
    ReferenceFidelity,
    Results,
    Selective,
    Uncertainty,
)
from bayeslora.evaluation.scores import ChainScores, Curve, TemperedMap, map_ensemble, paired_differences
from bayeslora.evaluation.series import Series, diagnose, single_draws
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior


def evaluate_classes(posterior: Posterior, experiment: Experiment, series: Series) -> tuple[Predictions, Results]:
    """Predict the evaluated split, and whatever else the settings ask for, with every draw.

    Raises:
        ConfigError: a second dataset, or a reference, that was asked for is not there.
        DataError: it cannot be read, or does not fit.
    """
    split = evaluated_split(experiment)
    targets, loader = split.targets.cpu(), experiment.loader(split)
    views, missing = shift.views(experiment)
    reference = shift.reference(experiment, targets) if targets.ndim == 1 else None
    work = Pass(targets, loader, experiment.function_probe(), views, reference, likelihood=experiment.likelihood)
    with precision(experiment):
        predictions = predict(posterior, work, validation_set(experiment))
    results = classification_results(predictions, series, experiment.gradients(predictions.chains))
    results = with_several(results, predictions, experiment)
    return predictions, shift.with_shift(results, predictions, experiment, missing)


def classification_results(predictions: Predictions, series: Series, gradients: int) -> Results:
    """Results without criteria, provenance and other data: nothing that depends on how fast a machine is.

    Args:
        predictions: of all draws.
        series: scalars of the draws.
        gradients: minibatch gradients that the sampling took, summed over chains.
    """
    targets, baseline, ends = predictions.targets, predictions.map, predictions.map_ensemble
    tempered = None if baseline is None else _tempered(baseline, predictions)
    return Results(
        map=None if baseline is None else class_scores(baseline, targets),
        map_tempered=tempered,
        map_ensemble=map_ensemble(predictions.map_members, None if ends is None else class_scores(ends, targets)),
        draw=single_draws(predictions.draw_scores),
        ensemble=class_scores(predictions.ensemble, targets),
        differences=_differences(predictions, None if tempered is None else tempered.temperature),
        chains=[
            ChainScores(chain, class_scores(log_probs, targets))
            for chain, log_probs in zip(predictions.chains, predictions.by_chain, strict=True)
        ],
        cumulative=Curve.of(predictions.cumulative),
        uncertainty=_uncertainty(predictions),
        selective=Selective(
            None if baseline is None else risk_coverage(baseline, targets),
            risk_coverage(predictions.ensemble, targets),
        ),
        diagnostics=diagnose(predictions.probe_arrays, series, agreement(predictions.by_chain), gradients),
        reference=_fidelity(predictions) if predictions.fidelity else None,
    )


def agreement(ensembles: Sequence[Tensor]) -> Agreement:
    """How far the ensembles of different chains predict alike, on average over pairs of chains and examples.

    Args:
        ensembles: log p [N, C] of each chain's draws.
    """
    if len(ensembles) < 2:
        return Agreement(reason="there is only one chain to compare")
    sums = np.zeros(3)
    pairs = list(combinations([e.double() for e in ensembles], 2))
    for a, b in pairs:
        p, q = a.exp(), b.exp()
        kl = 0.5 * ((p - q) * (a.clamp(min=-1e3) - b.clamp(min=-1e3))).sum(-1)
        same = (a.argmax(-1) == b.argmax(-1)).double()
        sums += [kl.mean().item(), 0.5 * (p - q).abs().sum(-1).mean().item(), same.mean().item()]
    return Agreement(*(sums / len(pairs)).tolist())


def _tempered(baseline: Tensor, predictions: Predictions) -> TemperedMap:
    """MAP with one temperature fitted to the validation set: the baseline that calibration must beat."""
    scaling = fit_temperature(*(predictions.map_validation or (None, None)))
    scaled = None if scaling.temperature is None else class_scores(scaling.apply(baseline), predictions.targets)
    return TemperedMap(**vars(scaling), scores=scaled)


def _differences(predictions: Predictions, temperature: float | None) -> dict[str, dict[str, Difference]]:
    baseline = predictions.map
    of = {
        "ensemble": predictions.ensemble,
        "map": baseline,
        "map_tempered": None if baseline is None or temperature is None else scaled(baseline, temperature),
        "map_ensemble": predictions.map_ensemble,
    }
    return paired_differences({name: predictions.parts(p) for name, p in of.items() if p is not None})


def _fidelity(predictions: Predictions) -> ReferenceFidelity:
    """Fidelity to a reference posterior."""
    curve = predictions.fidelity_curve
    growing = FidelityCurve(curve["draws"], [*curve["agreement"]], [*curve["total_variation"]])
    return ReferenceFidelity(growing, rows=dict(predictions.fidelity))


def _uncertainty(predictions: Predictions) -> Uncertainty:
    """Mean predictive entropies in nats: MAP's, the ensemble's, and the latter split into its two parts."""
    baseline, entropy = predictions.map, predictions.entropy
    one = predictions.num_draws < 2
    return Uncertainty(
        None if baseline is None else MapEntropy(predictive_entropy(baseline).mean().item()),
        EnsembleEntropy(
            entropy.total.mean().item(),
            entropy.aleatoric.mean().item(),
            None if one else entropy.mutual_information.mean().item(),
            ONE_DRAW if one else None,
        ),
    )
