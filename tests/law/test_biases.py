"""Samplers that are biased by design: the bias on the reference target is the one that their docstring states."""

from __future__ import annotations

import inspect

import numpy as np
import torch

from bayeslora import samplers
from bayeslora.laws import GaussianMean, Quadratic, one_stream, simulate
from tests.cases import each

CORRELATED = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def reference() -> GaussianMean:
    return GaussianMean()


def correlated() -> Quadratic:
    return Quadratic(CORRELATED, 0.5)


def posterior_variance(target: GaussianMean | Quadratic) -> float:
    if isinstance(target, GaussianMean):
        return target.kT / target.curvature
    return target.kT * float(torch.linalg.inv(target.precision)[0, 0])


def variance_ratio(sampler_class, target, **settings) -> tuple[float, float]:
    """Sampled over posterior variance of the first coordinate, and its standard error."""
    sampler = one_stream(sampler_class)(target.tensors, kT=target.kT, seed=1, chain=range(target.chains), **settings)
    averages = simulate(
        sampler,
        target,
        lambda: {"variance": (target.state[:, 0] - target.mean) ** 2},
        burn_in=int(20 / settings["lr"]),
        steps=600,
    )
    values = averages["variance"] / posterior_variance(target)
    return values.mean().item(), values.std().item() / len(values) ** 0.5


STATED = [
    (samplers.ASGLD, reference, {"lr": 0.05, "a": 1.0}, "0.73"),
    (samplers.ASGLD, reference, {"lr": 0.01, "a": 1.0}, "0.23"),
    (samplers.PSGLD, reference, {"lr": 0.05, "preconditioner": "adaptive"}, "1.24"),
    (samplers.PSGLD, reference, {"lr": 0.01, "preconditioner": "adaptive", "alpha": 0.9}, "1.43"),
    (samplers.SAMSGLDR1, correlated, {"lr": 0.05, "rho": 0.0, "direction": "adaptive", "drift": "plain"}, "2.48"),
    (samplers.SAMSGLDR1, correlated, {"lr": 0.05, "rho": 0.0, "direction": "adaptive"}, "0.72"),
    (samplers.SAMSGLD, reference, {"lr": 0.05, "rho": 0.1}, "0.57"),
    (samplers.SAMSGLD, lambda: GaussianMean(batch_size=25), {"lr": 0.05, "rho": 0.1}, "0.78"),
    (samplers.SAMSGLD, lambda: GaussianMean(batch_size=5), {"lr": 0.05, "rho": 0.1}, "1.14"),
]


def label(value) -> str:
    return getattr(value, "__name__", str(value))


@each(("sampler_class", "make_target", "settings", "stated"), STATED)
def test_bias_is_as_the_docstring_says(sampler_class, make_target, settings, stated):
    assert stated in inspect.getdoc(sampler_class)
    ratio, error = variance_ratio(sampler_class, make_target(), **settings)
    assert abs(ratio - float(stated)) < 0.005 + 4 * error  # the docstring is rounded to two digits
    assert abs(ratio - 1) > 8 * error  # and it is a bias, not chance


def test_the_predecessors_rank_one_rule_has_1_plus_sigma_squared_too_much_variance_along_a_fixed_direction():
    """Drift plain, û fixed along an eigenvector: variance along it is (1 + σ)² times SGLD's, exactly."""
    target = Quadratic(torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)), 0.5)
    sampler = one_stream(samplers.SAMSGLDR1)(
        target.tensors, lr=0.05, kT=0.5, seed=1, chain=range(target.chains), rho=0.0, sigma=1.0, drift="plain"
    )
    sampler.memory["directions"] = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(target.chains, -1).clone()
    sampler.freeze()
    averages = simulate(
        sampler, target, lambda: {"along": target.state[:, 0] ** 2, "across": target.state[:, 1] ** 2},
        burn_in=200, steps=400,
    )  # fmt: skip
    for name, expected in (("along", 4 * 0.25 / (1 - 0.05)), ("across", 0.5 / (1 - 0.025))):
        values = averages[name].numpy()
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(values))


def test_asgld_with_a_zero_is_sgld_bit_for_bit():
    states = []
    for sampler_class, settings in ((samplers.SGLD, {}), (samplers.ASGLD, {"a": 0.0})):
        target = Quadratic(CORRELATED, 0.5, chains=5)
        sampler = sampler_class(target.tensors, lr=0.05, kT=0.5, seed=1, chain=range(5), **settings)
        for _ in range(30):
            sampler.step(target.minibatch())
        states.append(target.state)
    assert torch.equal(*states)
