"""Bayesian posterior sampling of deep networks and LoRA adapters by stochastic-gradient Langevin samplers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayeslora.library import sample
    from bayeslora.likelihood import Bernoulli, Categorical, Gaussian
    from bayeslora.posterior import Posterior
    from bayeslora.potential import Potential, Prior

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Posterior", "Potential", "Prior", "sample"]

_HOMES = {
    "Bernoulli": "bayeslora.likelihood",
    "Categorical": "bayeslora.likelihood",
    "Gaussian": "bayeslora.likelihood",
    "Posterior": "bayeslora.posterior",
    "Potential": "bayeslora.potential",
    "Prior": "bayeslora.potential",
    "sample": "bayeslora.library",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
