"""Potential and prior against quantities worked out by hand in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from bayeslora.errors import ConfigError
from bayeslora.potential import Potential, Prior, categorical_nll, matches
from tests.cases import each


def params() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 2, 2, generator=source, dtype=torch.float64, requires_grad=True),
        "conv.bias": torch.randn(4, generator=source, dtype=torch.float64, requires_grad=True),
        "head.weight": torch.randn(2, 5, generator=source, dtype=torch.float64, requires_grad=True),
    }


def log_prior(theta: dict[str, torch.Tensor], variances: dict[str, float]) -> torch.Tensor:
    """Reference: the density of torch.distributions, less its value at zero."""
    total = torch.zeros((), dtype=torch.float64)
    for name, p in theta.items():
        density = Normal(torch.zeros((), dtype=torch.float64), math.sqrt(variances[name]))
        total = total + (density.log_prob(p) - density.log_prob(torch.zeros_like(p))).sum()
    return total


@each(
    ("prior", "variances"),
    [
        (Prior(0.2), {"conv.weight": 0.2, "conv.bias": 0.2, "head.weight": 0.2}),
        (Prior(2.0, "fan_in"), {"conv.weight": 2 / 12, "conv.bias": 2.0, "head.weight": 2 / 5}),
        (Prior(2.0, "fan_in", vectors=0.1), {"conv.weight": 2 / 12, "conv.bias": 0.1, "head.weight": 2 / 5}),
        (Prior(1.0, overrides={"head.*": 0.3}), {"conv.weight": 1.0, "conv.bias": 1.0, "head.weight": 0.3}),
    ],
)
def test_prior_energy_and_gradient_are_those_of_the_density(prior, variances):
    theta = params()
    torch.testing.assert_close(prior.energy(theta), -log_prior(theta, variances))
    ours = torch.autograd.grad(prior.energy(theta), list(theta.values()))
    reference = torch.autograd.grad(-log_prior(theta, variances), list(theta.values()))
    torch.testing.assert_close(ours, reference)


def test_minibatch_potentials_average_to_the_full_one():
    """Ũ over disjoint batches of equal size averages to U/N exactly: likelihood and prior each have their weight."""
    source = torch.Generator().manual_seed(1)
    theta = {"w": torch.randn(3, 7, generator=source, dtype=torch.float64)}
    x, y = torch.randn(60, 7, generator=source, dtype=torch.float64), torch.randint(3, (60,), generator=source)
    nll = -(x @ theta["w"].T).log_softmax(1)[torch.arange(60), y]
    potential = Potential(Prior(0.5), num_data=60)
    full = nll.sum() + 0.5 * (theta["w"] ** 2).sum() / 0.5
    batches = torch.stack([potential(part, theta) for part in nll.split(20)])
    torch.testing.assert_close(batches.mean() * 60, full)
    torch.testing.assert_close(potential.total(nll.mean(), theta), full)


def test_stacked_chains_have_their_own_potentials():
    source = torch.Generator().manual_seed(2)
    theta = {"w": torch.randn(4, 3, 5, generator=source), "b": torch.randn(4, 3, generator=source)}
    nll = torch.rand(4, 10, generator=source)
    potential = Potential(Prior(2.0, "fan_in"), num_data=10)
    alone = [potential(nll[k], {name: p[k] for name, p in theta.items()}) for k in range(4)]
    torch.testing.assert_close(potential(nll, theta), torch.stack(alone))


def test_temperature_enters_as_t_over_n():
    potential = Potential(Prior(), num_data=250)
    assert potential.kT(1.0) == 1 / 250
    assert potential.kT(0.0) == 0
    assert potential.kT(4.0) == 4 * potential.kT(1.0)


def test_half_precision_logits_give_a_float32_potential():
    logits = torch.randn(8, 10, dtype=torch.bfloat16)
    nll = categorical_nll(logits, torch.arange(8))
    assert nll.dtype == torch.float32
    assert Potential(Prior(), 8)(nll, {"w": torch.ones(2)}).dtype == torch.float32


@each(
    "build",
    [
        lambda: Prior(variance=0.0),
        lambda: Prior(variance=float("nan")),
        lambda: Prior(scaling="fan_out"),
        lambda: Prior(overrides={"w": -1.0}),
        lambda: Potential(Prior(), num_data=0),
        lambda: Potential(Prior(), 10).kT(-1.0),
        lambda: Potential(Prior(), 10).kT(float("inf")),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_all_problems_of_a_prior_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        Prior(variance=-1.0, scaling="fan_out", overrides={"w": 0.0})
    assert len(caught.value.problems) == 3


@each(
    ("pattern", "meant"),
    [("lora_A", True), ("query.lora_A", True), ("weight", True), ("*.weight", True), ("lora", False),
     ("A.weight", False), ("*lora*", True), ("query.weight", False), ("encoder.query.lora_A.weight", True)],
)  # fmt: skip
def test_a_pattern_means_whole_parts_of_a_name_or_has_wildcards(pattern: str, meant: bool):
    name = "encoder.query.lora_A.weight"
    assert matches(name, pattern) is meant
    variance = 1 / Prior(1.0, overrides={pattern: 4.0}).precision(name, torch.Size([2, 3]))
    assert variance == (4.0 if meant else 1.0)


def test_fan_in_keeps_activations_at_their_size_in_every_layer():
    """Inputs of variance 1 and weights drawn from the prior give outputs of variance 1, in any layout."""
    from transformers.pytorch_utils import Conv1D

    source, prior = torch.Generator().manual_seed(0), Prior(1.0, "fan_in")
    layers = [
        (torch.nn.Conv2d(6, 200, 4, bias=False), torch.randn(8, 6, 12, 12, generator=source)),
        (torch.nn.ConvTranspose2d(60, 8, 4, bias=False), torch.randn(40, 60, 12, 12, generator=source)),
        (
            torch.nn.ConvTranspose2d(60, 8, 4, stride=2, groups=4, bias=False),
            torch.randn(40, 60, 9, 9, generator=source),
        ),
        (Conv1D(800, 20), torch.randn(50, 20, generator=source)),
    ]
    for layer, inputs in layers:
        weight = layer.weight
        precision = prior.for_model(torch.nn.Sequential(layer)).precision("0.weight", weight.shape)
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=source) / precision**0.5)
            outputs = layer(inputs)
        inside = outputs[..., 4:-4, 4:-4] if outputs.ndim == 4 else outputs
        assert 0.8 < inside.square().mean() < 1.25, layer


def test_each_noise_parameter_has_the_curvature_of_a_mean_loss():
    from bayeslora.likelihood import Gaussian

    y = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def mean_nll(log_variance: torch.Tensor) -> torch.Tensor:
        outputs = torch.cat([torch.zeros_like(y), log_variance.expand_as(y)], dim=-1)
        return Gaussian().nll(outputs, y).mean()

    at_mode = y.square().mean(0).log()
    hessian = torch.autograd.functional.hessian(mean_nll, at_mode)
    torch.testing.assert_close(hessian, 0.5 * torch.eye(3, dtype=torch.float64))


def test_chosen_parameters_begin_as_draws_from_the_prior_and_others_as_they_were() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.Linear(200, 200))
    net[1].weight.requires_grad_(requires_grad=False)
    before = {name: p.clone() for name, p in net.named_parameters()}
    Prior(3.0, "fan_in").draw_into(net, ["*.weight"])
    after = dict(net.named_parameters())
    variance, count = after["0.weight"].var().item(), 200 * 200
    assert abs(variance / (3.0 / 200) - 1) < 4 * math.sqrt(2 / count)
    assert abs(after["0.weight"].mean().item()) < 4 * math.sqrt(3.0 / 200 / count)
    assert all(torch.equal(after[name], before[name]) for name in before if name != "0.weight")


@each("pattern", ["head", "1.weight", "1"])
def test_a_start_from_the_prior_of_what_is_not_sampled_is_refused(pattern: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    net[1].requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match=rf"{pattern} names no sampled parameter of 0.weight, 0.bias"):
        Prior().draw_into(net, [pattern])
