"""Randomness as a function of (seed, chain, step, purpose).

There is no random state to save: noise, batches and augmentation each ask for a generator that is seeded by
hashing who wants numbers and when. Chains are independent by construction, a stacked chain equals the same
chain run alone, and a resumed run continues with the very numbers it would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, chain: int, step: int, purpose: str) -> int:
    """Hash (seed, chain, step, purpose) to a seed in [0, 2⁶³).

    Args:
        seed: the run's seed.
        chain: the chain's number.
        step: the step (or epoch, or 0 for what happens once).
        purpose: what the numbers are for, e.g. `"noise"`; different purposes are independent streams.
    """
    text = f"{seed}/{chain}/{step}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, chain: int, step: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one (seed, chain, step, purpose), on the given device.

    Note:
        CPU (mt19937) and CUDA (Philox) give different streams for one seed: exactness holds per device.
    """
    return reseed(torch.Generator(device=device), derive_seed(seed, chain, step, purpose))


def reseed(source: torch.Generator, seed: int) -> torch.Generator:
    """Put a generator at the start of the stream of a seed in [0, 2⁶³), and return it.

    `manual_seed` of a CPU generator reads 32 bits of its seed, so that two of 10⁵ streams would be the same. Here the
    state of mt19937 is the exclusive or of the states that both halves give, one of them in reverse order so that equal
    halves do not cancel: all 63 bits count.
    """
    if source.device.type != "cpu":
        return source.manual_seed(seed)
    low, high = (source.manual_seed(half).get_state() for half in (seed & 0xFFFFFFFF, seed >> 32))
    _words(low)[:] ^= _words(high)[::-1]
    source.set_state(low)
    return source


def _words(state: Tensor) -> np.ndarray:
    """The words of mt19937 in a CPU generator's state, between its counters and what it keeps of normal numbers."""
    return state.numpy()[24 : 24 + 624 * 8].view(np.uint64)


@contextmanager
def seeded(seed: int, chain: int, step: int, purpose: str) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and restore it after: for library code such as weight init."""
    with torch.random.fork_rng(devices=[]):
        reseed(torch.random.default_generator, derive_seed(seed, chain, step, purpose))
        yield


def fill(out: Tensor, method: str, source: torch.Generator) -> Tensor:
    """Fill a tensor in place by `"normal_"`, `"uniform_"`, or `"random_"`, all bits of 64-bit integers."""
    if method == "random_":
        return out.random_(-(2**63), None, generator=source)
    filled: Tensor = getattr(out, method)(generator=source)
    return filled
