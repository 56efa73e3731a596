"""Samplers as `torch.optim.Optimizer`s: one algorithm a file, update maths in `functional`."""

from bayeslora.samplers.base import Sampler
from bayeslora.samplers.map import MAP
from bayeslora.samplers.sam_sgld import SAMSGLD
from bayeslora.samplers.sgld import SGLD

__all__ = ["MAP", "SAMSGLD", "SGLD", "Sampler"]
