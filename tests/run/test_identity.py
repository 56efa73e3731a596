"""What is not sampled is part of a run: one for all chains, recorded, and checked wherever draws meet a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bayeslora
from bayeslora.errors import ConfigError, DataError
from bayeslora.posterior import Posterior

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def sample(model: Any, **settings: Any) -> Posterior:
    plan = {"chains": 2, "draws": 2, "thin": 2, "burn_in": 20, "warmup": 150, "warmup_lr": 0.02, "batch_size": 60}
    return bayeslora.sample(model, (X, Y), "sgld", **{**plan, "prior": 1.0, "progress": False, **settings})


def net(act: type[nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 32), act(), nn.Linear(32, 3))


def frozen_first() -> nn.Module:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


class Features(nn.Module):
    """A head on random features, which are a buffer that is saved or not, or a plain attribute."""

    def __init__(self, plain: bool = False, saved: bool = False) -> None:
        super().__init__()
        w = torch.randn(4, 32)
        self.w: Tensor
        if plain:
            self.w = w
        else:
            self.register_buffer("w", w, persistent=saved)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(x @ self.w))
        return logits


def nll(posterior: Posterior) -> list[float]:
    """Of every draw, on all the data."""
    found = [posterior.predict_draw(draw, lambda: [(X, Y)]) for draw in posterior.draws()]
    return [nn.functional.nll_loss(log_probs, Y).item() for log_probs in found]


@pytest.mark.parametrize("make", [frozen_first, Features, partial(Features, saved=True)])
@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_random_fixed_tensors_are_one_for_all_chains_and_kept(
    make: Callable[[], nn.Module], parallel: str, tmp_path: Path
) -> None:
    posterior = sample(make, parallel=parallel, run_dir=tmp_path / "run")
    recorded = [draw.scalars["nll"] for draw in posterior.draws()]
    assert nll(posterior) == pytest.approx(recorded, rel=1e-3)
    assert max(recorded) < 0.8  # chance is 1.1
    again = Posterior.load(posterior.save(tmp_path / "kept"), make())  # other random features, replaced
    assert nll(again) == pytest.approx(recorded, rel=1e-3)
    draws = [load_file(file) for file in (tmp_path / "run").glob("chains/*/draws/*.safetensors")]
    assert len({tuple(draw["w"].flatten().tolist()) for draw in draws if "w" in draw}) <= 1


def test_statistics_of_batches_are_each_chains_own() -> None:
    """Members of an ensemble begin with theirs; where a frozen layer's do not move, they must be the same."""
    members = [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)) for _ in range(2)]
    for number, member in enumerate(members):
        member[1].running_mean.fill_(100 * number)
    for draw in sample(members, warmup=0, burn_in=0, thin=1, draws=1).draws():
        assert (draw.tensors["1.running_mean"].mean() > 50) == (draw.chain == 1)
    for member in members:
        member[1].requires_grad_(False).eval()
    with pytest.raises(
        ConfigError, match=r"model\[1\]: 1.running_mean, which is not sampled, is not what it is in model"
    ):
        sample(members)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: net(nn.ReLU), r"ReLU\(\) where the run has \(1\): Tanh\(\)"),
        (frozen_first, r"0\.weight is not sampled, in the run it is \(it is frozen\)"),
        (lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)), "out_features=16"),
    ],
    ids=["activation", "frozen", "width"],
)
def test_another_model_is_refused_by_the_run_and_by_its_draws(
    other: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    quick = {"burn_in": 2, "warmup": 2, "run_dir": tmp_path / "run"}
    posterior = sample(lambda: net(), **quick)
    assert len(sample(lambda: net(), **quick)) == len(posterior)
    with pytest.raises(ConfigError, match=f"already holds a run of another model: .*{message}"):
        sample(lambda: other(), **quick)
    with pytest.raises(DataError, match=f"draws of another model: .*{message}"):
        Posterior.load(tmp_path / "run", other())


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    model = frozen_first()
    sample(model, run_dir=tmp_path / "run")
    Posterior.load(tmp_path / "run", model)
    with pytest.raises(DataError, match=r"0\.weight, which is not sampled, has other values"):
        Posterior.load(tmp_path / "run", frozen_first())


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_a_random_plain_attribute_is_refused_before_sampling(parallel: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain attribute"):
        sample(lambda: Features(plain=True), parallel=parallel, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_what_moves_may_not_be_shared_between_chains(parallel: str, tmp_path: Path) -> None:
    whole, layer, norm = net(), nn.Linear(4, 32), nn.BatchNorm1d(4).requires_grad_(False)
    functions: list[tuple[Callable[[], nn.Module], str]] = [
        (lambda: whole, r"0\.weight; 0\.bias; 2\.weight; and 1 more"),
        (lambda: nn.Sequential(layer, nn.Linear(32, 3)), r"0\.weight; 0\.bias,"),
        (lambda: nn.Sequential(norm, nn.Linear(4, 3)), r"0\.running_mean; 0\.running_var"),
    ]
    for make, message in functions:
        with pytest.raises(ConfigError, match=f"two chains the same {message}"):
            sample(make, parallel=parallel, run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()
    norm.eval()
    sample(lambda: nn.Sequential(norm, nn.Linear(4, 3)), parallel=parallel, burn_in=1, warmup=1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        logits: Tensor = self.layer(a * b[:, None])
        return logits


def test_draws_of_a_model_of_several_inputs_are_loaded(tmp_path: Path) -> None:
    inputs = {"a": X, "b": X[:, 0]}
    posterior = bayeslora.sample(
        TwoInputs(), (inputs, Y), "sgld", chains=2, draws=2, thin=1, burn_in=1, warmup=1, run_dir=tmp_path / "run"
    )
    again = Posterior.load(tmp_path / "run", TwoInputs())
    torch.testing.assert_close(again.predict(inputs), posterior.predict(inputs))


class Scaled(nn.Module):
    """A net whose inputs are scaled by what no fingerprint sees."""

    def __init__(self, scale: Any) -> None:
        super().__init__()
        self.scale, self.net = scale, net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.scale * x)
        return logits


def test_draws_of_a_function_that_has_changed_are_refused(tmp_path: Path) -> None:
    scale = 1.0
    settings = {"chains": 1, "run_dir": tmp_path / "run"}
    sample(lambda: Scaled(scale), **settings)
    sample(lambda: Scaled(scale), **settings)
    scale = 1.5
    with pytest.raises(DataError, match="has other outputs than the run's"):
        sample(lambda: Scaled(scale), **settings)


def test_draws_are_refused_by_a_model_of_the_same_fingerprint_that_answers_otherwise(tmp_path: Path) -> None:
    """Also those that were saved; no training example is there as it is."""
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    posterior = sample(Scaled(scale), run_dir=tmp_path / "run")
    other_code = type("Scaled", (Scaled,), {"forward": lambda self, x: self.net((self.scale * x).abs())})
    for folder in (tmp_path / "run", posterior.save(tmp_path / "kept")):
        for same in (Scaled(scale), Scaled(scale).double()):
            torch.testing.assert_close(Posterior.load(folder, same).predict(X), posterior.predict(X), check_dtype=False)
        for other in (Scaled(scale.flip(0)), Scaled(1.5), other_code(scale)):
            with pytest.raises(DataError, match="Its parameters and buffers fit, so what differs is its code"):
                Posterior.load(folder, other)
    made_up = load_file(tmp_path / "run" / "answers.safetensors")["inputs"]
    assert made_up.shape == (4, 4)
    assert not any(torch.equal(row, x) for row in made_up for x in X)


def test_a_run_of_another_layout_is_refused_by_name_of_its_version(tmp_path: Path) -> None:
    quick = {"burn_in": 2, "warmup": 2, "run_dir": tmp_path / "run"}
    sample(lambda: net(), **quick)
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("layout: 2", "layout: 1"))
    for again in (lambda: Posterior.load(tmp_path / "run", net()), lambda: sample(lambda: net(), **quick)):
        with pytest.raises(
            (ConfigError, DataError), match=r"was written by bayeslora .* only that version reads this run"
        ):
            again()


class Keeps(nn.Module):
    """Keeps its last outputs, which cannot be copied as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last: Tensor = self.layer(x)
        return self.last


class Views(nn.Module):
    """Two saved buffers of one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, whole = nn.Linear(4, 3), torch.arange(10.0)
        self.register_buffer("a", whole[:5])
        self.register_buffer("b", whole[3:8])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return logits


def kept() -> nn.Module:
    model = Keeps()
    model(X)
    return model


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.Linear(8, 3))  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [kept, normed, Views])
def test_modules_that_hold_results_or_views_are_sampled(make: Callable[[], nn.Module]) -> None:
    posterior = sample(make(), burn_in=2, warmup=2)
    assert nll(posterior) == pytest.approx([draw.scalars["nll"] for draw in posterior.draws()], rel=1e-3)


def with_lock() -> nn.Module:
    import threading

    model = net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


def expanded() -> nn.Module:
    model = net()
    model.register_buffer("wide", torch.ones(1).expand(4))
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)), "0.weight, 0.bias have no shape yet"),
        (lambda: lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)), "0.weight, 0.bias have no shape yet"),
        (lambda: torch.jit.script(net()), "the Python module it was made from"),
        (lambda: torch.jit.trace(net(), X[:2]), "the Python module it was made from"),
        (expanded, "wide are expanded views"),
        (with_lock, "cannot be copied .* give a function"),
        (lambda: lambda: "a model", "str is no torch.nn.Module"),
        (lambda: net().bfloat16(), r"2\.bias is torch\.bfloat16, and is sampled: .*Make such parameters float32"),
        (lambda: lambda: net().half(), "is torch.float16, and is sampled"),
    ],
    ids=[
        "lazy",
        "lazy-function",
        "scripted",
        "traced",
        "expanded",
        "lock",
        "no-module",
        "bfloat16",
        "half-function",
    ],
)
def test_models_that_cannot_be_sampled_are_named(model: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample(model())
