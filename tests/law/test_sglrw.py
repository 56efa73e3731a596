"""The lattice random walk: its variances under minibatch noise that heats SGLD, and what clipping does to them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from bayeslora.laws import Moment, Quadratic, compare_moments, one_stream, simulate
from bayeslora.laws import linear as laws
from bayeslora.laws.checks import covariance
from bayeslora.laws.regression_posteriors import LinearRegression, LogisticRegression
from bayeslora.samplers import SGLD, SGLRW, Sampler
from tests.cases import each

CORRELATED = np.array([[2.0, 0.8], [0.8, 1.0]])


@pytest.fixture(autouse=True)
def _clipping_may_warn():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SGLRW clips")
        yield


def sample(sampler_class, target, lr: float, observe, *, burn_in: int, steps: int) -> tuple[Sampler, dict[str, Tensor]]:
    """Time averages [K] of observables of the stacked chains, and the sampler."""
    sampler = one_stream(sampler_class)(target.tensors, lr=lr, kT=target.kT, seed=1, chain=range(target.chains))
    return sampler, simulate(sampler, target, observe, burn_in=burn_in, steps=steps)


def start_at_posterior(target) -> tuple[Tensor, Tensor]:
    """Put the chains at draws of the posterior's mean and sds, which are returned."""
    mean, sd = (torch.from_numpy(v) for v in target.posterior())
    start = torch.randn(target.state.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with torch.no_grad():
        target.tensors[0].copy_(mean + sd * start)
    return mean, sd


def second_moments(target, mean: Tensor):
    """Observer of θᵢ − μᵢ and of (θᵢ − μᵢ)(θⱼ − μⱼ), named as `covariance` names them."""
    d = target.state.shape[1]

    def observe() -> dict[str, Tensor]:
        x = target.state - mean
        out = {f"mean {i}": x[:, i] for i in range(d)}
        return out | {f"cov {i}{j}": x[:, i] * x[:, j] for i in range(d) for j in range(i, d)}

    return observe


def red(moments: list[Moment]) -> bool:
    return any(not moment.agrees for moment in moments)


# -- a correlated Gaussian with gradient noise ---------------------------------------------------------------------


def noisy_gaussian(sampler_class, lr: float, v: float) -> list[Moment]:
    """Moments beside the exact law of the lattice walk, whose variances are nearly the target's own."""
    target = Quadratic(torch.from_numpy(CORRELATED), 0.5, 4096, gradient_sd=v**0.5)
    _, averages = sample(
        sampler_class, target, lr, second_moments(target, torch.zeros(2, dtype=torch.float64)), burn_in=300, steps=400
    )
    return compare_moments(averages, covariance(laws.sglrw_covariance(CORRELATED, lr, 0.5, v)))


def heat(matrix: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Excess of the variances over the target's."""
    return np.diag(matrix) / np.diag(exact) - 1


HOT = [(0.02, 3.0), (0.04, 2.0)]


@each(("lr", "v"), HOT)
def test_variances_of_a_correlated_gaussian_are_exact_where_sgld_is_hot(lr, v):
    exact = 0.5 * np.linalg.inv(CORRELATED)
    sgld = heat(laws.sgld_covariance(CORRELATED, lr, 0.5, v), exact)
    assert sgld.min() > 0.05
    assert sgld.max() < 0.30
    assert np.abs(heat(laws.sglrw_covariance(CORRELATED, lr, 0.5, v), exact)).max() < 0.1 * sgld.min()
    for moment in noisy_gaussian(SGLRW, lr, v):
        assert moment.agrees, moment


@each(("lr", "v"), HOT)
def test_sgld_fails_the_same_assertions(lr, v):
    assert red(noisy_gaussian(SGLD, lr, v))


# -- minibatch linear regression -----------------------------------------------------------------------------------


def law_of_minibatches(target: LinearRegression, lr: float, *, lattice: bool) -> np.ndarray:
    """Exact stationary covariance, every one of the N equally likely minibatches (A_B, b_B) enumerated.

    Σ = Σ − ε(AΣ + ΣA) + 2ε·kT·I + ε²(E[A_B Σ A_B] + E[b_B b_Bᵀ]), b_B the gradient at the mean; a lattice walk
    replaces the last term's diagonal by nothing, its squared step being 2ε·kT already.
    """
    d, size = target.dim, target.batch_size
    sums = (target._sums[size:] - target._sums[:-size]).numpy() / size  # the minibatches starting at 0 … N − 1
    a = sums[:, :d, :d] + np.eye(d) / (target.prior_variance * target.num_data)
    b = a @ target.posterior()[0] - sums[:, :d, d]
    mask = (1 - np.eye(d) if lattice else np.ones((d, d))).ravel()
    mean_a, eye = a.mean(0), np.eye(d)
    squared = np.einsum("nij,nkl->ikjl", a, a).reshape(d * d, d * d) / len(a)
    system = lr * (np.kron(mean_a, eye) + np.kron(eye, mean_a)) - lr**2 * mask[:, None] * squared
    right = 2 * lr * target.kT * eye.ravel() + lr**2 * mask * (b.T @ b / len(b)).ravel()
    return np.linalg.solve(system, right).reshape(d, d)


def regression(sampler_class, lr: float, expected: np.ndarray) -> tuple[list[Moment], Tensor]:
    """Moments beside the expected covariance, and the share of gradients beyond the clipping limit [D]."""
    target = LinearRegression(chains=1024)
    mean, _ = start_at_posterior(target)
    limit, moments = (2 * target.kT / lr) ** 0.5, second_moments(target, mean)

    def observe() -> dict[str, Tensor]:
        return moments() | {"clipped": (target.tensors[0].grad.abs() > limit).double()}

    _, averages = sample(sampler_class, target, lr, observe, burn_in=int(6 / lr), steps=int(12 / lr))
    return compare_moments(averages, covariance(expected)), averages["clipped"].mean(0)


MILD, STRONG = 0.02, 0.03


def test_variances_of_a_minibatch_regression_are_exact_where_sgld_is_hot():
    """Every moment has the exact law of the walk, whose variances are within 1 % of the posterior's."""
    target = LinearRegression(chains=1)
    law, sgld = (law_of_minibatches(target, MILD, lattice=lattice) for lattice in (True, False))
    exact = np.diag(target.posterior()[1] ** 2)
    assert heat(sgld, exact).min() > 0.05
    assert heat(sgld, exact).max() > 0.15
    assert np.abs(heat(law, exact)).max() < 0.01
    for moment in regression(SGLRW, MILD, law)[0]:
        assert moment.agrees, moment


def test_where_sgld_is_a_quarter_too_hot_the_walk_errs_by_what_it_clips():
    target = LinearRegression(chains=1)
    law, sgld = (law_of_minibatches(target, STRONG, lattice=lattice) for lattice in (True, False))
    exact = np.diag(target.posterior()[1] ** 2)
    moments, clipped = regression(SGLRW, STRONG, law)
    variances = [m for m in moments if m.name in {f"cov {i}{i}" for i in range(10)}]
    for moment, share in zip(variances, clipped.tolist(), strict=True):
        limit = 0.01 + 4 * moment.standard_error / moment.expected
        assert abs(moment.sampled * (1 - share) / moment.expected - 1) < limit, (moment, share)
    assert heat(sgld, exact).max() > 0.24
    assert 0.02 < clipped.max() < 0.1


def test_sgld_fails_the_same_assertions_on_the_regression_and_has_its_own_law():
    target = LinearRegression(chains=1)
    assert red(regression(SGLD, MILD, law_of_minibatches(target, MILD, lattice=True))[0])
    assert not red(regression(SGLD, MILD, law_of_minibatches(target, MILD, lattice=False))[0])


# -- minibatch logistic regression ---------------------------------------------------------------------------------


def logistic(chains: int = 1) -> LogisticRegression:
    return LogisticRegression(num_data=100, dim=2, batch_size=20, chains=chains)


def law_on_the_lattice(target: LogisticRegression, lr: float) -> dict[str, float]:
    """Exact moments about the posterior's mean, in posterior sds, and the clipped share, by the walk's own chain.

    The walk moves on a square lattice of spacing δ, so its law is that of a finite Markov chain: P(s₁, s₂) of a move
    is the mean over the N minibatches of ½(1 − s₁t₁)·½(1 − s₂t₂), t the clipped tilts. Where the lattice lies does not
    matter (its effect is exponentially small in sd/δ).
    """
    mean, sd = target.posterior()
    delta = (2 * lr * target.kT) ** 0.5
    reach = int(np.ceil(7 * sd.max() / delta))
    axis = delta * np.arange(-reach, reach + 1)
    offset = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    theta, x, y = mean + offset, target.x.numpy(), target.y.numpy()
    residual = 1 / (1 + np.exp(-theta @ x.T)) - y
    window = sum(np.roll(np.eye(target.num_data), k, axis=0) for k in range(target.batch_size)) / target.batch_size
    raw = np.stack([(residual * x[:, i]) @ window for i in (0, 1)], -1) + theta[:, None] / (
        target.num_data * target.prior_variance
    )
    tilt = raw * lr / delta
    clipped = (np.abs(tilt) > 1).mean((1, 2))
    tilt = tilt.clip(-1, 1)
    moves = {
        (s, r): (0.25 * (1 - s * tilt[..., 0]) * (1 - r * tilt[..., 1])).mean(1).reshape(len(axis), -1)
        for s in (-1, 1)
        for r in (-1, 1)
    }
    law = np.exp(-0.5 * ((offset / sd) ** 2).sum(1)).reshape(len(axis), -1)
    law /= law.sum()
    for _ in range(400):
        law = sum(np.roll(law * p, step, axis=(0, 1)) for step, p in moves.items())
    weight, z = law.ravel(), offset / sd
    moments = {f"mean {i}": float(weight @ z[:, i]) for i in (0, 1)}
    moments |= {f"cov {i}{j}": float(weight @ (z[:, i] * z[:, j])) for i, j in ((0, 0), (0, 1), (1, 1))}
    return moments | {"clipped": float(weight @ clipped)}


def logistic_moments(sampler_class, lr: float, expected: dict[str, float]) -> list[Moment]:
    """Moments in posterior sds, and the clipped share counted from the gradients, beside the lattice's law."""
    target = logistic(chains=2048)
    mean, sd = start_at_posterior(target)
    limit = (2 * target.kT / lr) ** 0.5

    def observe() -> dict[str, Tensor]:
        z = (target.state - mean) / sd
        out = {f"mean {i}": z[:, i] for i in (0, 1)}
        out |= {f"cov {i}{j}": z[:, i] * z[:, j] for i, j in ((0, 0), (0, 1), (1, 1))}
        return out | {"clipped": (target.tensors[0].grad.abs() > limit).double().mean(1)}

    _, averages = sample(sampler_class, target, lr, observe, burn_in=300, steps=400)
    return compare_moments(averages, expected)


STATED_BIAS = 0.01
"""Of the walk's variances on the logistic target at ε = 0.3 (discretisation, as the target is no quadratic)."""


@each("lr", [0.8, 2.0])
def test_minibatch_logistic_regression_has_the_exact_law_of_the_lattice(lr):
    """With half a percent and with 7 % clipped: the walk's law, clipping and share included, is the Markov chain's."""
    expected = law_on_the_lattice(logistic(), lr)
    for moment in logistic_moments(SGLRW, lr, expected):
        assert moment.agrees, moment


def test_minibatch_logistic_variances_are_the_posteriors_where_sgld_is_hot():
    """Against quadrature: the walk's bias is under what is stated, SGLD's is 5 to 30 %."""
    lr = 0.3
    quadrature = {"cov 00": 1.0, "cov 11": 1.0}
    assert max(abs(law_on_the_lattice(logistic(), lr)[name] - 1) for name in quadrature) < STATED_BIAS
    for moment in logistic_moments(SGLRW, lr, quadrature):
        assert abs(moment.sampled - 1) < STATED_BIAS + 4 * moment.standard_error, moment
    for moment in logistic_moments(SGLD, lr, quadrature):
        assert moment.sampled - 1 > STATED_BIAS + 4 * moment.standard_error, moment
        assert 0.05 < moment.sampled - 1 < 0.30


# -- clipping ------------------------------------------------------------------------------------------------------


def one_dimension(lr: float, v: float) -> tuple[Moment, float, float]:
    """Variance (as a multiple of kT/a) beside what clipping makes of it, SGLD's, and the clipped share."""
    a, kT = 1.0, 0.5
    target = Quadratic(torch.eye(1, dtype=torch.float64) * a, kT, 8192, gradient_sd=v**0.5)
    limit = (2 * kT / lr) ** 0.5

    def observe() -> dict[str, Tensor]:
        return {
            "variance": target.state[:, 0] ** 2 * a / kT,
            "clipped": (target.tensors[0].grad[:, 0].abs() > limit).double(),
        }

    _, averages = sample(SGLRW, target, lr, observe, burn_in=150, steps=300)
    clipped = averages["clipped"].mean().item()
    (moment,) = compare_moments(averages, {"variance": 1 / (1 - clipped)})
    return moment, float(laws.sgld_covariance(np.array([[a]]), lr, kT, v)[0, 0]) * a / kT, clipped


@each(("lr", "v"), [(0.05, 2.0), (0.1, 2.0), (0.1, 5.0)])
def test_each_percent_clipped_makes_the_variance_one_percent_too_large(lr, v):
    """E[θ·clip(g)] = Cov(θ, g)·P(not clipped) for Gaussian (θ, g) (Stein): the variance is kT/a/(1 − clipped)."""
    moment, sgld, clipped = one_dimension(lr, v)
    assert moment.agrees, moment
    assert 1 / (1 - clipped) - 1 < 0.5 * (sgld - 1)  # and so the walk errs by under half of what SGLD does


def run_quadratic(lr: float, gradient_sd: float, steps: int = 100) -> tuple[Sampler, float]:
    """The sampler after steps with noisy gradients, and the share of |g| > √(2kT/ε) at the steps that it counts."""
    target = Quadratic(torch.eye(5, dtype=torch.float64), 0.5, 64, gradient_sd=gradient_sd)
    sampler = SGLRW(target.tensors, lr=lr, kT=target.kT, seed=1, chain=range(64))
    shares = []
    for step in range(steps):
        sampler.step(target.minibatch())
        if step % SGLRW.EVERY == 0:
            shares.append((target.tensors[0].grad.abs() > (2 * 0.5 / lr) ** 0.5).double().mean().item())
    return sampler, sum(shares) / len(shares)


def test_the_warning_fires_when_over_one_percent_is_clipped_and_the_share_is_right():
    with pytest.warns(RuntimeWarning, match="SGLRW clips"):
        sampler, share = run_quadratic(lr=0.2, gradient_sd=2.0)
    assert share > 0.01
    assert sampler.diagnostics()["clipped"].mean().item() == pytest.approx(share, rel=1e-6)


def test_the_warning_keeps_quiet_when_little_is_clipped_and_the_share_is_right():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler, share = run_quadratic(lr=0.05, gradient_sd=1.5)
    assert 0 < share < 0.01
    assert sampler.diagnostics()["clipped"].mean().item() == pytest.approx(share, rel=1e-6)


def test_the_warning_is_not_repeated_while_the_share_has_not_doubled():
    with pytest.warns(RuntimeWarning) as warned:
        run_quadratic(lr=0.2, gradient_sd=2.0, steps=500)
    assert len([w for w in warned if "SGLRW clips" in str(w.message)]) == 1


def test_the_share_is_of_the_last_window_and_absent_before_the_first():
    sampler, _ = run_quadratic(lr=0.05, gradient_sd=1.5, steps=99)
    assert sampler.diagnostics() == {}
    with pytest.warns(RuntimeWarning, match="SGLRW clips"):
        sampler, _ = run_quadratic(lr=0.2, gradient_sd=2.0, steps=150)
    first = sampler.diagnostics()["clipped"].mean().item()
    with pytest.warns(RuntimeWarning, match="SGLRW clips"):
        sampler, share = run_quadratic(lr=0.2, gradient_sd=2.0, steps=100)
    assert first == pytest.approx(share, rel=1e-6)
