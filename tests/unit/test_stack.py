"""A stack of models: every chain's outputs, gradients and statistics are those of its own model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayeslora.chain.stack import Stack
from bayeslora.models import frozen_statistics, mlp, resnet18, resnet20, resnet_small, wide_resnet
from bayeslora.potential import categorical_nll
from tests.cases import each

NETS: dict[str, Callable[[str], nn.Module]] = {
    "resnet_small": lambda norm: resnet_small(10, norm=norm, width=4),
    "resnet20": lambda norm: resnet20(10, norm=norm),
    "resnet18": lambda norm: resnet18(10, norm=norm),
    "wide_resnet": lambda norm: wide_resnet(10, 1, 10, norm=norm),
}


def models(make: Callable[[], nn.Module], size: int = 2) -> list[nn.Module]:
    made = []
    for seed in range(size):
        torch.manual_seed(seed)
        made.append(make().double().train())
    return made


@each("norm", ["batch", "group", "frn"])
@each("net", NETS)
def test_each_chain_is_its_own_model(net: str, norm: str):
    alone = models(lambda: NETS[net](norm))
    stack = Stack(models(lambda: NETS[net](norm)))
    x = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64)
    y = torch.randint(10, (2, 6))
    categorical_nll_double(stack(x), y).sum().backward()
    for chain, model in enumerate(alone):
        categorical_nll_double(model(x[chain]), y[chain]).sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(stack.sampled()[name].grad[chain], p.grad, rtol=1e-7, atol=1e-9)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(stack.held()[name][chain], buffer, rtol=1e-9, atol=1e-12)


def categorical_nll_double(logits: Tensor, targets: Tensor) -> Tensor:
    """In double precision, in which the order of additions does not show."""
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean((-2, -1))


def test_the_ascent_pass_leaves_every_chains_statistics_alone():
    stack = Stack(models(lambda: resnet_small(10, norm="batch", width=4)))
    before = {name: tensor.clone() for name, tensor in stack.held().items() if "running" in name}
    with frozen_statistics(stack.model):
        stack(torch.randn(2, 6, 3, 8, 8, dtype=torch.float64))
    assert before
    assert all(torch.equal(before[name], stack.held()[name]) for name in before)
    stack(torch.randn(2, 6, 3, 8, 8, dtype=torch.float64))
    assert not any(torch.equal(before[name], stack.held()[name]) for name in before)


def test_frozen_parameters_are_shared_and_get_no_gradient():
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        net[0].requires_grad_(False)
        return net

    first, second = models(make)
    stack = Stack([copy.deepcopy(first), second])
    assert list(stack.sampled()) == ["1.weight", "1.bias"]
    assert {tuple(p.shape) for p in stack.parameters()} == {(2, 2, 4), (2, 2)}
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.stack([first(x), second[1](first[0](x))])
    torch.testing.assert_close(stack(x, shared_inputs=True), expected)
    assert stack.model[0].weight.grad is None


def test_a_stack_moves_and_changes_type_as_a_whole():
    stack = Stack(models(lambda: nn.BatchNorm1d(3)))
    stack.float()
    assert {t.dtype for t in stack.held().values()} == {torch.float32, torch.int64}
    assert stack.model.weight.dtype == torch.float32


def test_nll_keeps_the_leading_axes():
    logits, targets = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    nll = categorical_nll(logits, targets)
    assert nll.shape == (3, 5)
    torch.testing.assert_close(nll[1], categorical_nll(logits[1], targets[1]))


class Adapted(nn.Module):
    """A frozen layer with a low-rank update, and a head: what an adapter looks like."""

    __module__ = "bayeslora.models"  # known to keep examples apart, as the package's own are

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 5).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.head = nn.Linear(5, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        y = self.base(x["hidden"]) + self.up(self.down(x["hidden"]))
        return self.head((y.tanh() * x["mask"][..., None]).sum(-2))


@each("shared", [False, True])
def test_adapters_go_through_the_frozen_model_as_one_batch(shared: bool):
    alone = models(Adapted, 3)
    for model in alone[1:]:  # frozen parts are shared, so they must be equal
        model.base.load_state_dict(alone[0].base.state_dict())
        model.head.bias.data = alone[0].head.bias.data
    stack = Stack([copy.deepcopy(model) for model in alone])
    assert stack.flat
    assert sorted(stack.sampled()) == ["down.weight", "head.weight", "up.weight"]
    lead = () if shared else (3,)
    x = {"hidden": torch.randn(*lead, 4, 7, 6).double(), "mask": torch.rand(*lead, 4, 7).round().double()}
    logits = stack(x, shared_inputs=shared)
    logits.square().sum().backward()
    for chain, model in enumerate(alone):
        own = model(x if shared else {name: tensor[chain] for name, tensor in x.items()})
        torch.testing.assert_close(logits[chain], own)
        own.square().sum().backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                torch.testing.assert_close(stack.sampled()[name].grad[chain], p.grad)


def test_a_perceptron_goes_through_as_one_batch():
    alone = models(lambda: mlp(3, 6, hidden=[5]).double(), 3)
    stack, x = Stack([copy.deepcopy(model) for model in alone]), torch.randn(3, 4, 6).double()
    assert stack.flat
    assert stack.sampled().keys() == dict(alone[0].named_parameters()).keys()
    logits = stack(x)
    logits.square().sum().backward()
    for chain, model in enumerate(alone):
        own = model(x[chain])
        torch.testing.assert_close(logits[chain], own)
        own.square().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(stack.sampled()[name].grad[chain], p.grad)


class OfOnesOwn(Adapted):
    """The same, of which nobody knows what it does with a batch."""

    __module__ = "mine"


def test_what_couples_examples_or_is_no_layer_in_a_model_or_of_ones_own_runs_under_vmap():
    own = OfOnesOwn().double()
    assert not Stack([own, copy.deepcopy(own)]).flat
    assert not Stack(models(lambda: nn.Linear(2, 2))).flat
    frozen_norm = nn.Sequential(nn.BatchNorm1d(3).requires_grad_(False), nn.Linear(3, 2))
    assert not Stack([frozen_norm, copy.deepcopy(frozen_norm)]).flat
