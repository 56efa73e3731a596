"""Scalars of a state that show whether chains agree: norms by block, and projections in fixed random directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from bayeslora.rng import generator

PROJECTIONS = 10
"""Random directions onto which every draw is projected."""
COORDINATES = 65_536
"""Coordinates that a direction has at most: more would cost time with large nets and tell no more."""
WRAPPERS = ("peft", "base_model", "model", "module")
"""Parts of a parameter's name that say nothing of where it is."""


def block_of(name: str) -> str:
    """The block a parameter belongs to: its numbered layer (`blocks.2`, `layer.5`), else the first part of its name.

    Examples:
        >>> [block_of(name) for name in ("blocks.2.conv1.weight", "head.bias", "peft.base_model.layer.5.query.lora_A")]
        ['blocks.2', 'head', 'layer.5']
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    numbered = re.search(r"([A-Za-z_]\w*\.\d+)(?:\.|$)", ".".join(parts))
    return numbered[1] if numbered else parts[0]


def block_norms(params: Mapping[str, Tensor], chain_axes: int) -> dict[str, Tensor]:
    """‖θ_block‖ by block: scalars, or [K] with a chain axis."""
    squares: dict[str, Tensor] = {}
    for name, p in params.items():
        square = p.detach().reshape(*p.shape[:chain_axes], -1).square().sum(-1)
        block = block_of(name)
        squares[block] = squares[block] + square if block in squares else square
    return {block: square.sqrt() for block, square in squares.items()}


def projections(params: Mapping[str, Tensor], chain_axes: int) -> Tensor:
    """θ·rᵢ in `PROJECTIONS` fixed random directions of norm about one: [P], or [K, P].

    The directions are the same for all chains and runs of a model. Each is Gaussian on at most `COORDINATES`
    coordinates, drawn with replacement from all.
    """
    flat = [p.detach().reshape(*p.shape[:chain_axes], -1) for p in params.values()]
    sizes = tuple(p.shape[-1] for p in flat)
    theta = torch.cat(flat, dim=-1)
    index, weight = (t.to(theta.device) for t in _directions(sum(sizes)))
    return (theta[..., index] * weight.to(theta.dtype)).sum(-1)


@lru_cache(maxsize=4)
def _directions(dim: int) -> tuple[Tensor, Tensor]:
    """Coordinates and weights of the directions in a space of `dim` dimensions, [P, M] each."""
    source = generator(0, 0, dim, "projections")
    if dim <= COORDINATES:
        index = torch.arange(dim).expand(PROJECTIONS, -1)
    else:
        index = torch.randint(dim, (PROJECTIONS, COORDINATES), generator=source)
    return index, torch.randn(index.shape, generator=source) / index.shape[1] ** 0.5
