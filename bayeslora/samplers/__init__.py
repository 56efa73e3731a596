"""Samplers as `torch.optim.Optimizer`s: one algorithm a file, update maths in `functional`."""

from bayeslora.samplers.asgld import ASGLD
from bayeslora.samplers.baoab import BAOAB
from bayeslora.samplers.base import Sampler
from bayeslora.samplers.entropy_mcmc import EntropyMCMC
from bayeslora.samplers.fsgld import FSGLD
from bayeslora.samplers.map import MAP
from bayeslora.samplers.psgld import PSGLD
from bayeslora.samplers.sam_sgld import SAMSGLD
from bayeslora.samplers.sam_sgld_r1 import SAMSGLDR1
from bayeslora.samplers.sghmc import SGHMC
from bayeslora.samplers.sgld import SGLD
from bayeslora.samplers.sglrw import SGLRW
from bayeslora.samplers.sgnht import SGNHT

__all__ = [
    "ASGLD",
    "BAOAB",
    "FSGLD",
    "MAP",
    "PSGLD",
    "SAMSGLD",
    "SAMSGLDR1",
    "SGHMC",
    "SGLD",
    "SGLRW",
    "SGNHT",
    "EntropyMCMC",
    "Sampler",
]
