"""The thermometer: what it reads on targets of known temperature, and that it goes red for what a run may do wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from bayeslora.diagnostics.measured_temperature import ALL, readings, temperatures
from bayeslora.diagnostics.values import MeasuredTemperature
from bayeslora.evaluation.criteria import judge
from bayeslora.evaluation.results import Diagnostics, Results
from bayeslora.laws import Quadratic, linear, one_stream
from bayeslora.potential import Potential, Prior
from bayeslora.samplers import BAOAB, FSGLD, SAMSGLD, SAMSGLDR1, SGHMC, SGLD, SGNHT, EntropyMCMC, Sampler
from bayeslora.settings import Criteria
from tests.cases import each

Batch = Callable[[int], Tensor]
"""The examples of every chain at a step, [K, B]."""


# What it reads


class Regression:
    """Linear regression with D = 8, N = 500, curvatures from 0.05 to 1, and K stacked chains."""

    num_data, batch_size = 500, 25

    def __init__(self, chains: int) -> None:
        source = torch.Generator().manual_seed(0)
        orthogonal = torch.linalg.qr(torch.randn(self.num_data, 8, generator=source, dtype=torch.float64))[0]
        root = torch.linspace(0.22, 1, 8, dtype=torch.float64)
        self.curvature = root**2
        self.x = orthogonal * root * self.num_data**0.5
        noise = torch.randn(self.num_data, generator=source, dtype=torch.float64)
        self.y = noise - orthogonal @ (orthogonal.T @ noise)  # so that the least squares solution is θ = 0
        self.y /= self.y.std(correction=0)
        self.theta = torch.nn.Parameter(torch.zeros(chains, 8, dtype=torch.float64))
        self.source = source

    @property
    def kT(self) -> float:
        return 1 / self.num_data

    @property
    def gradient_noise(self) -> np.ndarray:
        """Covariance of the gradient on a batch drawn with replacement, at θ = 0."""
        own = self.x * self.y[:, None]
        return (own.T @ own / self.num_data / self.batch_size).numpy()

    def potential(self, batch: Tensor) -> Tensor:
        """Ũ [K] on a batch, with its graph."""
        x, y = self.x[batch], self.y[batch]
        return 0.5 * (y - (x @ self.theta[:, :, None])[..., 0]).square().mean(-1)

    def independent(self, step: int) -> Tensor:
        """Examples drawn with replacement."""
        return torch.randint(self.num_data, (len(self.theta), self.batch_size), generator=self.source)

    def reshuffled(self, step: int) -> Tensor:
        """The next examples of an epoch that is reshuffled when it ends."""
        at = step % (self.num_data // self.batch_size)
        if at == 0:
            self.order = torch.rand(len(self.theta), self.num_data, generator=self.source).argsort(1)
        return self.order[:, at * self.batch_size : (at + 1) * self.batch_size]


def closure_of(potential: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        value = potential()
        value.sum().backward()
        return value

    return closure


@torch.no_grad()
def reading(sampler: Sampler, potential: Callable[[], Tensor], step: int, kT: float) -> Tensor:
    """⟨θ, g⟩/(D·kT) of each chain, with the sampler's own force."""

    def evaluate() -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            value = potential()
            return value.detach(), list(torch.autograd.grad(value.sum(), sampler.theta))

    (theta,), (force,) = sampler.theta, sampler.force(evaluate, step)
    return readings({"theta": theta}, {"theta": force}, {"theta": theta.shape[1]}, kT, chain_axes=1)[ALL]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Over independent chains."""
    return values.mean().item(), values.std().item() / len(values) ** 0.5


ROWS: dict[str, tuple[type[Sampler], dict[str, float], str, float]] = {
    "SGLD, independent": (SGLD, {"lr": 0.1}, "independent", 1.498),
    "SGLD, reshuffled": (SGLD, {"lr": 0.1}, "reshuffled", 1.182),
    "SGHMC, independent": (SGHMC, {"lr": 0.01, "momentum": 0.9}, "independent", 1.466),
    "SGHMC, reshuffled": (SGHMC, {"lr": 0.01, "momentum": 0.9}, "reshuffled", 1.065),
}
"""Sampler, settings (the largest curvature is 1), batches, and what law 11 of the specification measured."""


@pytest.mark.parametrize("row", ROWS)
def test_it_reads_the_temperature_at_which_a_linear_regression_is_sampled(row: str) -> None:
    kind, settings, batches, known = ROWS[row]
    target = Regression(chains=300)
    sampler = one_stream(kind)([target.theta], kT=target.kT, seed=3, chain=range(300), **settings)
    batch_of: Batch = getattr(target, batches)
    readings_, own, sampled = [], [], []
    for step in range(1600):
        batch = batch_of(step)
        if step >= 400 and step % 5 == 0:
            state = target.theta.detach()
            sampled.append((state.square() * target.curvature).mean(1) / target.kT)
            fresh = target.independent(step)
            readings_.append(reading(sampler, lambda fresh=fresh: target.potential(fresh), step, target.kT))
            own.append(reading(sampler, lambda batch=batch: target.potential(batch), step, target.kT))
        sampler.step(closure_of(lambda batch=batch: target.potential(batch)))
    read, error = mean_and_error(torch.stack(readings_).mean(0))
    true, _ = mean_and_error(torch.stack(sampled).mean(0))
    difference = mean_and_error((torch.stack(readings_) - torch.stack(sampled)).mean(0))
    assert abs(difference[0]) < 4 * difference[1], (row, read, true)
    assert error < 0.012
    assert abs(read - known) < 3 * np.hypot(error, 0.006)
    if batches == "independent":
        a = np.diag(target.curvature.numpy())
        law = {SGLD: linear.sgld_covariance, SGHMC: linear.sghmc_covariance}[kind]
        covariance = law(a, kT=target.kT, v=target.gradient_noise, **settings)
        assert abs(read - np.trace(a @ covariance) / 8 / target.kT) < 4 * error + 0.02  # noise grows a little with θ
    else:
        # the step's own batch will not do: θ knows which examples are still to come
        mean, se = mean_and_error((torch.stack(own) - torch.stack(sampled)).mean(0))
        assert mean > 10 * se


def quadratic(kind: type[Sampler], steps: int, curvature: float, **settings: float) -> tuple[Sampler, Tensor, Tensor]:
    """A sampler on ½a‖θ‖² in 6 dimensions at kT = 1, with readings and ⟨g, G g⟩/D of each of 1,000 chains, [K].

    G is the rule's preconditioner in units of ε: (I + σûûᵀ)² of a rank-one rule, else I.
    """
    target = Quadratic(curvature * torch.eye(6, dtype=torch.float64), chains=1000)
    (theta,) = target.tensors
    sampler = one_stream(kind)([theta], kT=1.0, seed=4, chain=range(1000), **settings)
    values, squares = torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)

    def evaluate() -> tuple[Tensor, list[Tensor]]:
        return theta.detach().square().sum(1), [curvature * theta.detach()]

    for step in range(2 * steps):
        if step == steps:
            sampler.freeze()
        if step >= steps:
            with torch.no_grad():
                (force,) = sampler.force(evaluate, step)
            values += readings({"θ": theta}, {"θ": force}, {"θ": 6}, 1.0, chain_axes=1)[ALL] / steps
            squares += force.square().mean(1) / steps
            if kind is SAMSGLDR1:
                along = torch.nn.functional.normalize(sampler.memory["directions"], dim=1)
                more = 2 * settings["sigma"] + settings["sigma"] ** 2
                squares += more * (force * along).sum(1).square() / 6 / steps
        sampler.step(target.minibatch())
    return sampler, values, squares


@each(
    ("kind", "settings"),
    [
        (SGLD, {}),
        (SAMSGLD, {"rho": 0.5}),
        (FSGLD, {"sigma": 0.5}),
        (SAMSGLDR1, {"rho": 0.5, "sigma": 0.7}),
    ],
)
def test_the_samplers_own_force_balances_its_noise(kind: type[Sampler], settings: dict[str, float]) -> None:
    lr = 0.1
    _, values, squares = quadratic(kind, 400, 1.0, lr=lr, **settings)
    # a stationary E⟨θ, G⁻¹θ⟩ of θ ← θ − εGg + √(2ε·kT) G^½ ξ: E⟨θ, g⟩ = D·kT + ½ε E⟨g, Gg⟩, exactly at every ε
    mean, error = mean_and_error(values - lr / 2 * squares)
    assert abs(mean - 1) < 4 * error
    assert error < 0.005


def test_entropy_mcmc_is_read_by_the_force_on_its_draws_without_the_guides_pull() -> None:
    lr, eta = 0.1, 0.4
    _, values, _ = quadratic(EntropyMCMC, 400, 1.0, lr=lr, eta=eta)
    joint = np.array([[1 + 1 / eta, -1 / eta], [-1 / eta, 1 / eta]])
    law = solve_discrete_lyapunov(np.eye(2) - lr * joint, 2 * lr * np.eye(2))  # of (θ, guide)
    own, pull = law[0, 0], (law[0, 0] - law[0, 1]) / eta
    mean, error = mean_and_error(values)
    assert abs(mean - own) < 4 * error
    assert abs(pull) > 10 * error


def test_momenta_read_the_temperature_too() -> None:
    lr, mu = 0.1, 0.8
    euler = np.array([[1 - lr, lr**0.5 * mu], [-(lr**0.5), mu]])
    enter = np.array([[lr**0.5], [1.0]])
    law = {
        SGHMC: solve_discrete_lyapunov(euler, enter @ enter.T * 2 * (1 - mu))[1, 1] / (2 / (1 + mu)),
        BAOAB: 1.0,
        SGNHT: 1.0,
    }
    for kind, expected in law.items():
        sampler, *_ = quadratic(kind, 100, 1.0, lr=lr, momentum=mu)
        (p,) = sampler.standard_momentum() or [None]
        mean, error = mean_and_error(readings({"p": p}, {"p": p}, {"p": 6}, 1.0, chain_axes=1)[ALL])
        assert abs(mean - expected) < 4 * error, kind
        assert error < 0.025


# What a run may do wrong

CHAINS, DRAWS, SIZES = 4, 60, {"body.weight": 90, "head.weight": 24, "noise": 2}


class Means:
    """The means of D = 116 columns of N = 50 Gaussian observations: runs of four stacked chains each, side by side."""

    num_data, batch_size, curvature = 50, 10, 1.5  # of which the prior's is 0.5

    def __init__(self, runs: int) -> None:
        self.source = torch.Generator().manual_seed(1)
        self.data = 0.7 + torch.randn(self.num_data, sum(SIZES.values()), generator=self.source, dtype=torch.float64)
        self.potential = Potential(Prior(0.04), self.num_data)
        mode = (self.data.mean(0) / self.curvature).expand(runs * CHAINS, -1)
        self.params = {
            name: torch.nn.Parameter(part.clone())
            for name, part in zip(SIZES, mode.split([*SIZES.values()], dim=1), strict=True)
        }

    def mean_of_batch(self, full: bool) -> Tensor:
        """Of the data, or of a batch of each chain's own, drawn with replacement: [K, D]."""
        if full:
            return self.data.mean(0)
        chains = len(self.params["noise"])
        return self.data[torch.randint(self.num_data, (chains, self.batch_size), generator=self.source)].mean(1)

    def energy(self, mean: Tensor, prior: bool = True) -> Tensor:
        """Ũ [K] up to a constant, with its graph."""
        theta = torch.cat([*self.params.values()], dim=1)
        nll = 0.5 * (theta - mean).square().sum(1, keepdim=True)
        return self.potential(nll, self.params) if prior else nll.mean(-1)


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a run, and what its temperature is then, if there is one."""

    ratio: float | None = None
    kT: float = 1.0  # over the right one
    prior: bool = True
    full: bool = True
    lr: float = 0.3
    burn_in: int = 20
    thin: int = 4
    integrator: str = "leimkuhler_matthews"


WRONG = {
    "noise × 1.05": Wrong(1.05**2, kT=1.05**2),
    "the prior dropped": Wrong(1.5, prior=False),
    "the batch in place of N": Wrong(5.0, kT=5.0),
    "unfinished burn-in": Wrong(lr=0.003, burn_in=0, thin=1),
    "a step that heats by 10 %": Wrong(1.1, full=False, lr=0.0301, burn_in=150, thin=20, integrator="euler"),
}


def measured(wrong: Wrong, runs: int) -> list[dict[str, MeasuredTemperature]]:
    """The temperatures of so many runs of four chains."""
    target, chains = Means(runs), runs * CHAINS
    kT = 1 / target.num_data
    settings = {"lr": wrong.lr, "integrator": wrong.integrator}
    sampler = one_stream(SGLD)([*target.params.values()], kT=wrong.kT * kT, seed=2, chain=range(chains), **settings)
    states, forces = [], []
    for step in range(1, wrong.burn_in + wrong.thin * DRAWS + 1):
        mean = target.mean_of_batch(wrong.full)
        sampler.step(closure_of(lambda mean=mean: target.energy(mean, wrong.prior)))
        if step > wrong.burn_in and (step - wrong.burn_in) % wrong.thin == 0:
            states.append({name: p.detach().clone() for name, p in target.params.items()})
            fresh = target.energy(target.mean_of_batch(full=False)).sum()
            forces.append(dict(zip(target.params, torch.autograd.grad(fresh, sampler.theta), strict=True)))
    center = {}
    for name in SIZES:
        own = torch.stack([state[name] for state in states]).mean(0).unflatten(0, (runs, CHAINS))
        center[name] = ((own.sum(1, keepdim=True) - own) / (CHAINS - 1)).flatten(0, 1)
    about = [readings(*pair, SIZES, kT, 1, center) for pair in zip(states, forces, strict=True)]
    zero = [readings(*pair, SIZES, kT, 1) for pair in zip(states, forces, strict=True)]
    blocks = {"body": 90, "head": 24, "noise": 2, ALL: 116}

    def of(rows: list[dict[str, Tensor]], run: int) -> dict[str, list[np.ndarray]]:
        here = slice(run * CHAINS, (run + 1) * CHAINS)
        return {block: list(torch.stack([row[block][here] for row in rows], dim=1).numpy()) for block in blocks}

    return [temperatures(of(about, run), blocks, at_zero=of(zero, run)) for run in range(runs)]


def passes(found: dict[str, MeasuredTemperature]) -> bool:
    """Whether the criterion is met."""
    return judge(Results(diagnostics=Diagnostics(temperature=found)), Criteria())["temperature"].passed


def test_a_right_run_passes_in_95_percent_of_seeds_and_pools_what_is_small() -> None:
    runs = measured(Wrong(), 40)
    assert sum(map(passes, runs)) >= 0.95 * len(runs)
    for found in runs:
        assert found["noise"].status == "pooled"
        assert "noise" in str(found["pooled"].reason)
    shown = [found["body"].status == found[ALL].status == "measured" for found in runs]
    assert sum(shown) >= 0.95 * len(runs)
    ratios, errors = (np.array([getattr(found[ALL], key) for found in runs]) for key in ("ratio", "se"))
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / len(runs) ** 0.5
    assert errors.mean() == pytest.approx(ratios.std(), rel=0.4)  # 40 runs know their spread to 11 %


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_run_goes_red(what: str) -> None:
    runs = measured(WRONG[what], 12)
    assert not any(map(passes, runs))
    if WRONG[what].ratio is not None:
        ratios = np.array([found[ALL].ratio for found in runs])
        assert abs(ratios.mean() - WRONG[what].ratio) < 4 * ratios.std(ddof=1) / len(runs) ** 0.5
