"""Weights whose scale a norm layer takes out again: their norm is drawn from its law under the posterior at once.

Where outputs do not depend on the common scale of d weights (those of a convolution's output channel with its bias,
before a norm of that channel), their posterior under a Gaussian prior is a product: of their direction, which the data
inform, and of their norm, of which the prior alone speaks,

    ‖θ/σ‖ ~ √T·χ_d,     independent of all else.

An optimizer leaves that norm far below, and a sampler takes Nσ²/ε steps to find it, longer than most runs; until then a
step turns the weights too far, by √(2ε/N)/|θ|. Drawn, it is right from the first step on, and predictions stay, but
for what the ε of norm layers does at small norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Chi2

from bayeslora.errors import ConfigError, require
from bayeslora.potential import Prior, matches
from bayeslora.rng import seeded

TOLERANCE = 0.01
"""Share of the outputs' spread over a batch by which they may change with the scale, about the prior's norm."""


class ScaleFree:
    """Weights, each with its bias where that is sampled, on whose scale outputs do not depend.

    Args:
        params: of the chain or the stacked chains, by name; changed in place.
        patterns: which weights, by name (see `potential.matches`).
        stacked: whether the parameters of several chains lie side by side, on a leading axis.
        prior: of the parameters.
        temperature: T; 0 as 1, the scale on which weights are then looked at.

    Raises:
        ConfigError: a pattern names no sampled weight.
    """

    def __init__(
        self, params: Mapping[str, Tensor], patterns: Iterable[str], stacked: bool, prior: Prior, temperature: float
    ) -> None:
        self.params, self.stacked, self.prior, self.temperature = params, stacked, prior, temperature or 1.0
        groups: dict[str, list[str]] = {}
        for pattern in patterns:
            chosen = [name for name in params if matches(name, pattern) and not name.endswith("bias")]
            require(bool(chosen), f"chain.scale_free: {pattern} names no sampled weight of {', '.join(params)}")
            for name in chosen:
                bias = f"{name.removesuffix('weight')}bias"
                groups[name] = [name, bias] if name.endswith("weight") and bias in params else [name]
        self.groups = list(groups.values())

    @torch.no_grad()
    def check(self, outputs: Callable[[], Tensor]) -> None:
        """Raise `ConfigError` where outputs, [B, …] or [K, B, …], depend on the scale of one of the weights."""
        for names in self.groups:
            self._units(names, outputs)

    @torch.no_grad()
    def draw_norms(self, outputs: Callable[[], Tensor], seed: int, chains: Sequence[int]) -> None:
        """Draw the norm of each weight: of every output channel by itself where outputs allow that, else of the whole.

        Args:
            outputs: of one batch at the present parameters, [B, …], or [K, B, …] if stacked.
            seed, chains: of the numbers drawn; chains in their order.

        Raises:
            ConfigError: outputs depend on the scale of one of the weights, or a weight is 0.
        """
        for names in self.groups:
            units = self._units(names, outputs)
            require(
                all(bool(row.isfinite().all()) for row in units),
                f"chain.scale_free: of {names[0]} all that leads to an output channel is 0, which has no direction; let"
                " the weights begin elsewhere",
            )
            size = float(sum(row.shape[-1] for row in units))
            law, drawn = Chi2(torch.full(units[0].shape[1:2], size, dtype=torch.float64)), []
            for chain in chains:
                with seeded(seed, chain, 0, f"norm of {names[0]}"):
                    drawn.append(law.sample())
            norms = (self.temperature * torch.stack(drawn)).sqrt().to(units[0])[..., None]
            _put(self._tensors(names), [row * norms for row in units])

    def _units(self, names: list[str], outputs: Callable[[], Tensor]) -> list[Tensor]:
        """The direction of a weight with its bias: both as [K, groups, size], such that ‖θ/σ‖ of each group is 1.

        About the usual norm of their law outputs do not depend on the scale of any group. The parameters stay.
        """
        tensors, changes = self._tensors(names), []
        precisions = [self.prior.precision(name, t.shape[1:]) for name, t in zip(names, tensors, strict=True)]
        for by_channel in (True, False):
            rows = [t.reshape(len(t), t.shape[1] if by_channel else 1, -1).clone() for t in tensors]
            size = sum(row.shape[-1] for row in rows)
            squares = [p * row.double().square().sum(-1) for row, p in zip(rows, precisions, strict=True)]
            inverse = torch.stack(squares).sum(0).rsqrt()[..., None]
            units, usual = [row * inverse.to(row) for row in rows], (self.temperature * size) ** 0.5
            _put(tensors, [row * usual for row in units])
            before, groups = self._answers(outputs), rows[0].shape[1]
            other = (torch.logspace(-1, 1, groups, base=2) if groups > 1 else torch.tensor([2.0])).to(rows[0])[:, None]
            _put(tensors, [row * usual * other for row in units])
            changes.append(_difference(self._answers(outputs), before))
            _put(tensors, rows)
            if changes[-1] <= TOLERANCE:
                return units
        raise ConfigError(
            f"chain.scale_free: what the model answers depends on the scale of {names[0]}: with other norms of its"
            f" output channels outputs change by {changes[0]:.2g} of their spread over examples, with another norm of"
            f" the whole by {changes[1]:.2g} (at most {TOLERANCE:g}). Name weights that lead straight into a norm layer"
        )

    def _tensors(self, names: list[str]) -> list[Tensor]:
        return [self.params[name] if self.stacked else self.params[name][None] for name in names]

    def _answers(self, outputs: Callable[[], Tensor]) -> Tensor:
        return outputs().double() if self.stacked else outputs().double()[None]


def _put(tensors: Iterable[Tensor], rows: Iterable[Tensor]) -> None:
    """Copy rows [K, groups, size] into the tensors that they are of."""
    for tensor, row in zip(tensors, rows, strict=True):
        tensor.copy_(row.reshape(tensor.shape))


def _difference(after: Tensor, before: Tensor) -> float:
    """‖after − before‖ of [K, B, …] as a share of how widely `before` is spread over the batch: the largest over K.

    0 where both are the same, and where `before` is not finite, which the step will say.
    """
    spread = before - (before.mean(1, keepdim=True) if before.shape[1] > 1 else before.mean())
    change, width = (t.flatten(1).norm(dim=1) for t in (after - before, spread))
    share = (change / width).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(share.where((change != 0) & width.isfinite(), 0.0).max())
