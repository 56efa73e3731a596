"""What a pilot asks of an update rule to find its step sizes."""

from __future__ import annotations


class Tunable:
    """How a rule answers to curvature and force; the values here are SGLD's."""

    gradients_per_step = 1
    scales_itself = False
    """Whether the rule has step sizes by coordinate of its own, so that curvatures do not tell ε."""

    @property
    def stiffness(self) -> float:
        """By how much the rule multiplies the largest curvature of Ũ."""
        return 1.0

    @property
    def own_curvature(self) -> float:
        """What the rule adds to the curvature of Ũ."""
        return 0.0

    @property
    def curvature_limit(self) -> float:
        """ε·λmax up to which the discretised law of a quadratic is within a few percent of the posterior."""
        return 0.1

    @property
    def heat_limit(self) -> float:
        """εV·s/(2kT) up to which the noise of minibatches, of variance V, is allowed to heat."""
        return 0.05

    @property
    def heated(self) -> bool:
        """Whether the noise of minibatches heats it."""
        return True

    @property
    def plain_noise(self) -> bool:
        """Whether that noise is its force's: no part of it is taken away, and none scaled by coordinate."""
        return not self.scales_itself

    @property
    def speed(self) -> float:
        """How far a weak, lasting force moves θ in a step, in units of ε × the force."""
        return 1.0
