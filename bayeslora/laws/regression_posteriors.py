"""Regression targets whose posterior is known in closed form or by quadrature, sampled on stacked chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from bayeslora.potential import Potential, Prior
from bayeslora.rng import generator


@dataclass
class Regression:
    """Base: N examples in D dimensions, K stacked chains of coefficients θ [K, D], minibatches through `Potential`.

    Attributes:
        num_data, dim: N and D.
        batch_size: B; None is full batch. A minibatch is a run of rows from a random start, the rows being in random
            order (wrapping round), so every row enters with probability B/N.
        prior_variance: of every coefficient.
        temperature: T.
        chains: K.
    """

    num_data: int = 1000
    dim: int = 10
    batch_size: int | None = 100
    prior_variance: float = 1.0
    temperature: float = 1.0
    chains: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        self._source = generator(self.seed, 0, 0, "law/batches")
        self.potential = Potential(Prior(self.prior_variance), self.num_data)
        self.x, self.y = self.make_data(generator(self.seed, 0, 0, "law/data"))
        self.tensors = [torch.nn.Parameter(torch.zeros(self.chains, self.dim, dtype=torch.float64))]
        if self.batch_size is not None:
            rows = (torch.arange(self.num_data)[:, None] + torch.arange(self.batch_size)) % self.num_data
            self._runs = self.x[rows], self.y[rows]  # by the row where they start

    @property
    def state(self) -> Tensor:
        """θ of all chains, [K, D]."""
        return self.tensors[0].detach()

    @property
    def kT(self) -> float:
        return self.potential.kT(self.temperature)

    def make_data(self, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs [N, D] and targets [N], or [K, N, D] and [K, N]."""
        raise NotImplementedError

    def nll(self, scores: Tensor, y: Tensor) -> Tensor:
        """−log p(y|score) of each example."""
        raise NotImplementedError

    def minibatch(self) -> Callable[[], Tensor]:
        """A fresh minibatch for every chain, as the closure that gives Ũ [K] on it and its gradient."""
        x, y = self.x, self.y
        if self.batch_size is not None:
            start = torch.randint(self.num_data, (self.chains,), generator=self._source)
            x, y = (runs[start] for runs in self._runs)
        return lambda: self._potential(x, y)

    def full(self) -> Tensor:
        """Ũ [K] on all the data, and its gradient."""
        return self._potential(self.x, self.y)

    def _potential(self, x: Tensor, y: Tensor) -> Tensor:
        (theta,) = self.tensors
        scores = theta @ x.T if x.ndim == 2 else torch.bmm(x, theta[:, :, None])[..., 0]
        potential = self.potential(self.nll(scores, y), {"theta": theta})
        potential.sum().backward()
        return potential


class LinearRegression(Regression):
    """Conjugate linear regression with unit noise; its posterior is Gaussian with known mean and covariance.

    A minibatch enters through its sufficient statistics Σ zzᵀ, z = (x, y), which running sums over the rows give for
    every chain at once.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        z = torch.cat([self.x, self.y[:, None]], dim=1)
        z = torch.cat([z, z[: self.batch_size]])
        zero = torch.zeros(1, self.dim + 1, self.dim + 1, dtype=torch.float64)
        self._sums = torch.cat([zero, (z[:, :, None] * z[:, None, :]).cumsum(0)])

    def minibatch(self) -> Callable[[], Tensor]:
        size = self.batch_size or self.num_data
        start = torch.randint(self.num_data, (self.chains,), generator=self._source)
        return lambda: self._from_sums(self._sums[start + size] - self._sums[start], size)

    def _from_sums(self, sums: Tensor, size: int) -> Tensor:
        """Ũ [K] and its gradient from Σ zzᵀ [K, D + 1, D + 1] of `size` rows: Σ(y − xᵀθ)² = wᵀ(Σzzᵀ)w, w = (−θ, 1)."""
        (theta,) = self.tensors
        w = torch.cat([-theta, torch.ones(self.chains, 1, dtype=torch.float64)], dim=1)
        square = torch.bmm(w[:, None, :], torch.bmm(sums, w[:, :, None]))[:, 0]
        potential = self.potential(0.5 * square / size, {"theta": theta})
        potential.sum().backward()
        return potential

    def make_data(self, source: torch.Generator) -> tuple[Tensor, Tensor]:
        scale = torch.linspace(0.9, 1.1, self.dim, dtype=torch.float64)
        x = scale * torch.randn(self.num_data, self.dim, generator=source, dtype=torch.float64)
        coefficients = torch.randn(self.dim, generator=source, dtype=torch.float64)
        return x, x @ coefficients + torch.randn(self.num_data, generator=source, dtype=torch.float64)

    def nll(self, scores: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (scores - y) ** 2

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean [D] and standard deviations [D] at temperature T."""
        precision = self.x.T @ self.x + torch.eye(self.dim, dtype=torch.float64) / self.prior_variance
        mean = torch.linalg.solve(precision, self.x.T @ self.y)
        return mean.numpy(), (self.temperature * torch.linalg.inv(precision).diagonal()).sqrt().numpy()


class LogisticRegression(Regression):
    """Logistic regression in two dimensions; its moments come from quadrature on a grid."""

    def make_data(self, source: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.num_data, self.dim, generator=source, dtype=torch.float64)
        coefficients = torch.linspace(1.0, -1.5, self.dim, dtype=torch.float64)
        uniform = torch.rand(self.num_data, generator=source, dtype=torch.float64)
        return x, (uniform < torch.sigmoid(x @ coefficients)).double()

    def nll(self, scores: Tensor, y: Tensor) -> Tensor:
        return softplus(scores) - y * scores

    def posterior(self, reach: float = 6.0, cells: int = 401) -> tuple[np.ndarray, np.ndarray]:
        """Mean [2] and standard deviations [2] of exp(−U/T), by quadrature on a square grid."""
        line = torch.linspace(-reach, reach, cells, dtype=torch.float64)
        theta = torch.cartesian_prod(line, line)
        energy = self.nll(theta @ self.x.T, self.y).sum(1) + self.potential.prior.energy({"theta": theta}, chain_axes=1)
        weight = torch.softmax(-energy / self.temperature, 0)[:, None]
        mean = (weight * theta).sum(0)
        return mean.numpy(), (weight * (theta - mean) ** 2).sum(0).sqrt().numpy()


class SimulatedLogistic(LogisticRegression):
    """For simulation-based calibration: each chain has its own true θ ~ prior and its own data, [K, N, D]."""

    def make_data(self, source: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (self.chains, self.num_data, self.dim)
        x = torch.randn(shape, generator=source, dtype=torch.float64)
        normal = torch.randn(self.chains, self.dim, generator=source, dtype=torch.float64)
        self.truth = math.sqrt(self.prior_variance) * normal
        chance = torch.sigmoid(torch.bmm(x, self.truth[:, :, None])[..., 0])
        return x, (torch.rand(chance.shape, generator=source, dtype=torch.float64) < chance).double()

    def minibatch(self) -> Callable[[], Tensor]:
        """Full batch: every chain on its own data."""
        return self.full
