"""K stacked chains through the whole application: the same draws as one after the other, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bayeslora.app.config import CONF_DIR
from tests.run.tools import OWN, draw, manifest, run

SAMPLERS = sorted(path.stem for path in (Path(CONF_DIR) / "sampler").glob("*.yaml"))
SIZE = ("chain.num_draws=2", "chain.thin=2", "logger=none", "prior.vectors=0.5")


def both(tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
    """The same run, chains one after the other and stacked."""
    folders = tmp_path / "sequential", tmp_path / "stacked"
    for folder in folders:
        run(folder, f"chain.parallel={folder.name}", *SIZE, *overrides, base=OWN)
    return folders


def assert_same_draws(sequential: Path, stacked: Path, rtol: float, chains: int = 2) -> None:
    for chain in range(chains):
        for index in range(2):
            one, other = draw(sequential, chain, index), draw(stacked, chain, index)
            assert one.keys() == other.keys()
            for name, tensor in one.items():
                error = (tensor.float() - other[name].float()).norm() / tensor.float().norm().clamp(min=1e-3)
                assert error < rtol, (chain, index, name, float(error))
        for a, b in zip(manifest(sequential, chain), manifest(stacked, chain), strict=True):
            assert a["scalars"] == pytest.approx(b["scalars"], rel=1e-3)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "sglrw"])
def test_stacked_chains_are_the_chains_run_alone(sampler: str, tmp_path: Path):
    assert_same_draws(*both(tmp_path, f"sampler={sampler}"), rtol=1e-5)


def test_stacked_lattice_walks_part_only_where_rounding_turns_a_sign(tmp_path: Path):
    one, other = both(tmp_path, "sampler=sglrw", "sampler.lr=1e-3")
    for chain in range(2):
        a, b = draw(one, chain, 1), draw(other, chain, 1)
        moved = torch.cat([(a[name] - b[name]).flatten().abs() > 1e-6 for name in a])
        assert moved.double().mean() < 1e-3


@pytest.mark.parametrize("norm", ["batch", "group", "frn"])
def test_every_norm_stacks(norm: str, tmp_path: Path):
    """Batch norm's running statistics are each chain's own, also under SAM, whose ascent leaves them alone."""
    assert_same_draws(*both(tmp_path, f"model.norm={norm}", "sampler=sam_sgld"), rtol=1e-5)
