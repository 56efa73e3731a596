"""The trial step before a run: what can be sampled is, as each chain's own model would be; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayeslora
from bayeslora.errors import ConfigError
from bayeslora.models import lora_classifier, set_sampling_mode
from tests.data.text_models import tiny_checkpoint

N, FEATURES, CLASSES = 24, 4, 3
ROWS = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(N, 5, FEATURES, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(1, 9, (N, 6), generator=torch.Generator().manual_seed(2))
CLASS = torch.arange(N) % CLASSES


def sample(model: Any, inputs: Tensor = ROWS, **settings: Any) -> bayeslora.Posterior:
    torch.manual_seed(0)
    plan = {"chains": 2, "draws": 2, "thin": 2, "burn_in": 3, "warmup": 3, "batch_size": 8}
    defaults = {**plan, "sampler": "sgld", "lr": 0.02, "prior": 1.0}
    return bayeslora.sample(model, (inputs, CLASS), **{**defaults, "progress": False, **settings})


def draws(posterior: bayeslora.Posterior) -> list[dict[str, Tensor]]:
    return [draw.tensors for draw in posterior.draws()]


class Net(nn.Module):
    """A frozen layer, a sampled one and what a subclass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, 6).requires_grad_(False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x).tanh())


class FrozenBias(nn.Linear):
    def __init__(self) -> None:
        super().__init__(FEATURES, CLASSES)
        self.bias.requires_grad_(False)


class TwoNames(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6, bias=False)
        self.again = self.mix

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.mix(self.base(x)).tanh()))


class TiedWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.again = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.again.weight = self.mix.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.mix(self.base(x)).tanh()))


class WeightReadElsewhere(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.base(x).tanh(), self.head.weight.tanh(), self.head.bias)


class BatchSecond(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x).transpose(0, 1).tanh()).mean(0)


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head.register_forward_hook(lambda _, __, output: 2 * output)


class Parametrised(Net):
    def __init__(self) -> None:
        super().__init__()
        self.base.requires_grad_(False)
        nn.utils.parametrizations.weight_norm(self.head)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(FEATURES, 2, 8, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(5 * FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).flatten(1))


class AdaptedEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.encoder.requires_grad_(False)
        self.encoder.layers[0].linear1.requires_grad_(True)


class Scaled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


class OnlyNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x[:, :CLASSES] + self.b


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 5, sparse=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))


RUNS = [
    (FrozenBias, ROWS), (TwoNames, ROWS), (TiedWeights, ROWS), (WeightReadElsewhere, ROWS), (BatchSecond, SEQUENCES),
    (Hooked, ROWS), (Parametrised, ROWS), (Encoder, SEQUENCES), (AdaptedEncoder, SEQUENCES), (Scaled, ROWS),
    (OnlyNumbers, ROWS), (SparseEmbedding, TOKENS),
]  # fmt: skip


@pytest.mark.parametrize(("make", "inputs"), RUNS, ids=lambda value: getattr(value, "__name__", ""))
def test_stacked_chains_are_the_chains_run_alone(make: Callable[[], nn.Module], inputs: Tensor):
    torch.manual_seed(0)
    model = make()
    before = torch.backends.mha.get_fastpath_enabled()
    alone, stacked = (
        draws(sample(model, inputs, parallel=parallel, warmup=0))  # Adam would make steps of a gradient that is 0
        for parallel in ("sequential", "stacked")
    )
    assert torch.backends.mha.get_fastpath_enabled() == before
    for one, other in zip(alone, stacked, strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    kind: type[nn.RNNBase] = nn.LSTM

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = self.kind(FEATURES, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Gated(Recurrent):
    kind = nn.GRU


def test_recurrent_layers_without_dropout_are_in_the_mode_that_cudnn_can_differentiate():
    model = nn.ModuleList([nn.LSTM(3, 4, 2), nn.GRU(3, 4), nn.LSTM(3, 4, 2, dropout=0.5), nn.Dropout()])
    for mode in (True, False):
        set_sampling_mode(model.train(mode))
        assert [module.training for module in model] == [True, True, False, False]


def test_an_adapted_xlnet_whose_batch_is_on_the_second_axis_is_stacked_as_alone(tmp_path: Path):
    folder = str(tiny_checkpoint(tmp_path / "xlnet", "xlnet"))
    tokens = torch.stack([torch.randint(5, 99, (N, 1, 6)), torch.ones(N, 1, 6, dtype=torch.int64)], 2)

    def make() -> nn.Module:
        return lora_classifier(CLASSES, folder, targets=["layer_1"], rank=2, cache_prefix=False)

    alone, stacked = (draws(sample(make, tokens, parallel=parallel)) for parallel in ("sequential", "stacked"))
    for one, other in zip(alone, stacked, strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


class AsksForANumber(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits / 10 if logits.abs().max().item() > 100 else logits


class WritesInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), CLASSES, dtype=x.dtype)
        logits += super().forward(x)
        return logits


@pytest.mark.parametrize(
    ("make", "inputs", "cause"),
    [
        (Recurrent, SEQUENCES, "lstm"),
        (Gated, SEQUENCES, "gru"),
        (AsksForANumber, ROWS, "item"),
        (WritesInPlace, ROWS, "shape"),
    ],
)
def test_what_runs_alone_only_is_refused_in_a_stack_before_it_starts(make, inputs, cause: str, tmp_path: Path):
    model, run_dir = make().requires_grad_(True), tmp_path / "run"
    with pytest.raises(ConfigError, match=rf"{make.__name__}: .*{cause}.*; choose parallel=sequential"):
        sample(model, inputs, parallel="stacked", run_dir=run_dir)
    assert not run_dir.exists()
    assert len(sample(model, inputs, run_dir=run_dir)) == 4


class Coupled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class OfLimitedCapacity(Net):
    """An expert that answers the first 20 examples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (torch.arange(len(x)) < 20)[:, None]


class AtRandom(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class BarelyAtRandom(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 2e-4 * torch.randn_like(x))


class WithoutGradient(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class WithNothing(Net):
    """A parameter of no entries, and an embedding of padding alone: nothing to measure a temperature of."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))
        self.padding = nn.Embedding(1, CLASSES, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.padding(torch.zeros(len(x), dtype=torch.int64))


class Drops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, training=True))


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 5, max_norm=0.1), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x).mean(1))


class FailsInTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) == 2 else super().forward(x[:, 1:])


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
@pytest.mark.parametrize(
    ("make", "inputs", "settings", "cause"),
    [
        (Coupled, ROWS, {}, "Coupled .*couples the examples of a batch"),
        (OfLimitedCapacity, ROWS, {}, "OfLimitedCapacity .*couples the examples of a batch"),
        (AtRandom, ROWS, {}, "AtRandom gives two answers to one batch"),
        (BarelyAtRandom, ROWS, {}, "BarelyAtRandom gives two answers to one batch"),
        (WithoutGradient, ROWS, {}, "WithoutGradient: no gradient leads from its outputs"),
        (Drops, ROWS, {}, "Drops gives two answers to one batch"),
        (Clipped, TOKENS, {}, "Clipped changes its parameter embed.weight"),
        (FailsInTraining, ROWS, {}, "FailsInTraining fails in a trial step: "),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), ROWS, {"batch_size": 1}, "batch_size=1"),
    ],
)
def test_what_has_no_potential_is_refused_in_either_mode(make, inputs, settings, cause: str, parallel: str, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError, match=cause):
        sample(make(), inputs, parallel=parallel, run_dir=run_dir, **settings)
    assert not run_dir.exists()


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_a_batch_norm_needs_more_than_one_example_and_a_parameter_may_have_no_entries(parallel: str):
    one = {"batch_size": None, "parallel": parallel}
    with pytest.raises(ConfigError, match="the training data are a single example: BatchNorm"):
        bayeslora.sample(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (ROWS[2:3], CLASS[2:3]), chains=2, **one)
    posterior = sample(WithNothing(), test_dataset=(ROWS, CLASS), parallel=parallel)
    assert {"nothing", "padding"}.isdisjoint(posterior.metrics["diagnostics"]["temperature"])


def test_a_shared_backbone_is_as_it_was_after_the_trial():
    backbone = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6)).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    backbone.eval()
    for parallel in ("sequential", "stacked"):
        sample(lambda: nn.Sequential(backbone, nn.Linear(6, CLASSES)), parallel=parallel)
    after = backbone.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_a_frozen_batch_norm_keeps_its_statistics_and_others_do_not(parallel: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES))
    model[1].running_mean.fill_(0.5)
    model.requires_grad_(False)[3].requires_grad_(True)
    model.eval()
    frozen = draws(sample(model, parallel=parallel))
    assert all(torch.equal(draw["1.running_mean"], model[1].running_mean) for draw in frozen)
    model[1].train()
    assert not torch.equal(draws(sample(model, parallel=parallel))[0]["1.running_mean"], model[1].running_mean)
    model.eval()[1].requires_grad_(True)
    assert not torch.equal(draws(sample(model, parallel=parallel))[0]["1.running_mean"], model[1].running_mean)


class Padded(nn.Module):
    """Embeddings whose padding is held fixed, one of them also the output's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 5, padding_idx=0)
        self.bag = nn.EmbeddingBag(10, 5, mode="sum", padding_idx=9)
        self.tied = nn.Embedding(10, 5, padding_idx=3)
        self.head = nn.Linear(10, CLASSES)
        with torch.no_grad():
            self.embed.weight[0], self.bag.weight[9], self.tied.weight[3] = 0.1, -0.2, 0.3

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x).mean(1) + self.bag(x) + self.tied(x).mean(1)
        return self.head(F.linear(hidden, self.tied.weight))


PADDING = {"embed.weight": 0, "bag.weight": 9, "tied.weight": 3}


@pytest.mark.parametrize("sampler", ["sgld", "sgnht", "sam_sgld"])
def test_padding_rows_are_not_sampled(sampler: str):
    torch.manual_seed(0)
    model, tokens = Padded(), TOKENS.clone()
    tokens[:, 4:] = 0
    runs = {}
    for parallel in ("sequential", "stacked"):
        posterior = sample(model, tokens, sampler=sampler, parallel=parallel)
        runs[parallel] = draws(posterior)
        for draw in posterior.draws():
            energy = sum(tensor.square().sum() / 2 for tensor in draw.tensors.values())
            for name, row in PADDING.items():
                held = model.state_dict()[name][row]
                assert torch.equal(draw.tensors[name][row], held)
                assert not torch.equal(draw.tensors[name][row - 1], model.state_dict()[name][row - 1])
                energy = energy - held.square().sum() / 2
            assert draw.scalars["prior"] == pytest.approx(float(energy), rel=1e-5)
    for one, other in zip(runs["sequential"], runs["stacked"], strict=True):
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)
