"""What is measured of a set of draws, and which library is the more accurate."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from .problem import Problem


@dataclass(frozen=True)
class Measured:
    """Accuracy and efficiency of draws, everything in units of the posterior's sd.

    Attributes:
        sd, sd_se: sd ratio averaged over coordinates, and its standard error over chains.
        worst, worst_se: sd ratio of the coordinate that is furthest off.
        error, error_se: root mean square over coordinates of (sd ratio − 1), the part expected from noise removed;
            what libraries are ranked by. Its standard error is a bootstrap's over chains.
        mean_error, mean_se: largest error of a mean, with its standard error.
        correlation_error: largest error of a correlation.
        ess_per_gradient: smallest over coordinates, by arviz.
        diverged: chains that left for infinity or beyond 50 sd; they are left out of all the rest.
    """

    sd: float
    sd_se: float
    worst: float
    worst_se: float
    error: float
    error_se: float
    mean_error: float
    mean_se: float
    correlation_error: float
    ess_per_gradient: float
    diverged: int


def measure(draws: np.ndarray, problem: Problem) -> Measured:
    """Measure draws [K, S, D]."""
    mean, covariance = problem.moments
    sd = np.diag(covariance) ** 0.5
    z = (draws - mean) / sd
    lost = ~(np.abs(z) < 50).all((1, 2))
    z = z[~lost]
    first, second = z.mean(1), (z**2).mean(1)
    ratio, each, error = _ratios(first, second, np.full((1, len(z)), 1 / len(z)))
    root, worst = len(z) ** 0.5, np.abs(ratio[0] - 1).argmax()
    rng = np.random.default_rng(0)
    resampled = _ratios(first, second, rng.multinomial(len(z), np.full(len(z), 1 / len(z)), 300) / len(z))
    shift = np.abs(first.mean(0)).argmax()
    correlation = np.corrcoef(z.reshape(-1, z.shape[2]).T) - covariance / np.outer(sd, sd)
    return Measured(
        sd=float(ratio[0].mean()),
        sd_se=float(resampled[0].mean(1).std()),
        worst=float(ratio[0, worst]),
        worst_se=float(each[worst]),
        error=float(error[0]),
        error_se=float(resampled[2].std()),
        mean_error=float(np.abs(first.mean(0)).max()),
        mean_se=float(first.std(0)[shift] / root),
        correlation_error=float(np.abs(correlation).max()),
        ess_per_gradient=_ess(z[:64]) / (min(64, len(z)) * (problem.gradients - problem.burn_in)),
        diverged=int(lost.sum()),
    )


def _ratios(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sd ratios [W, D], their standard errors [D] and the rms error [W] under chain weights [W, K]."""
    ratio = np.sqrt(weights @ second - (weights @ first) ** 2)
    each = second.std(0) / len(second) ** 0.5 / (2 * ratio.mean(0))
    return ratio, each, np.sqrt(np.maximum(0, ((ratio - 1) ** 2 - each**2).mean(1)))


def _ess(z: np.ndarray) -> float:
    """Effective number of draws of all chains together, of the coordinate that has the fewest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    return float(min(arviz.ess(z[:, :, j], method="mean") for j in range(z.shape[2])))


def verdict(ours: Measured, theirs: Measured) -> str:
    """`ours`, `level` (closer than two standard errors) or `theirs`, by `error`."""
    noise = 2 * (ours.error_se**2 + theirs.error_se**2) ** 0.5
    if abs(ours.error - theirs.error) < noise:
        return "level"
    return "ours" if ours.error < theirs.error else "theirs"
