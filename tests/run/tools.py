"""Tiny runs, commands in this process and in others, and the classes that a user might name in a configuration."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from bayeslora.app import training
from bayeslora.app.cli import forced
from bayeslora.app.config import CONF_DIR
from bayeslora.evaluation.results import Results
from bayeslora.samplers import SGLD

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (os.fspath(ROOT), os.environ.get("PYTHONPATH")))),
}
"""Of commands in processes of their own: they import this module, and the package that this process does."""
SIZES = (
    "trainer.num_threads=1",
    "dataset.limit_train=64",
    "dataset.limit_test=40",
    "model.norm=frn",
    "model.width=4",
    "model.affine=true",
    "model.stem_stride=1",
    "chain.parallel=sequential",
    "sampler.lr=0.01",
    "chain.num_chains=2",
    "chain.batch_size=16",
    "chain.warmup.steps=3",
    "chain.burn_in=2",
    "chain.num_draws=5",
    "chain.thin=2",
    "chain.probe_size=8",
    "evaluate.batch_size=16",
    "evaluate.report=false",
)
"""15 steps a chain; draws are kept after steps 7, 9, 11, 13 and 15. No page: its figures take longest."""
TINY = ("experiment=digits_resnet", "name=quickstart", "sampler=sgld", *SIZES)
OWN = (
    "name=own",
    "model=resnet_small",
    "sampler=sghmc",
    "prior=fan_in",
    "chain=default",
    "chain.warmup.optimizer.lr=0.05",
    *SIZES,
)
"""A run of no experiment, for those that change the sampler, whose settings an experiment chooses."""
STEPS = [7, 9, 11, 13, 15]


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """What the command line composes from these overrides."""
    return copy.deepcopy(_composed(config, overrides))


@cache
def _composed(config: str, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return compose(config, overrides=[forced(override) for override in overrides])


def run(folder: Path, *overrides: str, base: Iterable[str] = TINY) -> Results | None:
    """Train in this process."""
    return training.train(composed(*base, f"run_dir={folder}", *overrides))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]
"""`command("train", *arguments)`: the command's own entry point, in this process (see `conftest.py`)."""


def call(command: str, *arguments: str) -> int:
    """Run the entry point of `python -m bayeslora.<command>` in this process; gives its exit code."""
    before = sys.argv
    sys.argv = [f"{command}.py", *arguments]
    try:
        import_module(f"bayeslora.{command}").main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("the command did not end the process")


def process(command: str, *arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    """`python -m bayeslora.<command> …` in a process of its own, in which this module can be imported.

    Ctrl-C reaches it also where this process ignores it, as those that `nohup` or a script's `&` start do.
    """
    environment = os.environ | ENVIRONMENT | kwargs.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", f"bayeslora.{command}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kwargs,
    )  # fmt: skip


def ended(started: subprocess.Popen[str], timeout: float = 120) -> Ended:
    """Wait for a process."""
    out, err = started.communicate(timeout=timeout)
    return Ended(started.returncode, out, err)


def manifest(folder: Path, chain: int) -> list[dict[str, Any]]:
    """The manifest's lines, by plain json."""
    return [json.loads(line) for line in (folder / "chains" / str(chain) / "manifest.jsonl").read_text().splitlines()]


def digests(folder: Path, chains: int = 2) -> list[list[str]]:
    """SHA-256 of every draw file, one list a chain; each is what the manifest says."""
    found = []
    for chain in range(chains):
        files = sorted((folder / "chains" / str(chain) / "draws").glob("*.safetensors"))
        sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        assert sums == [record["sha256"] for record in manifest(folder, chain) if "index" in record]
        found.append(sums)
    return found


def draw(folder: Path, chain: int, index: int) -> dict[str, Tensor]:
    """One draw's tensors, by plain safetensors."""
    return load_file(folder / "chains" / str(chain) / "draws" / f"{index:06d}.safetensors")


class Exploding(SGLD):
    """SGLD whose chain `only` leaves the finite numbers in step `at`, if its step size is above `above`."""

    def __init__(
        self,
        params: Any,
        lr: float,
        kT: float,
        seed: int,
        chain: int = 0,
        *,
        at: int = 0,
        only: int = 0,
        above: float = 0.0,
        **settings: Any,
    ) -> None:
        self.at, self.only, self.above = at, only, above
        super().__init__(params, lr, kT, seed, chain, **settings)

    def update(self, evaluate: Any) -> Tensor:
        potential = super().update(evaluate)
        if self.steps == self.at and self.only in self.chains and self.param_groups[0]["lr"] > self.above:
            for p in self.theta:
                (p[self.chains.index(self.only)] if self.stacked else p).fill_(float("inf"))
        return potential


class DyingRank(SGLD):
    """SGLD of which rank 1 is killed in step `at`."""

    def __init__(
        self, params: Any, lr: float, kT: float, seed: int, chain: int = 0, *, at: int = 0, **settings: Any
    ) -> None:
        self.at = at
        super().__init__(params, lr, kT, seed, chain, **settings)

    def update(self, evaluate: Any) -> Tensor:
        if self.steps == self.at and os.environ.get("NODE_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(evaluate)


class Dying(SGLD):
    """SGLD whose process is killed in step `at` of chain `only`, once: it leaves the file `marker` behind."""

    def __init__(
        self, params: Any, lr: float, kT: float, seed: int, chain: int = 0, *, marker: str, at: int = 0, only: int = 0
    ) -> None:
        self.marker, self.at, self.only = Path(marker), at, only
        super().__init__(params, lr, kT, seed, chain)

    def update(self, evaluate: Any) -> Tensor:
        if self.steps == self.at and self.only in self.chains and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(evaluate)


class SignalToParent(Callback):
    """Asks the process that started this one to stop, after `step` steps, and waits for what comes of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if module.steps_taken == self.step:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.5)


class DropoutNet(nn.Module):
    """A net of somebody's own, with dropout."""

    def __init__(self, num_classes: int, p: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Watch(Callback):
    """Notes Lightning's step counter and the phase at every batch."""

    seen: list[tuple[int, str]]
    last: Watch

    def __init__(self) -> None:
        self.seen = []
        Watch.last = self

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.seen.append((trainer.global_step, module.phase))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.seen.append((trainer.global_step, "end"))


class Slow(Callback):
    """Takes its time over every batch, so that a run can be interrupted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self.seconds)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
