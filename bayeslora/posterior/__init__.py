"""Draws on disk and ensembles of them; independent of Lightning and Hydra."""

from bayeslora.posterior.density import Mixture, Normals
from bayeslora.posterior.predictive import Posterior
from bayeslora.posterior.store import Draw, DrawStore

__all__ = ["Draw", "DrawStore", "Mixture", "Normals", "Posterior"]
