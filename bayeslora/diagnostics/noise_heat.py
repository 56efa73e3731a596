"""How much hotter minibatch noise makes the directions in which it lies, which a mean over coordinates dilutes.

Noise of covariance C in the gradient of Ũ adds to the temperature, in the direction v and in units of T,

    vᵀHv,  H = s/(2kT)·E^½ C E^½,

E the step sizes and s the sampler's speed, to first order in ε. A block's temperature is the mean over its D
directions, tr(H)/D. Where the data determine only some, as in an adapter, noise lies in few, and the mean says nothing
of them. Their own is the mean over directions in proportion to the noise that they have,

    tr(H²)/tr(H) ≥ tr(H)/D,

of about tr(H)²/tr(H²) directions. Of differences of gradients of four independent minibatches, for i, j, k, l distinct,

    E‖gᵢ − gⱼ‖² = 2 tr(C),   E⟨gᵢ − gⱼ, g_k − g_l⟩² = 4 tr(C²).

Of independent batches: reshuffled epochs bring less in directions that take longer than an epoch to relax, which those
that the data determine usually do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from bayeslora.diagnostics.measured_temperature import blocks
from bayeslora.diagnostics.values import NoiseHeat

FORCES = 4
"""Minibatches a state, the fewest of which both traces have estimates."""


def products(forces: Sequence[Mapping[str, Tensor]], step_sizes: Mapping[str, float]) -> dict[str, Tensor]:
    """⟨E^½ gᵢ, E^½ gⱼ⟩ of each block: fp64 [4, 4].

    Args:
        forces: g of each minibatch at one state, by name of the parameter.
        step_sizes: ε by name.
    """
    found: dict[str, Tensor] = {}
    for block, names in blocks(step_sizes).items():
        found[block] = torch.zeros(FORCES, FORCES, dtype=torch.float64)
        for name in names:
            rows = torch.stack([force[name].flatten() for force in forces]).double()
            found[block] += step_sizes[name] * (rows @ rows.T).cpu()
    return found


def traces(gram: Tensor, scale: float) -> tuple[float, float]:
    """Unbiased estimates of tr(H) and tr(H²) from the products of one state; scale: s/(2kT)."""
    pairs = [gram[i, i] + gram[j, j] - 2 * gram[i, j] for i, j in combinations(range(FORCES), 2)]
    crossed = [
        gram[i, k] - gram[i, m] - gram[j, k] + gram[j, m] for i, j, k, m in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2))
    ]
    first, second = torch.stack(pairs).mean() / 2, torch.stack(crossed).square().mean() / 4
    return scale * float(first), scale**2 * float(second)


def noise_heat(estimates: Sequence[tuple[float, float]], size: int) -> NoiseHeat | None:
    """What the traces of several states say of a block; None where there is no noise, or one state alone.

    Args:
        estimates: tr(H) and tr(H²) of each state.
        size: D, coordinates.
    """
    values = torch.tensor(estimates, dtype=torch.float64)
    first, second = values.mean(0).tolist()
    if len(values) < 2 or not (first > 0 and second > 0) or not values.isfinite().all():
        return None
    share = second / first
    off = values[:, 1] - share * values[:, 0]  # of a ratio of means, to first order
    se = float(off.square().sum() / (len(values) * (len(values) - 1))) ** 0.5 / first
    return NoiseHeat(share, se, first / size, first**2 / second, size)
