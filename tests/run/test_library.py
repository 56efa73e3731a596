"""`bayeslora.sample`: anyone's module and map-style dataset, in a plain Python program."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import bayeslora
from bayeslora.chain.plan import Plan
from bayeslora.errors import ConfigError, DataError, DivergedError
from bayeslora.likelihood import NOISE, Gaussian
from bayeslora.posterior import Posterior
from bayeslora.runs.trust import read_config
from bayeslora.samplers import SGHMC
from tests.cases import each
from tests.run.tools import Command

TINY = {"chains": 2, "draws": 4, "thin": 1, "burn_in": 2, "warmup": 3, "batch_size": 8, "progress": False}
SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=SOURCE)
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 1).long()
REALS = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(40, generator=SOURCE)


def net(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


class Recurrent(nn.RNN):
    """Gives outputs and its last state."""


class Items(Dataset):
    """A map-style dataset that gives one example at a time, a Python number for the class."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return X[row], int(CLASSES[row])


class Flipped(Items):
    """Turns every second example around, another one each time."""

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        x, target = super().__getitem__(row)
        return x.flip(0) if torch.rand(()) < 0.5 else x, target


class Complex(nn.Module):
    """A layer of complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Parameter(torch.zeros(3, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 0j) @ self.bilinear).real


def sampled(model: Any = None, data: Any = None, **settings: Any) -> Posterior:
    return bayeslora.sample(model or net(), data or (X, CLASSES), **(TINY | settings))


def same_draws(one: Posterior, other: Posterior) -> bool:
    pairs = list(zip(one.draws(), other.draws(), strict=True))
    return len(pairs) > 0 and all(torch.equal(a.tensors[name], b.tensors[name]) for a, b in pairs for name in a.tensors)


@pytest.mark.parametrize("examples", [Items(), TensorDataset(X, CLASSES)], ids=["items", "tensors"])
def test_a_dataset_and_its_tensors_give_the_same_draws(examples: Any) -> None:
    assert same_draws(sampled(), sampled(data=examples))


def test_the_posterior_predicts_iterates_and_saves(tmp_path: Path) -> None:
    model = net()
    before = [p.clone() for p in model.parameters()]
    posterior = sampled(model, parallel="stacked")
    assert all(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    )  # the user's own is left alone
    draws = list(posterior.draws())
    assert [(draw.chain, draw.index) for draw in draws] == [(c, i) for c in (0, 1) for i in range(4)]
    log_p = posterior.predict(X)
    by_hand = torch.stack([m(X).softmax(-1).detach() for m in posterior.models()]).mean(0)
    torch.testing.assert_close(log_p.exp(), by_hand)
    torch.testing.assert_close(log_p, posterior.predict(DataLoader(Items(), batch_size=7)))
    torch.testing.assert_close(log_p, posterior.predict(Items()))
    again = Posterior.load(posterior.save(tmp_path / "kept"), net())
    torch.testing.assert_close(log_p, again.predict(X))
    with pytest.raises(ConfigError, match="is there already"):
        posterior.save(tmp_path / "kept")


def test_one_example_is_data() -> None:
    one = CLASSES.argmax().view(1)  # of the last class, so that all are known
    assert sampled(data=(X[one], CLASSES[one]), batch_size=None).predict(X).shape == (len(X), 3)


@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_inputs_of_another_shape_are_refused_in_words(parallel: str) -> None:
    posterior = sampled(parallel=parallel)
    with pytest.raises(DataError, match=r"the model cannot take these inputs: .*shape"):
        posterior.predict(X[:, :1])


def test_memory_that_runs_out_is_not_called_a_wrong_shape() -> None:
    def passes() -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB; set max_split_size_mb")

    with pytest.raises(torch.OutOfMemoryError):
        sampled().predict(passes)


def test_images_of_bytes_are_predicted_as_they_were_sampled(tmp_path: Path) -> None:
    images = torch.randint(256, (40, 1, 3, 3), dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    posterior = sampled(model, (images, CLASSES[:40] % 2))
    log_p = posterior.predict(images)
    torch.testing.assert_close(log_p, posterior.predict(images / 255))
    torch.testing.assert_close(log_p, posterior.predict(TensorDataset(images, CLASSES[:40])))
    again = Posterior.load(posterior.save(tmp_path / "kept"), model)
    torch.testing.assert_close(log_p, again.predict(images / 255))
    with pytest.raises(ConfigError, match="these images are bytes"):
        again.predict(images)


def test_the_command_says_where_to_evaluate_it(command: Command, tmp_path: Path) -> None:
    sampled(run_dir=tmp_path / "run")
    result = command("evaluate", f"run_dir={tmp_path / 'run'}")
    assert result.code == 2
    assert "this run was sampled by bayeslora.sample from examples of a program" in result.err


def test_a_run_records_what_its_examples_are_not_how_to_make_them(tmp_path: Path) -> None:
    sampled(run_dir=tmp_path / "run", draws=1)
    (examples,) = read_config(tmp_path / "run" / "config.yaml")["dataset"].values()
    assert examples.pop("digest")
    assert examples == {"examples": 40, "shapes": {"inputs": [3], "targets": []}}


def test_without_a_run_directory_nothing_is_left_behind() -> None:
    posterior = sampled()
    folder = posterior.root
    assert folder is not None
    assert folder.is_dir()
    del posterior
    assert not folder.exists()


def test_a_repeated_call_goes_on_where_it_was(tmp_path: Path) -> None:
    first = sampled(run_dir=tmp_path / "run", draws=2)
    longer = sampled(run_dir=tmp_path / "run", draws=4)
    assert (len(first), len(longer)) == (8, 8)  # both look at the one folder
    assert same_draws(longer, sampled())
    with pytest.raises(ConfigError, match=r"another configuration: dataset.in_memory.digest"):
        sampled(data=(X + 1, CLASSES), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another configuration: model.state"):
        sampled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), run_dir=tmp_path / "run")


def test_a_function_gives_every_chain_its_own_start() -> None:
    def make() -> nn.Module:
        return nn.Linear(3, 3)

    starts = sampled(make, warmup=0, burn_in=0, draws=1, lr=1e-9, parallel="stacked")
    ours, theirs = (draw.tensors["weight"] for draw in starts.draws())
    assert not torch.allclose(ours, theirs, atol=1e-3)
    copied = sampled(nn.Linear(3, 3), warmup=0, burn_in=0, draws=1, lr=1e-9, parallel="stacked")
    ours, theirs = (draw.tensors["weight"] for draw in copied.draws())
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("noise", "outputs", "sampled_noise"), [(0.1, 1, False), ("learned", 1, True), ("per_example", 2, False)]
)
def test_regression_is_evaluated_in_its_own_terms(
    noise: Any, outputs: int, sampled_noise: bool, tmp_path: Path
) -> None:
    posterior = sampled(
        net(outputs), (X, REALS), likelihood=Gaussian(noise), lr=0.002, test_dataset=(X[:20], REALS[:20]),
        val_dataset=(X[20:], REALS[20:]), run_dir=tmp_path / "run",
    )  # fmt: skip
    assert all((NOISE in draw.tensors) == sampled_noise for draw in posterior.draws())
    found = posterior.metrics
    assert found is not None
    said = posterior.predict(X[:20])
    rmse = (said.mean[:, 0] - REALS[:20]).square().mean().sqrt().item()
    assert found["ensemble"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    assert {"nll", "coverage_50", "coverage_90", "calibration_error"} <= found["ensemble"].keys()
    assert "needs classes" in found["absent"]["accuracy"]
    assert not {"accuracy", "ece", "brier"} & found["ensemble"].keys()
    assert {"ece_above_map", "accuracy_below_map"}.isdisjoint(found["criteria"])
    assert "validation/rmse" in posterior.diagnostics()
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "RMSE" in page
    assert "needs classes" not in page  # its rows are left out
    again = Posterior.load(tmp_path / "run", net(outputs))
    torch.testing.assert_close(again.predict(X[:20]).sd, said.sd)


def test_a_sampler_may_be_a_factory_and_the_phases_a_plan(tmp_path: Path) -> None:
    """The same draws as by name and by numbers, and the same run: the second call finds its draws there."""
    by_name = sampled(sampler="sghmc", lr=0.02, sampler_settings={"momentum": 0.8}, run_dir=tmp_path / "run")
    plan = Plan(TINY["warmup"], TINY["burn_in"], TINY["draws"], TINY["thin"])
    for make in (partial(SGHMC, lr=0.02, momentum=0.8), partial(partial(SGHMC, momentum=0.8), lr=0.02)):
        again = sampled(sampler=make, plan=plan, draws=77, run_dir=tmp_path / "run")
        assert same_draws(by_name, again)
    assert not same_draws(by_name, sampled(sampler=SGHMC, lr=0.02))


BAD = {
    "inputs and": {"data": (X, CLASSES[:-1])},
    "cannot be stacked to tensors \\(text holds words; make numbers of them": {"data": [{"text": "a", "label": 1}]},
    "or a dictionary of inputs with one of labels, .*, not a dict with text": {"data": [{"text": "a"}]},
    "give a map-style dataset": {"data": iter([1])},
    r"is a DataLoader, .* give its dataset \(loader.dataset\)": {"data": DataLoader(TensorDataset(X, CLASSES), 8)},
    "an item is another one each time it is read, most likely by random augmentation": {"data": Flipped()},
    "bilinear are complex, and only real numbers are sampled": {"model": Complex()},
    "holds no examples": {"data": (X[:0], CLASSES[:0])},
    "are NaN or infinite": {"data": (X, REALS / 0)},
    "all examples are of one class": {"data": (X, CLASSES * 0)},
    "choose likelihood=gaussian": {"data": (X, REALS), "likelihood": "categorical"},
    "choose likelihood=categorical": {"likelihood": "gaussian"},
    "likelihood=poisson is unknown": {"likelihood": "poisson"},
    "sampler=hmc is unknown; choose one of asgld": {"sampler": "hmc"},
    "unknown key sampler.rho": {"sampler_settings": {"rho": 0.1}},
    "unknown key sampler.moment": {"sampler": partial(SGHMC, moment=0.1)},
    "sampler must be a name or a class": {"sampler": 3},
    "^lr=-1": {"lr": -1.0},
    "^seed=1.5 must be a whole number": {"seed": 1.5},
    "^batch_size must be .* not 2.5": {"batch_size": 2.5},
    "^batch_size=all must be a whole number, or auto": {"batch_size": "all"},
    "^draws=0 must be at least 1": {"draws": 0},
    "temperature=-1": {"temperature": -1.0},
    "it must give logits \\[2, 3\\]: the targets are of the classes 0 to 2": {"model": net(2)},
    "must give \\[2, 1\\]; the targets are real numbers: if they are classes, give whole": {
        "data": (X, CLASSES.float())
    },
    "gives probabilities; it must give logits: leave its softmax out": {"model": nn.Sequential(net(), nn.Softmax(-1))},
    "gives probabilities; it must give logits: leave its sigmoid out": {"model": nn.Sequential(net(), nn.Sigmoid())},
    "if these are classes, dataset.task=classification for a CSV": {
        "data": (X, CLASSES.float()),
        "likelihood": "categorical",
    },
    "does not take sample: .*mat1 and mat2": {"model": nn.Linear(5, 3)},
    r"inputs are stored as torch.int64, the model's parameters are torch.float32": {"data": (X.long(), CLASSES)},
    "Recurrent gives a tuple; it must give one tensor": {"model": Recurrent(3, 3)},
    "no parameter requires a gradient": {"model": net().requires_grad_(False)},
    "processes needs a configuration": {"parallel": "processes"},
    "unknown key chain.thinn|thinn": {"chain_settings": {"thinn": 2}},
    "no sampled parameter is called head": {"chain_settings": {"lr_factors": {"head": 2.0}}},
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_sampled_is_refused_with_the_fix(message: str, tmp_path: Path) -> None:
    settings = dict(BAD[message])
    with pytest.raises(ConfigError, match=message):
        sampled(settings.pop("model", None), settings.pop("data", None), **settings, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("noise", [-1, 0.0, float("nan"), True, "fitted"])
def test_an_impossible_noise_is_refused(noise: Any) -> None:
    with pytest.raises(ConfigError, match=r"likelihood.noise=\S+ must be a positive number"):
        Gaussian(noise)


def test_several_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        sampled(draws=0, temperature=-1.0, lr=-1.0)
    assert len(caught.value.problems) == 3


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, bayeslora; assert bayeslora.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("targets", [CLASSES, REALS.double()], ids=["classes", "real"])
def test_double_precision_is_kept_from_end_to_end(targets: Tensor) -> None:
    """By the first warm-up step of plain gradient descent, which single precision cannot give to 1e-12."""
    model = net(3 if targets is CLASSES else 1).double()
    x = X.double() + 1e-10
    one_step = {
        "sampler": "sghmc",
        "warmup": 0,
        "burn_in": 0,
        "draws": 1,
        "temperature": 0.0,
        "batch_size": None,
        "prior": 1e12,
        "lr": 0.1,
    }
    for parallel, given in (("sequential", model), ("stacked", lambda: copy.deepcopy(model))):
        posterior = sampled(given, (x, targets), likelihood=None if targets is CLASSES else Gaussian(1.0), **one_step,
                            parallel=parallel, test_dataset=(x, targets), report=False)  # fmt: skip
        outputs = model(x)
        if targets is CLASSES:
            loss = torch.nn.functional.cross_entropy(outputs, targets)
        else:
            loss = 0.5 * (outputs[:, 0] - targets).square().mean()
        names, params = zip(*model.named_parameters(), strict=True)
        slopes = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
        for draw in posterior.draws():
            for name, p in model.named_parameters():
                assert draw.tensors[name].dtype == torch.float64
                torch.testing.assert_close(draw.tensors[name], p.detach() - 0.1 * slopes[name], rtol=0, atol=1e-12)


def test_a_function_of_a_double_model_takes_any_real_numbers(tmp_path: Path) -> None:
    for x in (X.double(), X, X.half()):
        posterior = sampled(lambda: net().double(), (x, CLASSES))
        assert all(tensor.dtype == torch.float64 for tensor in next(posterior.draws()).tensors.values())
        assert posterior.predict(x).dtype == torch.float64


def test_numbers_of_numpy_are_numbers_and_a_double_data_set_fits_a_single_model() -> None:
    settings = {"lr": np.float32(0.01), "prior": np.float64(1.0), "draws": np.int64(4), "temperature": np.float32(1.0)}
    settings["draws"] = np.array(4)
    given = {"lr": float(np.float32(0.01)), "prior": 1.0, "draws": 4, "temperature": 1.0}
    assert same_draws(sampled(data=(X.double(), CLASSES), **settings), sampled(**given))
    noise = sampled(net(1), (X, REALS), likelihood=Gaussian(np.float32(0.5)))
    assert len(noise) == 8


@pytest.mark.parametrize("device", ["mps", "cuda:1", "gpu"])
def test_a_device_is_what_runs_or_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device={device}: choose cpu or cuda; another GPU"):
        sampled(device=device)


def test_a_burn_in_too_short_is_warned_of_once_with_block_and_steps() -> None:
    with pytest.warns(UserWarning, match=r"block [02], it forgets its start in N·σ²/ε = 4,000 steps") as caught:
        sampled(sampler="sgld", prior=1.0, lr=0.01)
    (message,) = [str(one.message) for one in caught if "burn-in" in str(one.message)]
    assert "make burn_in 12,000, or lr (chain_settings['lr_factors'] of the block) larger" in message
    assert message.endswith("or a smaller prior")
    assert next(one for one in caught if "burn-in" in str(one.message)).filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sampled(sampler="sgld", lr=0.1, prior=0.01, burn_in=13)
        sampled(sampler="map")
        bayeslora.sample(net(), (X, CLASSES), chains=1, draws=2, thin=2, warmup=5, progress=False)  # as documented


def test_what_diverges_before_the_first_step_is_not_blamed_on_the_step_size() -> None:
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e6)
    with pytest.raises(DivergedError, match="No step was taken yet, so it is not the step size") as error:
        sampled(model)
    assert "lr" not in str(error.value)


def test_arrays_and_double_precision_are_predicted_and_passes_that_differ_are_refused() -> None:
    posterior = sampled(chains=1)
    expected = posterior.predict(X)
    given = [X.numpy(), X.double(), X.double().numpy(), [(X.double(), CLASSES)], lambda: [(X.numpy(), CLASSES)]]
    given += [(X, CLASSES), (X.numpy(), CLASSES.numpy()), DataFrame(X.numpy())]
    for inputs in given:
        torch.testing.assert_close(posterior.predict(inputs), expected)
    data = TensorDataset(X, CLASSES)
    torch.testing.assert_close(posterior.predict(DataLoader(data, 7)), expected)
    orders = iter(range(100))
    shuffled = BatchSampler(RandomSampler(data), 7, drop_last=False)
    refused: list[tuple[object, str]] = [
        (DataLoader(data, batch_sampler=shuffled), "shuffles"),
        (X[:0], "no example to predict"),
        (X.log(), rf"NaN in {int((X < 0).any(1).sum())} inputs, the first in row"),
        (X.tolist(), "cannot take these inputs"),
        (X.long(), "cannot take these inputs: .*dtype"),
        (DataLoader(data, 7, shuffle=True), "shuffles"),
        (lambda: [(X.roll(next(orders), 0), CLASSES)], "second pass"),
        (iter([(X, CLASSES)]), "used up"),
    ]
    for inputs, message in refused:
        with pytest.raises(DataError, match=message):
            posterior.predict(inputs)


def test_chains_that_begin_with_the_same_weights_are_no_deep_ensemble() -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    short = {"draws": 2, "thin": 1, "burn_in": 1, "chains": 2, "lr": 0.01, "progress": False, "report": False}
    trained = bayeslora.sample(nn.Linear(3, 2), (x, y), "sgld", warmup=0, test_dataset=(x, y), **short)
    assert trained.metrics.map is not None
    assert trained.metrics.map_ensemble.members == 1
    assert "there is only one" in trained.metrics.map_ensemble.reason
    apart = bayeslora.sample(lambda: nn.Linear(3, 2), (x, y), "sgld", warmup=1, test_dataset=(x, y), **short)
    assert apart.metrics.map_ensemble.members == 2


def test_acceptance_of_full_data_steps_falls_with_the_step() -> None:
    """100 steps on all data afford two tries a chain; at a step of half the stability limit some are rejected."""
    longer = {"draws": 50, "thin": 2, "burn_in": 10, "batch_size": None, "test_dataset": (X, CLASSES), "report": False}
    small, large = (sampled(nn.Linear(3, 3), sampler="sgld", lr=lr, **longer).metrics for lr in (1e-4, 3.0))
    assert small is not None and large is not None  # noqa: PT018
    assert [m["diagnostics"]["acceptance"]["draws"] for m in (small, large)] == [4, 4]
    assert 0 < large["diagnostics"]["acceptance"]["mean"] < small["diagnostics"]["acceptance"]["mean"] <= 1


@each("kept", [True, False])
def test_it_says_when_draws_and_report_go_with_the_posterior(
    kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    short = {"draws": 2, "thin": 1, "burn_in": 1, "warmup": 1, "chains": 2, "lr": 0.01, "progress": False}
    run_dir = tmp_path / "run" if kept else None
    bayeslora.sample(nn.Linear(3, 2), (x, y), "sgld", test_dataset=(x, y), run_dir=run_dir, **short)
    assert ("goes with the posterior; run_dir=… keeps them" in capsys.readouterr().out) != kept
