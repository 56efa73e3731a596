"""Exact laws that the samplers must reproduce, and the means to check them on stacked chains.

Expected values are those of the *discretised* recursion, not of its continuous-time limit, so a disagreement is an
error of the code and not of the step size; tolerances are standard errors measured across independent chains.
"""

from bayeslora.laws.simulate import Moment, compare_moments, one_stream, simulate
from bayeslora.laws.targets import GaussianMean, Quadratic

__all__ = ["GaussianMean", "Moment", "Quadratic", "compare_moments", "one_stream", "simulate"]
