"""Chains spread over processes: one a GPU, or as many as the cores allow."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bayeslora.errors import BayesloraError, InterruptedRunError, WorkerError
from bayeslora.stopping import hand_on, listening

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
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
    with listening(workers.pass_on) as before:
        workers.run(list(chains))
    if workers.asked is not None:
        hand_on(workers.asked, before[signal.Signals(workers.asked)])
    return workers.result()


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
        self.answers: dict[int, Connection] = {}
        self.running: dict[int, tuple[int, SpawnProcess]] = {}
        self.codes: dict[int, int] = {}
        self.asked: int | None = None

    def run(self, waiting: list[int]) -> None:
        """Start workers as slots become free, until all have ended."""
        while waiting or self.running:
            free = set(range(self.slots)) - {slot for slot, _ in self.running.values()}
            while waiting and free and self.asked is None:
                self._start(waiting.pop(0), free.pop())
            if self.asked is not None:
                waiting.clear()
            for chain, (_, process) in list(self.running.items()):
                process.join(POLL / len(self.running))
                if process.exitcode is not None:
                    self.codes[chain] = process.exitcode
                    del self.running[chain]

    def _start(self, chain: int, slot: int) -> None:
        self.answers[chain], answer = self.context.Pipe(duplex=False)  # its own: one that is killed blocks no other
        arguments = (self.config, chain, slot, self.threads, answer)
        process = self.context.Process(target=_work, args=arguments, name=f"chain-{chain}")
        process.start()
        answer.close()
        self.running[chain] = slot, process

    def pass_on(self, number: int, frame: Any) -> None:  # noqa: ARG002
        """Ask the workers to stop, when this process was asked to."""
        self.asked = number
        for _, process in self.running.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def result(self) -> dict[int, str]:
        """What the workers said; raises what they could not."""
        from bayeslora.chains.runner import exit_signal

        stopped: dict[int, str] = {}
        messages: dict[int, str] = {}
        for chain, answer in self.answers.items():
            with suppress(EOFError):  # it said nothing, or was killed amid its words
                kind, message = answer.recv()
                (stopped if kind == "diverged" else messages)[chain] = message
        if self.asked is not None or any(code == InterruptedRunError.exit_code for code in self.codes.values()):
            advice = f"stopped; nothing is lost. Repeat the command with run_dir={self.config['run_dir']} to go on"
            raise InterruptedRunError(next(iter(messages.values()), advice))
        failed = {chain: code for chain, code in self.codes.items() if code != 0 and chain not in stopped}
        if failed:
            said = [f"chain {c}: {messages.get(c) or exit_signal(code)}" for c, code in failed.items()]
            raise WorkerError(f"{'; '.join(said)}. The other chains are finished", list(failed))
        return stopped


def _work(config: dict[str, Any], chain: int, slot: int, threads: int, answer: Connection) -> None:
    """What a worker does: build the run's parts anew and run one chain."""
    import torch
    from omegaconf import OmegaConf

    from bayeslora.build import build
    from bayeslora.chains.runner import ChainRunner
    from bayeslora.rundir import RunDirectory

    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if config["trainer"]["accelerator"] == "gpu":
        only_gpu(slot)
    try:
        runner = ChainRunner(build(OmegaConf.create(config)), RunDirectory(config["run_dir"]))
        for message in runner.run_all([chain]).values():
            answer.send(("diverged", message))
    except BayesloraError as error:
        answer.send(("failed", str(error)))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # in a terminal it reaches all processes, also those whose chain has not begun
        sys.exit(InterruptedRunError.exit_code)


def _stop_with_parent() -> None:
    """Ask this worker to stop when the process that started it has ended, killed or not: nobody waits for its chain."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
