"""Signals that ask a command to stop, and what it does where no chain is under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a request to end, and the time limits of schedulers."""


def end_command(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End a command as Ctrl-C does."""
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextmanager
def ending_the_command() -> Iterator[None]:
    """Inside the block, signals that nobody listens to end the command as Ctrl-C does, with a message."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        deaf = [
            number for number in SIGNALS if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
        ]
        before = {number: signal.signal(number, end_command) for number in deaf}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def listening(handler: Callable[[int, Any], None]) -> Iterator[dict[int, Any]]:
    """Inside the block `handler` gets these signals (only the main thread may listen); gives who had them before."""
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {int(number): signal.signal(number, handler) for number in numbers}
    try:
        yield before
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def hand_on(number: int, handler: Any) -> None:
    """Give a scheduler's signal to the handler that it had before (submitit's, which requeues the job), if any."""
    if number in (signal.SIGUSR1, signal.SIGUSR2) and callable(handler) and handler is not end_command:
        handler(number, None)
