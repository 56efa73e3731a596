"""Writing to disk beside the steps: a thread that takes one piece of work after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

WAITING = 2
"""Most pieces of work that wait; whoever gives another one waits until the first is done, which bounds memory."""


class Writer:
    """Does what it is given on a thread of its own, in order, so that the steps do not wait for the disk.

    A piece of work that fails ends the writing: what was given after it is left undone, so that nothing on disk comes
    after a gap, and the error is raised to whoever next gives something or waits. It ends, as a context, when all that
    it was given is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._given: deque[Future[Any]] = deque()
        self._failed = False

    def put(self, *works: Callable[[], Any]) -> None:
        """Have one piece of work done, its parts in turn, after all that was given before; raises what failed of it."""
        while self._given and (self._given[0].done() or len(self._given) >= WAITING):
            self._given.popleft().result()
        self._given.append(self._thread.submit(self._do, works))

    def wait(self) -> None:
        """Wait until all that was given is done; raises what went wrong with it."""
        while self._given:
            self._given.popleft().result()

    def _do(self, works: Sequence[Callable[[], Any]]) -> None:
        if not self._failed:
            try:
                for work in works:
                    work()
            except BaseException:
                self._failed = True
                raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()
