"""What the ensemble is compared with: MAP × K, and differences of scores on the same examples."""

from __future__ import annotations

from collections.abc import Mapping

from bayeslora.diagnostics.paired import Parts, paired
from bayeslora.diagnostics.values import Difference
from bayeslora.evaluation.scores import MapEnsemble, Scores


def map_ensemble(members: int, scores: Scores | None) -> MapEnsemble:
    """MAP × K with its scores, or why there are none."""
    available = "is only one" if members == 1 else "is none"
    reason = None if scores else f"it takes different warm-up ends of several chains, and there {available}"
    return MapEnsemble(members, reason, scores)


def differences(of: Mapping[str, Parts | None]) -> dict[str, dict[str, Difference]]:
    """Scores of `ensemble` less those of each other, and of `map_ensemble` less those of `map`; of what is there."""
    parts_of = {name: parts for name, parts in of.items() if parts}
    ensemble = parts_of.pop("ensemble")
    differing = {name: paired(ensemble, baseline) for name, baseline in parts_of.items()}
    if {"map", "map_ensemble"} <= set(parts_of):
        differing["map_ensemble_less_map"] = paired(parts_of["map_ensemble"], parts_of["map"])
    return differing
