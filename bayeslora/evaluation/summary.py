"""The content of `metrics.json`: numbers and, where there is none, the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from bayeslora.diagnostics.calibration import fit_temperature
from bayeslora.diagnostics.convergence import MAX_ENTRIES, Convergence, FunctionSpace, convergence, function_space
from bayeslora.diagnostics.metrics import metrics
from bayeslora.diagnostics.uncertainty import ONE_DRAW, detection, predictive_entropy, risk_coverage
from bayeslora.evaluation.predictions import Predictions, Seen

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Parts of every chain, from its first draw, of which R-hat is reported."""
DETECTORS = ("entropy", "mutual_information", "map_entropy")
"""Scores by which another dataset is told apart."""
Series = Sequence[Mapping[str, np.ndarray]]
"""Scalars of the kept draws, [draws] by name, one mapping a chain."""


def summarise(predictions: Predictions, series: Series, gradients: int) -> dict[str, Any]:
    """All of `metrics.json` but criteria and provenance: nothing that depends on how fast a machine is.

    Args:
        predictions: of all draws.
        series: scalars of the kept draws.
        gradients: gradients of a minibatch that the sampling took, summed over chains.
    """
    targets, baseline = predictions.targets, predictions.map
    return {
        "map": None if baseline is None else metrics(baseline, targets),
        "map_tempered": _tempered(predictions),
        "draw": {name: single([d[name] for d in predictions.draws]) for name in predictions.draws[0]},
        "ensemble": metrics(predictions.ensemble, targets),
        "chains": [
            {"chain": chain} | metrics(found, targets)
            for chain, found in zip(predictions.chains, predictions.by_chain, strict=True)
        ],
        "cumulative": predictions.cumulative,
        "uncertainty": _uncertainty(predictions),
        "selective": _selective(predictions),
        "diagnostics": diagnostics(predictions, series) | efficiency(series, gradients),
    } | _reference(predictions)


def diagnostics(predictions: Predictions, series: Series) -> dict[str, Any]:
    """Convergence of every scalar, of predictions, and on parts of the chains; how far chains' ensembles agree."""
    return convergences(predictions.probes, series) | {"agreement": agreement(predictions.by_chain)}


def convergences(probes: Sequence[np.ndarray], series: Series) -> dict[str, Any]:
    """Convergence of every scalar, of predictions on part of the probe set, and on parts of the chains."""
    names = [name for name in series[0] if name != "step" and all(name in s for s in series)]
    found = {name: _scalar([s[name] for s in series]).to_json() for name in names if _varies(name)}
    function = _predicted(probes).to_json()
    lengths = [len(s["step"]) for s in series]
    parts: dict[str, list[Any]] = {"shares": list(SHARES), "potential": [], "l2_norm": [], "function_space": []}
    for share in SHARES:
        ends = [math.ceil(share * length) for length in lengths]
        for name in ("potential", "l2_norm"):
            parts[name].append(_scalar([s[name][:end] for s, end in zip(series, ends, strict=True)]).rhat)
        cut = [p[:end] for p, end in zip(probes, ends, strict=True)]
        whole = share == 1
        parts["function_space"].append(function["rhat_median"] if whole else _predicted(cut, 500).rhat_median)
    return found | {"function_space": function, "prefixes": parts}


def agreement(ensembles: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How far the ensembles of different chains say the same, on average over pairs of chains and examples.

    Args:
        ensembles: log p [N, C] of each chain's draws.

    Returns:
        `kl` (nats, averaged over both directions), `total_variation` in [0, 1], `same_top` (share of examples with the
        same predicted class); None with a `reason` for fewer than two chains.
    """
    names = ("kl", "total_variation", "same_top")
    if len(ensembles) < 2:
        return dict.fromkeys(names) | {"reason": "there is only one chain to compare"}
    sums = np.zeros(3)
    pairs = list(combinations([e.double() for e in ensembles], 2))
    for a, b in pairs:
        p, q = a.exp(), b.exp()
        kl = 0.5 * ((p - q) * (a.clamp(min=-1e3) - b.clamp(min=-1e3))).sum(-1)
        same = (a.argmax(-1) == b.argmax(-1)).double()
        sums += [kl.mean().item(), 0.5 * (p - q).abs().sum(-1).mean().item(), same.mean().item()]
    return dict(zip(names, (sums / len(pairs)).tolist(), strict=True)) | {"reason": None}


def _scalar(chains: Sequence[np.ndarray]) -> Convergence:
    """Convergence of one scalar, but no number of chains of different length: the reason tells what is known."""
    found = convergence(chains)
    reason = _uneven(chains, found.rhat, found.ess_bulk)
    return found if reason is None else Convergence(None, None, None, None, reason)


def _predicted(probes: Sequence[np.ndarray], limit: int = MAX_ENTRIES) -> FunctionSpace:
    """Convergence of predictions, but no number of chains of different length: the reason tells what is known."""
    found = function_space(probes, limit)
    reason = _uneven(probes, found.rhat_median, found.ess_median)
    return found if reason is None else FunctionSpace(reason=reason)


def _uneven(chains: Sequence[np.ndarray], rhat: float | None, ess: float | None) -> str | None:
    """Why chains of different length are not judged, and R-hat and ESS of as many draws as the shortest has."""
    shortest, longest = (pick(map(len, chains), default=0) for pick in (min, max))
    if shortest == longest or ess is None:
        return None
    words = f"R-hat {rhat:.3f} and " if rhat is not None else ""
    return (
        f"chains of {shortest} to {longest} draws cannot be judged together until all are as long"
        f" (the first {shortest} draws of each: {words}ESS {ess:.0f})"
    )


def _varies(name: str) -> bool:
    """Whether a scalar is a random quantity of the chain (a step size is none, nor is a share of clipped forces)."""
    return name not in ("lr", "clipped")


def single(chains: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Mean over all single draws, sd among them, and the mean's Monte Carlo error."""
    values = np.concatenate([np.asarray(chain, dtype=np.float64) for chain in chains])
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {
        "mean": float(values.mean()),
        "sd": sd,
        "mcse": _scalar([np.asarray(chain) for chain in chains]).mcse_mean,
    }


def _tempered(predictions: Predictions) -> dict[str, Any] | None:
    """MAP with one temperature fitted to the validation set: the baseline that calibration must beat."""
    if predictions.map is None:
        return None
    scaling = fit_temperature(*(predictions.map_validation or (None, None)))
    if scaling.temperature is None:
        return scaling.to_json()
    return metrics(scaling.apply(predictions.map), predictions.targets) | scaling.to_json()


def _count(predictions: Predictions) -> int:
    """Draws of all chains."""
    return sum(len(chain["nll"]) for chain in predictions.draws)


def _uncertainty(predictions: Predictions) -> dict[str, Any]:
    """Mean predictive entropies in nats: MAP's, the ensemble's, and the latter split into its two parts."""
    baseline = predictions.map
    parts: dict[str, Any] = {name: part.mean().item() for name, part in vars(predictions.entropy).items()}
    return {
        "map": None if baseline is None else {"total": predictive_entropy(baseline).mean().item()},
        "ensemble": parts | ({"mutual_information": None, "reason": ONE_DRAW} if _count(predictions) < 2 else {}),
    }


def _selective(predictions: Predictions) -> dict[str, Any]:
    """Error rate among the most confident part of the examples, MAP beside the ensemble."""
    said = {"map": predictions.map, "ensemble": predictions.ensemble}
    curves = {name: None if p is None else risk_coverage(p, predictions.targets) for name, p in said.items()}
    return {
        name: curve and {"coverage": list(curve.coverage), "risk": list(curve.risk), "aurc": curve.aurc}
        for name, curve in curves.items()
    }


def efficiency(series: Series, gradients: int) -> dict[str, Any]:
    """Effective draws of the potential per gradient."""
    ess = _scalar([s["potential"] for s in series]).ess_bulk
    per_gradient = ess / gradients if ess is not None and gradients else None
    return {"efficiency": {"gradients": gradients, "ess_per_gradient": per_gradient}}


def _reference(predictions: Predictions) -> dict[str, Any]:
    """Fidelity to a reference posterior, if one was given."""
    if not predictions.fidelity:
        return {}
    rows = {name: found.to_json() for name, found in predictions.fidelity.items()}
    return {"reference": rows | {"curve": predictions.fidelity_curve}}


def out_of_distribution(predictions: Predictions, other: Seen) -> dict[str, Any]:
    """AUROC and AUPR of telling another dataset (the positive class) by predictive entropy and mutual information."""
    ours, theirs = predictions.entropy, other.entropy
    found: dict[str, Any] = {
        "entropy": detection(ours.total, theirs.total),
        "mutual_information": detection(ours.mutual_information, theirs.mutual_information),
    }
    if _count(predictions) < 2:
        found |= {"mutual_information": None, "reason": ONE_DRAW}
    if predictions.map is not None and other.map is not None:
        found["map_entropy"] = detection(predictive_entropy(predictions.map), predictive_entropy(other.map))
    return found


def corruption_rows(views: Mapping[str, Seen], targets: torch.Tensor) -> dict[str, dict[str, list[Any]]]:
    """Metrics of corrupted examples, by corruption: lists over severities, MAP's and the ensemble's.

    Args:
        views: named `corruption/<name>/<severity>`.
        targets: true classes [N] of each of them.
    """
    rows: dict[str, dict[str, list[Any]]] = {}
    for name, seen in views.items():
        _, kind, severity = name.split("/")
        row = rows.setdefault(kind, {"severity": [], "map": [], "ensemble": []})
        row["severity"].append(int(severity))
        row["map"].append(None if seen.map is None else metrics(seen.map, targets))
        row["ensemble"].append(metrics(seen.ensemble, targets))
    return rows
