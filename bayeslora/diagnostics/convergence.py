"""Convergence of scalars over chains: split R-hat, ESS and Monte Carlo error. The only caller of arviz."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from bayeslora.atomic import replaced, writable_caches

MIN_DRAWS = 4
"""Draws a chain needs: R-hat and ESS split every chain in two, and a variance takes two draws."""


@dataclass(frozen=True)
class Convergence:
    """Diagnostics of one scalar; what cannot be computed is None, and `reason` says why in words.

    Attributes:
        rhat: rank-normalised split R-hat, the larger of bulk and folded; None with fewer than two chains.
        ess_bulk, ess_tail: effective number of draws, over all chains, for the mean and for the 5 % and 95 % quantiles.
        mcse_mean: Monte Carlo standard error of the mean, in the scalar's unit.
        reason: why something is missing or was changed (chains cut to one length), or None.
    """

    rhat: float | None = None
    ess_bulk: float | None = None
    ess_tail: float | None = None
    mcse_mean: float | None = None
    reason: str | None = None


def convergence(series: Sequence[np.ndarray]) -> Convergence:
    """R-hat, ESS and Monte Carlo error of one scalar.

    Chains of different length are cut to the shortest; `reason` then says so.

    Args:
        series: one array [draws] a chain.

    Source:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), "Rank-normalization, folding, and localization".
    """
    chains = [np.asarray(chain, dtype=np.float64).ravel() for chain in series]
    problem = _problem(chains)
    if problem is not None:
        return Convergence(reason=problem)
    draws = _stack(chains)
    arviz = _arviz()
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "rhat": _finite(arviz.rhat(draws)) if len(draws) > 1 else None,
            "ess_bulk": _finite(arviz.ess(draws, method="bulk")),
            "ess_tail": _finite(arviz.ess(draws, method="tail")),
            "mcse_mean": _finite(arviz.mcse(draws, method="mean")),
        }
    return Convergence(**values, reason=_remarks(chains, values))


@dataclass(frozen=True)
class FunctionSpace:
    """Convergence of many predictions at once; what cannot be computed is None, and `reason` says why in words.

    Attributes:
        entries: how many log-probabilities (of an example and a class) were looked at.
        rhat_median, rhat_q95: of their R-hats, the median and the 95 % quantile.
        fraction_below_1_01, fraction_below_1_05: share of them whose R-hat is at most so much.
        ess_median, ess_q05: of their bulk ESS (over all chains), the median and what 95 % of them reach.
        reason: why something is missing or was changed, or None.
    """

    entries: int = 0
    rhat_median: float | None = None
    rhat_q95: float | None = None
    fraction_below_1_01: float | None = None
    fraction_below_1_05: float | None = None
    ess_median: float | None = None
    ess_q05: float | None = None
    reason: str | None = None


MAX_ENTRIES = 2000
"""Predictions looked at: arviz takes about a millisecond for each."""


def function_space(log_probs: Sequence[np.ndarray], limit: int = MAX_ENTRIES) -> FunctionSpace:
    """R-hat and ESS of predictions on a fixed set of examples, in which relabelled networks are one function.

    An entry that is constant in every chain has no R-hat; it counts as not agreeing, with an ESS of 0 (arviz says all).

    Args:
        log_probs: one array [draws, P, C] a chain; chains are cut to the shortest.
        limit: at most so many entries are looked at, evenly spread.

    Source:
        Izmailov, Vikram, Hoffman, Wilson (2021), "What are Bayesian neural network posteriors really like?".
    """
    chains = [np.asarray(chain, dtype=np.float64).reshape(len(chain), -1) for chain in log_probs]
    problem = _problem(chains) or (None if len(chains) > 1 else "R-hat compares chains and there is only one")
    if problem is not None:
        return FunctionSpace(reason=problem)
    draws = _stack(chains)
    draws = draws[:, :, np.linspace(0, draws.shape[2] - 1, min(draws.shape[2], limit)).astype(int)]
    with np.errstate(divide="ignore", invalid="ignore"):
        rhat, ess = _per_entry(draws)
    ess, rhat = np.where(np.isfinite(rhat), ess, 0), np.nan_to_num(rhat, nan=np.inf)
    worst = _finite(float(np.quantile(rhat, 0.95, method="higher")))
    constant = None if worst is not None else "more than 5 % of the predictions do not vary"
    return FunctionSpace(
        entries=draws.shape[2],
        rhat_median=_finite(float(np.median(rhat))),
        rhat_q95=worst,
        fraction_below_1_01=float(np.mean(rhat <= 1.01)),
        fraction_below_1_05=float(np.mean(rhat <= 1.05)),
        ess_median=float(np.median(ess)),
        ess_q05=float(np.quantile(ess, 0.05, method="lower")),
        reason="; ".join(filter(None, (constant, _remarks(chains, {})))) or None,
    )


def _per_entry(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R-hat and bulk ESS of each of Q series [chain, draw, Q]."""
    arviz = _arviz()
    entries = [np.ascontiguousarray(draws[:, :, i]) for i in range(draws.shape[2])]
    return (
        np.array([float(arviz.rhat(entry)) for entry in entries]),
        np.array([float(arviz.ess(entry, method="bulk")) for entry in entries]),
    )


def growth(series: Sequence[np.ndarray], points: int = 20) -> dict[str, list[float | None]]:
    """Diagnostics of one scalar from the first draws of every chain, ever more of them.

    Args:
        series: one array [draws] a chain; chains are cut to the shortest.
        points: at most so many parts of the chains, evenly spread, the whole among them.

    Returns:
        `draws` (over all chains), `ess_bulk`, `ess_tail`, `mcse_mean`: lists of one length, with None for what cannot
        be computed of a part; empty for chains of fewer than `MIN_DRAWS` draws.
    """
    chains = [np.asarray(chain, dtype=np.float64).ravel() for chain in series]
    shortest = min((len(chain) for chain in chains), default=0)
    spread = np.linspace(MIN_DRAWS, max(MIN_DRAWS, shortest), points).round().astype(int)
    ends = [int(end) for end in np.unique(spread) if end <= shortest]
    estimates = [convergence([chain[:end] for chain in chains]) for end in ends]
    names = ("ess_bulk", "ess_tail", "mcse_mean")
    return {"draws": [float(end * len(chains)) for end in ends]} | {
        name: [getattr(one, name) for one in estimates] for name in names
    }


def autocorrelation(series: Sequence[np.ndarray], max_lag: int = 100) -> list[np.ndarray]:
    """Autocorrelation of each chain at lags 0, 1, … up to half its draws and `max_lag`.

    Returns:
        One array [lags] a chain; empty for a chain that is too short, constant or not finite.
    """
    arviz = _arviz()
    chains = [np.asarray(chain, dtype=np.float64).ravel() for chain in series]
    return [
        np.empty(0) if _problem([chain]) else np.asarray(arviz.autocorr(chain))[: min(max_lag, len(chain) // 2) + 1]
        for chain in chains
    ]


def rank_counts(series: Sequence[np.ndarray], max_bins: int = 20) -> np.ndarray | None:
    """How many draws of each chain rank where among all draws, in bins of equal width: [chain, bin].

    Chains of one distribution have about as many in every bin.

    Args:
        series: one array [draws] a chain; chains are cut to the shortest.
        max_bins: fewer are used where a bin would expect fewer than five draws.

    Returns:
        The counts, or None where `convergence` has no R-hat either.

    Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), "Rank-normalization, folding, and localization".
    """
    from scipy.stats import rankdata

    chains = [np.asarray(chain, dtype=np.float64).ravel() for chain in series]
    if len(chains) < 2 or _problem(chains):
        return None
    draws = _stack(chains)
    place = (rankdata(draws).reshape(draws.shape) - 0.5) / draws.size
    bins = max(2, min(max_bins, draws.shape[1] // 5))
    return np.stack([np.histogram(row, bins, range=(0, 1))[0] for row in place])


def to_inference_data(
    scalars: Mapping[str, Sequence[np.ndarray]], path: Path, probes: Sequence[np.ndarray] | None = None
) -> None:
    """Write a netCDF file that `arviz.from_netcdf` opens: group `posterior`, dimensions [chain, draw, …].

    Scalars called `group/item` become one variable `group` with a further dimension of that name, whose coordinates are
    the items. The format is rectangular, so all chains are cut to the shortest. The file appears whole or not at all.

    Args:
        scalars: by name, one array [draws] a chain.
        path: the file, usually `diagnostics.nc`; its folder is made if missing.
        probes: log-probabilities on part of the probe set, one array [draws, P, C] a chain; they become the variable
            `probe_log_prob` [chain, draw, example, class].
    """
    shortest = min((len(chain) for chains in scalars.values() for chain in chains), default=0)
    posterior: dict[str, np.ndarray] = {}
    dims: dict[str, list[str]] = {}
    coords: dict[str, list[str]] = {}
    for name, items in _grouped(scalars).items():
        series = [np.stack([np.asarray(chain)[:shortest] for chain in scalars[key]]) for key in items.values()]
        plain = list(items) == [name]
        posterior[name] = series[0] if plain else np.stack(series, axis=-1)
        if not plain:
            dims[name], coords[f"{name}_of"] = [f"{name}_of"], list(items)
    if probes:
        posterior["probe_log_prob"] = np.stack([chain[:shortest] for chain in probes])
        dims["probe_log_prob"] = ["example", "class"]
    arviz = _arviz()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="More chains", category=UserWarning)
        data = arviz.from_dict(posterior=posterior, dims=dims, coords=coords)
    with replaced(path) as temporary:
        data.to_netcdf(str(temporary))


def _grouped(scalars: Mapping[str, Sequence[np.ndarray]]) -> dict[str, dict[str, str]]:
    """Names by variable: `group/item` under `group` as item -> name, others under themselves."""
    groups: dict[str, dict[str, str]] = {}
    for name, chains in scalars.items():
        group, slash, item = name.partition("/")
        if chains:
            groups.setdefault(group, {})[item if slash else name] = name
    return groups


def _arviz() -> ModuleType:
    """Import arviz when it is first needed (it takes seconds), without the notice that it dates in the cache."""
    with warnings.catch_warnings(), writable_caches():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _stack(chains: Sequence[np.ndarray]) -> np.ndarray:
    """Chains cut to the shortest, [chain, draw]."""
    shortest = min(len(chain) for chain in chains)
    return np.stack([chain[:shortest] for chain in chains])


def _problem(chains: Sequence[np.ndarray]) -> str | None:
    """Why nothing can be computed from these chains, or None."""
    if not chains:
        return "there are no chains"
    shortest = min(len(chain) for chain in chains)
    if shortest < MIN_DRAWS:
        return f"fewer than {MIN_DRAWS} draws a chain (the shortest has {shortest})"
    if not all(np.isfinite(chain).all() for chain in chains):
        return "the series holds NaN or infinite values"
    draws = _stack(chains)
    if np.ptp(draws, axis=1).max() <= np.finfo(np.float64).resolution * max(1.0, np.abs(draws).max()):
        return "the series is constant in every chain"
    return None


def _remarks(chains: Sequence[np.ndarray], values: Mapping[str, float | None]) -> str | None:
    """What to say about diagnostics that were computed, wholly or in part."""
    remarks = []
    if len(chains) == 1:
        remarks.append("R-hat compares chains and there is only one")
    lengths = {len(chain) for chain in chains}
    if len(lengths) > 1:
        remarks.append(f"chains of {min(lengths)} to {max(lengths)} draws were cut to the shortest")
    failed = [name for name, value in values.items() if value is None and (name != "rhat" or len(chains) > 1)]
    if failed:
        remarks.append(f"{', '.join(failed)} came out not finite: too few distinct draws")
    return "; ".join(remarks) or None


def _finite(value: float) -> float | None:
    number = np.asarray(value).item()  # of numpy 2.5 on, arrays of one element are no numbers
    return number if np.isfinite(number) else None
