"""Samplers as `torch.optim.Optimizer`s: one algorithm a file, update maths in `functional`."""

from collections.abc import Callable
from functools import partial

from bayeslora.samplers.asgld import ASGLD
from bayeslora.samplers.baoab import BAOAB
from bayeslora.samplers.entropy_mcmc import EntropyMCMC
from bayeslora.samplers.fsgld import FSGLD
from bayeslora.samplers.map import MAP
from bayeslora.samplers.psgld import PSGLD
from bayeslora.samplers.sam_sgld import SAMSGLD
from bayeslora.samplers.sam_sgld_r1 import SAMSGLDR1
from bayeslora.samplers.sampler import Sampler
from bayeslora.samplers.sghmc import SGHMC
from bayeslora.samplers.sgld import SGLD
from bayeslora.samplers.sglrw import SGLRW
from bayeslora.samplers.sgnht import SGNHT

__all__ = [
    "ASGLD",
    "BAOAB",
    "BY_NAME",
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

BY_NAME: dict[str, Callable[..., Sampler]] = {
    "asgld": partial(ASGLD, lr=0.01),
    "baoab": partial(BAOAB, lr="auto", momentum="auto"),  # type: ignore[arg-type]  # a run finds numbers
    "entropy_mcmc": partial(EntropyMCMC, lr=0.01),
    "fsgld": partial(FSGLD, lr=0.01),
    "map": partial(MAP, lr=0.1, nesterov=True),
    "psgld": partial(PSGLD, lr=3e-4),
    "sam_sgld": partial(SAMSGLD, lr=0.01),
    "sam_sgld_r1": partial(SAMSGLDR1, lr=0.005),
    "sghmc": partial(SGHMC, lr=0.05),
    "sgld": partial(SGLD, lr=0.01),
    "sglrw": partial(SGLRW, lr=0.01),
    "sgnht": partial(SGNHT, lr=0.01),
}
"""The samplers by the names that `bayeslora.sample` and `conf/sampler` give them, with the same settings."""
