"""A chain on two ranks (gloo, two processes): the chain of one rank, up to rounding; and how the ranks end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayeslora.app.compose import plain, to_experiment
from bayeslora.chain.batches import Batches, SharedBatches
from bayeslora.datasets import Digits
from bayeslora.engine.runner import ChainRunner
from bayeslora.errors import ConfigError, InterruptedRunError, WorkerError
from bayeslora.runs.directory import RunDirectory
from bayeslora.runs.identity import Fingerprint
from tests.run.tools import OWN, TINY, composed, draw, manifest

ONE = ("chain.num_chains=1", "logger=none")
TWO_RANKS = ("trainer.strategy=ddp", "trainer.devices=2")
FULL_PASSES = ("sampler=sgld", "sampler.control_variates=true")


def chain(folder: Path, *overrides: str, base: Iterable[str] = TINY) -> None:
    """Run the chain, without an evaluation."""
    cfg = composed(*base, *ONE, f"run_dir={folder}", *overrides)
    setup, directory = to_experiment(cfg), RunDirectory(folder)
    directory.open(plain(cfg), Fingerprint.of(setup.model(0)))
    ChainRunner(setup, directory).run_all([0])


def distance(one: Path, other: Path, index: int) -> float:
    """Distance of two runs' draws, relative to their norm."""
    a, b = (torch.cat([t.flatten() for t in draw(folder, 0, index).values()]) for folder in (one, other))
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("sampler", [("sampler=sam_sgld",), FULL_PASSES], ids=["sam_sgld", "control_variates"])
def test_two_ranks_make_the_chain_of_one(sampler: tuple[str, ...], tmp_path: Path) -> None:
    """A gradient's two halves are added in another order: each of the 15 steps rounds anew, by at most 2⁻²⁴ of θ.

    Both samplers take two gradients a step: SAM's ascent must be along the averaged one. A prior counted twice, noise
    of each rank's own or a gradient of one half alone moves draws by more than 1e-3.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    chain(one, *sampler, base=OWN)
    chain(two, *sampler, *TWO_RANKS, base=OWN)
    assert max(distance(one, two, index) for index in range(5)) < 15 * 2**-24
    for a, b in zip(manifest(one, 0), manifest(two, 0), strict=True):
        assert a["scalars"] == pytest.approx(b["scalars"], rel=1e-5)
    assert {p.relative_to(one) for p in one.rglob("*.safetensors") if "resume" not in p.parts} == {
        p.relative_to(two) for p in two.rglob("*.safetensors") if "resume" not in p.parts
    }


def test_a_chain_on_two_ranks_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """A signal reaches rank 0, which writes a resume point; one rank then goes on from it."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    signalled = ("callbacks.stop._target_=tests.run.tools.SignalToParent", "callbacks.stop.step=8")
    with pytest.raises(InterruptedRunError, match=r"stopped by SIGTERM after step [89]; nothing is lost"):
        chain(folder, *TWO_RANKS, *signalled)
    assert len(manifest(folder, 0)) in (1, 2)
    chain(folder)
    chain(whole)
    assert max(distance(folder, whole, index) for index in range(5)) < 15 * 2**-24


def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"rank 1 killed by SIGKILL; repeat the command"):
        chain(tmp_path / "run", *TWO_RANKS, "sampler._target_=tests.run.tools.DyingRank", "sampler.at=4")
    assert len(manifest(tmp_path / "run", 0)) == 1


def test_the_ranks_shares_are_the_batch() -> None:
    def augment(images: Tensor, random: torch.Generator) -> Tensor:
        return images + torch.rand(images.shape, generator=random)

    batches = Batches(replace(Digits(limit_train=40).load(), augment=augment), 16, 0, 0)
    for step in (0, 5):
        inputs, targets = batches(step)
        shares = [SharedBatches(batches, rank, 4)(step) for rank in range(4)]
        assert torch.equal(torch.cat([x for x, _ in shares]), inputs)
        assert torch.equal(torch.cat([y for _, y in shares]), targets)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("trainer.strategy=fsdp",), "trainer.strategy=fsdp gives each rank a part of the parameters"),
        (("trainer.strategy=deepspeed_stage_2",), "its noise is one stream over all of them"),
        (("trainer.strategy=ddq",), "trainer.strategy=ddq is unknown; choose auto or ddp"),
        (("trainer.devices=2",), "trainer.devices=2 needs trainer.strategy=ddp"),
        (("trainer.strategy=ddp", "trainer.devices=0"), "trainer.devices=0 must be at least 1"),
        ((*TWO_RANKS, "chain.parallel=stacked"), "chain.parallel=stacked cannot go with trainer.devices=2"),
        ((*TWO_RANKS, "chain.parallel=processes"), "chain.parallel=processes cannot go with trainer.devices=2"),
        ((*TWO_RANKS, "chain.batch_size=15"), "chain.batch_size=15 cannot be shared out among trainer.devices=2"),
        ((*TWO_RANKS, "chain.batch_size=null", "dataset.limit_train=63"), "the 63 examples cannot be shared out"),
        ((*TWO_RANKS, "model.norm=batch"), "batch norm would see a share of each batch alone"),
    ],
)
def test_what_ranks_cannot_do_is_refused_with_the_reason(settings: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        to_experiment(composed(*TINY, *settings))
    assert problem in str(refused.value)
