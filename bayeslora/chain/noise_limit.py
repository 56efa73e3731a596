"""What minibatch noise allows: step sizes at which it heats no block beyond a limit, and the batch that costs least.

Independent batches of B of N examples add noise of variance V = S²(1/B − 1/N) to every coordinate of the gradient of Ũ,
S² that of one example's, and heat by the share εV·s/(2kT), s the sampler's speed; reshuffled epochs heat by less. Where
that is not to exceed h,

    ε·s ≤ 2h·kT/V,

whatever the momentum, and what only the prior constrains, of rate ρ = 1/(Nσ²), forgets its start in 1/(ε·s·ρ) steps of
B examples. A block's vectors and matrices, which have step sizes of their own, share its limit so that they relax at
one pace: h of each is in proportion to S²/ρ, with the limit as their mean over coordinates.

So a relaxation costs, in examples,

    max(B·α, β·(1 − B/N)),  α = max 1/(ε s ρ) at the ε of the curvatures,  β = max S²/(2h·kT·ρ),

which is least at B = (β/α)/(1 + β/(αN)): smaller batches waste the steps that curvature would allow, larger ones the
examples. As kT = T/N that is a share of the data, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils._pytree import tree_leaves

SMALLEST, LARGEST = 128, 4096
"""Limits of a batch that is chosen; up to twice the larger may be all the data."""
MOST_NUMBERS = 2_000_000
"""Input numbers of a batch of `LARGEST` for which memory is taken to suffice, chains and activations come on top."""


@dataclass(frozen=True)
class NoisyBlock:
    """What limits the steps of a block, or of the vectors or matrices of one.

    Attributes:
        size: coordinates.
        step_size: ε that its curvature allows.
        variance: S², of the gradient of one example, mean over coordinates.
        prior_rate: ρ = 1/(Nσ²), the smallest of its tensors; 0 where nothing is left to the prior.
        limit: h.
    """

    size: int
    step_size: float
    variance: float
    prior_rate: float
    limit: float

    def held_back(self, noise: float, kT: float, speed: float) -> float:
        """ε at which neither curvature nor noise is exceeded.

        Args:
            noise: 1/B − 1/N.
            kT: thermal energy per example.
            speed: s.
        """
        variance = self.variance * noise
        return self.step_size if variance == 0 else min(self.step_size, 2 * self.limit * kT / (variance * speed))


def sharing(parts: Sequence[NoisyBlock]) -> list[NoisyBlock]:
    """The parts of one block with limits at which they relax at one pace; their mean over coordinates stays."""
    slow = [part for part in parts if part.prior_rate and part.variance]
    total = sum(part.size * part.variance / part.prior_rate for part in slow)
    budget = sum(part.size * part.limit for part in slow)
    return [
        replace(part, limit=budget * part.variance / part.prior_rate / total) if part in slow else part
        for part in parts
    ]


def remaining(batch_size: int | None, num_data: int) -> float:
    """1/B − 1/N, what is left of the variance of one example's gradient in a batch's; 0 with all the data."""
    return 0.0 if batch_size is None else 1 / batch_size - 1 / num_data


def cheapest_batch(blocks: Iterable[NoisyBlock], num_data: int, kT: float, speed: float) -> float:
    """B at which the slowest block relaxes on the fewest examples, between 0 and N; not rounded."""
    slow = [block for block in blocks if block.prior_rate > 0]
    alpha = max(1 / (block.step_size * speed * block.prior_rate) for block in slow)
    beta = max(block.variance / (2 * block.limit * kT * block.prior_rate) for block in slow)
    return beta / alpha / (1 + beta / (alpha * num_data))


def largest_batch(inputs: Any, num_data: int) -> int:
    """The largest batch that is chosen for data of these inputs, in examples."""
    numbers = sum(leaf.numel() for leaf in tree_leaves(inputs)) / num_data
    return max(SMALLEST, min(LARGEST, int(MOST_NUMBERS / numbers)))


def whole_batch(size: float, num_data: int, largest: int = LARGEST) -> int | None:
    """A batch of about that size of which a whole number makes an epoch; None for all the data, where it is half."""
    if size >= num_data / 2 and num_data <= 2 * largest:
        return None
    batches = max(2, round(num_data / min(max(size, SMALLEST), largest)))
    return num_data // batches
