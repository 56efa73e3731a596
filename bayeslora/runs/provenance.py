"""Where a run comes from: command, commit, versions and hardware."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bayeslora.counts import counted
from bayeslora.errors import DataError

LAYOUT = 2
"""Of run directories: 2 since version 0.2, where the parts that a configuration names got other names."""

PACKAGES = ("bayeslora", "torch", "lightning", "hydra-core", "torchvision", "transformers", "peft", "arviz")

ADDED = ("provenance", "fingerprint", "asked", "tuning", "grown_from")
"""What a run adds to its configuration."""

COMMAND = ["python", *sys.orig_argv[1:]]
"""What started this process; in the jobs of a sweep their own settings (`app.training`)."""


def provenance() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process."""
    return {
        "layout": LAYOUT,
        "command": shlex.join(COMMAND),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def check_layout(config: dict[str, Any], source: Path) -> None:
    """Raise `DataError` for a recorded configuration of another version's layout."""
    recorded = config.get("provenance")
    recorded = recorded if isinstance(recorded, dict) else {}
    if recorded.get("layout") == LAYOUT:
        return
    versions = recorded.get("versions")
    written = versions.get("bayeslora") if isinstance(versions, dict) else None
    by = f"bayeslora {written or '0.1'} (commit {recorded.get('commit')})"
    raise DataError(f"{source} was written by {by}, whose parts had other names: only that version reads this run")


def as_asked(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the settings that a run has found as they were before: `auto`, mostly."""
    before = {key: value for key, value in (config.get("asked") or {}).items() if key.count(".") == 1}
    restored = dict(config)
    for key, value in before.items():
        part, _, name = key.partition(".")
        restored[part] = restored[part] | {name: value}
    return restored


def hardware() -> str:
    """Processor, threads, instruction set and accelerator, in words."""
    import torch  # which reading a configuration does not need

    threads = counted(torch.get_num_threads(), "thread")
    cpu = f"{processor()}, {threads}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{torch.cuda.get_device_name(0)}; {cpu}" if torch.cuda.is_available() else cpu


def processor() -> str:
    """The processor's model, on which the last digits depend; its architecture where the system does not name it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or f"{platform.machine()} CPU"


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
