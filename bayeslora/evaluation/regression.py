"""Evaluation of a regression: scores of predictive densities in the targets' own units, in one pass over the draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.errors import DivergedError
from bayeslora.evaluation.summary import convergences, efficiency, single
from bayeslora.likelihood import Gaussian
from bayeslora.posterior.density import NormalMixture, Normals
from bayeslora.posterior.predictive import Loader, Posterior, normals

if TYPE_CHECKING:
    from bayeslora.build import Setup

LEVELS = (50, 90, 95)
"""Central predictive intervals whose coverage is told, in percent."""
ABSENT = "the targets are real numbers, and this needs classes"
"""Why metrics of classes are not there."""


def scores(mixture: NormalMixture, targets: Tensor) -> dict[str, float]:
    """Scores of a predictive density, in the unit of the targets.

    Args:
        mixture: of the draws, at these targets.
        targets: [N, D].

    Returns:
        `nll` in nats an example; `rmse` and `mae` of the mean, over examples and targets; `coverage_<P>`, the share of
        targets in the central P % interval; `calibration_error`, the mean distance of the share of targets below each
        predictive quantile (5 %, 10 %, … 95 %) from what it should be; `sharpness`, the mean predictive sd.

    Raises:
        DivergedError: a prediction is not finite.

    Source: Gneiting, Balabdaoui & Raftery (2007); Kuleshov, Fenner & Ermon (2018) for the calibration error.
    """
    said, pit = mixture.normals, mixture.pit
    if not (said.mean.isfinite().all() and said.sd.isfinite().all()):
        raise DivergedError("a prediction is not finite: the parameters of this draw, or its outputs, are not")
    error = said.mean - targets
    quantiles = torch.arange(0.05, 0.96, 0.05, dtype=torch.float64)
    shares = torch.stack([(pit <= q).double().mean() for q in quantiles])
    return {
        "nll": mixture.nll.mean().item(),
        "rmse": error.square().mean().sqrt().item(),
        "mae": error.abs().mean().item(),
        **{f"coverage_{p}": ((2 * pit - 1).abs() <= p / 100).double().mean().item() for p in LEVELS},
        "calibration_error": (shares - quantiles).abs().mean().item(),
        "sharpness": said.sd.mean().item(),
    }


class RegressionPass:
    """Takes in draws one at a time; memory does not grow with their number.

    Args:
        setup: the run's parts.
        loader, probe: passes over the evaluated split, and over the examples on which chains are compared.
        targets: of the split, as the model sees them, [N, D].
    """

    def __init__(self, setup: Setup, loader: Loader, probe: Loader, targets: Tensor) -> None:
        assert isinstance(setup.likelihood, Gaussian)
        assert setup.data.real is not None
        self.likelihood, self.loader, self.probe = setup.likelihood, loader, probe
        self.mean, self.std = (
            torch.tensor(v, dtype=torch.float64) for v in (setup.data.real.mean, setup.data.real.std)
        )
        self.targets = self.mean + self.std * targets.double()
        self.whole = NormalMixture(self.targets)
        self.chains: dict[int, NormalMixture] = {}
        self.singles: dict[int, dict[str, list[float]]] = {}
        self.probes: dict[int, list[np.ndarray]] = {}
        self.curve: dict[str, list[float]] = defaultdict(list)

    def said(self, model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """Means and variances of one model, in the targets' own units."""
        mean, variance = normals(model, self.loader(), self.likelihood)
        return self.mean + self.std * mean, self.std**2 * variance

    def alone(self, model: torch.nn.Module) -> dict[str, float]:
        """Scores of one model."""
        mixture = NormalMixture(self.targets)
        mixture.add(*self.said(model))
        return scores(mixture, self.targets)

    def add(self, chain: int, model: torch.nn.Module) -> None:
        """Take in a draw, as the model that holds it."""
        found = self.said(model)
        one = NormalMixture(self.targets)
        for mixture in (one, self.whole, self.chains.setdefault(chain, NormalMixture(self.targets))):
            mixture.add(*found)
        for name, value in scores(one, self.targets).items():
            self.singles.setdefault(chain, defaultdict(list))[name].append(value)
        self.probes.setdefault(chain, []).append(normals(model, self.probe(), self.likelihood)[0].numpy())

    def end_round(self) -> None:
        """Note the ensemble so far."""
        for name, value in {"draws": self.whole.count, **scores(self.whole, self.targets)}.items():
            self.curve[name].append(value)


def run_through(posterior: Posterior, setup: Setup) -> RegressionPass:
    """Ask every draw of a posterior about the evaluated split."""
    split = setup.evaluation_split()
    found = RegressionPass(setup, setup.loader(split), setup.function_probe(), split.targets.cpu())
    for draws in posterior.rounds():
        for draw in draws:
            found.add(draw.chain, posterior.model_of(draw))
        found.end_round()
    return found


def summarise(found: RegressionPass, posterior: Posterior, series: Sequence[Mapping[str, Any]], setup: Setup) -> dict:
    """All of `metrics.json` but criteria and provenance; what needs classes is absent, with the reason."""
    baseline = posterior.map_model()
    chains = sorted(found.chains)
    names = found.singles[chains[0]]
    moments = found.whole.normals
    return {
        "task": "regression",
        "map": None if baseline is None else found.alone(baseline),
        "map_tempered": {"temperature": None, "reason": ABSENT},
        "draw": {name: single([found.singles[k][name] for k in chains]) for name in names},
        "ensemble": scores(found.whole, found.targets),
        "chains": [{"chain": k} | scores(found.chains[k], found.targets) for k in chains],
        "cumulative": dict(found.curve),
        "uncertainty": {"reason": ABSENT} | _variances(moments),
        "selective": {},
        "absent": dict.fromkeys(("accuracy", "ece", "brier", "f1", "selective", "map_tempered"), ABSENT),
        "diagnostics": convergences([np.stack(found.probes[k]) for k in chains], series)
        | {"agreement": _agreement([found.chains[k].normals for k in chains])}
        | efficiency(series, setup.gradients(chains)),
    } | {key: {"reason": ABSENT} for key in ("reference", "ood", "corruptions") if setup.cfg.evaluate.get(key)}


def _variances(moments: Normals) -> dict[str, Any]:
    """Mean predictive variance and its two parts, in squared units of the targets."""
    parts = {"aleatoric": moments.noise, "epistemic": moments.spread, "total": moments.noise + moments.spread}
    return {"variance": {name: part.mean().item() for name, part in parts.items()}}


def _agreement(chains: Sequence[Normals]) -> dict[str, Any]:
    """How far the means of different chains' ensembles lie apart, in predictive sds, rms over pairs and examples."""
    nothing = dict.fromkeys(("kl", "total_variation", "same_top"))
    if len(chains) < 2:
        return nothing | {"mean_difference": None, "reason": "there is only one chain to compare"}
    pairs = [((a.mean - b.mean) ** 2 / (0.5 * (a.sd**2 + b.sd**2))).mean() for a, b in combinations(chains, 2)]
    return nothing | {"mean_difference": torch.stack(pairs).mean().sqrt().item(), "reason": ABSENT}
