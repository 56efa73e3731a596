"""`Posterior` as users hold it: what it says of itself, what it predicts, and how it is loaded from a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import bayeslora
from bayeslora.app.compose import load_experiment
from bayeslora.errors import ConfigError, DataError
from bayeslora.likelihood import Gaussian
from bayeslora.posterior import Posterior
from bayeslora.runs.directory import RunDirectory
from tests.cases import each
from tests.run.tools import run

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5])
TINY = {"chains": 2, "draws": 4, "thin": 1, "burn_in": 2, "warmup": 3, "batch_size": 8, "progress": False}


def regression(noise: float | str = "learned") -> Posterior:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Linear(3, 1)
    return bayeslora.sample(model, (X, Y), likelihood=Gaussian(noise), **TINY)


def classes() -> Posterior:
    return bayeslora.sample(nn.Linear(3, 2), (X, (Y > 0).long()), **TINY)


def test_it_says_what_it_is(finished: Path) -> None:
    posterior = classes()
    assert len(posterior) == 8
    told = repr(posterior)
    assert told.startswith("Posterior(8 draws of 2 chains, Categorical, Linear with 8 sampled parameters, in /")
    loaded = Posterior.load(finished)
    assert repr(loaded) == f"Posterior(10 draws of 2 chains, Categorical, in {finished})"


def test_a_run_of_a_configuration_is_loaded_without_its_model(finished: Path, tmp_path: Path) -> None:
    """Also what `save` copied: the same probabilities as those of the model of the experiment, which is given."""
    experiment = load_experiment(RunDirectory(finished))
    given = Posterior.load(finished, experiment.model()).predict(experiment.loader(experiment.data.test))
    for folder in (finished, Posterior.load(finished).save(tmp_path / "kept")):
        posterior = Posterior.load(folder)
        images = posterior.experiment.data.test
        torch.testing.assert_close(posterior.predict(images), given)
        torch.testing.assert_close(posterior.predict(images.inputs), given)
        assert sum(1 for _ in posterior.models()) == len(posterior) == 10


def test_a_table_and_a_regression_are_loaded_without_their_model(tmp_path: Path) -> None:
    rows = ["a,b,y", *(f"{a:.4f},{b:.4f},{a - b:.4f}" for a, b in X[:, :2].tolist())]
    file = tmp_path / "table.csv"
    file.write_text("\n".join(rows))
    settings = (
        "dataset=csv", f"dataset.path={file}", "model=mlp", "model.hidden=[4]", "likelihood=gaussian",
        "chain.batch_size=8",
        "chain.num_chains=2", "chain.warmup.steps=3", "chain.burn_in=2", "chain.num_draws=3", "chain.thin=1",
        "chain.probe_size=16",
    )  # fmt: skip
    metrics = run(tmp_path / "run", *settings, base=())
    assert metrics is not None
    moved = file.rename(tmp_path / "moved.csv")
    with pytest.raises(ConfigError, match=r"table\.csv does not exist"):
        Posterior.load(tmp_path / "run").model  # noqa: B018
    posterior = Posterior.load(tmp_path / "run", data_path=moved)
    data = posterior.experiment.data
    assert data.real is not None
    mean, sd = posterior.predict(data.test, return_std=True)
    rmse = data.real.std[0] * (mean - data.test.targets).square().mean().sqrt().item()
    assert metrics["ensemble"]["rmse"] == pytest.approx(rmse, rel=1e-4)
    assert sd.shape == mean.shape == (6, 1)


def test_a_posterior_that_does_not_know_its_model_says_so(finished: Path, tmp_path: Path) -> None:
    kept = classes().save(tmp_path / "kept")
    for bare in (kept, shutil.copytree(finished, tmp_path / "bare")):
        if bare != kept:
            (bare / "config.yaml").unlink()
        loaded = Posterior.load(bare)
        assert len(list(loaded.draws())) == len(loaded)  # the draws are there all the same
        with pytest.raises(DataError, match=r"give it, Posterior.load\(run_dir, model\)"):
            loaded.predict(X)


def test_a_configuration_that_names_other_code_is_not_run(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("bayeslora.models.resnet_small", "tests.run.tools.DropoutNet"))
    posterior = Posterior.load(folder)
    with pytest.raises(DataError, match=r"add trust=\[tests\]"):
        posterior.predict(X)
    config.write_text(text := config.read_text().replace("DropoutNet", "NotThere"))
    with pytest.raises(
        DataError, match=r"tools\.NotThere is trusted and cannot be imported: run this in the folder of"
    ):
        Posterior.load(folder, trust="tests").predict(X)
    config.write_text(text.replace("NotThere", "DropoutNet"))
    with pytest.raises(ConfigError, match="norm"):  # it is tried now, and takes no such setting
        Posterior.load(folder, trust="tests").predict(X)


def test_the_spread_of_classes_is_that_of_the_draws_probabilities() -> None:
    posterior = classes()
    mean, sd = posterior.predict(X, return_std=True)
    each_draw = torch.stack([model(X).softmax(-1).detach().double() for model in posterior.models()])
    torch.testing.assert_close(mean, each_draw.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sd, each_draw.std(0, unbiased=False), rtol=1e-4, atol=1e-6)
    assert sd.min() > 0
    with pytest.raises(ConfigError, match="of classes, which have no quantiles"):
        posterior.quantiles(X)


@each("noise", [0.3, "learned"])
def test_quantiles_are_those_of_a_large_sample_of_the_predictive_density(noise: float | str) -> None:
    """To four standard errors of a share, 20,000 values a draw; and `return_std` is the sample's sd."""
    posterior = regression(noise)
    normal = torch.Generator().manual_seed(2)
    values = []
    for draw in posterior.draws():
        outputs = posterior.model_of(draw)(X).detach()
        sd = torch.full_like(outputs[:, :1], 0.3) if noise == 0.3 else (outputs[:, 1:] / 2).exp()
        values.append(outputs[:, :1] + sd * torch.randn(len(X), 20_000, generator=normal))
    drawn = torch.cat(values, dim=1)
    levels = (0.05, 0.5, 0.9)
    found = posterior.quantiles(X, levels)
    assert found.shape == (3, len(X), 1)
    for level, quantile in zip(levels, found, strict=True):
        shares = (drawn < quantile).double().mean(1)
        assert (shares - level).abs().max() < 4 * (level * (1 - level) / drawn.shape[1]) ** 0.5
    torch.testing.assert_close(posterior.quantiles(X, 0.9), found[2])
    mean, sd = posterior.predict(X, return_std=True)
    torch.testing.assert_close(sd[:, 0].float(), drawn.std(1), rtol=0.02, atol=0)
    assert (posterior.predict(X).mean == mean).all()
    with pytest.raises(ConfigError, match="each must lie between 0 and 1"):
        posterior.quantiles(X, 95.0)


def test_it_moves_to_a_device_and_inputs_follow() -> None:
    """Where there is no GPU, by the CPU alone: that a move gives the posterior back."""
    posterior = classes()
    here = posterior.predict(X)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moved = posterior.to(device)
    assert moved is posterior
    assert next(posterior.model.parameters()).device.type == device
    for inputs in (X, [(X, torch.empty(0))]):
        torch.testing.assert_close(moved.predict(inputs), here, rtol=1e-4, atol=1e-5)
