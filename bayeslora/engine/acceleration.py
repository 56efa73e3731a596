"""Precision, memory layout and compilation of the forward pass, chosen by a short measurement where they say `auto`."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from bayeslora.cache import cache_folder
from bayeslora.experiment import Experiment
from bayeslora.settings import AUTO

REPEATS = 4
"""Steps timed of each candidate, after a first one; the fastest counts, since other processes only slow one down."""
WORTH = 0.95
"""A candidate must take at most this share of the time of what it replaces."""

WORTH_A_THREAD = 100_000
"""Random numbers a step from which drawing them on another thread saves more time than handing them over costs."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt`: how much freed memory is kept, and from which size on a block comes from the kernel by itself."""


@dataclass(frozen=True)
class Acceleration:
    """How the forward pass runs.

    Attributes:
        precision: `"32-true"`, or `"bf16-mixed"`: autocast to bf16, parameters and update in fp32.
        channels_last: memory layout of images.
        compile: whether the forward pass goes through `torch.compile`.
    """

    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False


@dataclass(frozen=True)
class PassSeconds:
    """Seconds that a forward and backward pass takes, and that the first one took more (compilation)."""

    step: float
    start: float


def fastest_acceleration(
    given: Mapping[str, Any], has_bf16: bool, images: bool, steps: int, measure: Callable[[Acceleration], PassSeconds]
) -> tuple[Acceleration, str]:
    """The fastest way to run `steps` steps among those that the settings leave open, and one sentence about it.

    Compilation is taken where what it saves over all steps is more than twice what it costs.

    Args:
        given: `trainer.precision`, `.channels_last` and `.compile`; `"auto"` leaves one open.
        has_bf16: whether the device multiplies bf16 matrices natively.
        images: whether inputs have a memory layout to choose.
        steps: how many are to be taken.
        measure: times one candidate.
    """
    precisions = ["32-true", *["bf16-mixed"] * has_bf16] if given["precision"] == AUTO else [given["precision"]]
    layouts = [False, *[True] * images] if given["channels_last"] == AUTO else [given["channels_last"]]
    first = Acceleration(precisions[0], layouts[0], compile=given["compile"] is True)
    timings = {first: measure(first)}
    best = first
    for candidate in (replace(first, precision=p, channels_last=c) for p in precisions for c in layouts):
        if candidate not in timings:
            timings[candidate] = measure(candidate)
        if timings[candidate].step < WORTH * timings[best].step:
            best = candidate
    if given["compile"] == AUTO and can_compile():
        compiled = replace(best, compile=True)
        timings[compiled] = measure(compiled)
        saved = (timings[best].step - timings[compiled].step) * steps
        if timings[compiled].step < WORTH * timings[best].step and saved > 2 * timings[compiled].start:
            best = compiled
    settings = " ".join(f"trainer.{key}={str(value).lower()}" for key, value in asdict(best).items())
    plain = f" ({timings[first].step:.3g} s with {_words(first)})" if best != first else ""
    return best, f"chosen by measurement: {settings}, {timings[best].step:.3g} s a gradient{plain}"


def accelerate(experiment: Experiment) -> tuple[Acceleration, str]:
    """`fastest_acceleration` for the chains of a run, by steps of its own model on its own first batch."""
    trainer, chains = experiment.trainer, experiment.chain.chosen
    stacked = experiment.chain.parallel == "stacked" and len(chains) > 1
    which = chains if stacked else chains[0]
    settings = {"precision": trainer.precision, "channels_last": trainer.channels_last, "compile": trainer.compile}

    def measure(candidate: Acceleration) -> PassSeconds:
        seconds = gradient_seconds(experiment, which, candidate, REPEATS + 1)
        fastest = min(seconds[1:])
        return PassSeconds(fastest, max(0.0, seconds[0] - fastest))

    steps = experiment.plan.total * (1 if stacked else len(chains))
    layouts = experiment.data.kind == "images" and experiment.device.type != "cpu"  # where torch may corrupt memory
    return fastest_acceleration(settings, has_bf16(experiment.device), layouts, steps, measure)


def draws_noise_ahead(setting: bool | str, device: torch.device, numbers: int, processes: int = 1) -> bool:
    """Whether a chain's noise is drawn a step ahead on a thread of its own: the same numbers, in another order of work.

    Args:
        setting: `trainer.noise_ahead`; `"auto"`: on a CPU of which a core is free, where a step has enough to draw.
        device: of the chain.
        numbers: random numbers a step.
        processes: how many run chains on this machine at once.
    """
    if setting != AUTO:
        return bool(setting)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return device.type == "cpu" and numbers >= WORTH_A_THREAD and processes * (torch.get_num_threads() + 1) <= cores


def keep_freed_memory() -> None:
    """Have this process keep memory that is freed: a step's activations and gradients take the place of the last one's.

    glibc gives large blocks back to the kernel and gets them page by page, which costs 4 to 7 % of a step of ResNet-18.
    Other C libraries, and an environment that sets `MALLOC_…` itself, are left as they are.
    """
    mallopt = None if any(key.startswith("MALLOC_") for key in os.environ) else _glibc_mallopt()
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _glibc_mallopt() -> Callable[[int, int], int] | None:
    """The function of glibc that sets how memory is allocated; None where there is another C library."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    return library.mallopt if library is not None and hasattr(library, "gnu_get_libc_version") else None


def gradient_seconds(
    experiment: Experiment, which: int | Sequence[int], candidate: Acceleration, repeats: int, enough: float = math.inf
) -> list[float]:
    """Seconds of gradients on the first batch of a chain, or of a stack; no more once one takes `enough`."""
    tried = experiment.with_trainer(**asdict(candidate) | {"compile": False})
    chain = tried.new_chain(which)
    inputs, targets = tried.batches(which)(0)
    forward = compiled(chain.model, tried.device) if candidate.compile else chain.model
    parameters = list(chain.params.values())

    def step() -> None:
        bf16 = candidate.precision == "bf16-mixed"
        with torch.autocast(tried.device.type, torch.bfloat16, enabled=bf16):
            outputs = forward(inputs)
        chain.potential(chain.likelihood.nll(outputs, targets), chain.params).sum().backward()
        for p in parameters:
            p.grad = None

    seconds: list[float] = []
    while len(seconds) < repeats and max(seconds, default=0.0) < enough:
        seconds.append(_timed(step, tried.device))
    return seconds


def forecast(experiment: Experiment, chains: Sequence[int]) -> float:
    """Seconds that these chains will take, by a gradient or two of the first; without draws and evaluation."""
    stacked = experiment.chain.parallel == "stacked" and len(chains) > 1
    plain = Acceleration(str(experiment.trainer.precision), experiment.trainer.channels_last is True)
    one = min(gradient_seconds(experiment, chains if stacked else chains[0], plain, 3, enough=1.0))
    plan = experiment.plan
    each = plan.warmup + experiment.gradients([0])
    slots = (os.cpu_count() or 1) if experiment.chain.parallel == "processes" else len(chains) if stacked else 1
    return one * each * math.ceil(len(chains) / slots)


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 matrices natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def can_compile() -> bool:
    """Whether `torch.compile` finds a compiler; says so where it does not."""
    if torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++"):
        return True
    print("trainer.compile: no C++ compiler found, running without torch.compile", flush=True)  # noqa: T201
    return False


def compiled(model: nn.Module, device: torch.device) -> Callable[..., Any]:
    """A model's forward pass through `torch.compile`, whose results are kept on disk; on a GPU as CUDA graphs."""
    with suppress(OSError):  # a home that cannot be written to costs the cache
        folder = cache_folder() / "compile"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    mode = "reduce-overhead" if device.type == "cuda" else None
    forward: Callable[..., Any] = torch.compile(model, mode=mode, dynamic=False)
    return forward


def _timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _words(choice: Acceleration) -> str:
    return f"{choice.precision}, {'compiled' if choice.compile else 'eager'}"
