"""Exact stationary laws of the samplers that are linear on a quadratic potential Ũ = ½ θᵀAθ.

Each function writes a sampler's step as x ← F x + n with n of covariance Q, derived from its equation and not from its
code; the stationary covariance solves S = F S Fᵀ + Q. θ comes first in x. Gradient noise has covariance V.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Matrix = np.ndarray
Law = Callable[..., Matrix]


def stationary(transition: Matrix, noise: Matrix, dim: int) -> Matrix:
    """Covariance of θ, [D, D]: the first block of the solution of S = F S Fᵀ + Q."""
    from scipy.linalg import solve_discrete_lyapunov

    return solve_discrete_lyapunov(transition, noise)[:dim, :dim]


def _covariance(v: Matrix | float, dim: int) -> Matrix:
    """Covariance of the gradient noise: a matrix as it is, a number for independent coordinates."""
    return v if isinstance(v, np.ndarray) else v * np.eye(dim)


def sgld_covariance(a: Matrix, lr: float, kT: float, v: Matrix | float = 0.0) -> Matrix:
    """θ ← (I − εA)θ + √(2ε·kT) ξ − ε·(gradient noise)."""
    eye = np.eye(len(a))
    return stationary(eye - lr * a, 2 * lr * kT * eye + lr**2 * _covariance(v, len(a)), len(a))


def leimkuhler_matthews_covariance(a: Matrix, lr: float, kT: float) -> Matrix:
    """x = (θ, ξₙ): θ ← (I − εA)θ + √(2ε·kT)(ξₙ + ξₙ₊₁)/2."""
    eye, zero = np.eye(len(a)), np.zeros_like(a)
    half = (2 * lr * kT) ** 0.5 / 2
    transition = np.block([[eye - lr * a, half * eye], [zero, zero]])
    enter = np.vstack([half * eye, eye])
    return stationary(transition, enter @ enter.T, len(a))


def preconditioned_covariance(a: Matrix, lr: float, kT: float, g: Matrix) -> Matrix:
    """θ ← (I − εGA)θ + √(2ε·kT) G^½ ξ, for pSGLD and rank-one SAM-SGLD at ρ = 0."""
    return stationary(np.eye(len(a)) - lr * g @ a, 2 * lr * kT * g, len(a))


def sghmc_covariance(a: Matrix, lr: float, kT: float, momentum: float, v: Matrix | float = 0.0) -> Matrix:
    """x = (θ, p): p ← μp − √ε Aθ + √(2(1 − μ)kT) ξ; θ ← θ + √ε p."""
    eye, h = np.eye(len(a)), lr**0.5
    transition = np.block([[eye - lr * a, h * momentum * eye], [-h * a, momentum * eye]])
    enter = np.vstack([h * eye, eye])
    return stationary(
        transition, enter @ (2 * (1 - momentum) * kT * eye + lr * _covariance(v, len(a))) @ enter.T, len(a)
    )


def sgnht_variances(curvature: float, rates: Matrix, kT: float, momentum: float, v: float = 0.0) -> Matrix:
    """Variance of θ in blocks of equal size, of step sizes `rates`, under one thermostat that does not fluctuate.

    Its friction α is that at which (1 − α/2) E p², averaged over the blocks, is kT; the noise stays that of 1 − μ.
    """
    from scipy.optimize import brentq

    def blocks(friction: float) -> Matrix:
        """Covariance of (θ, p) of each block, [blocks, 2, 2]."""
        out = []
        for lr in rates:
            h, kept = lr**0.5, 1 - friction
            transition = np.array([[1 - lr * curvature, h * kept], [-h * curvature, kept]])
            enter = np.array([[h], [1.0]])
            out.append(stationary(transition, enter @ enter.T * (2 * (1 - momentum) * kT + lr * v), 2))
        return np.stack(out)

    def excess(friction: float) -> float:
        return float((1 - friction / 2) * blocks(friction)[:, 1, 1].mean() / kT - 1)

    return blocks(brentq(excess, 1e-3, 1.0))[:, 0, 0]


def baoab_covariance(a: Matrix, lr: float, kT: float, momentum: float) -> Matrix:
    """x = (θ, p): B then A, O, A, each as a matrix."""
    eye, zero, h = np.eye(len(a)), np.zeros_like(a), lr**0.5
    kick = np.block([[eye, zero], [-h * a, eye]])
    drift = np.block([[eye, h / 2 * eye], [zero, eye]])
    friction = np.block([[eye, zero], [zero, momentum * eye]])
    noise = np.block([[zero, zero], [zero, (1 - momentum**2) * kT * eye]])
    return stationary(drift @ friction @ drift @ kick, drift @ noise @ drift.T, len(a))


def grouped_covariance(law: Law, a: Matrix, rates: Matrix, kT: float, *args: Any, **kwargs: Any) -> Matrix:
    """A law for step sizes that differ between coordinates, E = diag(rates).

    In the coordinates E^(−½)θ the step size is 1 and the curvature E^½AE^½; further arguments are meant there too.
    """
    root = np.diag(np.sqrt(rates))
    return root @ law(root @ a @ root, 1.0, kT, *args, **kwargs) @ root


def fsgld_covariance(a: Matrix, lr: float, kT: float, sigma: float) -> Matrix:
    """SGLD whose gradient A(θ + σz) carries noise of covariance σ²A²."""
    return stationary(np.eye(len(a)) - lr * a, 2 * lr * kT * np.eye(len(a)) + (lr * sigma) ** 2 * a @ a, len(a))


def entropy_mcmc_covariance(a: Matrix, lr: float, kT: float, eta: float | Matrix) -> Matrix:
    """x = (θ, θₐ), SGLD on the joint quadratic; η a number, or one a coordinate."""
    eye, pull = np.eye(len(a)), kT / eta * np.eye(len(a))
    joint = np.block([[a + pull, -pull], [-pull, pull]])
    return stationary(np.eye(2 * len(a)) - lr * joint, 2 * lr * kT * np.kron(np.eye(2), eye), len(a))


def sglrw_covariance(a: Matrix, lr: float, kT: float, v: Matrix | float = 0.0) -> Matrix:
    """Σ = Σ − ε(AΣ + ΣA) + δ²I + offdiag(ε²(AΣA + V)): the square of a step is δ² on the diagonal, whatever V."""
    d = len(a)
    eye = np.eye(d)
    off = np.diag(1 - np.eye(d).ravel())
    system = lr * (np.kron(a, eye) + np.kron(eye, a)) - off @ (lr**2 * np.kron(a, a))
    right = 2 * lr * kT * eye.ravel() + off @ (lr**2 * _covariance(v, d)).ravel()
    return np.linalg.solve(system, right).reshape(d, d)
