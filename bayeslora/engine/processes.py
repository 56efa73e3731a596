"""Processes: chains side by side, one a GPU or as many as the cores allow; or ranks that share a chain's batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from bayeslora.engine.signals import hand_on, listening
from bayeslora.errors import BayesloraError, DivergedError, InterruptedRunError, WorkerError
from bayeslora.experiment import Experiment
from bayeslora.runs.directory import RunDirectory

RunChain = Callable[[Experiment, RunDirectory, int], Mapping[int, str]]
"""Runs a chain in a process of its own: experiment, run, chain -> the chain, if it diverged, and what happened."""
RunRank = Callable[[Experiment, RunDirectory, int, int], None]
"""Takes a rank's part in a chain: experiment, run, chain, rank."""

POLL = 0.2
"""Seconds between looks at the workers."""
GRACE = 60.0
"""Seconds that rank 0 has to notice that another one is gone."""


def run_processes(experiment: Experiment, run: RunDirectory, chains: Sequence[int], work: RunChain) -> dict[int, str]:
    """Run chains side by side, each in a process of its own, at most one a device (GPU or core) at a time.

    Each worker has `trainer.num_threads` threads, or its share of the cores. The draws are those of
    chains in this process, bit for bit where the number of threads is the same.

    Returns:
        The chains that diverged and what happened to them.

    Raises:
        WorkerError: a worker was killed or failed; the other chains are finished.
        InterruptedRunError: the run was asked to stop; every worker has written its resume points.
    """
    gpu = experiment.device.type == "cuda"
    slots = min(torch.cuda.device_count() if gpu else os.cpu_count() or 1, len(chains))
    workers, waiting, taken = _Workers(experiment, run, slots), list(chains), dict[int, int]()
    with workers.listening():
        while waiting or workers.running():
            taken = {chain: slot for chain, slot in taken.items() if chain in workers.running()}
            free = set(range(slots)) - {*taken.values()}
            while waiting and free and workers.asked is None:
                chain = waiting.pop(0)
                taken[chain] = free.pop()
                workers.start(chain, work, taken[chain], chain)
            if workers.asked is not None:
                waiting.clear()
            workers.wait()
    stopped, messages = dict[int, str](), dict[int, str]()
    for chain, (error, message, _) in workers.answers().items():
        (stopped if issubclass(error, DivergedError) else messages)[chain] = message
    codes = workers.codes()
    if workers.asked is not None or InterruptedRunError.exit_code in codes.values():
        advice = f"stopped; nothing is lost. Repeat the command with run_dir={run.root} to go on"
        raise InterruptedRunError(next(iter(messages.values()), advice))
    failed = {chain: code for chain, code in codes.items() if code != 0 and chain not in stopped}
    if failed:
        causes = [f"chain {chain}: {messages.get(chain) or exit_signal(code)}" for chain, code in failed.items()]
        raise WorkerError(f"{'; '.join(causes)}. The other chains are finished", list(failed))
    return stopped


def run_ranks(experiment: Experiment, run: RunDirectory, chain: int, work: RunRank) -> None:
    """Run a chain on `trainer.devices` ranks, each a process of this machine with a device of its own.

    Rank 0 alone writes; the others follow it, and are ended when it has ended. A signal that asks the run to stop is
    handed to rank 0.

    Raises:
        DivergedError: the chain diverged.
        InterruptedRunError: the run was asked to stop; its resume point is written.
        WorkerError: a rank was killed or failed.
    """
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    devices, port = experiment.trainer.devices, find_free_network_port()
    workers = _Workers(experiment, run, devices)
    fine = (0, DivergedError.exit_code)  # all ranks see a divergence; rank 0 has still to write what it can
    with workers.listening(first_only=True):
        for rank in range(devices):
            workers.start(rank, work, rank, chain, rank, port=port)
        while 0 in workers.running() and all(code in fine for code in workers.codes().values()):
            workers.wait()
        workers.processes[0].join(GRACE)
        failed = {rank: code for rank, code in workers.codes().items() if code not in fine}
        workers.kill()  # the others have nothing to write
    code = workers.codes()[0]
    if code == 0:
        return
    error, message, step = workers.answers().get(0, (WorkerError, "", 0))
    if workers.asked is not None or code == InterruptedRunError.exit_code:
        raise InterruptedRunError(message or "stopped before the chain had begun")
    if issubclass(error, DivergedError):
        raise DivergedError(message, [chain], step)
    how = ", ".join(f"rank {rank} {exit_signal(number)}" for rank, number in failed.items())
    raise WorkerError(message or f"{how}; repeat the command with run_dir=… of this run to go on", [chain])


def exit_signal(code: int) -> str:
    """How a process ended, in words: its exit code, or the signal that killed it."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


class _Workers:
    """Processes that got the experiment, by number: who runs, what they said, how they ended.

    Args:
        experiment, run: what they get.
        slots: processes at a time, which share the cores.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory, slots: int) -> None:
        self.experiment, self.run = experiment, run
        self.threads = self.experiment.trainer.num_threads or max(1, (os.cpu_count() or 1) // slots)
        self.processes: dict[int, SpawnProcess] = {}
        self.pipes: dict[int, Connection] = {}
        self.asked: int | None = None

    def start(self, number: int, work: Callable[..., Any], slot: int, *arguments: int, port: int | None = None) -> None:
        """Start a process that calls `work(experiment, run, *arguments)` on a slot's device; a rank has a port."""
        context = multiprocessing.get_context("spawn")
        self.pipes[number], answer = context.Pipe(duplex=False)  # its own: one that is killed blocks no other
        given = (answer, work, self.experiment, self.run, arguments, self.threads, slot, port)
        self.processes[number] = context.Process(target=_work, args=given, name=f"worker-{number}")
        self.processes[number].start()
        answer.close()

    def running(self) -> list[int]:
        """Numbers of the processes that have not ended."""
        return [number for number, process in self.processes.items() if process.exitcode is None]

    def wait(self) -> None:
        """Wait a little, or until one ends."""
        wait([process.sentinel for process in self.processes.values() if process.exitcode is None], POLL)

    def codes(self) -> dict[int, int]:
        """Exit codes of the processes that have ended."""
        return {number: p.exitcode for number, p in self.processes.items() if p.exitcode is not None}

    def answers(self) -> dict[int, tuple[type[BayesloraError], str, int]]:
        """The error, message and step of those that said something before they ended."""
        answered = {}
        for number, pipe in self.pipes.items():
            with suppress(EOFError):  # it said nothing, or was killed amid its words
                answered[number] = pipe.recv()
        return answered

    def kill(self) -> None:
        """End all processes at once."""
        for process in self.processes.values():
            process.kill()
            process.join()

    @contextmanager
    def listening(self, *, first_only: bool = False) -> Iterator[None]:
        """Inside the block, a signal that asks this process to stop asks the workers, or the first of them."""

        def ask(number: int, frame: Any) -> None:  # noqa: ARG001
            self.asked = number
            for process in list(self.processes.values())[: 1 if first_only else None]:
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)

        try:
            with listening(ask) as before:
                yield
        finally:
            if self.asked is not None:
                hand_on(self.asked, before[self.asked])


def _work(  # noqa: PLR0917
    answer: Connection,
    work: Callable[..., Any],
    experiment: Experiment,
    run: RunDirectory,
    arguments: Sequence[int],
    threads: int,
    slot: int,
    port: int | None,
) -> None:
    """What every worker does: its work, and what becomes of it."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if experiment.device.type == "cuda":
        _only_gpu(slot)
    if port is not None:
        if slot > 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all ranks; the first decides
        # to Lightning each is a machine with one device
        place = {"LOCAL_RANK": "0", "NODE_RANK": str(slot), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(place)
    try:
        for message in (work(experiment, run, *arguments) or {}).values():
            answer.send((DivergedError, message, 0))
    except BayesloraError as error:
        answer.send((type(error), str(error), getattr(error, "step", 0)))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # in a terminal it reaches all processes, also those whose chain has not begun
        sys.exit(InterruptedRunError.exit_code)


def _only_gpu(slot: int) -> None:
    """Let this process see one GPU alone, as its first; before it has touched any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot] if visible else str(slot)


def _stop_with_parent() -> None:
    """Ask this worker to stop when the process that started it has ended, killed or not: nobody waits for its chain."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
