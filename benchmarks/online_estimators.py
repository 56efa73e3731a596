"""Online estimators: updates a second, and the autocorrelation time of AR(1) streams beside the true one and arviz's.

Run from the repository's root: `python benchmarks/online_estimators.py`.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from peers.results import pm, table
from scipy.signal import lfilter

from bayeslora.diagnostics.online import OnlineSeries

SEED = 1
STREAMS = 20
LENGTHS = (100_000, 200_000, 1_000_000)
RHOS = (0.0, 0.5, 0.9, 0.95)


def autoregressive(rho: float, updates: int) -> np.ndarray:
    """Stationary AR(1) streams of unit variance, [updates, STREAMS]."""
    noise = np.random.default_rng(SEED).normal(size=(updates, STREAMS))
    noise[1:] *= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=0)


def seconds(size: int, updates: int = 1_000_000) -> tuple[float, float]:
    """For so many single updates of `size` series, and for one reading of the estimates after them."""
    values = np.random.default_rng(SEED).normal(size=(updates // 100, size))
    rows = values[:, 0].tolist() if size == 1 else list(values)
    series, begun = OnlineSeries(size), time.perf_counter()
    for _ in range(100):
        for row in rows:
            series.update(row)
    updated = time.perf_counter()
    series.estimates()
    return updated - begun, time.perf_counter() - updated


def speed() -> str:
    rows = []
    for size in (1, 8, 64):
        taken, reading = seconds(size)
        rows.append([f"{size}", f"{taken:.2f} s", f"{1e6 / taken:,.0f}", f"{1e3 * reading:.2f} ms"])
    return table(["series", "a million updates", "updates/s", "a reading"], rows)


def accuracy() -> str:
    import arviz

    rows = []
    for updates in LENGTHS:
        for rho in RHOS:
            values, true = autoregressive(rho, updates), (1 + rho) / (1 - rho)
            series = OnlineSeries(STREAMS)
            series.extend(values)
            found = series.estimates()
            times = np.array([np.nan if one.tau is None else one.tau for one in found])
            theirs = np.array([updates / arviz.ess(stream[None], method="mean") for stream in values.T])
            within = f"{np.mean(np.abs(times / true - 1) < 0.1):.0%}"
            rows.append(
                [f"{updates:,}", f"{rho}", f"{true:.0f}", *(pm(t.mean(), t.std()) for t in (times, theirs)), within]
            )
    return table(["updates", "ρ", "true τ", "online", "arviz", "online within 10 %"], rows)


def main() -> None:
    warnings.simplefilter("ignore", FutureWarning)
    print(speed())
    print(f"\nMean ± standard deviation over {STREAMS} streams.\n")
    print(accuracy())


if __name__ == "__main__":
    main()
