"""W&B: an account and a way to it, or offline."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata

from bayeslora.doctor.finding import Finding, ok, warning
from bayeslora.loggers import has_wandb_account

TIMEOUT = 3.0
"""Seconds to wait for W&B."""


def wandb() -> Iterator[Finding]:
    """Whether `logger=wandb` would go online; without an account or by WANDB_MODE it works offline, unasked."""
    version = f"wandb {metadata.version('wandb')}"
    mode = os.environ.get("WANDB_MODE", "online")
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    later = "`wandb sync RUN_DIR/wandb` uploads later"
    if mode != "online":
        yield ok("wandb", f"{version}, WANDB_MODE={mode}: logger=wandb stays on this machine; {later}")
    elif not has_wandb_account():
        yield ok("wandb", f"{version}, no account here: logger=wandb works offline; {later}, after `wandb login`")
    elif problem := _unreachable(host):
        yield warning(
            "wandb",
            f"{version}, but {host} cannot be reached ({problem})",
            f"logger=wandb goes offline by itself, and {later}; WANDB_MODE=offline saves the wait",
        )
    else:
        yield ok("wandb", f"{version}, {host} can be reached: logger=wandb uploads as the run goes")


def _unreachable(host: str) -> str:
    """Why a host does not answer; empty where it does, with whatever status."""
    try:
        urllib.request.urlopen(host, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""
