"""The targets of the comparison: one minibatch stream and one potential, for torch and for jax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.laws.regression_posteriors import LinearRegression, LogisticRegression
from bayeslora.rng import generator


@dataclass(frozen=True)
class Problem:
    """A regression posterior, sampled by K chains with G gradient evaluations each.

    A minibatch is known by the row that it starts at (see `laws.regression_posteriors`), so every library gets the same
    ones.

    Attributes:
        name: in words.
        kind: `LinearRegression` or `LogisticRegression`.
        shape: its keywords: num_data, dim, batch_size.
        step: ε·λmax, of SGLD; samplers with momentum μ take ε(1 − μ), which moves θ as far.
        chains: K.
        gradients: G, of which the first fifth is burn-in.
        momentum: μ.
    """

    name: str
    kind: type[LinearRegression] | type[LogisticRegression]
    shape: dict[str, Any]
    step: float
    chains: int = 256
    gradients: int = 2000
    momentum: float = 0.9
    seed: int = 1

    @property
    def burn_in(self) -> int:
        return self.gradients // 5

    @cached_property
    def reference(self) -> LinearRegression | LogisticRegression:
        """The target with one chain, for its data."""
        return self.target(1)

    def target(self, chains: int | None = None) -> LinearRegression | LogisticRegression:
        """Our own target, its minibatch stream at the beginning."""
        return self.kind(**self.shape, chains=chains or self.chains)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean [D] and covariance [D, D] of the posterior."""
        t = self.reference
        if isinstance(t, LinearRegression):
            precision = t.x.T @ t.x + torch.eye(t.dim, dtype=torch.float64) / t.prior_variance
            return t.posterior()[0], torch.linalg.inv(precision).numpy()
        line = torch.linspace(-6, 6, 401, dtype=torch.float64)
        theta = torch.cartesian_prod(line, line)
        energy = t.nll(theta @ t.x.T, t.y).sum(1) + 0.5 * theta.square().sum(1) / t.prior_variance
        weight = torch.softmax(-energy, 0)[:, None]
        mean = (weight * theta).sum(0)
        return mean.numpy(), ((theta - mean).T @ (weight * (theta - mean))).numpy()

    @cached_property
    def lr(self) -> float:
        """ε = step/λmax, λmax the largest curvature of Ũ at the posterior mean."""
        mean = torch.from_numpy(self.moments[0])
        curvature = torch.autograd.functional.hessian(self.potential, mean)
        return self.step / float(torch.linalg.eigvalsh(curvature).max())

    @cached_property
    def start(self) -> Tensor:
        """Where the chains start, [K, D]: draws with the posterior's mean and sds, the same for every library."""
        mean, covariance = self.moments
        xi = torch.randn(self.chains, len(mean), generator=generator(self.seed, 0, 0, "start"), dtype=torch.float64)
        return torch.from_numpy(mean) + torch.from_numpy(np.diag(covariance) ** 0.5) * xi

    def rows(self) -> Tensor:
        """Rows at which the minibatches start, [G, K]; the stream that our own target draws."""
        source, shape = generator(0, 0, 0, "law/batches"), (self.chains,)
        draw = [torch.randint(self.reference.num_data, shape, generator=source) for _ in range(self.gradients)]
        return torch.stack(draw)

    # -- the potential of the torch libraries; the data of them all -----------------------------------------------

    @cached_property
    def everything(self) -> tuple[Tensor, ...]:
        """All the data: the mean of zzᵀ, z = (x, y) [D+1, D+1], or inputs and targets [N, D] and [N]."""
        t = self.reference
        return (t._sums[t.num_data] / t.num_data,) if isinstance(t, LinearRegression) else (t.x, t.y)

    @cached_property
    def table(self) -> tuple[Tensor, ...] | None:
        """The same of each minibatch, by its first row: [N, D+1, D+1], or [N, B, D] and [N, B]; None if full batch."""
        t, size = self.reference, self.shape["batch_size"]
        if size is None:
            return None
        if isinstance(t, LinearRegression):
            return ((t._sums[size:] - t._sums[:-size]) / size,)
        rows = (torch.arange(t.num_data)[:, None] + torch.arange(size)) % t.num_data
        return t.x[rows], t.y[rows]

    def batches(self) -> Iterator[tuple[Tensor, ...] | None]:
        """G times the minibatches of the K chains, cut from `table`; None where the batch is full."""
        for rows in self.rows():
            yield None if self.table is None else tuple(part[rows] for part in self.table)

    def potential(self, theta: Tensor, batch: tuple[Tensor, ...] | None = None) -> Tensor:
        """Ũ of one chain [D], or [K] for K chains [K, D] and a minibatch for each; None is all the data."""
        t, data = self.reference, self.everything if batch is None else batch
        if isinstance(t, LinearRegression):
            w = torch.cat([-theta, torch.ones_like(theta[..., :1])], -1)
            nll = 0.5 * ((w[..., None, :] @ data[0])[..., 0, :] * w).sum(-1)
        else:
            scores = theta @ data[0].T if data[0].ndim == 2 and batch is None else (data[0] @ theta[..., None])[..., 0]
            nll = t.nll(scores, data[1]).mean(-1)
        return nll + 0.5 * theta.square().sum(-1) / (t.prior_variance * t.num_data)
