"""How `trainer.precision`, `channels_last` and `compile` are chosen where they say auto."""

from __future__ import annotations

import os
import platform
import sys

import pytest
import torch

from bayeslora.engine.acceleration import (
    Acceleration,
    PassSeconds,
    draws_noise_ahead,
    fastest_acceleration,
    keep_freed_memory,
)
from tests.cases import each

OPEN = {"precision": "auto", "channels_last": "auto", "compile": "auto"}


def chosen(asked: dict[str, object], seconds: dict[Acceleration, PassSeconds], steps: int = 1000, **kwargs: bool):
    """What is chosen where each candidate takes so long; candidates that are not listed must not be tried."""
    settings = {"has_bf16": True, "images": True} | kwargs
    return fastest_acceleration(asked, steps=steps, measure=seconds.__getitem__, **settings)[0]


PLAIN, BF16 = Acceleration(), Acceleration("bf16-mixed")
LAST, BOTH = Acceleration(channels_last=True), Acceleration("bf16-mixed", channels_last=True)
COMPILED = Acceleration("bf16-mixed", channels_last=True, compile=True)


def test_the_fastest_is_chosen_and_compiled_where_that_pays() -> None:
    seconds = {
        PLAIN: PassSeconds(1.0, 0), LAST: PassSeconds(1.1, 0), BF16: PassSeconds(0.6, 0), BOTH: PassSeconds(0.5, 0),
        COMPILED: PassSeconds(0.3, 60.0),
    }  # fmt: skip
    assert chosen(OPEN, seconds) == COMPILED
    assert chosen(OPEN, seconds, steps=500) == BOTH, "0.2 s saved 500 times are not worth twice the 60 s of compiling"


def test_differences_within_the_noise_change_nothing() -> None:
    seconds = dict.fromkeys((PLAIN, LAST, BF16, BOTH), PassSeconds(1.0, 0)) | {BF16: PassSeconds(0.97, 0)}
    assert chosen(OPEN | {"compile": False}, seconds) == PLAIN


@each(
    ("asked", "kwargs", "tried"),
    [
        (OPEN | {"compile": False}, {"has_bf16": False, "images": False}, [PLAIN]),
        ({"precision": "32-true", "channels_last": "auto", "compile": False}, {}, [PLAIN, LAST]),
        ({"precision": "auto", "channels_last": False, "compile": False}, {}, [PLAIN, BF16]),
    ],
)
def test_only_what_is_left_open_is_tried(asked: dict, kwargs: dict, tried: list[Acceleration]) -> None:
    seconds = {one: PassSeconds(1.0 / (i + 1), 0) for i, one in enumerate(tried)}
    assert chosen(asked, seconds, **kwargs) == tried[-1]


@each(
    ("asked", "cores", "threads", "numbers_and_processes", "ahead"),
    [
        ("auto", 2, 1, (10**6, 1), True),
        ("auto", 2, 2, (10**6, 1), False),
        ("auto", 2, 1, (10**4, 1), False),
        ("auto", 4, 1, (10**6, 4), False),
        (True, 1, 1, (10, 1), True),
        (False, 8, 1, (10**9, 1), False),
    ],
)
def test_noise_is_drawn_ahead_where_a_core_is_free_and_there_is_enough_to_draw(
    asked, cores, threads, numbers_and_processes, ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert draws_noise_ahead(asked, torch.device("cpu"), *numbers_and_processes) is ahead


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_freed_stays_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    resource = pytest.importorskip("resource")
    keep_freed_memory()

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2 << 20) for _ in range(8)]
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages()
    assert min(pages() for _ in range(3)) < 1000, "of 16,384"
