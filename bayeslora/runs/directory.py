"""The run directory: one run, one configuration, known places for everything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from bayeslora.atomic import locked, remove_leftovers, user_path, write_atomically
from bayeslora.counts import counted
from bayeslora.diagnostics.paired import EXAMPLES_FILE
from bayeslora.errors import ConfigError, DataError, StorageError
from bayeslora.posterior.store import MAP_FILE, DrawStore, read_tensors, serialise
from bayeslora.runs.identity import Fingerprint, first_few
from bayeslora.runs.provenance import ADDED, as_asked, provenance
from bayeslora.runs.trust import check_contained, check_trusted, read_config
from bayeslora.settings import SCHEDULES_WITHOUT_END

FREE_TO_CHANGE = {
    *ADDED, "run_dir", "resume", "logger", "callbacks", "evaluate", "trainer",
    "chain.index", "chain.parallel", "chain.resume_every", "chain.until", "chain.max_steps",
}  # fmt: skip
"""Settings that may differ when a command is repeated on the same run directory: they do not change the draws."""

MAY_GROW = {"num_draws", "num_chains"}
"""Settings of `chain` that a command on a run directory that is there may raise: the draws that are there stay."""

HOUSEKEEPING = {"multirun.yaml", "config.lock", "fixed.safetensors"}
"""Files in a folder before its run begins: what a sweep, or another job of it, or one killed at once leaves there."""


class RunDirectory:
    """Places of a run's files (see `Layout` in the README) and its recorded configuration."""

    def __init__(self, root: Path | str) -> None:
        self.root = user_path(root)
        self.config_file = self.root / "config.yaml"
        self.fixed_file = self.root / "fixed.safetensors"
        self.metrics_file = self.root / "metrics.json"
        self.diagnostics_file = self.root / "diagnostics.nc"
        self.examples_file = self.root / EXAMPLES_FILE
        self.report = self.root / "report"

    def chain(self, chain: int) -> Path:
        """The folder of one chain."""
        return self.root / "chains" / str(chain)

    def map_file(self, chain: int = 0) -> Path:
        """The warm-up's end point of one chain; that of chain 0 is the MAP baseline."""
        return self.chain(chain) / MAP_FILE

    def store(self, chain: int) -> DrawStore:
        """The draws of one chain."""
        return DrawStore(self.chain(chain), chain)

    def locked(self, chain: int) -> AbstractContextManager[None]:
        """Hold a chain: no other process may run it meanwhile. A process that died holds nothing.

        Raises:
            ConfigError: another process runs it.
        """
        busy = f"run_dir={self.root}: another process runs chain {chain}; wait for it, or choose another run_dir"
        return locked(self.chain(chain) / "lock", busy)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the evaluation, waiting for another process that evaluates the same run."""
        with locked(self.root / "evaluate.lock", busy="", wait=True):
            for file in (self.metrics_file, self.examples_file, self.diagnostics_file):
                remove_leftovers(self.root, file.name)
            remove_leftovers(self.report)
            yield

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration as plain Python.

        Raises:
            DataError: there is none, or it is not readable.
        """
        return read_config(self.config_file)

    def trusted(self, trusted: Sequence[str] = ()) -> dict[str, Any]:
        """The recorded configuration without what a run adds to it, to build the parts from.

        Args:
            trusted: packages, modules or classes not of bayeslora that it may name.

        Raises:
            DataError: there is none; or a link leads out of the folder; or it names or points to what it should not.
        """
        check_contained(self.root)
        config = {key: value for key, value in self.config.items() if key not in ADDED}
        check_trusted(config, self.config_file, trusted)
        return config

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The recorded fingerprint of the model; None where there is no run yet.

        Raises:
            DataError: it cannot be read.
        """
        if not self.config_file.exists():
            return None
        return Fingerprint.from_json(self.config.get("fingerprint"), self.config_file)

    @property
    def grown_from(self) -> list[int]:
        """The numbers of chains that the run had each time before it was given more.

        Raises:
            DataError: what is recorded are no numbers.
        """
        before = self.config.get("grown_from", [])
        if not isinstance(before, list) or not all(isinstance(count, int) for count in before):
            raise DataError(f"{self.config_file}: grown_from is no list of numbers of chains")
        return before

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Tensors that are not sampled and that the model's function draws at random: the run's own, by name.

        Raises:
            DataError: they cannot be read.
        """
        return read_tensors(self.fixed_file) if self.config_file.exists() and self.fixed_file.exists() else {}

    def check_model(self, fingerprint: Fingerprint) -> None:
        """Raise `ConfigError` unless draws of a model with this fingerprint may be added to those that are here."""
        recorded = self.fingerprint
        if recorded is not None and (differences := fingerprint.differences(recorded)):
            raise ConfigError(
                f"run_dir={self.root} already holds a run of another model: {first_few(differences)}. Choose another"
                " run_dir, or give the model of the run that is there"
            )

    def check(self, config: dict[str, Any]) -> None:
        """Raise `ConfigError` unless this folder is free, or holds a run of the same configuration."""
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise ConfigError(f"run_dir={self.root} is a file; choose a folder")
        if not self.config_file.exists():
            if any(not (f.name.startswith(".") or f.name in HOUSEKEEPING) for f in self.root.iterdir()):
                raise ConfigError(f"run_dir={self.root} holds files but no run; choose another run_dir")
            return
        check_contained(self.root)
        recorded = self.config
        chain = recorded.get("chain")
        if not isinstance(chain, dict) or not all(isinstance(chain.get(key), int) for key in MAY_GROW):
            raise DataError(f"{self.config_file} does not hold the configuration of a run")
        pairs = (as_asked(config), as_asked(recorded)), (config, recorded)
        changed = min((list(changed_settings(fixed(a), fixed(b))) for a, b in pairs), key=len)
        if changed:
            raise ConfigError(
                f"run_dir={self.root} already holds a run with another configuration: {'; '.join(changed[:8])}. "
                "Choose another run_dir, or repeat the settings of the run that is there"
            )
        wanted, before = (c["chain"]["num_draws"] for c in (config, recorded))
        if wanted < before and config["chain"].get("until") != "converged":
            raise ConfigError(
                f"chain.num_draws={wanted}, but the run in {self.root} was to have {before}: it can be made longer, not"
                " shorter"
            )
        if wanted > before and (depends := _depends_on_length(config["chain"])):
            raise ConfigError(
                f"chain.num_draws={wanted}: the run in {self.root} was planned for {counted(before, 'draw')}, on which"
                f" {depends}; choose another run_dir for a longer run"
            )
        wanted, before = (c["chain"]["num_chains"] for c in (config, recorded))
        if wanted < before:
            raise ConfigError(
                f"chain.num_chains={wanted}, but the run in {self.root} was to have {before}: it can be given more"
                " chains, not fewer"
            )

    def check_writable(self) -> None:
        """Raise `ConfigError` unless files can be written here; the folder is made."""
        try:
            with locked(self.root / "config.lock", busy="", wait=True):
                pass
        except StorageError as error:
            raise ConfigError(f"run_dir={self.root} cannot be written to ({error}); choose another one") from error

    def open(
        self,
        config: dict[str, Any],
        fingerprint: Fingerprint | None = None,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Make the folder and record the configuration, once; more draws, or more chains, replace those recorded.

        Args:
            config: as plain Python.
            fingerprint: of the model.
            fixed: tensors of the model that are not sampled and cannot be made again.

        Raises:
            ConfigError: the folder cannot be written to, or holds a run of another configuration or model.
        """
        recorded = config | {"provenance": provenance()}
        if fingerprint is not None:
            recorded["fingerprint"] = fingerprint.to_json()
        try:
            with locked(self.root / "config.lock", busy="", wait=True):
                remove_leftovers(self.root, self.config_file.name)
                if self.config_file.exists():
                    self.check(config)
                    if fingerprint is not None:
                        self.check_model(fingerprint)
                    present = self.config
                    grown = {key: max(c["chain"][key] for c in (present, config)) for key in MAY_GROW}
                    if grown.items() <= present["chain"].items():
                        return
                    recorded = present | {"chain": present["chain"] | grown}
                    if grown["num_chains"] > (before := present["chain"]["num_chains"]):
                        recorded["grown_from"] = [*self.grown_from, before]
                elif fixed:
                    write_atomically(self.fixed_file, serialise(fixed, {}))
                write_atomically(self.config_file, yaml.safe_dump(recorded, sort_keys=False).encode())
        except StorageError as error:
            raise ConfigError(f"run_dir={self.root} cannot be written to ({error}); choose another one") from error

    def phase_totals(self, of: str = "seconds") -> dict[str, float]:
        """Seconds (or steps) by phase, summed over chains, as the chains noted them; empty where they did not."""
        totals: dict[str, float] = {}
        for file in self.root.glob("chains/*/timing.jsonl"):
            for line in file.read_bytes().splitlines():
                with suppress(ValueError, TypeError, KeyError, AttributeError):
                    entry = json.loads(line)
                    totals[str(entry["phase"])] = totals.get(str(entry["phase"]), 0.0) + float(entry[of])
        return totals

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json`."""
        write_atomically(self.metrics_file, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def _depends_on_length(chain: dict[str, Any]) -> str | None:
    """What it is, if anything, in a chain's plan that another number of draws would change from the start."""
    if chain["cycles"]:
        return f"the lengths of its {chain['cycles']} cycles depend"
    if chain["schedule"] not in SCHEDULES_WITHOUT_END:
        return f"the step sizes of its {chain['schedule']} schedule depend"
    return None


def fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run keeps: all that decides which draws a chain has, but their number."""
    kept = {key: value for key, value in config.items() if key not in FREE_TO_CHANGE}
    free = {key.removeprefix("chain.") for key in FREE_TO_CHANGE if key.startswith("chain.")} | MAY_GROW
    return kept | {"chain": {key: value for key, value in config["chain"].items() if key not in free}}


def changed_settings(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in which two plain configurations differ, with both values."""
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from changed_settings(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} (here {a!r}, there {b!r})"


def relocated(config: dict[str, Any], folder: Path | str) -> dict[str, Any]:
    """A configuration whose run lies in `folder`: whatever of loggers and callbacks lies in its run directory moves."""
    before = Path(config["run_dir"])

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        if isinstance(value, str) and Path(value).is_relative_to(before):
            return str(Path(folder, Path(value).relative_to(before)))
        return value

    return config | {key: moved(config[key]) for key in ("logger", "callbacks", "run_dir") if key in config}
