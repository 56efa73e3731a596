"""How far a pass over the draws has come: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
EVERY = 5.0
"""Seconds between lines where there is no terminal; what takes less is not told."""


def told(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, of which there are `total`, told as they come: `what` is done with them."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    shown = time.monotonic()
    for done, item in enumerate(items):
        if done and time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", flush=True)  # noqa: T201
        yield item
