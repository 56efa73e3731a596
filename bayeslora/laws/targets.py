"""Targets whose invariant law under a discretised sampler is known in closed form or by quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayeslora.potential import Potential, Prior
from bayeslora.rng import generator


@dataclass
class GaussianMean:
    """The mean of N Gaussian observations under a Gaussian prior: a quadratic potential with real data, prior and N.

        yᵢ ~ N(θ, noise_sd²),   θ ~ N(0, prior_variance),   Ũ(θ) = ½ a (θ − μ)² + const

    Attributes:
        num_data: N.
        batch_size: B examples a step, drawn with replacement for each chain; None is full batch.
        noise_sd: standard deviation of an observation.
        prior_variance: of θ.
        temperature: T.
        chains: K stacked chains.
    """

    num_data: int = 50
    batch_size: int | None = None
    noise_sd: float = 1.0
    prior_variance: float = 0.04
    temperature: float = 1.0
    chains: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        self.data = 0.7 + self.noise_sd * torch.randn(
            self.num_data, generator=generator(self.seed, 0, 0, "law/data"), dtype=torch.float64
        )
        self.potential = Potential(Prior(self.prior_variance), self.num_data)
        self.tensors = [torch.nn.Parameter(torch.full((self.chains, 1), self.mean, dtype=torch.float64))]
        self._source = generator(self.seed, 0, 0, "law/batches")

    @property
    def state(self) -> Tensor:
        """θ of all chains, [K, 1]."""
        return self.tensors[0].detach()

    @property
    def kT(self) -> float:
        return self.potential.kT(self.temperature)

    @property
    def curvature(self) -> float:
        """a = 1/noise_sd² + 1/(N·prior_variance)."""
        return 1 / self.noise_sd**2 + 1 / (self.num_data * self.prior_variance)

    @property
    def mean(self) -> float:
        """μ, the posterior mean."""
        return self.data.mean().item() / self.noise_sd**2 / self.curvature

    @property
    def gradient_variance(self) -> float:
        """V, the variance of the minibatch gradient at any θ; 0 for full batch."""
        if self.batch_size is None:
            return 0.0
        return self.data.var(correction=0).item() / self.noise_sd**4 / self.batch_size

    def minibatch(self) -> Callable[[], Tensor]:
        """A fresh minibatch for every chain, as the closure that gives Ũ [K] on it and its gradient."""
        batch = self.data.expand(self.chains, -1)
        if self.batch_size is not None:
            batch = self.data[torch.randint(self.num_data, (self.chains, self.batch_size), generator=self._source)]
        return lambda: self._potential(batch)

    def full(self) -> Tensor:
        """Ũ [K] on all the data, and its gradient."""
        return self._potential(self.data.expand(self.chains, -1))

    def _potential(self, batch: Tensor) -> Tensor:
        (theta,) = self.tensors
        potential = self.potential(0.5 * ((batch - theta) / self.noise_sd) ** 2, {"theta": theta})
        potential.sum().backward()
        return potential

    def sgld_variance(self, lr: float) -> float:
        """Stationary variance of SGLD: (2ε·kT + ε²V) / (2εa − ε²a²)."""
        a, v = self.curvature, self.gradient_variance
        return (2 * lr * self.kT + lr**2 * v) / (2 * lr * a - (lr * a) ** 2)


@dataclass
class Quadratic:
    """Ũ(θ) = ½ θᵀAθ in D dimensions with full-batch gradients.

    Attributes:
        precision: A, symmetric positive definite [D, D].
        kT: thermal energy.
        chains: K stacked chains.
        split: sizes of the tensors over which θ is spread (they sum to D); the law must not notice.
        gradient_sd: standard deviation of independent Gaussian noise on every coordinate of the gradient.
        mean: of θ, zero.
    """

    precision: Tensor
    kT: float = 1.0
    chains: int = 2048
    split: tuple[int, ...] = ()
    gradient_sd: float = 0.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        dim = len(self.precision)
        self._source = generator(0, 0, 0, "law/gradient")
        start = torch.randn(self.chains, dim, generator=generator(0, 0, 0, "law/start"), dtype=torch.float64)
        self.tensors = [torch.nn.Parameter(part.clone()) for part in start.split(self.split or (dim,), dim=1)]

    @property
    def state(self) -> Tensor:
        """θ joined, [K, D]."""
        return torch.cat([t.detach() for t in self.tensors], dim=1)

    def minibatch(self) -> Callable[[], Tensor]:
        """The closure of one step: Ũ [K] and its gradient, with gradient noise (if any) drawn once."""
        noise = self.gradient_sd * torch.randn(self.state.shape, generator=self._source, dtype=torch.float64)

        def closure() -> Tensor:
            theta = torch.cat(list(self.tensors), dim=1)
            potential = 0.5 * ((theta @ self.precision) * theta).sum(1) + (noise * theta).sum(1)
            potential.sum().backward()
            return potential

        return closure


def stationary_density(kernel: np.ndarray) -> np.ndarray:
    """Stationary probabilities [n] of a Markov chain on n cells.

    Args:
        kernel: [n, n], density or probability of going from cell i to cell j; rows are normalised here.
    """
    kernel = kernel / kernel.sum(1, keepdims=True)
    system = kernel.T - np.eye(len(kernel))
    system[0] = 1.0
    return np.linalg.solve(system, np.eye(len(kernel))[0])


def moments_on_line(
    drift: Callable[[np.ndarray], np.ndarray],
    lr: float,
    kT: float,
    reach: float,
    cells: int = 1200,
) -> dict[str, float]:
    """E|θ| and Eθ² of θ ← θ − ε·drift(θ) + √(2ε·kT) ξ in one dimension, by quadrature of its transition kernel.

    Args:
        drift: vectorised over θ; may jump at 0 (the cells' edges lie there).
        lr, kT: ε and kT.
        reach: the grid covers [−reach, reach].
    """
    edge = np.linspace(-reach, reach, cells + 1)
    theta = (edge[1:] + edge[:-1]) / 2
    target = theta - lr * drift(theta)
    kernel = np.exp(-((theta[None] - target[:, None]) ** 2) / (4 * lr * kT))
    weight = stationary_density(kernel)
    return {"mean |θ|": float(weight @ np.abs(theta)), "mean θ²": float(weight @ theta**2)}


def moments_on_plane(
    drift: Callable[[np.ndarray], np.ndarray], covariance: np.ndarray, reach: float, cells: int = 44
) -> dict[str, float]:
    """Second moments of θ ← θ − drift(θ) + n, n ~ N(0, covariance), in two dimensions, by quadrature of its kernel.

    Args:
        drift: [n, 2] -> [n, 2], the step size in it; may jump at 0 (which is a corner of the cells).
        covariance: of n, [2, 2]; its standard deviations must be about a cell or more.
        reach: the grid covers [−reach, reach]².
    """
    edge = np.linspace(-reach, reach, cells + 1)
    line = (edge[1:] + edge[:-1]) / 2
    theta = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    whitened, target = theta @ whiten, (theta - drift(theta)) @ whiten
    square = (target**2).sum(1)[:, None] - 2 * target @ whitened.T + (whitened**2).sum(1)[None]
    weight = stationary_density(np.exp(-square / 2))
    moments = np.einsum("n,ni,nj->ij", weight, theta, theta)
    return {f"cov {i}{j}": float(moments[i, j]) for i, j in ((0, 0), (0, 1), (1, 1))}


def moments_of_radius(
    radial_drift: Callable[[np.ndarray], np.ndarray],
    dim: int,
    lr: float,
    kT: float,
    *,
    reach: float,
    cells: int = 600,
) -> dict[str, float]:
    """E r and E r² of the radius r = ‖θ‖ where the drift is radial, by quadrature of its transition kernel.

    The next radius is a noncentral chi variable: ‖m + √(2ε·kT) ξ‖ with ‖m‖ = |r − ε·drift(r)|.
    """
    from scipy.stats import ncx2

    edge = np.linspace(0, reach, cells + 1)
    radius = (edge[1:] + edge[:-1]) / 2
    scale = 2 * lr * kT
    centre = (radius - lr * radial_drift(radius)) ** 2 / scale
    kernel = ncx2.pdf(radius[None] ** 2 / scale, dim, centre[:, None]) * 2 * radius[None] / scale
    weight = stationary_density(kernel)
    return {"mean r": float(weight @ radius), "mean r²": float(weight @ radius**2)}
