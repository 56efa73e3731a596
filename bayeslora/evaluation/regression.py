"""Evaluation of a regression: scores of predictive densities in the targets' own units, in one pass over the draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora.diagnostics.paired import QUANTILES, to_bytes, value_of
from bayeslora.errors import DivergedError
from bayeslora.evaluation.evaluated_split import evaluated_split, precision
from bayeslora.evaluation.predictions import Rounds, take_in
from bayeslora.evaluation.results import (
    Agreement,
    Corruptions,
    OutOfDistribution,
    ReferenceFidelity,
    Results,
    Uncertainty,
    Variance,
)
from bayeslora.evaluation.scores import (
    ChainScores,
    Curve,
    RegressionScores,
    TemperedMap,
    map_ensemble,
    paired_differences,
)
from bayeslora.evaluation.series import Series, diagnose, single_draws
from bayeslora.experiment import Experiment
from bayeslora.likelihood import Gaussian
from bayeslora.posterior.density import NormalMixture, Normals
from bayeslora.posterior.predictive import Posterior, normals
from bayeslora.posterior.stacked import Loader, outputs, raw_outputs

LEVELS = (50, 90, 95)
"""Central predictive intervals whose coverage is told, in percent."""
ABSENT = "the targets are real numbers, and this needs classes"
"""Why metrics of classes are not there."""


def scores(mixture: NormalMixture, targets: Tensor) -> RegressionScores:
    """Scores of a predictive density, in the unit of the targets.

    Args:
        mixture: of the draws, at these targets.
        targets: [N, D].

    Returns:
        Errors and coverage over examples and targets; `calibration_error` is the mean distance of the share of targets
        below each predictive quantile (5 %, 10 %, … 95 %) from what it should be.

    Raises:
        DivergedError: a prediction is not finite.

    Source: Gneiting, Balabdaoui & Raftery (2007); Kuleshov, Fenner & Ermon (2018) for the calibration error.
    """
    density, pit = mixture.normals, mixture.pit
    if not (density.mean.isfinite().all() and density.sd.isfinite().all()):
        raise DivergedError("a prediction is not finite: the parameters of this draw, or its outputs, are not")
    error = density.mean - targets
    coverage = {f"coverage_{p}": ((2 * pit - 1).abs() <= p / 100).double().mean().item() for p in LEVELS}
    return RegressionScores(
        nll=mixture.nll.mean().item(),
        rmse=error.square().mean().sqrt().item(),
        mae=error.abs().mean().item(),
        **coverage,
        calibration_error=calibration_error(pit),
        sharpness=density.sd.mean().item(),
    )


def calibration_error(pit: Tensor) -> float:
    """Mean distance of the share of targets below each predictive quantile (5 %, … 95 %) from what it should be.

    Args:
        pit: predictive distribution functions at the targets, [N, D].
    """
    return float(value_of("calibration_error", _below_quantiles(pit)))


def _below_quantiles(pit: Tensor) -> np.ndarray:
    """Share of each example's targets below each of `QUANTILES`, [N, 19]."""
    return (pit.numpy()[..., None] <= QUANTILES).mean(1)


def density_parts(mixture: NormalMixture, targets: Tensor) -> dict[str, np.ndarray]:
    """What each example adds to the scores by which densities are compared (see `bayeslora.diagnostics.paired`)."""
    error = (mixture.normals.mean - targets).numpy()
    return {
        "nll": mixture.nll.numpy()[:, None],
        "rmse": np.square(error).mean(1, keepdims=True),
        "mae": np.abs(error).mean(1, keepdims=True),
        "calibration_error": _below_quantiles(mixture.pit),
    }


class RegressionPass(Rounds):
    """Takes in the draws of a regression; what is kept of the probe set are predictive means.

    Args:
        experiment: the run's parts.
        loader, probe: passes over the evaluated split, and over the examples on which chains are compared.
        targets: of the split, as the model sees them, [N, D].

    Attributes:
        targets: in their own units.
        names: of the targets.
        whole, by_chain: predictive densities of all draws, and of each chain's.
        point: the MAP baseline's density, once it was asked.
    """

    def __init__(self, experiment: Experiment, loader: Loader, probe: Loader, targets: Tensor) -> None:
        assert isinstance(experiment.likelihood, Gaussian)
        assert experiment.data.real is not None
        super().__init__(raw_outputs, [loader, probe])
        self.likelihood, self.loader = experiment.likelihood, loader
        self.names = experiment.data.real.names
        self.mean, self.std = (
            torch.tensor(v, dtype=torch.float64) for v in (experiment.data.real.mean, experiment.data.real.std)
        )
        self.targets = self.mean + self.std * targets.double()
        self.whole = NormalMixture(self.targets)
        self.point: NormalMixture | None = None
        self.by_chain: dict[int, NormalMixture] = {}

    def score_parts_npz(self) -> bytes:
        """What each example adds to the ensemble's scores, as a file."""
        return to_bytes(density_parts(self.whole, self.targets), self.targets.numpy())

    def density(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances that a model's outputs tell, in the targets' own units."""
        mean, variance = normals(outputs, self.likelihood)
        return self.mean + self.std * mean, self.std**2 * variance

    def mixture(self, models: Iterable[nn.Module]) -> NormalMixture:
        """The density of several models together, each asked in turn."""
        mixture = NormalMixture(self.targets)
        for model in models:
            mixture.add(*self.density(outputs(model, self.loader())))
        return mixture

    def add(self, chain: int, answers: Sequence[Tensor]) -> None:
        predicted, probe = answers
        density = self.density(predicted)
        one = NormalMixture(self.targets)
        for mixture in (one, self.whole, self.by_chain.setdefault(chain, NormalMixture(self.targets))):
            mixture.add(*density)
        self.note(chain, vars(scores(one, self.targets)), normals(probe, self.likelihood)[0])

    def end_round(self) -> None:
        self.note_ensemble(self.whole.count, vars(scores(self.whole, self.targets)))


def evaluate_reals(posterior: Posterior, experiment: Experiment, series: Series) -> tuple[RegressionPass, Results]:
    """Predict the evaluated split with every draw, and score what they say."""
    with precision(experiment):
        work = run_through(posterior, experiment)
        return work, regression_results(work, posterior, series, experiment)


def run_through(posterior: Posterior, experiment: Experiment) -> RegressionPass:
    """Predict the evaluated split with every draw."""
    split = evaluated_split(experiment)
    work = RegressionPass(experiment, experiment.loader(split), experiment.function_probe(), split.targets.cpu())
    take_in(posterior, work)
    return work


def regression_results(work: RegressionPass, posterior: Posterior, series: Series, experiment: Experiment) -> Results:
    """Results without criteria and provenance; what needs classes is absent, with the reason."""
    baseline = posterior.map_model()
    work.point = None if baseline is None else work.mixture([baseline])
    ends = work.mixture(posterior.map_models())
    compared = {"ensemble": work.whole, "map": work.point, "map_ensemble": ends if ends.count > 1 else None}
    scored = {name: None if one is None else scores(one, work.targets) for name, one in compared.items()}
    chains, settings = work.chains, experiment.evaluation
    densities = [work.by_chain[chain].normals for chain in chains]
    return Results(
        task="regression",
        map=scored["map"],
        map_tempered=TemperedMap(reason=ABSENT),
        map_ensemble=map_ensemble(ends.count, scored["map_ensemble"]),
        draw=single_draws(work.draw_scores),
        ensemble=scored["ensemble"],
        differences=paired_differences(
            {name: None if one is None else density_parts(one, work.targets) for name, one in compared.items()}
        ),
        chains=[ChainScores(chain, scores(work.by_chain[chain], work.targets)) for chain in chains],
        cumulative=Curve.of(work.curve),
        uncertainty=Uncertainty(variance=_variance(work.whole.normals), reason=ABSENT),
        absent=dict.fromkeys(("accuracy", "ece", "brier", "f1", "selective", "map_tempered"), ABSENT),
        diagnostics=diagnose(work.probe_arrays, series, _agreement(densities), experiment.gradients(chains)),
        reference=None if settings.reference is None else ReferenceFidelity(reason=ABSENT),
        ood=None if settings.ood is None else OutOfDistribution(settings.ood, reason=ABSENT),
        corruptions=Corruptions(reason=ABSENT) if settings.corruptions else None,
    )


def _variance(density: Normals) -> Variance:
    """Mean predictive variance and its two parts."""
    total = density.noise + density.spread
    return Variance(density.noise.mean().item(), density.spread.mean().item(), total.mean().item())


def _agreement(chains: Sequence[Normals]) -> Agreement:
    """How far the means of different chains' ensembles lie apart, in predictive sds, rms over pairs and examples."""
    if len(chains) < 2:
        return Agreement(reason="there is only one chain to compare")
    pairs = [((a.mean - b.mean) ** 2 / (0.5 * (a.sd**2 + b.sd**2))).mean() for a, b in combinations(chains, 2)]
    return Agreement(mean_difference=torch.stack(pairs).mean().sqrt().item(), reason=ABSENT)
