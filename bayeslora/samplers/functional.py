"""Update rules as pure functions of tensors.

Every function takes the parameters of a chain as one vector [..., D] (all sampled tensors, flattened and joined);
leading axes are independent chains. Nothing here draws random numbers or keeps state: noise ξ ~ N(0, I) comes in
as an argument. Symbols as in the papers: θ parameters, g = ∇Ũ(θ) the gradient of the per-example potential,
ε = `lr` the step size on Ũ, kT = T/N.
"""

from __future__ import annotations

import torch
from torch import Tensor

StepSize = float | Tensor
"""ε: one number, or a tensor broadcastable to θ where parameter groups differ."""


def descend(theta: Tensor, gradient: Tensor, lr: StepSize) -> Tensor:
    """θ − ε g. Rounds exactly as `torch.optim.SGD` does."""
    if isinstance(lr, Tensor):
        return torch.addcmul(theta, lr, gradient, value=-1)
    return theta.add(gradient, alpha=-lr)


def sgld(theta: Tensor, gradient: Tensor, noise: Tensor | None, lr: StepSize, kT: float) -> Tensor:
    """Euler–Maruyama step of overdamped Langevin dynamics: θ − ε g + √(2ε·kT) ξ.

    Args:
        theta, gradient, noise: [..., D]; `noise` None stands for kT = 0.
        lr: ε.
        kT: thermal energy per example.

    Source: Welling & Teh (2011), eq. 4.
    """
    moved = descend(theta, gradient, lr)
    return moved if noise is None else moved.add_(noise * (2 * lr * kT) ** 0.5)


def heavy_ball(
    theta: Tensor, gradient: Tensor, velocity: Tensor, lr: StepSize, momentum: float, *, nesterov: bool = False
) -> tuple[Tensor, Tensor]:
    """SGD with momentum: v ← μ v + g; θ ← θ − ε v (Nesterov: θ ← θ − ε (g + μ v)). Returns (θ, v).

    Source: Polyak (1964); Sutskever et al. (2013) in the form of `torch.optim.SGD`.
    """
    velocity = velocity * momentum + gradient
    direction = gradient.add(velocity, alpha=momentum) if nesterov else velocity
    return descend(theta, direction, lr), velocity


def sam_ascent(gradient: Tensor, rho: float) -> Tensor:
    """The sharpness-aware perturbation ρ g/‖g‖, with one norm a chain over all its parameters.

    Args:
        gradient: [..., D].
        rho: radius ρ ≥ 0, in units of θ.

    Returns:
        [..., D]; zero for a chain whose gradient is zero.

    Source: Foret et al. (2021), eq. 2.
    """
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient * torch.where(norm > 0, rho / norm, 0)
