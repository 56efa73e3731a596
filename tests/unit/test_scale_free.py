"""The norm of weights before a norm layer is drawn from its law under the posterior; no prediction changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayeslora import samplers
from bayeslora.chain.chain import Chain
from bayeslora.chain.plan import Plan
from bayeslora.chain.scale_free import ScaleFree, _difference
from bayeslora.chain.stack import Stack
from bayeslora.errors import ConfigError
from bayeslora.models.layers import FilterResponseNorm
from bayeslora.potential import Potential, Prior

CHAINS, N, CHANNELS = 200, 50, 4
SIZE = 2 * 9 + 1
"""Weights and bias of an output channel."""
BATCH = (torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2]))


class Net(nn.Module):
    """A convolution, a norm and a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, CHANNELS, 3), norm
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((-2, -1)))  # type: ignore[no-any-return]


def chain_of(
    norm: str = "frn",
    scale_free: tuple[str, ...] = ("conv.weight",),
    temperature: float = 1.0,
    chains: int = CHAINS,
    warmup: int = 0,
) -> Chain:
    """Stacked chains before their first step."""
    torch.manual_seed(0)
    norms = {"frn": FilterResponseNorm, "group": lambda size: nn.GroupNorm(1, size), "none": lambda size: nn.Identity()}
    return Chain(
        Stack([Net(norms[norm](CHANNELS)) for _ in range(chains)]),
        Potential(Prior(0.2, vectors=0.5), N),
        lambda params, **settings: samplers.SGLD(params, lr=1e-12, **settings),
        lambda params: torch.optim.SGD(params, lr=0.1),
        Plan(warmup, 1, 1, 1),
        temperature=temperature,
        seed=3,
        number=list(range(chains)),
        scale_free=scale_free,
    )


def batch(chains: int = CHAINS) -> tuple[Tensor, Tensor]:
    """The same examples for each chain."""
    return BATCH[0].expand(chains, *BATCH[0].shape), BATCH[1].expand(chains, -1)


def squares(chain: Chain) -> Tensor:
    """‖θ/σ‖² of each chain and output channel."""
    weight, bias = (chain.params[f"conv.{name}"].detach().double() for name in ("weight", "bias"))
    return weight.flatten(2).square().sum(-1) / 0.2 + bias.square() / 0.5


def test_each_channel_has_the_law_of_the_posterior_at_the_temperature():
    for temperature in (1.0, 0.3):
        chain = chain_of(temperature=temperature)
        chain.step(batch())
        values = squares(chain) / temperature  # χ² of SIZE degrees of freedom: mean SIZE, variance 2·SIZE
        count = values.numel()
        assert abs(values.mean() - SIZE) < 4 * (2 * SIZE / count) ** 0.5
        assert abs(values.var() / (2 * SIZE) - 1) < 4 * ((2 + 12 / SIZE) / count) ** 0.5
        assert len(values.unique()) == count  # each chain and channel has its own


def test_directions_and_predictions_stay():
    chain = chain_of(chains=3)
    before, direction = chain.outputs(batch(3)), chain.params["conv.weight"].detach().clone()
    chain.step(batch(3))
    assert torch.allclose(chain.outputs(batch(3)), before, atol=1e-3)
    cosine = nn.functional.cosine_similarity(chain.params["conv.weight"].flatten(2), direction.flatten(2), dim=-1)
    assert cosine.min() > 1 - 1e-5
    assert (squares(chain) > 3).all()  # He's initial weights had .1 to .5 of the variance


def test_a_norm_over_channels_lets_the_whole_be_scaled_not_its_channels():
    chain = chain_of("group")
    relative = squares(chain) / squares(chain).sum(1, keepdim=True)
    chain.step(batch())
    assert torch.allclose(squares(chain) / squares(chain).sum(1, keepdim=True), relative, rtol=1e-4)
    size = CHANNELS * SIZE
    assert abs(squares(chain).sum(1).mean() - size) < 4 * (2 * size / CHAINS) ** 0.5


def test_chains_of_a_stack_draw_what_they_would_alone():
    together, chain = chain_of(chains=3), chain_of(chains=1)
    for one in (together, chain):
        one.step(batch(len(one.chains)))
    assert torch.equal(together.params["conv.weight"][0], chain.params["conv.weight"][0])


def test_weights_whose_scale_matters_are_refused_by_name_before_the_first_step():
    for norm, name in (("frn", "head.weight"), ("none", "conv.weight"), ("frn", "norm.gamma")):
        chain = chain_of(norm, (name,), chains=2, warmup=5)
        with pytest.raises(ConfigError, match=f"depends on the scale of {name}"):
            chain.step(batch(2))


def test_nothing_is_drawn_where_the_posterior_is_a_point():
    chain = chain_of(temperature=0.0, chains=2)
    before = squares(chain)
    chain.step(batch(2))
    assert torch.allclose(squares(chain), before, rtol=1e-6)


def test_names_and_patterns():
    params = dict.fromkeys(["stem.weight", "stem.bias", "head.weight"], torch.zeros(1))
    assert ScaleFree(params, ["s*", "head"], False, Prior(), 1.0).groups == [
        ["stem.weight", "stem.bias"],
        ["head.weight"],
    ]
    with pytest.raises(ConfigError, match=r"chain\.scale_free: body names no sampled weight of stem\.weight"):
        ScaleFree(params, ["body"], False, Prior(), 1.0)


def test_a_weight_of_zeros_has_no_direction():
    chain = chain_of(chains=2)
    with torch.no_grad():
        for name in ("weight", "bias"):
            chain.params[f"conv.{name}"][1, 2] = 0
    with pytest.raises(ConfigError, match=r"conv\.weight all that leads to an output channel is 0"):
        chain.step(batch(2))


def test_norms_so_small_that_the_norm_layers_epsilon_matters_are_drawn_too():
    chain = chain_of(chains=2, warmup=5)
    with torch.no_grad():
        for name in ("weight", "bias"):
            chain.params[f"conv.{name}"].mul_(1e-4)
    before = {name: p.detach().clone() for name, p in chain.params.items()}
    chain.scale_free.check(lambda: chain.outputs(batch(2)))  # also of a run that goes on in its warm-up
    assert all(torch.equal(p, before[name]) for name, p in chain.params.items())
    with torch.no_grad():
        chain.scale_free.draw_norms(lambda: chain.outputs(batch(2)), 3, [0, 1])
    assert (squares(chain) > 3).all()


def test_outputs_that_leave_the_finite_numbers_are_a_change_unless_they_were_there_already():
    finite, lost = torch.randn(2, 6, 3), torch.full((2, 6, 3), torch.nan)
    assert _difference(lost, finite) == float("inf")
    assert _difference(lost, lost) == _difference(finite, lost) == _difference(finite, finite) == 0


def test_outputs_that_are_the_same_for_every_example_are_no_reason_to_refuse():
    chain = chain_of(chains=2)
    with torch.no_grad():
        chain.params["head.weight"].zero_()
    chain.step(batch(2))
