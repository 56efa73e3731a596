"""One chain on several devices: every rank takes its share of each batch, and the shares' gradients are averaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayeslora.chains.parallel import POLL, only_gpu
from bayeslora.errors import BayesloraError, DivergedError, InterruptedRunError, Problems, WorkerError
from bayeslora.stopping import hand_on, listening

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from omegaconf import DictConfig
    from torch import Tensor

    from bayeslora.chains.runner import ChainRunner
    from bayeslora.datasets.batches import Batches

STRATEGIES = ("auto", "ddp")
GRACE = 60.0
"""Seconds that rank 0 has to notice that another one is gone."""


def setting_problems(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with `trainer.strategy` and `trainer.devices`."""
    strategy, devices = cfg.trainer.strategy, cfg.trainer.devices
    if strategy.startswith(("fsdp", "deepspeed")):
        yield (
            f"trainer.strategy={strategy} gives each rank a part of the parameters, and a Langevin step needs them"
            " whole: its noise is one stream over all of them, SAM's norms run over all of them. Choose ddp, or"
            " chain.parallel=processes"
        )
    elif strategy not in STRATEGIES:
        yield f"trainer.strategy={strategy} is unknown; choose {' or '.join(STRATEGIES)}"
    elif strategy == "auto" and devices != 1:
        yield (
            f"trainer.devices={devices} needs trainer.strategy=ddp, with which they share each chain's batches"
            " (chain.parallel=processes gives each chain a device of its own)"
        )
    if devices < 1:
        yield f"trainer.devices={devices} must be at least 1"
    if devices > 1 and cfg.chain.parallel != "sequential":
        yield (
            f"chain.parallel={cfg.chain.parallel} cannot go with trainer.devices={devices}: the devices are busy with"
            " one chain's batches. Choose chain.parallel=sequential, or trainer.devices=1"
        )
    there = torch.cuda.device_count() if cfg.trainer.accelerator == "gpu" else devices
    if devices > there > 0:
        yield f"trainer.devices={devices}, but torch sees {there}"


def require_shares(cfg: DictConfig, model: nn.Module, num_data: int) -> None:
    """Raise `ConfigError` unless a batch can be shared out among the devices without a change to the potential."""
    devices = cfg.trainer.devices
    problems = Problems()
    if (cfg.chain.batch_size or num_data) % devices:
        what = f"chain.batch_size={cfg.chain.batch_size}" if cfg.chain.batch_size else f"the {num_data} examples"
        problems.add(f"{what} cannot be shared out among trainer.devices={devices}; choose a multiple")
    if devices > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        problems.add(
            f"batch norm would see a share of each batch alone with trainer.devices={devices}, which is another"
            " potential: choose model.norm=frn or group"
        )
    problems.raise_if_any()


class SharedBatches:
    """The share of one rank in the batch of any step: `batches(step)` gives (inputs, targets).

    The ranks' shares together are the step's batch, augmented as a whole, so K ranks see what one would see.

    Args:
        batches: the chain's batches.
        rank: whose share.
        ranks: K, which divides the batch.
    """

    def __init__(self, batches: Batches, rank: int, ranks: int) -> None:
        self.batches, self.rank, self.ranks = batches, rank, ranks

    def __call__(self, step: int) -> tuple[Any, Tensor]:
        """Model inputs [B/K, …] and targets int64 [B/K] of a step, on the device."""
        inputs, targets = (whole.chunk(self.ranks)[self.rank] for whole in self.batches.stored(step))
        return self.batches.prepare(inputs), targets


def run_ranks(runner: ChainRunner, chain: int) -> None:
    """Run a chain on `trainer.devices` ranks, each a process of this machine with a device of its own.

    Rank 0 alone writes; the others follow it, and are ended when it has ended. A signal that asks the run to stop is
    handed to rank 0.

    Raises:
        DivergedError: the chain diverged.
        InterruptedRunError: the run was asked to stop; its resume point is written.
        WorkerError: a rank was killed or failed.
    """
    ranks = _Ranks(runner, chain)
    try:
        with listening(ranks.stop) as before:
            ranks.run()
    finally:
        if ranks.asked is not None:
            hand_on(ranks.asked, before[ranks.asked])


class _Ranks:
    """The processes of a chain's ranks, started."""

    def __init__(self, runner: ChainRunner, chain: int) -> None:
        from lightning.fabric.plugins.environments.lightning import find_free_network_port

        from bayeslora.build import plain

        trainer = runner.setup.cfg.trainer
        context = multiprocessing.get_context("spawn")
        self.answers: Any = context.SimpleQueue()
        self.asked: int | None = None
        threads = trainer.num_threads or max(1, (os.cpu_count() or 1) // trainer.devices)
        given = (plain(runner.setup.cfg), chain, threads, find_free_network_port(), self.answers)
        self.processes: list[SpawnProcess] = [
            context.Process(target=_work, args=(rank, *given), name=f"rank-{rank}") for rank in range(trainer.devices)
        ]
        for process in self.processes:
            process.start()

    def stop(self, number: int, frame: Any) -> None:  # noqa: ARG002
        """Ask rank 0 to stop, when this process was asked to."""
        self.asked = number
        first = self.processes[0]
        if first.pid is not None and first.is_alive():
            os.kill(first.pid, signal.SIGTERM)

    def failed(self) -> dict[int, int]:
        """Ranks that ended as they should not have, and their exit codes."""
        fine = (None, 0, DivergedError.exit_code)  # all ranks see a divergence; rank 0 has still to write what it can
        codes = {rank: process.exitcode for rank, process in enumerate(self.processes)}
        return {rank: code for rank, code in codes.items() if code not in fine and code is not None}

    def run(self) -> None:
        """Wait until rank 0 has ended, or another one has failed, without which it would wait for ever.

        Raises: as `run_ranks`.
        """
        first = self.processes[0]
        while first.exitcode is None and not self.failed():
            first.join(POLL)
        first.join(GRACE)
        failed = self.failed()
        for process in self.processes:
            process.kill()  # they have nothing to write
            process.join()
        self._raise(failed)

    def _raise(self, failed: dict[int, int]) -> None:
        """Raise what rank 0 said, or what became of the ranks."""
        from bayeslora.chains.runner import exit_signal

        code = self.processes[0].exitcode
        kind, message, chains, step = ("", "", [], 0) if self.answers.empty() else self.answers.get()
        if code == 0:
            return
        if self.asked is not None or code == InterruptedRunError.exit_code:
            raise InterruptedRunError(message or "stopped before the chain had begun")
        if kind == "diverged":
            raise DivergedError(message, chains, step)
        how = ", ".join(f"rank {rank} {exit_signal(number)}" for rank, number in failed.items())
        raise WorkerError(message or f"{how}; repeat the command with run_dir=… of this run to go on", chains)


def _work(rank: int, config: dict[str, Any], chain: int, threads: int, port: int, answers: Any) -> None:
    """What a rank does: build the run's parts anew and run the chain with the others."""
    from omegaconf import OmegaConf

    from bayeslora.build import build
    from bayeslora.chains.runner import ChainRunner
    from bayeslora.rundir import RunDirectory

    if rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; rank 0 decides
    if config["trainer"]["accelerator"] == "gpu":
        only_gpu(rank)
    torch.set_num_threads(threads)
    # to Lightning each is a machine with one device
    place = {"LOCAL_RANK": "0", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(place)
    try:
        ChainRunner(build(OmegaConf.create(config)), RunDirectory(config["run_dir"]), rank).fit([chain])
    except BayesloraError as error:
        if rank == 0:
            kind = "diverged" if isinstance(error, DivergedError) else "failed"
            answers.put((kind, str(error), [chain], getattr(error, "step", 0)))
        sys.exit(error.exit_code)
