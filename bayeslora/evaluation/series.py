"""Scalars of the draws as series, one a chain: their convergence and efficiency; single draws in summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bayeslora.diagnostics.convergence import MAX_ENTRIES, Convergence, FunctionSpace, convergence, function_space
from bayeslora.evaluation.results import Agreement, Diagnostics, Efficiency, Prefixes
from bayeslora.evaluation.scores import DrawScore
from bayeslora.posterior import Posterior

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Parts of every chain, from its first draw, of which R-hat is reported."""
NOT_RANDOM = ("lr", "clipped")
"""Scalars that are no random quantity of the chain: step size, share of clipped forces."""
GROUPS_OF_READINGS = ("temperature", "kinetic")
"""Groups of scalars of which the mean counts, reported as `Diagnostics.temperature`, and not their R-hat."""
Series = Sequence[Mapping[str, np.ndarray]]
"""Scalars of the kept draws, [draws] by name and `step`, one mapping a chain."""


def scalar_series(posterior: Posterior) -> Series:
    """Scalars of the draws of each chain."""
    chains = []
    for store in posterior.stores:
        records = list(store.records())
        series = {name: np.array([r.scalars.get(name, np.nan) for r in records]) for name in records[0].scalars}
        chains.append(series | {"step": np.array([r.step for r in records])})
    return chains


def by_scalar(series: Series) -> dict[str, list[np.ndarray]]:
    """Scalars that every chain has: one array [draws] a chain by name, without `step`."""
    names = [name for name in series[0] if name != "step" and all(name in chain for chain in series)]
    return {name: [chain[name] for chain in series] for name in names}


def diagnose(probes: Sequence[np.ndarray], series: Series, agreement: Agreement, gradients: int) -> Diagnostics:
    """Convergence of every scalar, of predictions, and of both on parts of the chains.

    Args:
        probes: predictions of each chain's draws on part of the probe set, [draws, …].
        series: scalars of the draws.
        agreement: of the chains' ensembles.
        gradients: minibatch gradients that the sampling took, summed over chains.
    """
    scalars = by_scalar(series)
    function = _of_predictions(probes)
    lengths = [len(chain["step"]) for chain in series]
    parts: dict[str, list[float | None]] = {"potential": [], "l2_norm": [], "function_space": []}
    for share in SHARES:
        ends = [math.ceil(share * length) for length in lengths]
        for name in ("potential", "l2_norm"):
            parts[name].append(_of_scalar([s[:end] for s, end in zip(scalars[name], ends, strict=True)]).rhat)
        part = function if share == 1 else _of_predictions([p[:end] for p, end in zip(probes, ends, strict=True)], 500)
        parts["function_space"].append(part.rhat_median)
    left_out = (*NOT_RANDOM, *GROUPS_OF_READINGS)
    converged = {name: _of_scalar(chains) for name, chains in scalars.items() if name.partition("/")[0] not in left_out}
    ess = converged["potential"].ess_bulk
    return Diagnostics(
        function_space=function,
        prefixes=Prefixes(list(SHARES), **parts),
        agreement=agreement,
        efficiency=Efficiency(gradients, ess / gradients if ess is not None and gradients else None),
        scalars=converged,
    )


def single_draws(chains: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, DrawScore]:
    """Scores of single draws, by name: mean and sd over all, and the mean's Monte Carlo error.

    Args:
        chains: of each chain, the scores of its draws by name.
    """
    return {name: _draw_score([np.asarray(chain[name], dtype=np.float64) for chain in chains]) for name in chains[0]}


def _draw_score(chains: Sequence[np.ndarray]) -> DrawScore:
    values = np.concatenate(chains)
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return DrawScore(float(values.mean()), sd, _of_scalar(chains).mcse_mean)


def _of_scalar(chains: Sequence[np.ndarray]) -> Convergence:
    """Convergence of one scalar, but no number of chains of different length: the reason tells what is known."""
    result = convergence(chains)
    reason = _uneven(chains, result.rhat, result.ess_bulk)
    return result if reason is None else Convergence(reason=reason)


def _of_predictions(probes: Sequence[np.ndarray], limit: int = MAX_ENTRIES) -> FunctionSpace:
    """Convergence of predictions, but no number of chains of different length: the reason tells what is known."""
    result = function_space(probes, limit)
    reason = _uneven(probes, result.rhat_median, result.ess_median)
    return result if reason is None else FunctionSpace(reason=reason)


def _uneven(chains: Sequence[np.ndarray], rhat: float | None, ess: float | None) -> str | None:
    """Why chains of different length are not judged, and R-hat and ESS of as many draws as the shortest has."""
    lengths = [len(chain) for chain in chains]
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest == longest or ess is None:
        return None
    words = f"R-hat {rhat:.3f} and " if rhat is not None else ""
    return (
        f"chains of {shortest} to {longest} draws cannot be judged together until all are as long"
        f" (the first {shortest} draws of each: {words}ESS {ess:.0f})"
    )
