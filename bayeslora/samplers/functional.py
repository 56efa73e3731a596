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


def leimkuhler_matthews(
    theta: Tensor, gradient: Tensor, noise: tuple[Tensor, Tensor] | None, lr: StepSize, kT: float
) -> Tensor:
    """Overdamped limit of BAOAB: θ − ε g + √(2ε·kT) (ξₙ + ξₙ₊₁)/2. Samples a quadratic without discretisation bias.

    Args:
        theta, gradient: [..., D].
        noise: (ξₙ, ξₙ₊₁), each [..., D]; None stands for kT = 0.
        lr, kT: ε and kT.

    Source: Leimkuhler & Matthews (2013), eq. 6.
    """
    return sgld(theta, gradient, None if noise is None else (noise[0] + noise[1]) / 2, lr, kT)


def adaptive_drift(gradient: Tensor, first: Tensor, second: Tensor, a: float, floor: float) -> Tensor:
    """g + a·A with A = m̂/(√v̂ + λ), the drift of ASGLD.

    Args:
        gradient: g.
        first, second: bias-corrected moments m̂, v̂ of past gradients.
        a: weight of the adaptive drift.
        floor: λ > 0.

    Source: Kim, Song & Liang (2020), algorithm 1.
    """
    return gradient + a * first / (second.sqrt() + floor)


def rank_one(vector: Tensor, direction: Tensor, sigma: float) -> Tensor:
    """(I + σûûᵀ) x: x stretched by 1 + σ along the unit direction û.

    Args:
        vector: x, [..., D].
        direction: û, [..., D], of norm one (or zero: then x is returned).
        sigma: σ.
    """
    return vector + sigma * (vector * direction).sum(-1, keepdim=True) * direction


def rank_one_langevin(
    theta: Tensor,
    gradient: Tensor,
    noise: Tensor | None,
    lr: StepSize,
    kT: float,
    *,
    direction: Tensor,
    sigma: float,
    plain: bool = False,
) -> Tensor:
    """Langevin step with the preconditioner M = E^½ (I + σûûᵀ)² E^½, E = diag(ε): θ − M g + √(2kT) E^½ (I + σûûᵀ) ξ.

    Noise of covariance 2kT·M goes with the drift M g also where ε differs between coordinates, so that E and ûûᵀ do not
    commute; with a drift E (I + σûûᵀ)² g the law would be another one.

    Args:
        theta, gradient, noise: [..., D]; `noise` None stands for no noise.
        lr, kT: ε and kT.
        direction: û, [..., D], of norm one or zero.
        sigma: σ.
        plain: leave the drift E g as it is (another law, kept for comparison).
    """
    root = lr**0.5
    drift = root * rank_one(root * gradient, direction, 2 * sigma + sigma**2)  # (I + σûûᵀ)² = I + (2σ + σ²) ûûᵀ
    moved = descend(theta, gradient, lr) if plain else theta - drift
    return moved if noise is None else moved + root * (2 * kT) ** 0.5 * rank_one(noise, direction, sigma)


def preconditioned(
    theta: Tensor, gradient: Tensor, noise: Tensor | None, lr: StepSize, kT: float, *, scale: Tensor
) -> Tensor:
    """Langevin step with a diagonal preconditioner G: θ − ε G g + √(2ε·kT·G) ξ.

    Args:
        theta, gradient, noise: [..., D].
        scale: the diagonal of G, positive, [..., D].
        lr, kT: ε and kT.

    Source: Li et al. (2016), eq. 5 without Γ (zero where G does not depend on θ).
    """
    return sgld(theta, scale * gradient, None if noise is None else scale.sqrt() * noise, lr, kT)


def underdamped_euler(
    theta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    noise: Tensor | None,
    lr: StepSize,
    kT: float,
    *,
    friction: float | Tensor,
    injected: float | None = None,
) -> tuple[Tensor, Tensor]:
    """SGHMC's step: p ← (1 − α) p − √ε g + √(2 β kT) ξ; θ ← θ + √ε p. Returns (θ, p).

    Args:
        theta, momentum, gradient, noise: [..., D]; at equilibrium p ~ N(0, kT/(1 − α/2)) as ε → 0.
        lr, kT: ε and kT; √ε·p is the velocity of SGD with momentum 1 − α and learning rate ε.
        friction: α in (0, 1]; a tensor where a thermostat varies it.
        injected: β, the friction that the noise balances; α itself unless a thermostat is at work.

    Source: Chen, Fox & Guestrin (2014), eq. 15, with v = √ε p.
    """
    step = lr**0.5
    momentum = momentum * (1 - friction) - step * gradient
    if noise is not None:
        momentum = momentum + (2 * (friction if injected is None else injected) * kT) ** 0.5 * noise
    return theta + step * momentum, momentum


def baoab(
    theta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    noise: Tensor | None,
    lr: StepSize,
    kT: float,
    *,
    persistence: float,
) -> tuple[Tensor, Tensor]:
    """One BAOAB step, its two half kicks at one position joined: B p − √ε g; A half drift; O; A half drift.

        p ← p − √ε g,  θ ← θ + ½√ε p,  p ← c p + √((1 − c²) kT) ξ,  θ ← θ + ½√ε p.   Returns (θ, p).

    Args:
        theta, momentum, gradient, noise: [..., D].
        lr, kT: ε (the square of the time step) and kT.
        persistence: c in [0, 1): what is left of the momentum after O.

    Source: Leimkuhler & Matthews (2013), eq. 3.
    """
    half = lr**0.5 / 2
    momentum = momentum - 2 * half * gradient
    theta = theta + half * momentum
    momentum = persistence * momentum
    if noise is not None:
        momentum = momentum + ((1 - persistence**2) * kT) ** 0.5 * noise
    return theta + half * momentum, momentum


def lattice_walk(theta: Tensor, gradient: Tensor, uniform: Tensor, lr: StepSize, kT: float) -> Tensor:
    """One move of a random walk on a lattice: θᵢ − δ sign(ε gᵢ/δ + rᵢ) with δ = √(2ε·kT) and rᵢ uniform on (−1, 1).

    That is θᵢ ± δ with P(+) = ½ (1 − clip(ε gᵢ/δ, −1, 1)). Its mean is −ε g and its square δ², whatever the noise of
    the gradient, while nothing is clipped.

    Args:
        theta, gradient: [..., D].
        uniform: r, [..., D].
        lr, kT: ε and kT > 0.

    Source: Mensch et al. (2026), arXiv 2602.15925, algorithm 1.
    """
    delta = (2 * lr * kT) ** 0.5
    return theta - delta * torch.sign(gradient * (lr / delta) + uniform)


def entropic_pull(theta: Tensor, guide: Tensor, variance: float, kT: float) -> Tensor:
    """Gradient, in θ, of the coupling kT‖θ − θₐ‖²/(2η) of Entropy-MCMC: (kT/η)(θ − θₐ).

    Args:
        theta, guide: θ and θₐ, [..., D].
        variance: η, of θ around its guide.
        kT: thermal energy.

    Source: Li & Zhang (2024), eq. 5.
    """
    return (theta - guide) * (kT / variance)
