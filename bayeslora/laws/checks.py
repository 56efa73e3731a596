"""The laws as checks that a user and the tests run alike: a sampler, a target, expected and sampled moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora import samplers
from bayeslora.laws import linear
from bayeslora.laws.simulate import Moment, compare_moments, one_stream, simulate
from bayeslora.laws.targets import GaussianMean, Quadratic, moments_of_radius, moments_on_line, moments_on_plane

Make = Callable[..., samplers.Sampler]

CORRELATED = np.array([[2.0, 0.8], [0.8, 1.0]])


@dataclass(frozen=True)
class LawCheck:
    """One sampler against one exact law.

    Attributes:
        sampler: the class.
        target: the target in words.
        make_target: builds it with K chains.
        expected: exact moments of the discretised recursion.
        settings: keywords of the sampler, `lr` among them.
        burn_in, freeze_at: steps before observing, and after which adaptation is frozen.
        prepare: sets up sampler and target before the first step.
        factors: on the step size of each of the target's tensors; none, one step size for all.
    """

    sampler: type[samplers.Sampler]
    target: str
    make_target: Callable[[int], Any]
    expected: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    burn_in: int = 200
    freeze_at: int = 0
    prepare: Callable[[samplers.Sampler, Any], None] = lambda _sampler, _target: None
    factors: tuple[float, ...] = ()

    @property
    def chains(self) -> int:
        """How many chains the check asks for: fewer where each has many dimensions and so tells more."""
        return 2048 // max(1, self.make_target(1).state.shape[1] // 6)

    @property
    def name(self) -> str:
        extra = [f"{v}" if isinstance(v, str) else f"{k}={v}" for k, v in self.settings.items() if k != "lr"]
        return " ".join([self.sampler.__name__, *extra, *(["grouped"] if self.factors else [])])

    def groups(self, target: Any) -> list[Any]:
        """What the sampler moves: the target's tensors, each with its own step size where there are factors."""
        if not self.factors:
            return list(target.tensors)
        rates = [self.settings["lr"] * factor for factor in self.factors]
        return [{"params": [t], "lr": rate} for t, rate in zip(target.tensors, rates, strict=True)]

    def run(
        self,
        make: Make | None = None,
        *,
        chains: int | None = None,
        steps: int = 300,
        change: Callable[[Any], None] | None = None,
    ) -> list[Moment]:
        """Simulate and compare.

        Args:
            make: the sampler to run in place of `self.sampler`: a mutant, in tests of the tests.
            chains, steps: size of the simulation; None takes the check's own number of chains.
            change: alters the target first: a mutant target.
        """
        chains = chains or self.chains
        target = self.make_target(chains)
        if change is not None:
            change(target)
        make = make or one_stream(self.sampler)
        sampler = make(self.groups(target), kT=target.kT, seed=1, chain=range(chains), **self.settings)
        self.prepare(sampler, target)
        for _ in range(self.freeze_at):
            sampler.step(target.minibatch())
        sampler.freeze()
        averages = simulate(
            sampler, target, lambda: moments(target.state - target.mean), burn_in=self.burn_in, steps=steps
        )
        return compare_moments(averages, self.expected)


def moments(theta: Tensor) -> dict[str, Tensor]:
    """First and second moments of each chain's state about the target's mean [K, D], and of its size and radius.

    Covariances of different coordinates only up to six dimensions.
    """
    radius = theta.norm(dim=1)
    out = {"mean r": radius, "mean r²": radius**2, "mean |θ|": theta[:, 0].abs(), "mean θ²": theta[:, 0] ** 2}
    for i in range(theta.shape[1]):
        out[f"mean {i}"] = theta[:, i]
        for j in range(i, theta.shape[1] if theta.shape[1] <= 6 else i + 1):
            out[f"cov {i}{j}"] = theta[:, i] * theta[:, j]
    return out


def covariance(matrix: np.ndarray) -> dict[str, float]:
    """Expected moments of a centred Gaussian with this covariance."""
    d = len(matrix)
    means = {f"mean {i}": 0.0 for i in range(d)}
    return means | {f"cov {i}{j}": float(matrix[i, j]) for i in range(d) for j in range(i, d)}


def quadratic(matrix: np.ndarray, kT: float = 0.5, gradient_sd: float = 0.0, split: tuple[int, ...] = ()) -> Any:
    """Maker of a quadratic target with K chains."""
    return lambda chains: Quadratic(torch.from_numpy(matrix), kT, chains, split, gradient_sd)


def _set_memory(**vectors: list[float]) -> Callable[[samplers.Sampler, Any], None]:
    """Give every chain's sampler the same adapted vectors, as burn-in would have left them."""

    def prepare(sampler: samplers.Sampler, target: Any) -> None:
        for name, values in vectors.items():
            sampler.memory[name] = torch.tensor(values, dtype=torch.float64).expand(target.chains, -1).clone()

    return prepare


def linear_checks() -> Iterator[LawCheck]:
    """Law 2: every sampler that is linear on a quadratic, against its exact covariance."""
    a, kT = CORRELATED, 0.5
    correlated = quadratic(a, kT)
    along = np.array([3.0, 4.0]) / 5
    stretch = np.eye(2) + np.outer(along, along)
    square = [0.36, 2.25]
    scale = np.diag([1 / (0.01 + 0.6), 1 / (0.01 + 1.5)])
    described = "correlated Gaussian"
    yield LawCheck(samplers.SGLD, described, correlated, covariance(linear.sgld_covariance(a, 0.1, kT)), {"lr": 0.1})
    yield LawCheck(
        samplers.SGLD, described, correlated, covariance(linear.leimkuhler_matthews_covariance(a, 0.3, kT)),
        {"lr": 0.3, "integrator": "leimkuhler_matthews"},
    )  # fmt: skip
    yield LawCheck(
        samplers.ASGLD, described, correlated, covariance(linear.sgld_covariance(a, 0.1, kT)), {"lr": 0.1, "a": 0.0}
    )
    yield LawCheck(
        samplers.SAMSGLDR1, described, correlated,
        covariance(linear.preconditioned_covariance(a, 0.05, kT, stretch @ stretch)),
        {"lr": 0.05, "rho": 0.0, "sigma": 1.0}, prepare=_set_memory(directions=list(along)),
    )  # fmt: skip
    yield LawCheck(
        samplers.PSGLD, described, correlated, covariance(linear.preconditioned_covariance(a, 0.08, kT, scale)),
        {"lr": 0.08}, prepare=_set_memory(square=square),
    )  # fmt: skip
    yield LawCheck(
        samplers.SGHMC, described, correlated, covariance(linear.sghmc_covariance(a, 0.1, kT, 0.8)),
        {"lr": 0.1, "momentum": 0.8},
    )  # fmt: skip
    yield LawCheck(
        samplers.BAOAB, described, correlated, covariance(linear.baoab_covariance(a, 0.5, kT, 0.6)),
        {"lr": 0.5, "momentum": 0.6},
    )  # fmt: skip
    yield LawCheck(
        samplers.FSGLD, described, correlated, covariance(linear.fsgld_covariance(a, 0.2, kT, 0.8)),
        {"lr": 0.2, "sigma": 0.8},
    )  # fmt: skip
    yield LawCheck(
        samplers.EntropyMCMC, described, correlated, covariance(linear.entropy_mcmc_covariance(a, 0.1, kT, 0.5)),
        {"lr": 0.1, "eta": 0.5}, burn_in=400,
    )  # fmt: skip
    yield LawCheck(
        samplers.SGLRW, described, correlated, covariance(linear.sglrw_covariance(a, 0.03, kT)), {"lr": 0.03}
    )


def grouped_checks() -> Iterator[LawCheck]:
    """Law 2 with a step size of its own for each of two tensors: every sampler, on a target that correlates them."""
    a, kT, factors = CORRELATED, 0.5, (1.0, 0.2)
    target = quadratic(a, kT, split=(1, 1))
    along = np.array([3.0, 4.0]) / 5
    stretch = np.eye(2) + 1.5 * np.outer(along, along)
    scale = np.diag([1 / (0.01 + 0.6), 1 / (0.01 + 1.5)])

    def check(
        sampler: type[samplers.Sampler], law: linear.Law, lr: float, *args: Any,
        prepare: Callable[[samplers.Sampler, Any], None] = lambda _sampler, _target: None, **settings: Any,
    ) -> LawCheck:  # fmt: skip
        matrix = linear.grouped_covariance(law, a, lr * np.array(factors), kT, *args)
        return LawCheck(
            sampler, "correlated tensors", target, covariance(matrix), {"lr": lr} | settings,
            burn_in=600, prepare=prepare, factors=factors,
        )  # fmt: skip

    yield check(samplers.SGLD, linear.sgld_covariance, 0.2)
    yield check(samplers.SGLD, linear.leimkuhler_matthews_covariance, 0.3, integrator="leimkuhler_matthews")
    yield check(samplers.ASGLD, linear.sgld_covariance, 0.2, a=0.0)
    yield check(
        samplers.SAMSGLDR1, linear.preconditioned_covariance, 0.05, stretch @ stretch, rho=0.0, sigma=1.5,
        prepare=_set_memory(directions=list(along)),
    )  # fmt: skip
    yield check(samplers.PSGLD, linear.preconditioned_covariance, 0.1, scale, prepare=_set_memory(square=[0.36, 2.25]))
    yield check(samplers.SGHMC, linear.sghmc_covariance, 0.2, 0.8, momentum=0.8)
    yield check(samplers.BAOAB, linear.baoab_covariance, 0.5, 0.6, momentum=0.6)
    root = np.diag(np.sqrt(0.2 * np.array(factors)))
    yield check(samplers.FSGLD, linear.sgld_covariance, 0.2, 0.8**2 * root @ a @ a @ root, sigma=0.8)
    yield check(samplers.EntropyMCMC, linear.entropy_mcmc_covariance, 0.2, 0.5 / (0.2 * np.array(factors)), eta=0.5)
    yield check(samplers.SGLRW, linear.sglrw_covariance, 0.03)
    yield from _grouped_sam_checks(along)


def _grouped_sam_checks(along: np.ndarray) -> Iterator[LawCheck]:
    """SAM's law in the plane with a step size for each tensor, plain and rank-one, by quadrature."""
    a, kT, rho, factors = CORRELATED, 0.5, 0.4, (1.0, 0.4)

    def drift(preconditioner: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def of(theta: np.ndarray) -> np.ndarray:
            g = theta @ a
            return (theta + rho * g / np.linalg.norm(g, axis=1, keepdims=True)) @ a @ preconditioner

        return of

    for sampler, lr, sigma in ((samplers.SAMSGLD, 0.1, 0.0), (samplers.SAMSGLDR1, 0.08, 1.0)):
        root = np.diag(np.sqrt(lr * np.array(factors)))
        stretch = np.eye(2) + sigma * np.outer(along, along)
        m = root @ stretch @ stretch @ root
        moments = moments_on_plane(drift(m), 2 * kT * m, reach=2.6)
        more: dict[str, Any] = {"prepare": _set_memory(directions=list(along))} if sigma else {}
        yield LawCheck(
            sampler, "SAM law of correlated tensors", quadratic(a, kT, split=(1, 1)), moments,
            {"lr": lr, "rho": rho} | ({"sigma": sigma} if sigma else {}), burn_in=400, factors=factors, **more,
        )  # fmt: skip


def minibatch_checks() -> Iterator[LawCheck]:
    """Laws 3 and 10: real minibatches, prior, N and T through `Potential`; heating as predicted, or none."""
    shape: dict[str, Any] = {"batch_size": 5, "temperature": 2.0}
    target = GaussianMean(**shape, chains=1)
    a, kT, v = np.array([[target.curvature]]), target.kT, target.gradient_variance
    described = "minibatch Gaussian mean, T = 2"

    def check(sampler: type[samplers.Sampler], variance: float, **settings: Any) -> LawCheck:
        return LawCheck(
            sampler, described, lambda k: GaussianMean(**shape, chains=k), covariance(np.array([[variance]])), settings
        )

    yield check(samplers.SGLD, target.sgld_variance(0.05), lr=0.05)
    yield check(samplers.SGHMC, float(linear.sghmc_covariance(a, 0.01, kT, 0.8, v)[0, 0]), lr=0.01, momentum=0.8)
    yield check(samplers.SGLRW, kT / target.curvature, lr=0.02)
    yield LawCheck(
        samplers.SGLD, described, lambda k: GaussianMean(**shape, chains=k),
        covariance(linear.sgld_covariance(a, 0.2, kT)), {"lr": 0.2, "control_variates": True}, prepare=_anchor,
    )  # fmt: skip


def _anchor(sampler: samplers.Sampler, target: GaussianMean) -> None:
    """Anchor the control variates a standard deviation from the mean, where the gradient of all data is not zero."""
    with torch.no_grad():
        target.tensors[0].add_((target.kT / target.curvature) ** 0.5)
    sampler.anchor(target.full)  # type: ignore[attr-defined]


def sam_checks() -> Iterator[LawCheck]:
    """Laws 4 and 5: the sharpness-aware law on a line, and of the radius with θ spread over several tensors."""
    a, kT, lr, rho = 2.0, 0.5, 0.05, 0.4
    line = moments_on_line(lambda t: a * (t + rho * np.sign(t)), lr, kT, reach=4.5)
    radius = moments_of_radius(lambda r: a * (r + rho), 6, lr, kT, reach=5.0)
    ball = quadratic(a * np.eye(6), kT, split=(1, 2, 3))
    settings = {"lr": lr, "rho": rho}
    for sampler, more in ((samplers.SAMSGLD, {}), (samplers.SAMSGLDR1, {"sigma": 0.0})):
        yield LawCheck(sampler, "SAM law on a line", quadratic(a * np.eye(1), kT), line, settings | more)
        yield LawCheck(sampler, "SAM law of the radius", ball, radius, settings | more)


def thermostat_checks() -> Iterator[LawCheck]:
    """SGNHT under gradient noise of unknown size: its friction rises to what the noise calls for."""
    a, kT, momentum = 1.0, 0.5, 0.8
    ball = a * np.eye(50)
    lr, sd = 0.02, 2.0
    (variance,) = linear.sgnht_variances(a, np.array([lr]), kT, momentum, sd**2)
    yield LawCheck(
        samplers.SGNHT, "noisy gradients, 50 dimensions", quadratic(ball, kT, gradient_sd=sd),
        {"cov 00": variance, "mean r²": 50 * variance}, {"lr": lr, "momentum": momentum}, burn_in=800,
    )  # fmt: skip
    factors = (1.0, 0.25)
    fast, slow = linear.sgnht_variances(a, 0.1 * np.array(factors), kT, momentum)
    yield LawCheck(
        samplers.SGNHT, "two tensors, 50 dimensions", quadratic(ball, kT, split=(25, 25)),
        {"cov 00": fast, "cov 4949": slow, "mean r²": 25 * (fast + slow)}, {"lr": 0.1, "momentum": momentum},
        burn_in=800, factors=factors,
    )  # fmt: skip
    yield LawCheck(  # no closed form where tensors correlate: at a small step it is the posterior
        samplers.SGNHT, "correlated tensors", quadratic(CORRELATED, kT, split=(1, 1)),
        covariance(kT * np.linalg.inv(CORRELATED)), {"lr": 0.01, "momentum": momentum}, burn_in=800, factors=factors,
    )  # fmt: skip


def all_checks() -> list[LawCheck]:
    """Every sampler against every law that it has."""
    return [*linear_checks(), *grouped_checks(), *minibatch_checks(), *sam_checks(), *thermostat_checks()]
