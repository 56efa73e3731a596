"""Randomness as a function of (seed, chain, step, purpose).

There is no random state to save: noise, batches and augmentation each ask for a generator that is seeded by
hashing who wants numbers and when. Chains are independent by construction, a stacked chain equals the same
chain run alone, and a resumed run continues with the very numbers it would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    return torch.Generator(device=device).manual_seed(derive_seed(seed, chain, step, purpose))


@contextmanager
def seeded(seed: int, chain: int, step: int, purpose: str) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and restore it after: for library code such as weight init."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive_seed(seed, chain, step, purpose))
        yield
