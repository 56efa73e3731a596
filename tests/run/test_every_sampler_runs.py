"""Every sampler and plan through the whole application: phases, anchors, cycles and diagnostics reach the sampler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bayeslora import samplers
from bayeslora.app.compose import to_experiment
from bayeslora.app.config import CONF_DIR
from tests.run.tools import OWN, composed, draw, manifest, run

NAMES = sorted(path.stem for path in (Path(CONF_DIR) / "sampler").glob("*.yaml"))
SIZE = ("chain.num_chains=1", "chain.num_draws=2", "logger=none")


def test_every_sampler_has_a_config():
    classes = {name.lower() for name in samplers.__all__} - {"sampler", "by_name"}
    assert {name.replace("_", "") for name in NAMES} == classes


@pytest.mark.parametrize("sampler", NAMES)
def test_sampler_runs_from_its_config(sampler: str, tmp_path: Path):
    metrics = run(tmp_path / "run", f"sampler={sampler}", *SIZE, base=OWN)
    first, second = (draw(tmp_path / "run", 0, index) for index in range(2))
    assert all(torch.isfinite(tensor).all() for tensor in second.values())
    assert all(not torch.equal(first[name], second[name]) for name in first if name.endswith("conv1.weight"))
    assert 0 <= metrics["ensemble"]["accuracy"] <= 1


def test_the_clipped_share_is_recorded_with_the_draws(tmp_path: Path):
    """SGLRW reports over windows of 100 steps, so a window must be full before a draw."""
    size = ("chain.burn_in=100", "chain.num_chains=1", "chain.num_draws=1", "logger=none")
    run(tmp_path / "run", "sampler=sglrw", "sampler.lr=1e-4", *size, base=OWN)
    (record,) = manifest(tmp_path / "run", 0)
    assert 0 <= record["scalars"]["clipped"] <= 1


def entering(step: int, *overrides: str) -> samplers.Sampler:
    """The sampler as it is when its chain enters the step of that number."""
    setup = to_experiment(composed(*OWN, "chain.num_chains=1", *overrides))
    chain = setup.new_chain(0)
    chain.steps_taken = step
    chain.enter_phase(setup.batches(0)(step))
    return chain.sampler


def test_adaptation_stops_when_burn_in_ends():
    assert not entering(4, "sampler=psgld").frozen
    assert entering(5, "sampler=psgld").frozen  # 3 steps of warm-up and 2 of burn-in are taken


def test_exploration_is_without_noise_and_sampling_with():
    cyclical = ("sampler=sghmc", "chain.cycles=1", "chain.exploration=0.5", "chain.schedule=cyclical")
    assert not entering(5, *cyclical).noisy
    assert entering(15, *cyclical).noisy
    assert entering(15, *cyclical).kT == 1 / 64


def test_control_variates_are_anchored_with_the_gradient_of_all_the_data():
    sampler = entering(3, "sampler=sgld", "sampler.control_variates=true", "evaluate.batch_size=25")  # 25, 25 and 14
    setup = to_experiment(composed(*OWN))
    model, data = setup.model(), setup.data
    nll = torch.nn.functional.cross_entropy(
        model(data.transform(data.train.inputs)), data.train.targets, reduction="none"
    )
    setup.potential(nll, dict(model.named_parameters())).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(sampler.memory["anchor_gradient"], expected, rtol=1e-4, atol=1e-5)


def test_cycles_keep_their_draws_at_their_ends(tmp_path: Path):
    cyclical = ("sampler=sghmc", "chain.cycles=2", "chain.num_draws=4", "chain.num_chains=1", "logger=none")
    run(tmp_path / "run", *cyclical, "chain.exploration=0.5", "chain.schedule=cyclical", base=OWN)
    # 3 + 2 steps, then two cycles of 4 steps of exploration and 4 of sampling, a draw every 2
    assert [record["step"] for record in manifest(tmp_path / "run", 0)] == [11, 13, 19, 21]
    rates = [record["scalars"]["lr"] for record in manifest(tmp_path / "run", 0)]
    assert rates[0] > rates[1]
    assert rates[:2] == rates[2:]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["provenance"]["draws"] == 4
