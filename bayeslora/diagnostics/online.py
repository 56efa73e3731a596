"""Online diagnostics of scalar streams: Welford moments and overlapping batch means in constant memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bayeslora.errors import ConfigError, require

CHUNK = 256
"""Updates buffered a series before they are folded in together; numpy's cost per call is shared by them."""

OVERLAP = 4
"""Every batch starts a quarter of its length after the one before."""

LEVELS = 24
"""Batch lengths kept: 4, 8, …, 2²⁵ updates, enough for streams of 2⁵²."""

MIN_BATCHES = 32
"""Batches end to end that a stream must hold for a batch length to be used."""

MIN_UPDATES = 8 * MIN_BATCHES

MAX_CORRECTION = 0.2
"""Largest share that the bias correction may add to or take from a batch-means variance."""


@dataclass(frozen=True)
class Estimate:
    """What is known of one series; what cannot be computed is None, and `reason` says why in words.

    Attributes:
        count: updates seen, m.
        mean, sd: in the scalar's unit.
        tau: integrated autocorrelation time 1 + 2 Σ ρ_k, in updates.
        ess: effective number of updates, m / τ.
        mcse: Monte Carlo standard error of the mean, sd·√(τ/m).
        batch: length of the batches τ comes from, in updates.
        reason: why something is missing, or None.
    """

    count: int
    mean: float | None = None
    sd: float | None = None
    tau: float | None = None
    ess: float | None = None
    mcse: float | None = None
    batch: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Summary:
    """What is known of one scalar over its chains; what cannot be computed is None, and `reason` says why.

    Attributes:
        chains: number of chains, K.
        count: updates of the shortest chain.
        mean: of the chains' means.
        rhat: √((m−1)/m + e²/W), e the standard error of a chain's mean and W the mean variance within chains; None
            with fewer than two chains.
        ess: effective number of updates of all chains together, K·(W(m−1)/m + e²)/e².
        tau: all chains' updates over `ess`.
        mcse: standard error of `mean`, e/√K.
        reason: why something is missing, or that the chains disagree, or None.
    """

    chains: int
    count: int
    mean: float | None = None
    rhat: float | None = None
    ess: float | None = None
    tau: float | None = None
    mcse: float | None = None
    reason: str | None = None


class OnlineMoments:
    """Running mean and sum of squared deviations of `size` series, stable for means far from 0.

    Source:
        Welford (1962), Technometrics 4; for several values at once Chan, Golub, LeVeque (1983), The American
        Statistician 37.
    """

    def __init__(self, size: int = 1) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(size), np.zeros(size)

    def add(self, values: np.ndarray) -> None:
        """Take in values [size, n]."""
        n = values.shape[1]
        if n == 0:
            return
        total = self.count + n
        mean = values.mean(1)
        shift = mean - self.mean
        self.squares += np.square(values - mean[:, None]).sum(1) + np.square(shift) * (self.count * n / total)
        self.mean += shift * (n / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Unbiased variance [size]; NaN before the second value."""
        return self.squares / (self.count - 1) if self.count > 1 else np.full_like(self.squares, np.nan)


class BatchMeans:
    """Overlapping batch sums of every length 4·2^level at once, in memory that does not depend on the stream.

    Level l holds the last sums of 2^l updates; every new one closes a batch, the last four of them, whose running
    moments are kept, and every second one makes with its neighbour a sum of the next level. Batches thus overlap by
    three quarters: variance 1.375 b/m·2V² against the full overlap's 1.333 and 2 without overlap.

    Source:
        Meketon, Schmeiser (1984), "Overlapping batch means: something for nothing?"; Welch (1987), "On the
        relationship between batch means, overlapping batch means and spectral estimation" (partial overlap);
        Flyvbjerg, Petersen (1989), J. Chem. Phys. 91, 461 (the levels).
    """

    def __init__(self, size: int = 1) -> None:
        self.count = 0
        self.tails = np.zeros((LEVELS, size, OVERLAP - 1))
        self.windows = [OnlineMoments(size) for _ in range(LEVELS)]

    def add(self, values: np.ndarray) -> None:
        """Take in values [size, n]."""
        seen, sums = self.count, values
        self.count += values.shape[1]
        for level in range(LEVELS):
            if sums.shape[1] == 0:
                return
            sums = self._add_level(level, seen, sums)
            seen //= 2

    def _add_level(self, level: int, seen: int, sums: np.ndarray) -> np.ndarray:
        """Take in sums [size, n] after `seen` others of this level; returns those they complete of the next."""
        tail, kept = self.tails[level], min(seen, OVERLAP - 1)
        sums = np.concatenate([tail[:, tail.shape[1] - kept :], sums], axis=1)
        closed = max(0, sums.shape[1] - OVERLAP + 1)
        self.windows[level].add(np.add.reduce([sums[:, k : k + closed] for k in range(OVERLAP)]))
        last = sums[:, 1 - OVERLAP :]
        tail[:, tail.shape[1] - last.shape[1] :] = last
        unpaired = sums[:, kept - seen % 2 :]
        pairs = unpaired.shape[1] // 2
        return unpaired[:, 0 : 2 * pairs : 2] + unpaired[:, 1 : 2 * pairs : 2]

    def variances(self, mean: np.ndarray) -> np.ndarray:
        """Estimates of m·Var(mean) [levels, size], of every batch length of which the stream holds MIN_BATCHES.

        b/(1 − b/m) times the mean square of batch means about the stream's own mean [size].
        """
        lengths = [OVERLAP << level for level in range(LEVELS) if (OVERLAP << level) * MIN_BATCHES <= self.count]
        windows = zip(lengths, self.windows, strict=False)
        squares = [w.squares / w.count + np.square(w.mean - b * mean) for b, w in windows]
        scale = [1 / (b * (1 - b / self.count)) for b in lengths]
        return np.reshape(squares, (len(lengths), len(mean))) * np.reshape(scale, (-1, 1))


class OnlineSeries:
    """Mean, spread, autocorrelation time and Monte Carlo error of `size` series that are updated together.

    The long-run variance V = m·Var(mean) is 2 V_b − V_{b/2}, overlapping batch means of two lengths so combined that
    their bias of order 1/b cancels. b is the power of two in (√m/4, √m/2]. It is doubled, up to m/32, as long as the
    combination moves V_b by a fifth or more, or longer batches find a V that chance does not explain: noise can hide a
    slow component from short batches. If no b will do, τ is None, so slow mixing is not reported as fast.

    Relative standard error of τ from one stream: about √(2.7 b/m), which is 4 to 6 % at 10⁵ updates, 3 to 5 % from
    2·10⁵ and 2 to 4 % from 10⁶, with a bias within 1 %, for AR(1) streams of τ from 1 to 39. τ is None up to m of about
    100 τ, and 15 to 40 % too small from there to 200 τ; a slow component of a hundredth of the variance can be missed
    for longer. Where neighbours differ in sign (τ < 1) it is too large up to 10⁴ updates.

    Updates wait in a buffer of 256 a series and are folded in together, so that one at a time equals many at once, and
    one series equals the same beside others, bit for bit.

    Args:
        size: number of series, S: chains, scalars, or both.

    Source:
        Vats, Flegal (2022), "Lugsail lag windows for estimating time-average covariance matrices", Biometrika 109
        (r = 2, c = 1/2); Flegal, Jones (2010), Annals of Statistics 38 (b of order √m).
    """

    def __init__(self, size: int = 1) -> None:
        require(size > 0, f"OnlineSeries needs at least one series, not size={size}")
        self.size, self.count = size, 0
        self._buffer = np.zeros((size, CHUNK))
        self._moments, self._batches = OnlineMoments(size), BatchMeans(size)

    def update(self, values: ArrayLike) -> None:
        """Take in one value a series, [S], or a number if S = 1.

        Raises:
            ConfigError: their number is not S.
        """
        row = np.asarray(values, dtype=np.float64).ravel()
        if row.size != self.size:
            raise ConfigError(f"an update of {self.size} series takes as many values, not {row.size}")
        place = self.count % CHUNK
        self._buffer[:, place] = row
        self.count += 1
        if place == CHUNK - 1:
            self._fold(self._buffer)

    def extend(self, values: ArrayLike) -> None:
        """Take in many values a series, [n, S], or [n] if S = 1.

        Raises:
            ConfigError: the shape is another.
        """
        rows = np.asarray(values, dtype=np.float64)
        rows = rows[:, None] if rows.ndim == self.size == 1 else rows
        require(rows.shape[1:] == (self.size,), f"{self.size} series take [n, {self.size}], not {list(rows.shape)}")
        while len(rows):
            place = self.count % CHUNK
            taken, rows = rows[: CHUNK - place], rows[CHUNK - place :]
            self._buffer[:, place : place + len(taken)] = taken.T
            self.count += len(taken)
            if place + len(taken) == CHUNK:
                self._fold(self._buffer)

    def _fold(self, values: np.ndarray) -> None:
        """Take values [S, n] into the moments and the batches; values that are not finite make these NaN for good."""
        with np.errstate(invalid="ignore", over="ignore"):
            self._moments.add(values)
            self._batches.add(values)

    def estimates(self) -> tuple[Estimate, ...]:
        """What is known of every series so far; changes nothing."""
        now = copy.deepcopy(self)
        now._fold(now._buffer[:, : now.count % CHUNK])
        with np.errstate(invalid="ignore", over="ignore"):
            mean, sd = now._moments.mean, np.sqrt(now._moments.variance)
            variances = now._batches.variances(mean)
        return tuple(_estimate(self.count, float(mean[s]), float(sd[s]), variances[:, s]) for s in range(self.size))

    def state_dict(self) -> dict[str, Any]:
        """All there is, as one int and float64 arrays whose size depends on S alone."""
        return {"count": self.count} | {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, bit for bit; its arrays may have become CPU tensors.

        Raises:
            ConfigError: it is of another number of series, or not such a state.
        """
        fresh = OnlineSeries(self.size)
        arrays = fresh._arrays()
        fit = set(state) == {"count", *arrays} and all(np.shape(state[n]) == a.shape for n, a in arrays.items())
        require(fit, f"this state does not fit OnlineSeries(size={self.size}); make it with the size it was saved with")
        for name, array in arrays.items():
            array[...] = np.asarray(state[name])
        folded = int(state["count"]) // CHUNK * CHUNK
        fresh._moments.count = fresh._batches.count = folded
        for level, window in enumerate(fresh._batches.windows):
            window.count = max(0, (folded >> level) - OVERLAP + 1)
            window.mean, window.squares = arrays["window_mean"][level], arrays["window_squares"][level]
        self.count, self._buffer = int(state["count"]), fresh._buffer
        self._moments, self._batches = fresh._moments, fresh._batches

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the state by name; those of the windows are stacked copies [LEVELS, S]."""
        windows = self._batches.windows
        return {
            "buffer": self._buffer,
            "mean": self._moments.mean,
            "squares": self._moments.squares,
            "tails": self._batches.tails,
            "window_mean": np.stack([window.mean for window in windows]),
            "window_squares": np.stack([window.squares for window in windows]),
        }


def _estimate(count: int, mean: float, sd: float, variances: np.ndarray) -> Estimate:
    """One series' estimate from its moments and batch-means variances [levels]."""
    if not math.isfinite(mean) or (count > 1 and not math.isfinite(sd)):
        return Estimate(count, reason="a value was NaN or infinite, or too large to square")
    if count < 2:
        return Estimate(count, mean if count else None, reason=f"a variance takes two updates, not {count}")
    if sd <= 1e-14 * abs(mean):
        return Estimate(count, mean, reason="the series is constant")
    if count < MIN_UPDATES:
        return Estimate(count, mean, sd, reason=f"tau takes {MIN_UPDATES} updates, not {count}")
    long_run = long_run_variance(variances, count)
    if long_run is None:
        least, longest = variances.max() / sd**2, OVERLAP << (len(variances) - 1)
        why = f"tau is {least:.3g} or more, too long for batches of {longest} updates; run longer"
        return Estimate(count, mean, sd, reason=why)
    variance, batch = long_run
    tau = variance / sd**2
    return Estimate(count, mean, sd, tau, count / tau, math.sqrt(variance / count), batch)


def long_run_variance(variances: np.ndarray, count: int) -> tuple[float, int] | None:
    """m·Var(mean) without its bias of order 1/b, and the b it comes from; None if no b will do.

    Args:
        variances: batch-means estimates [levels] of b = 4, 8, …, up to m / MIN_BATCHES.
        count: updates m, at least MIN_UPDATES.
    """
    lengths = OVERLAP << np.arange(len(variances))
    first = max(1, int(np.searchsorted(lengths, math.isqrt(count) // 2, side="right")) - 1)
    limits = _chance(1.5 * count / lengths)
    for level in range(first, len(variances)):
        v = float(variances[level])
        corrected = 2 * v - float(variances[level - 1])
        agree = (variances[level + 1 :] <= corrected * limits[level + 1 :]).all()
        if abs(corrected - v) < MAX_CORRECTION * v and agree:
            return corrected, int(lengths[level])
    return None


def _chance(freedom: ArrayLike) -> np.ndarray:
    """What an estimated variance exceeds its true value by, as a factor, once in a thousand times."""
    from scipy.stats import chi2

    return chi2.isf(1e-3, freedom) / freedom


def rhat(chains: Sequence[Estimate]) -> float | None:
    """√((m−1)/m + e²/W) of two or more chains; None if one lacks τ.

    e is the standard error of a chain's mean, from τ within the chains, or, where the chains' means differ by more than
    that allows (χ² at 0.1 %), from these means, so that chains at different places do not pass however long they are.
    Chains of equal means but unequal spread do pass: look at `sd`, or at `convergence` of the draws.

    Source:
        Gelman, Rubin (1992), Statistical Science 7; Vats, Knudson (2021), "Revisiting the Gelman-Rubin diagnostic",
        Statistical Science 36.
    """
    if len(chains) < 2 or any(chain.mcse is None for chain in chains):
        return None
    return _rhat(chains, max(_squared_error(chains)))


def summary(chains: Sequence[Estimate]) -> Summary:
    """One scalar over its chains, from one estimate a chain."""
    count = min((chain.count for chain in chains), default=0)
    problem = _problem(chains)
    if problem is not None:
        return Summary(len(chains), count, reason=problem)
    mean = float(np.mean([chain.mean for chain in chains]))
    within, disagreement = _squared_error(chains)
    error = max(within, disagreement)
    ess = len(chains) * _rhat(chains, error) ** 2 * _within(chains) / error
    remark = "R-hat compares chains and there is only one" if len(chains) == 1 else None
    if disagreement:
        remark = "the chains' means differ by more than their own errors allow"
    total, mcse = sum(chain.count for chain in chains), math.sqrt(error / len(chains))
    return Summary(len(chains), count, mean, rhat(chains), ess, total / ess, mcse, remark)


def is_milestone(count: int, first: int = 1_000) -> bool:
    """Whether to report after this many updates: 1, 2 or 5 times a power of ten, from `first` on."""
    return count >= first and str(count).rstrip("0") in ("1", "2", "5")


def _problem(chains: Sequence[Estimate]) -> str | None:
    """Why these chains cannot be combined, or None; with what their means alone say, where they say something."""
    if not chains:
        return "there are no chains"
    missing = [f"chain {place}: {chain.reason}" for place, chain in enumerate(chains) if chain.mcse is None]
    reasons = missing[:1] + [f"{len(missing) - 1} more likewise"] * (len(missing) > 1)
    if missing and len(chains) > 1 and all(chain.sd is not None for chain in chains):
        reasons.append(f"R-hat of the chains' means alone is {_rhat(chains, _between(chains)):.3g}")
    return "; ".join(reasons) or None


def _squared_error(chains: Sequence[Estimate]) -> tuple[float, float]:
    """e² by τ within the chains, and by the chains' means where these differ by more than that allows, else 0."""
    within = float(np.mean([(chain.mcse or 0) ** 2 for chain in chains]))
    if len(chains) < 2:
        return within, 0.0
    between = _between(chains)
    return within, between if between > within * float(_chance(len(chains) - 1)) else 0.0


def _between(chains: Sequence[Estimate]) -> float:
    """Variance of the chains' means."""
    return float(np.var([chain.mean or 0 for chain in chains], ddof=1))


def _within(chains: Sequence[Estimate]) -> float:
    """Mean of the chains' variances, W."""
    return float(np.mean([(chain.sd or 0) ** 2 for chain in chains]))


def _rhat(chains: Sequence[Estimate], error: float) -> float:
    """√((m−1)/m + e²/W), with m of the shortest chain."""
    return math.sqrt(1 - 1 / min(chain.count for chain in chains) + error / _within(chains))
