"""Writing beside the steps: in order, bounded, and with errors that reach the chain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from bayeslora.engine.writing import WAITING, Writer


def test_work_is_done_in_order_on_another_thread_and_all_of_it_before_the_end():
    done: list[tuple[int, str]] = []
    with Writer() as writer:
        for number in range(5):
            writer.put(lambda n=number: (time.sleep(0.01), done.append((n, threading.current_thread().name))))
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert threading.current_thread().name not in {name for _, name in done}


def test_the_thread_that_gives_work_waits_only_where_too_much_waits():
    go, taken = threading.Event(), []
    with Writer() as writer:
        for number in range(WAITING):
            writer.put(lambda n=number: (go.wait(10), taken.append(n)))
        assert not taken
        threading.Timer(0.05, go.set).start()
        writer.put(lambda: taken.append(WAITING))  # has to wait for the first
        assert taken[:1] == [0]
    assert taken == list(range(WAITING + 1))


def failing() -> None:
    raise OSError("disk full")


def give(works: list[Callable[[], object]], own: Exception | None = None) -> None:
    """What a chain does that writes, and perhaps fails by itself."""
    with Writer() as writer:
        for work in works:
            writer.put(work)
        if own is not None:
            raise own


def test_an_error_is_raised_at_the_next_piece_of_work_and_nothing_is_done_after_it():
    done: list[int] = []
    later = [lambda n=number: done.append(n) for number in range(WAITING + 1)]
    with pytest.raises(OSError, match="disk full"):
        give([failing, *later])
    assert not done


def test_an_error_is_raised_at_the_end_but_hides_no_other():
    with pytest.raises(OSError, match="disk full"):
        give([failing])
    with pytest.raises(KeyError, match="the chain's own"):
        give([failing], KeyError("the chain's own"))
