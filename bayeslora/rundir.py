"""The run directory: one run, one configuration, known places for everything."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from bayeslora.config import differences
from bayeslora.errors import ConfigError, DataError
from bayeslora.files import write_atomically
from bayeslora.posterior.store import DrawStore

PACKAGES = ("bayeslora", "torch", "lightning", "hydra-core", "torchvision", "transformers", "peft", "arviz")
FREE_TO_CHANGE = {"provenance", "run_dir", "logger", "callbacks", "evaluate", "trainer"}
"""Settings that may differ when a command is repeated on the same run directory: they do not change the target."""


class RunDirectory:
    """Places of a run's files (see `Layout` in the README) and its recorded configuration."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.config_file = self.root / "config.yaml"
        self.map_file = self.root / "map.safetensors"
        self.metrics_file = self.root / "metrics.json"
        self.diagnostics_file = self.root / "diagnostics.nc"
        self.report = self.root / "report"

    def store(self, chain: int) -> DrawStore:
        """The draws of one chain."""
        return DrawStore(self.root / "chains" / str(chain), chain)

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration as plain Python.

        Raises:
            DataError: there is none, or it is not readable.
        """
        try:
            loaded = yaml.safe_load(self.config_file.read_text())
        except FileNotFoundError:
            raise DataError(
                f"{self.root} is no run directory: it has no config.yaml. Give run_dir=… of a run"
            ) from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {self.config_file}: {str(error).splitlines()[0]}") from error
        if not isinstance(loaded, dict):
            raise DataError(f"{self.config_file} does not hold a configuration")
        return loaded

    def recorded(self) -> DictConfig:
        """The recorded configuration as it was composed, to build the parts from; on the CPU if there is no GPU."""
        cfg = OmegaConf.create({key: value for key, value in self.config.items() if key != "provenance"})
        if not torch.cuda.is_available():
            cfg.trainer.accelerator = "cpu"  # a run from elsewhere
        return cfg

    def check(self, config: dict[str, Any]) -> None:
        """Raise `ConfigError` unless this folder is free, or holds a run of the same configuration."""
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise ConfigError(f"run_dir={self.root} is a file; choose a folder")
        if not self.config_file.exists():
            if any(self.root.iterdir()):
                raise ConfigError(f"run_dir={self.root} holds files but no run; choose another run_dir")
            return
        changed = list(differences(_fixed(config), _fixed(self.config)))
        if changed:
            raise ConfigError(
                f"run_dir={self.root} already holds a run with another configuration: {'; '.join(changed[:8])}. "
                "Choose another run_dir, or repeat the settings of the run that is there"
            )

    def open(self, config: dict[str, Any]) -> None:
        """Make the folder and record the configuration, once.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        if self.config_file.exists():
            return
        recorded = config | {"provenance": provenance()}
        try:
            write_atomically(self.config_file, yaml.safe_dump(recorded, sort_keys=False).encode())
        except OSError as error:
            raise ConfigError(f"run_dir={self.root} cannot be written to ({error}); choose another one") from error

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json`."""
        write_atomically(self.metrics_file, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in FREE_TO_CHANGE}


def provenance() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def hardware() -> str:
    """Processor and accelerator, in words."""
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{torch.cuda.get_device_name(0)}; {cpu}" if torch.cuda.is_available() else cpu


def commit() -> str | None:
    """Commit of the checkout this package runs from, with `+` where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, check=True, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
