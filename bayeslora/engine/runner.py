"""Runs the chains of a run directory: which go together, where each goes on, what becomes of those that diverge."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from torch import Tensor

from bayeslora.atomic import remove_leftovers
from bayeslora.chain.batches import Batches, SharedBatches
from bayeslora.chain.snapshot import Extra, Snapshot
from bayeslora.engine.acceleration import draws_noise_ahead, keep_freed_memory
from bayeslora.engine.callbacks.resume import KeepResumePoints, Restore, ResumePoints
from bayeslora.engine.processes import run_processes, run_ranks
from bayeslora.engine.writing import Writer
from bayeslora.errors import DataError, DivergedError, InterruptedRunError
from bayeslora.experiment import BatchAt, Experiment
from bayeslora.factories import offer
from bayeslora.loggers import ChainLoggers
from bayeslora.posterior.store import MAP_FILE, read_baseline
from bayeslora.runs.directory import RunDirectory

if TYPE_CHECKING:
    from lightning import Callback

SMALLEST_SCALE = 1 / 64
"""Retries halve the step size down to this factor; then the chain is given up."""


class ChainRunner:
    """Runs chains of one run directory until each has its draws, or has diverged for good.

    Args:
        experiment: what is run.
        run: its directory, open.
        rank: of this process, where a chain runs on several devices (see `engine.processes`); only rank 0 writes.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory, rank: int = 0) -> None:
        self.run, self.rank = run, rank
        self.experiment = experiment.but(fingerprint=run.fingerprint, fixed=run.fixed)

    def run_as_set(self, chains: Sequence[int]) -> dict[int, str]:
        """`run_all`, or, with `chain.parallel=processes`, `engine.processes.run_processes`."""
        if self.experiment.chain.parallel == "processes":
            return run_processes(self.experiment, self.run, chains, _run_alone)
        return self.run_all(chains)

    def run_all(self, chains: Sequence[int]) -> dict[int, str]:
        """Run chains in this process, each under its own lock; returns those that diverged and what happened to them.

        Raises:
            ConfigError: another process runs one of them.
            InterruptedRunError: the run was asked to stop; resume points are written.
            StorageError: a file could not be written; nothing that was kept is lost.
        """
        stopped: dict[int, str] = {}
        with ExitStack() as locks:
            for chain in chains:
                locks.enter_context(self.run.locked(chain))
                self._clear_up(chain)
            todo = [chain for chain in chains if not self.finished(chain)]
            waiting = self._groups(todo)
            while waiting:
                group = waiting.pop(0)
                try:
                    if self.experiment.trainer.devices == 1:
                        self.run_group(group)
                    else:
                        run_ranks(self.experiment, self.run, group[0], _run_rank)
                except DivergedError as error:
                    failed = [chain for chain in group if chain in error.chains] or group
                    healthy = [chain for chain in group if chain not in failed]
                    again = [[chain] for chain in failed if self._retry(chain, error)]
                    stopped |= {chain: str(error) for chain in failed if [chain] not in again}
                    waiting = [*([healthy] if healthy else []), *again, *waiting]
        return stopped

    def _clear_up(self, chain: int) -> None:
        """Remove what a killed process left half written of a chain."""
        self.run.store(chain).repair()
        remove_leftovers(self.points(chain).folder)
        remove_leftovers(self.run.chain(chain), self.run.map_file().name)

    def _groups(self, chains: list[int]) -> list[list[int]]:
        """Which chains run together: all in a stack but those that were tried again, whose step size is their own.

        Chains that the run was given later are a stack of their own: the others are ahead of them.
        """
        if self.experiment.chain.parallel != "stacked":
            return [[chain] for chain in chains]
        alone = [chain for chain in chains if self._scale(chain, self.experiment.plan.total) < 1]
        together = [chain for chain in chains if chain not in alone]
        stacks = [list(stack) for _, stack in groupby(together, partial(bisect_right, self.run.grown_from))]
        return [*stacks, *([chain] for chain in alone)]

    def finished(self, chain: int) -> bool:
        """Whether all that a chain has to leave is on disk and whole; says so."""
        plan, store = self.experiment.plan, self.run.store(chain)
        records = store.records()
        if len(records) < plan.num_draws or not all(map(store.intact, records[: plan.num_draws])):
            return False
        if self._lacks_map(chain, plan.total):
            return False
        of = self.experiment.chain.num_chains
        print(f"chain {chain + 1}/{of}: all {plan.num_draws} draws are on disk", flush=True)  # noqa: T201
        return True

    def start(self, chains: Sequence[int]) -> list[Snapshot]:
        """Where chains can go on together: the newest resume point that all have and before which nothing is missing.

        Returns:
            A snapshot of each, or none, where they begin at the beginning.
        """
        steps = [{step for step in self.points(chain).steps() if self._sound(chain, step)} for chain in chains]
        for step in sorted(set.intersection(*steps), reverse=True):
            try:
                snapshots = [self.points(chain).read(step) for chain in chains]
            except DataError:
                continue
            scales = [
                (s.values.get("lr_scale"), self._scale(c, step - 1)) for c, s in zip(chains, snapshots, strict=True)
            ]
            if all(kept == wanted for kept, wanted in scales):
                values = [s.values | {"lr_scale": self._scale(c, step)} for c, s in zip(chains, snapshots, strict=True)]
                return [replace(s, values=v) for s, v in zip(snapshots, values, strict=True)]
        return []

    def points(self, chain: int) -> ResumePoints:
        """The resume points of a chain; of those with a draw, the newest is kept however old it is."""
        return ResumePoints(
            self.run.chain(chain) / "resume", lambda step: self.experiment.plan.draw_after(step) is not None
        )

    def run_group(self, chains: list[int]) -> None:
        """Run one chain, or several stacked, in this process, alone or as one of the ranks."""
        from lightning import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment
        from lightning.pytorch.strategies import DDPStrategy

        from bayeslora.engine.module import SamplingModule, StepLoop
        from bayeslora.loggers import make_loggers, quiet_lightning

        experiment, settings = self.experiment, self.experiment.trainer
        start = self.start(chains)
        step = start[0].step if start else 0
        chain = experiment.new_chain(_which(chains))
        chain.lr_scale = self._scale(chains[0], 0)
        numbers = sum(p.numel() for p in chain.params.values())
        beside = len(experiment.chain.chosen) if experiment.chain.parallel == "processes" else settings.devices
        chain.sampler.noise_ahead = draws_noise_ahead(settings.noise_ahead, chain.device, numbers, beside)
        keep_freed_memory()
        quiet_lightning()
        loggers = make_loggers(experiment, self.run.root, chains, step)
        writer = Writer()
        callbacks: list[Callback] = [Restore(start)] if self.rank else self._callbacks(chains, start, loggers, writer)
        devices, batches = settings.devices, self._shares(chains)[self.rank]
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=1,
            num_nodes=devices,
            strategy="auto" if devices == 1 else DDPStrategy(broadcast_buffers=False),
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=1,
            logger=False,  # Lightning knows of no chains: the callbacks log themselves
            callbacks=callbacks,
            plugins=[LightningEnvironment()],
            default_root_dir=self.run.root,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit_loop.epoch_loop = StepLoop(trainer)
        with loggers, writer:
            try:
                trainer.fit(
                    SamplingModule(chain, settings.compile),
                    train_dataloaders=Steps(batches, experiment.plan.total, step),
                )
            except DivergedError as error:
                keep = callbacks[-1]
                if isinstance(keep, KeepResumePoints):
                    keep.write(chain, but=error.chains or chains)  # the step was not taken: others go on from here
                raise
            except SystemExit as end:  # so Lightning answers signals that come while nobody else listens
                raise InterruptedRunError(f"stopped; nothing is lost. {self._advice}") from end

    def _callbacks(
        self, chains: list[int], start: list[Snapshot], loggers: ChainLoggers, writer: Writer
    ) -> list[Callback]:
        """What accompanies chains: first what puts them where they were, last what writes their resume points."""
        from bayeslora.engine.callbacks.draws import DrawCollector, DrawScalars
        from bayeslora.engine.callbacks.timing import Timing

        experiment, settings = self.experiment, self.experiment.chain
        folders = [self.run.chain(chain) for chain in chains]
        offered = {
            "num_chains": settings.num_chains,
            "loggers": loggers,
            "folders": folders,
            "batches": self._shares(chains, fresh=True),
            "num_data": len(experiment.data.train),
        }
        own = [offer(make, **offered) for make in experiment.callbacks.values()]
        extras = [callback for callback in own if isinstance(callback, Extra)]
        collector = DrawCollector(
            [self.run.store(chain) for chain in chains],
            experiment.probe(),
            [self.run.map_file(chain) if experiment.keeps_map(chain) else None for chain in chains],
            experiment.map_step,
            validation=experiment.validation_probe(),
            loggers=loggers,
            sources=[callback for callback in own if isinstance(callback, DrawScalars)],
            writer=writer,
        )
        keep = KeepResumePoints(
            [self.points(chain) for chain in chains],
            every=settings.resume_every,
            at_draws=settings.on_divergence == "retry",
            advice=self._advice,
            extras=extras,
            writer=writer,
        )
        timing = Timing([folder / "timing.jsonl" for folder in folders])
        return [Restore(start, extras), collector, timing, *own, keep]

    def _shares(self, chains: list[int], fresh: bool = False) -> list[BatchAt]:
        """The batches of one chain, or several stacked, as each device's share; `fresh`: see `Experiment.batches`."""
        devices, batches = self.experiment.trainer.devices, self.experiment.batches(_which(chains), fresh)
        if devices == 1 or not isinstance(batches, Batches):
            return [batches]
        return [SharedBatches(batches, rank, devices) for rank in range(devices)]

    @property
    def _advice(self) -> str:
        return f"Repeat the command with run_dir={self.run.root} to go on"

    def _sound(self, chain: int, step: int) -> bool:
        """Whether all that a chain leaves in its first `step` steps is on disk."""
        plan, store = self.experiment.plan, self.run.store(chain)
        records = store.records()[: plan.draws_by(step)]
        whole = len(records) == plan.draws_by(step) and all(map(store.intact, records))
        return whole and step <= plan.total and not self._lacks_map(chain, step)

    def _lacks_map(self, chain: int, step: int) -> bool:
        """Whether a chain's MAP baseline should be there after `step` steps and is not, or is damaged."""
        before = self.run.root / MAP_FILE  # runs of before kept chain 0's there, and no other
        due = self.experiment.keeps_map(chain) and (self.experiment.map_step or 0) <= step
        if not due or before.exists():
            return False
        try:
            read_baseline(self.run.map_file(chain))
        except DataError:
            return True
        return False

    def _scale(self, chain: int, step: int) -> float:
        """The factor that retries have put on the step size from a step on."""
        retries = [event for event in self.run.store(chain).events() if event.get("event") == "retry"]
        return min([event["lr_scale"] for event in retries if event["from"] <= step], default=1.0)

    def _retry(self, chain: int, error: DivergedError) -> bool:
        """Note that a chain diverged, and whether it is to be tried again at half the step size from its last draw."""
        store, step = self.run.store(chain), error.step
        plan = self.experiment.plan
        good = next((s for s in self.points(chain).steps() if plan.draw_after(s) is not None and s < step), 0)
        scale = self._scale(chain, good) / 2
        if self.experiment.chain.on_divergence != "retry" or scale < SMALLEST_SCALE:
            store.note({"event": "diverged", "step": step, "message": str(error)})
            return False
        store.note({"event": "retry", "step": step, "from": good, "lr_scale": scale})
        print(f"chain {chain + 1}: {error}. Trying again from step {good:,} at {scale:g} of the step size", flush=True)  # noqa: T201
        return True


def _which(chains: list[int]) -> int | list[int]:
    """A chain by its number, or several, which are stacked."""
    return chains[0] if len(chains) == 1 else chains


def _run_alone(experiment: Experiment, run: RunDirectory, chain: int) -> dict[int, str]:
    """What a worker does for its chain."""
    return ChainRunner(experiment, run).run_all([chain])


def _run_rank(experiment: Experiment, run: RunDirectory, chain: int, rank: int) -> None:
    """What a rank does for the chain of all."""
    ChainRunner(experiment, run, rank).run_group([chain])


@dataclass
class Steps:
    """A chain's batches as an iterable over what is left of its plan, for Lightning's loop."""

    batches: BatchAt
    total: int
    start: int = 0

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batches(step) for step in range(self.start, self.total))
