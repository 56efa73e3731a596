"""What several draws predict together: probabilities averaged, or the mixture of normal densities as moments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.errors import DataError, require


@dataclass(frozen=True)
class Normals:
    """One normal density an example and target, or the first two moments of a mixture of such.

    Attributes:
        mean: [N, D].
        noise: variance of the targets about a draw's mean, averaged over draws (aleatoric), [N, D].
        spread: variance of the mean over draws (epistemic), [N, D]; 0 of a single draw.
    """

    mean: Tensor
    noise: Tensor
    spread: Tensor

    @property
    def sd(self) -> Tensor:
        """Standard deviation of the prediction, noise included, [N, D]."""
        return (self.noise + self.spread).sqrt()

    def scaled(self, mean: Tensor, std: Tensor) -> Normals:
        """The same of targets mean + std · y, [D] each."""
        return Normals(mean + std * self.mean, std**2 * self.noise, std**2 * self.spread)


class NormalMixture:
    """Running mixture (1/S) Σₛ N(μₛ, σₛ²): moments, and at known targets its density and distribution function.

    Args:
        targets: [N, D], or None where they are not known.
    """

    def __init__(self, targets: Tensor | None = None) -> None:
        self.targets = None if targets is None else targets.double()
        self.count = 0

    def add(self, mean: Tensor, variance: Tensor) -> None:
        """Take in one draw's means and variances, [N, D] each."""
        mean, variance = mean.double(), variance.double()
        self.count += 1
        if self.count == 1:
            self._mean, self._square, self._noise = torch.zeros_like(mean), torch.zeros_like(mean), 0.0 * variance
            self._density = mean.new_full(mean.shape[:1], -math.inf)
            self._below = torch.zeros_like(mean)
        step = mean - self._mean
        self._mean = self._mean + step / self.count
        self._square = self._square + step * (mean - self._mean)
        self._noise = self._noise + variance
        if self.targets is not None:
            z = (self.targets - mean) / variance.sqrt()
            log_density = -0.5 * (z.square() + variance.log() + math.log(2 * math.pi)).sum(-1)
            self._density = torch.logaddexp(self._density, log_density)
            self._below = self._below + torch.special.ndtr(z)

    @property
    def normals(self) -> Normals:
        """Moments so far.

        Raises:
            DataError: no draw was added.
        """
        if not self.count:
            raise DataError("an ensemble needs at least one draw")
        return Normals(self._mean, self._noise / self.count, self._square / self.count)

    @property
    def nll(self) -> Tensor:
        """−log of the mixture's density at the targets, in nats: [N]."""
        return math.log(self.count) - self._density

    @property
    def pit(self) -> Tensor:
        """The mixture's distribution function at the targets, [N, D]: uniform on [0, 1] where it is calibrated."""
        return self._below / self.count


def mixture_quantiles(mean: Tensor, variance: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of (1/S) Σₛ N(μₛ, σₛ²) by bisection between the components' own: [Q, N, D], fp64.

    Args:
        mean, variance: of S draws, [S, N, D].
        levels: [Q], each between 0 and 1.

    Raises:
        ConfigError: a level is out of range.
    """
    inside = bool(((levels > 0) & (levels < 1)).all())
    require(inside, f"levels={levels.tolist()}: each must lie between 0 and 1, e.g. 0.05 and 0.95")
    mean, sd = mean.double(), variance.double().sqrt()
    quantiles = []
    for level in levels.double():
        own = mean + torch.special.ndtri(level) * sd
        low, high = own.amin(0), own.amax(0)
        for _ in range(50):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle - mean) / sd).mean(0) < level
            low, high = low.where(~below, middle), high.where(below, middle)
        quantiles.append((low + high) / 2)
    return torch.stack(quantiles)


class Mixture:
    """Running average of predictive probabilities: log (1/S) Σₛ pₛ, by logsumexp in fp32, or in fp64 where p is."""

    def __init__(self) -> None:
        self.count = 0
        self._log_sum: Tensor | None = None

    def add(self, log_probs: Tensor) -> None:
        """Take in one draw's log p [N, …, C]."""
        log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
        self._log_sum = log_probs.clone() if self._log_sum is None else torch.logaddexp(self._log_sum, log_probs)
        self.count += 1

    @property
    def log_probs(self) -> Tensor:
        """log p of the ensemble so far, [N, C].

        Raises:
            DataError: no draw was added.
        """
        if self._log_sum is None:
            raise DataError("an ensemble needs at least one draw")
        return self._log_sum - math.log(self.count)
