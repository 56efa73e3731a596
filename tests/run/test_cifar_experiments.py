"""The CIFAR experiments at size=smoke on the real images, on a CPU: everything runs, nothing is learnt."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bayeslora.app.compose import to_experiment
from tests.run.tools import composed, draw, manifest, run

pytestmark = pytest.mark.realdata


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run directory, removed afterwards: draws of these nets are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("experiment", "classes", "parameters", "chains"),
    [
        ("cifar10_resnet18_sgld", 10, 11_178_762, 2),
        ("cifar10_resnet20frn_sgld", 10, 274_042, 2),
        ("cifar100_wrn_samsgld", 100, 36_545_860, 1),
    ],
)
def test_the_experiment_runs_on_the_real_images(
    real_data: Path, folder: Path, experiment: str, classes: int, parameters: int, chains: int
) -> None:
    fewer = (f"chain.num_chains={chains}", "chain.num_draws=2")  # a draw of the wide net is 146 MB
    overrides = (
        f"experiment={experiment}",
        "size=smoke",
        f"dataset.path={real_data / experiment.partition('_')[0]}",
        "dataset.limit_test=16",
        "chain.probe_size=16",
        *fewer,
    )
    metrics = run(folder, *overrides, base=())
    for values in (metrics["map"], metrics["ensemble"], *metrics["chains"]):
        assert all(math.isfinite(value) for value in values.values())
        assert 0 < values["nll"] < 20 * math.log(classes)
    assert metrics.to_json() == json.loads((folder / "metrics.json").read_text())
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    setup = to_experiment(composed(*overrides))
    assert setup.data.train.inputs.shape == (64, 3, 32, 32)
    assert setup.data.num_classes == classes
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in setup.make().state_dict().items()}
    baseline = load_file(folder / "chains/0/map.safetensors")
    for chain in range(chains):
        assert [record["step"] for record in manifest(folder, chain)] == [5, 6]
        first, second = draw(folder, chain, 0), draw(folder, chain, 1)
        assert {name: t.shape for name, t in first.items()} == shapes
        assert sum(t.numel() for t in first.values()) == parameters
        for name, tensor in second.items():
            assert torch.isfinite(tensor).all(), name
            assert not torch.equal(tensor, first[name]), name
            assert not torch.equal(tensor, baseline[name]), name


def test_a_run_is_scored_against_the_hmc_reference(real_data: Path, folder: Path) -> None:
    """The experiment on that posterior, a smaller net in its place: nothing is learnt, but what is scored is real."""
    reference = real_data / "cifar10_hmc" / "predictive.npz"
    if not reference.is_file():
        pytest.skip(f"no reference in {reference.parent}")
    smaller = ("model=resnet_small", "model.width=4", "model.stem_stride=2", "chain.num_chains=1")
    metrics = run(
        folder, "experiment=cifar10_resnet20frn_sgld", "size=smoke", f"dataset.path={real_data / 'cifar10'}",
        "dataset.limit_test=null", "chain.num_draws=2", f"evaluate.reference={reference}", *smaller, base=(),
    )  # fmt: skip
    found = metrics["reference"]
    assert set(found) == {"map", "draw", "chain 0", "ensemble", "curve"}
    for name in ("map", "draw", "ensemble"):
        assert found[name]["agreement"] == pytest.approx(0.1, abs=0.1)  # an untrained net: about chance
        assert 0.6 < found[name]["total_variation"] < 1
        assert 0 < found[name]["agreement_se"] < 0.01  # of 5,000 images
    assert found["curve"]["draws"] == [1, 2]
    assert "Fidelity ± standard error" in (folder / "report" / "index.html").read_text()
