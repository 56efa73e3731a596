"""Nets: parameter counts, norms by hand, shapes, stacked chains, memory format."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bayeslora.errors import ConfigError
from bayeslora.models import resnet18, resnet20, resnet_small, wide_resnet, wrn28_10
from bayeslora.models.layers import FilterResponseNorm, group_norm
from bayeslora.rng import seeded
from tests.cases import each

NORMS = ("batch", "group", "frn")
SMALL: dict[str, Callable[..., nn.Module]] = {
    "resnet_small": resnet_small,
    "resnet20": resnet20,
    "wide_resnet": lambda num_classes, in_channels, norm: wide_resnet(
        10, 1, num_classes, in_channels=in_channels, norm=norm
    ),
}


def build(net: str, norm: str, seed: int = 0) -> nn.Module:
    """A small net in fp64 for 10 classes of 1-channel images, whose norms' parameters have left their start."""
    with seeded(seed, 0, 0, "test"):
        model = SMALL[net](10, 1, norm=norm)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.double()


def images(batch: int = 4, size: int = 8) -> Tensor:
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@each(
    ("model", "count"),
    [
        (lambda: resnet20(10), 274_042),
        (lambda: resnet18(10), 11_173_962),
        (lambda: wrn28_10(100), 36_536_884),
        (lambda: resnet_small(10, in_channels=1), 38_682),
    ],
)
def test_parameter_count_is_the_published_one(model: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in model().parameters()) == count


@each("norm", NORMS)
@each("net", SMALL)
@each("size", [8, 32])
def test_logits_have_one_column_a_class_and_every_parameter_gets_a_gradient(net: str, norm: str, size: int) -> None:
    model = build(net, norm)
    logits = model(images(size=size))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@each("norm", ["batch", "group"])
def test_without_affine_only_directions_of_convolutions_matter(norm: str) -> None:
    model = resnet_small(10, 1, norm=norm, width=4, affine=False, stem_stride=2).double()
    assert {name for name, p in model.named_parameters() if p.ndim < 2} == {"head.bias"}
    scale_convolutions(model, 100.0)  # far above the norms' epsilon
    before = model(images())
    scale_convolutions(model, 10.0)
    torch.testing.assert_close(model(images()), before, rtol=1e-3, atol=1e-4)


def scale_convolutions(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= factor


def test_frn_without_affine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"choose model\.norm=group or batch"):
        resnet_small(10, 1, affine=False)


@each("model", [resnet18, lambda n, c: wide_resnet(16, 2, n, in_channels=c)])
def test_large_nets_take_colour_images(model: Callable[[int, int], nn.Module]) -> None:
    assert model(7, 3)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_activation_changes_the_function_and_not_the_parameters() -> None:
    relu, swish = resnet_small(10, 1, activation="relu"), resnet_small(10, 1, activation="swish")
    swish.load_state_dict(relu.state_dict())
    assert not torch.allclose(relu(images().float()), swish(images().float()))


def test_filter_response_norm_equals_its_equation() -> None:
    norm = FilterResponseNorm(2, eps=0.5)
    with torch.no_grad():
        norm.gamma.copy_(torch.tensor([2.0, -1.0]))
        norm.beta.copy_(torch.tensor([0.5, 0.0]))
        norm.tau.copy_(torch.tensor([0.0, -0.25]))
    x = torch.tensor([[[[3.0, -1.0]], [[1.0, 0.0]]]])  # mean squares 5 and 1/2
    expected = torch.tensor([[[[2 * 3 / 5.5**0.5 + 0.5, max(-2 / 5.5**0.5 + 0.5, 0)]], [[max(-1 / 1.0, -0.25), 0.0]]]])
    torch.testing.assert_close(norm(x), expected)


def test_filter_response_norm_agrees_with_a_maximum_also_in_gradients() -> None:
    norm, x = FilterResponseNorm(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    gamma, beta, tau = (p.view(-1, 1, 1) for p in (norm.gamma, norm.beta, norm.tau))
    direct = torch.maximum(gamma * x / (x.square().mean((2, 3), keepdim=True) + norm.eps).sqrt() + beta, tau)
    wanted = torch.autograd.grad(direct.cos().sum(), [x, *norm.parameters()])
    torch.testing.assert_close(torch.autograd.grad(norm(x).cos().sum(), [x, *norm.parameters()]), wanted)


def test_filter_response_norm_of_bf16_is_computed_in_fp32() -> None:
    norm, x = FilterResponseNorm(4), torch.randn(2, 4, 32, 32).bfloat16()
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_bf16_autocast_stays_near_fp32_and_gives_fp32_gradients() -> None:
    model, x = build("resnet_small", "frn").float(), images().float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    exact = model(x)
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()
    logits.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters() if parameter.grad is not None)


@each(("channels", "groups"), [(16, 8), (12, 6), (20, 5), (7, 7), (11, 1)])
def test_group_norm_has_eight_groups_or_the_largest_divisor(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_group_norm_equals_its_equation() -> None:
    x = torch.tensor([1.0, 3.0, -2.0, 2.0]).view(1, 1, 2, 2).repeat(1, 16, 1, 1)
    x[:, 1::2] += 4  # groups of two channels: means 3, mean squares of deviations 3.5 + 4
    expected = (x - 3) / (7.5 + 1e-5) ** 0.5
    torch.testing.assert_close(group_norm(16)(x), expected)


@each("norm", ["group", "frn"])
def test_examples_do_not_depend_on_each_other_without_batch_norm(norm: str) -> None:
    model, x = build("resnet_small", norm), images()
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


@each("training", [True, False])
@each("norm", NORMS)
@each("net", SMALL)
def test_stacked_chains_equal_a_loop(net: str, norm: str, training: bool) -> None:
    models = [build(net, norm, seed).train(training) for seed in range(3)]
    params, buffers = stack_module_state(models)
    shell = deepcopy(models[0]).to("meta")
    x = torch.stack([images() + chain for chain in range(3)])

    def forward(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(shell, (params, buffers), (x,))
        return logits

    stacked = vmap(forward)(params, buffers, x)
    torch.testing.assert_close(
        stacked, torch.stack([model(x[k]) for k, model in enumerate(models)]), rtol=1e-9, atol=1e-9
    )
    for name, buffer in buffers.items():  # running statistics of each chain moved as alone
        torch.testing.assert_close(buffer, torch.stack([model.get_buffer(name) for model in models]))


@each("norm", NORMS)
@each("net", SMALL)
def test_channels_last_gives_the_same_logits(net: str, norm: str) -> None:
    model = build(net, norm).eval()
    plain = model(images(size=16))
    last = model.to(memory_format=torch.channels_last)(images(size=16).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-9, atol=1e-9)


def test_filter_response_norm_keeps_channels_last() -> None:
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert FilterResponseNorm(8)(x).is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_are_he_normal_and_biases_zero() -> None:
    model = resnet20(10)
    conv = model.get_submodule("blocks.8.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert conv.bias.abs().max() == 0


def test_initial_weights_are_a_function_of_the_seed() -> None:
    for seed, same in ((0, True), (1, False)):
        with seeded(0, 0, 0, "init"):
            one = resnet_small(10)
        with seeded(seed, 0, 0, "init"):
            other = resnet_small(10)
        assert torch.equal(one.head.weight, other.head.weight) is same


@each("model", [resnet_small, resnet20, resnet18, wrn28_10])
def test_unknown_norm_and_activation_are_reported_together_with_the_choices(model: Callable[..., nn.Module]) -> None:
    with pytest.raises(ConfigError) as caught:
        model(10, norm="layer", activation="gelu")
    assert caught.value.problems == [
        "model.norm='layer' is unknown; choose one of batch, group, frn",
        "model.activation='gelu' is unknown; choose one of relu, swish",
    ]


@each(
    ("model", "setting"),
    [
        (lambda: wide_resnet(12, 1, 10), "model.depth"),
        (lambda: wide_resnet(4, 1, 10), "model.depth"),
        (lambda: wide_resnet(10, 0, 10), "model.width"),
        (lambda: resnet_small(10, width=0), "model.width"),
    ],
)
def test_impossible_sizes_are_refused(model: Callable[[], nn.Module], setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        model()
