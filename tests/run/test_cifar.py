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

from bayeslora.build import build, build_model
from run.tools import composed, draw, manifest, run

pytestmark = pytest.mark.realdata


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run directory and a cache of its own, removed afterwards: draws of these nets are large."""
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "run"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("experiment", "classes", "parameters", "chains"),
    [("cifar10_resnet18_sgld", 10, 11_178_762, 2), ("cifar100_wrn_samsgld", 100, 36_545_860, 1)],
)
def test_the_experiment_runs_on_the_real_images(
    real_data: Path, folder: Path, experiment: str, classes: int, parameters: int, chains: int
) -> None:
    fewer = (f"chain.num_chains={chains}", "chain.num_draws=2")  # a draw of the wide net is 146 MB
    overrides = (
        f"experiment={experiment}",
        "size=smoke",
        f"dataset.path={real_data / experiment.partition('_')[0]}",
        *fewer,
    )
    metrics = run(folder, *overrides, base=())
    for values in (metrics["map"], metrics["ensemble"], *metrics["chains"]):
        assert all(math.isfinite(value) for value in values.values())
        assert 0 < values["nll"] < 20 * math.log(classes)
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    setup = build(composed(*overrides))
    assert setup.data.train.inputs.shape == (64, 3, 32, 32)
    assert setup.data.num_classes == classes
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in build_model(setup.cfg.model, setup.data).state_dict().items()}
    baseline = load_file(folder / "map.safetensors")
    for chain in range(chains):
        assert [record["step"] for record in manifest(folder, chain)] == [5, 6]
        first, second = draw(folder, chain, 0), draw(folder, chain, 1)
        assert {name: t.shape for name, t in first.items()} == shapes
        assert sum(t.numel() for t in first.values()) == parameters
        for name, tensor in second.items():
            assert torch.isfinite(tensor).all(), name
            assert not torch.equal(tensor, first[name]), name
            assert not torch.equal(tensor, baseline[name]), name
