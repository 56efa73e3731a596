"""Chains spread over processes: one a GPU, or as many as the cores allow."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bayeslora.errors import BayesloraError, InterruptedRunError, WorkerError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from bayeslora.chains.runner import ChainRunner

POLL = 0.2
"""Seconds between looks at the workers."""


def run_processes(runner: ChainRunner, chains: Sequence[int]) -> dict[int, str]:
    """Run chains side by side, each in a process of its own, at most one a device (GPU or core) at a time.

    Each worker has `trainer.num_threads` threads, or its share of the cores. As `ChainRunner.run_all`, whose draws
    these are bit for bit where the number of threads is the same.

    Returns:
        The chains that diverged and what happened to them.

    Raises:
        WorkerError: a worker was killed or failed; the other chains are finished.
        InterruptedRunError: the run was asked to stop; every worker has written its resume points.
    """
    import torch

    gpu = runner.setup.device.type == "cuda"
    slots = torch.cuda.device_count() if gpu else os.cpu_count() or 1
    workers = _Workers(runner, slots=min(slots, len(chains)), cores=os.cpu_count() or 1)
    with listening(workers.pass_on):
        workers.run(list(chains))
    return workers.result()


@contextmanager
def listening(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle the signals that ask a run to stop, inside the block (only the main thread may)."""
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def only_gpu(slot: int) -> None:
    """Let this process see one GPU alone, as its first; before it has touched any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot] if visible else str(slot)


class _Workers:
    """Worker processes: which run, which wait, how they ended."""

    def __init__(self, runner: ChainRunner, slots: int, cores: int) -> None:
        from bayeslora.build import plain

        self.config, self.slots = plain(runner.setup.cfg), slots
        self.threads = runner.setup.cfg.trainer.num_threads or max(1, cores // slots)
        self.context = multiprocessing.get_context("spawn")
        self.answers: Any = self.context.SimpleQueue()
        self.running: dict[int, tuple[int, SpawnProcess]] = {}
        self.codes: dict[int, int] = {}
        self.asked = False

    def run(self, waiting: list[int]) -> None:
        """Start workers as slots become free, until all have ended."""
        while waiting or self.running:
            free = set(range(self.slots)) - {slot for slot, _ in self.running.values()}
            while waiting and free and not self.asked:
                self._start(waiting.pop(0), free.pop())
            if self.asked:
                waiting.clear()
            for chain, (_, process) in list(self.running.items()):
                process.join(POLL / len(self.running))
                if process.exitcode is not None:
                    self.codes[chain] = process.exitcode
                    del self.running[chain]

    def _start(self, chain: int, slot: int) -> None:
        arguments = (self.config, chain, slot, self.threads, self.answers)
        process = self.context.Process(target=_work, args=arguments, name=f"chain-{chain}")
        process.start()
        self.running[chain] = slot, process

    def pass_on(self, number: int, frame: Any) -> None:  # noqa: ARG002
        """Ask the workers to stop, when this process was asked to."""
        self.asked = True
        for _, process in self.running.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def result(self) -> dict[int, str]:
        """What the workers said; raises what they could not."""
        from bayeslora.chains.runner import exit_signal

        stopped: dict[int, str] = {}
        messages: dict[int, str] = {}
        while not self.answers.empty():
            chain, kind, message = self.answers.get()
            (stopped if kind == "diverged" else messages)[chain] = message
        if self.asked or any(code == InterruptedRunError.exit_code for code in self.codes.values()):
            raise InterruptedRunError(next(iter(messages.values()), "stopped before a chain had begun"))
        failed = {chain: code for chain, code in self.codes.items() if code != 0 and chain not in stopped}
        if failed:
            said = [f"chain {c}: {messages.get(c) or exit_signal(code)}" for c, code in failed.items()]
            raise WorkerError(f"{'; '.join(said)}. The other chains are finished", list(failed))
        return stopped


def _work(config: dict[str, Any], chain: int, slot: int, threads: int, answers: Any) -> None:
    """What a worker does: build the run's parts anew and run one chain."""
    import torch
    from omegaconf import OmegaConf

    from bayeslora.build import build
    from bayeslora.chains.runner import ChainRunner
    from bayeslora.rundir import RunDirectory

    torch.set_num_threads(threads)
    if config["trainer"]["accelerator"] == "gpu":
        only_gpu(slot)
    try:
        runner = ChainRunner(build(OmegaConf.create(config)), RunDirectory(config["run_dir"]))
        for stopped, message in runner.run_all([chain]).items():
            answers.put((stopped, "diverged", message))
    except BayesloraError as error:
        answers.put((chain, "failed", str(error)))
        sys.exit(error.exit_code)
