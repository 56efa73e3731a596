"""How far finite steps are from exact ones: whether a Metropolis test would accept them."""

from __future__ import annotations

import torch
from torch import Tensor


def proposal(theta: Tensor, gradient: Tensor, step_size: Tensor | float, kT: float, noise: Tensor) -> Tensor:
    """θ' = θ − ε g + √(2ε·kT) ξ, a Langevin step with the gradient of Ũ on all data."""
    return theta - step_size * gradient + (2 * step_size * kT) ** 0.5 * noise


def log_ratio(
    start: tuple[Tensor, Tensor, Tensor], end: tuple[Tensor, Tensor, Tensor], step_size: Tensor | float, kT: float
) -> Tensor:
    """log r = log π(θ')q(θ|θ') − log π(θ)q(θ'|θ) of Langevin steps for π = exp(−Ũ/kT); min(1, r) would be accepted.

        −(Ũ' − Ũ)/kT + (‖θ' − θ + εg‖² − ‖θ − θ' + εg'‖²)/(4ε·kT)

    Args:
        start, end: (θ […, D], g […, D], Ũ […]) before and after, Ũ on all data.
        step_size: ε, a number or by coordinate.
        kT: thermal energy per example.

    Source: Roberts & Tweedie (1996); on exact draws the mean of r is 1 at every ε.
    """
    (theta, g, u), (theta_, g_, u_) = start, end
    forth = ((theta_ - theta + step_size * g).square() / step_size).sum(-1)
    back = ((theta - theta_ + step_size * g_).square() / step_size).sum(-1)
    return (u - u_) / kT + (forth - back) / (4 * kT)


def accepted(log_ratios: Tensor) -> Tensor:
    """min(1, r)."""
    return torch.exp(log_ratios.clamp(max=0.0))
