"""The temperature of whole runs: read without a trace in the draws, evaluated, and red where a run is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bayeslora
from bayeslora.app.compose import to_experiment
from bayeslora.evaluation.block_temperatures import readings_about
from bayeslora.evaluation.hidden_heat import is_heated
from bayeslora.evaluation.results import Results
from bayeslora.likelihood import Gaussian
from bayeslora.posterior import Posterior
from bayeslora.runs.directory import RunDirectory
from tests.cases import each
from tests.run.tools import OWN, composed, digests, manifest, run

QUIET = ("logger=none", "dataset.limit_test=10")


@pytest.mark.parametrize(
    "settings",
    [
        ("sampler=sam_sgld", "model.norm=batch"),
        ("sampler=sghmc", "chain.parallel=stacked"),
        ("sampler=fsgld", "dataset.augment=true"),
        ("sampler=sgld", "sampler.integrator=leimkuhler_matthews", "chain.batch_size=null"),
    ],
    ids=["batch norm and an ascent", "stacked with momenta", "perturbed and augmented", "full batch"],
)
def test_reading_leaves_no_trace_in_the_draws(settings: tuple[str, ...], tmp_path: Path) -> None:
    for name, overrides in (("on", ()), ("off", ("callbacks.thermometer=null",))):
        run(tmp_path / name, *QUIET, *settings, *overrides, base=OWN)
    assert digests(tmp_path / "on") == digests(tmp_path / "off")
    blocks = {name.partition("/")[2] for name in manifest(tmp_path / "on", 0)[0]["scalars"] if name.startswith("norm/")}
    for record in manifest(tmp_path / "on", 1):
        read = {name: value for name, value in record["scalars"].items() if name.startswith("temperature/")}
        assert {name.partition("/")[2] for name in read} == blocks | {"all"}
        assert np.isfinite([*read.values()]).all()
    assert not any("temperature/" in name for name in manifest(tmp_path / "off", 0)[0]["scalars"])
    (off,) = Results.read(tmp_path / "off" / "metrics.json").diagnostics.temperature.values()
    assert "callbacks.thermometer" in str(off.reason)


@pytest.mark.parametrize("sampler", ["sam_sgld", "fsgld"])
def test_an_evaluation_takes_the_very_forces_of_the_thermometer(sampler: str, tmp_path: Path) -> None:
    settings = (*QUIET, f"sampler={sampler}", f"run_dir={tmp_path / 'run'}")
    run(tmp_path / "run", *settings, base=OWN)
    root = RunDirectory(tmp_path / "run")
    setup = to_experiment(composed(*OWN, *settings))
    posterior = Posterior.load(root.root, setup.model(), setup.likelihood)
    zero = {name: torch.zeros(()) for name in setup.new_chain(0).params}
    for record, again in zip(manifest(root.root, 1), readings_about(posterior, setup, 1, zero), strict=True):
        for block, value in again.items():
            assert value == pytest.approx(record["scalars"][f"temperature/{block}"], rel=1e-4)
    found = Results.read(root.metrics_file).diagnostics.temperature
    assert {one.c for one in found.values()} == {"other chains"}


def test_a_single_chain_reads_about_zero_and_map_has_no_temperature(tmp_path: Path) -> None:
    run(tmp_path / "one", *QUIET, "chain.num_chains=1", "sampler=sgld", base=OWN)
    found = Results.read(tmp_path / "one" / "metrics.json").diagnostics.temperature
    read = np.array([record["scalars"]["temperature/all"] for record in manifest(tmp_path / "one", 0)])
    assert found["all"].ratio == pytest.approx(read.mean())
    assert found["all"].c == "0"
    run(tmp_path / "map", *QUIET, "temperature=0", "sampler=sgld", base=OWN)
    results = Results.read(tmp_path / "map" / "metrics.json")
    (cold,) = results.diagnostics.temperature.values()
    assert cold.ratio is None
    assert "T = 0" in str(cold.reason)
    assert not results.criteria["temperature"].passed
    assert not any(name.startswith("temperature/") for name in manifest(tmp_path / "map", 0)[0]["scalars"])


@each(
    ("settings", "heated"),
    [(("sampler=sgld",), True), (("sampler=sgld", "chain.batch_size=null"), False), (("sampler=sglrw",), False)],
)
def test_minibatches_heat_all_but_the_lattice_walk(settings: tuple[str, ...], heated: bool, tmp_path: Path) -> None:
    experiment = to_experiment(composed(*OWN, *QUIET, *settings, "sampler.lr=0.01", f"run_dir={tmp_path}"))
    assert is_heated(experiment) == heated


@each(("lr", "too_long"), [(0.05, False), (0.5, True)])
def test_the_steepest_direction_tells_whether_steps_are_too_long(lr: float, too_long: bool) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=random) * torch.tensor([*torch.linspace(0.1, 0.6, 7), 1.4])
    data = inputs, torch.randn(64, 1, generator=random)
    posterior = bayeslora.sample(
        torch.nn.Linear(8, 1, bias=False), data, "sgld", likelihood=Gaussian(noise=1.0), prior=0.1, lr=lr,
        sampler_settings={"integrator": "leimkuhler_matthews"}, batch_size=None, chains=2, draws=40, thin=8,
        burn_in=100, warmup=50, test_dataset=data, report=False, progress=False, parallel="stacked",
    )  # fmt: skip
    assert posterior.metrics is not None
    steepness = posterior.metrics.diagnostics.steepness
    assert steepness is not None
    hessian = inputs.T @ inputs / 64 + torch.eye(8) / (64 * 0.1)
    assert steepness.value == pytest.approx(lr * float(torch.linalg.eigvalsh(hessian)[-1]), rel=0.01)
    assert steepness.too_long == too_long


def test_a_run_too_short_to_pay_for_it_is_not_asked_for_its_steepest_direction(tmp_path: Path) -> None:
    run(tmp_path, *QUIET, "sampler=sgld", base=OWN)
    assert Results.read(tmp_path / "metrics.json").diagnostics.steepness is None


def test_heat_that_a_block_dilutes_is_measured_where_minibatch_noise_lies() -> None:
    """40 weights, two of whose inputs are not 0: SGLD heats those by a third, the block by a fiftieth of T."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.zeros(256, 40)
    inputs[:, :2] = torch.linalg.qr(torch.randn(256, 2, generator=random))[0] * 16
    data = inputs, torch.randn(256, 1, generator=random)
    posterior = bayeslora.sample(
        torch.nn.Linear(40, 1, bias=False), data, "sgld", likelihood=Gaussian(noise=1.0), prior=0.002, lr=0.05,
        sampler_settings={"integrator": "leimkuhler_matthews"}, batch_size=16, chains=4, draws=60, thin=10, burn_in=200,
        warmup=50, test_dataset=data, report=False, progress=False, parallel="stacked",
    )  # fmt: skip
    assert posterior.metrics is not None
    (heat,) = posterior.metrics.diagnostics.noise_heat.values()
    expected = 0.05 / (2 / 256) / 2 * (1 / 16 - 1 / 256) * float(data[1].var())
    assert abs(heat.share - expected) < 4 * heat.se
    assert heat.share > 3 * heat.se
    assert heat.mean < 0.05
    assert heat.directions < 4
