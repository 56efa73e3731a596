"""Weights whose scale a norm layer takes out again: their norm is drawn from its law under the posterior at once.

Where outputs do not depend on the common scale of d weights (those of a convolution's output channel with its bias,
before a norm of that channel), their posterior under a Gaussian prior is a product: of their direction, which the data
inform, and of their norm, of which the prior alone speaks,

    ‖θ/σ‖ ~ √T·χ_d,     independent of all else.

An optimizer leaves that norm far below, and a sampler takes Nσ²/ε steps to find it, longer than most runs; until then a
step turns the weights too far, by √(2ε/N)/|θ|. Drawn, it is exact from the first step on, and no prediction changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from bayeslora.errors import ConfigError, require
from bayeslora.potential import Prior, matches
from bayeslora.rng import seeded

TOLERANCE = 0.01
"""Share of the outputs' spread over a batch by which they may change with the scale: the ε of norm layers lets them."""


def groups_of(params: Iterable[str], patterns: Iterable[str]) -> list[list[str]]:
    """Names of each weight that a pattern means, with its bias where that is sampled.

    Raises:
        ConfigError: a pattern names no sampled weight.
    """
    names, groups = list(params), {}
    for pattern in patterns:
        chosen = [name for name in names if matches(name, pattern) and not name.endswith("bias")]
        require(bool(chosen), f"chain.scale_free: {pattern} names no sampled weight of {', '.join(names)}")
        for name in chosen:
            bias = f"{name.removesuffix('weight')}bias"
            groups[name] = [name, bias] if name.endswith("weight") and bias in names else [name]
    return list(groups.values())


@torch.no_grad()
def draw_norms(
    groups: Iterable[list[str]],
    params: Mapping[str, Tensor],
    prior: Prior,
    outputs: Callable[[], Tensor],
    *,
    temperature: float,
    seed: int,
    chains: Sequence[int],
    stacked: bool,
) -> None:
    """Draw the norm of each group: of every output channel by itself where outputs allow that, else of the whole.

    Args:
        groups: as `groups_of` names them.
        params: by name, each with a leading chain axis if `stacked`; changed in place.
        prior: of the parameters.
        outputs: of one batch at the present parameters, [B, …], or [K, B, …] if `stacked`.
        temperature: T.
        seed, chains: of the numbers drawn; chains in their order.
        stacked: whether the parameters of several chains lie side by side.

    Raises:
        ConfigError: what the model answers depends on the scale of a group.
    """

    def answers() -> Tensor:
        return outputs().double() if stacked else outputs().double()[None]

    start = answers()
    for names in groups:
        tensors = [params[name] if stacked else params[name][None] for name in names]
        changes = []
        for by_channel in (True, False):
            rows = [_rows(t, by_channel) for t in tensors]
            changes.append(_change_with_scale(tensors, rows, answers))
            if changes[-1] <= TOLERANCE:
                break
        else:
            raise ConfigError(
                f"chain.scale_free: what the model answers depends on the scale of {names[0]}: with other norms of its"
                f" output channels outputs change by {changes[0]:.2g} of their spread over examples, with another norm"
                f" of the whole by {changes[1]:.2g} (at most {TOLERANCE:g}). Name weights that lead straight"
                " into a norm layer"
            )
        precisions = [prior.precision(name, t.shape[1:]) for name, t in zip(names, tensors, strict=True)]
        squares = torch.stack([p * r.double().square().sum(-1) for r, p in zip(rows, precisions, strict=True)]).sum(0)
        size = sum(row.shape[-1] for row in rows)
        laws = torch.distributions.Chi2(torch.full(squares.shape[1:], float(size), dtype=torch.float64))
        drawn = []
        for chain in chains:
            with seeded(seed, chain, 0, f"norm of {names[0]}"):
                drawn.append(laws.sample())
        _scale(tensors, rows, (temperature * torch.stack(drawn).to(squares) / squares).sqrt())
    change = _difference(answers(), start)
    require(
        change <= TOLERANCE,
        f"chain.scale_free: with new norms outputs change by {change:.2g} of their spread over examples"
        f" (at most {TOLERANCE:g}): the ε of the norm layers is too large for weights so small",
    )


def _rows(tensor: Tensor, by_channel: bool) -> Tensor:
    """A copy of a tensor [K, …] as [K, groups, size]: a group for each place on its first axis, or one for all."""
    return tensor.reshape(len(tensor), tensor.shape[1] if by_channel else 1, -1).clone()


def _scale(tensors: Iterable[Tensor], rows: Iterable[Tensor], factors: Tensor) -> None:
    """Put rows [K, groups, size], times factors [K, groups], into tensors."""
    for tensor, row in zip(tensors, rows, strict=True):
        tensor.copy_((row * factors[..., None].to(row)).reshape(tensor.shape))


def _change_with_scale(tensors: list[Tensor], rows: list[Tensor], answers: Callable[[], Tensor]) -> float:
    """By how much answers change where groups are scaled by 1/2 to 2, one unlike the next; the tensors come back."""
    before, groups = answers(), rows[0].shape[1]
    factors = torch.logspace(-1, 1, groups, base=2) if groups > 1 else torch.tensor([2.0])
    _scale(tensors, rows, factors.to(rows[0]).expand(len(rows[0]), groups))
    change = _difference(answers(), before)
    _scale(tensors, rows, torch.ones_like(rows[0][..., 0]))
    return change


def _difference(after: Tensor, before: Tensor) -> float:
    """‖after − before‖ of [K, B, …] as a share of how widely `before` is spread over the batch: the largest over K."""
    spread = before - (before.mean(1, keepdim=True) if before.shape[1] > 1 else before.mean())
    of_each = [t.flatten(1).norm(dim=1) for t in (after - before, spread)]
    return float((of_each[0] / of_each[1]).nan_to_num(nan=math.inf).max())
