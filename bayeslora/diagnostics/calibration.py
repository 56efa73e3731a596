"""Temperature scaling: the point estimate with one number fitted on held-out data, the honest baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.diagnostics.metrics import refuse_nan
from bayeslora.errors import ConfigError, require

TEMPERATURES = (0.01, 100.0)
"""Range that is searched. Below it predictions are one-hot and above it uniform, for all purposes."""


@dataclass(frozen=True)
class TemperatureScaling:
    """A fitted temperature; what cannot be fitted is None, and `reason` says why in words.

    Attributes:
        temperature: t in log_softmax(log p / t); above 1 softens predictions, below 1 sharpens them.
        nll_before, nll_after: mean NLL of the validation examples at temperature 1 and t, in nats.
        reason: why there is no temperature, or that it lies at an end of `TEMPERATURES`; None where all is well.
    """

    temperature: float | None
    nll_before: float | None
    nll_after: float | None
    reason: str | None

    def apply(self, log_probs: Tensor) -> Tensor:
        """log p [N, C] at the fitted temperature, normalised; the predicted classes stay as they are.

        Raises:
            ConfigError: there is no temperature.
        """
        if self.temperature is None:
            raise ConfigError(f"there is no temperature to apply: {self.reason}")
        return scaled(log_probs, self.temperature)


def scaled(log_probs: Tensor, temperature: float) -> Tensor:
    """log_softmax(log p / t), [N, C]. From logits it would be the same: they differ by a constant of the row."""
    return (log_probs / temperature).log_softmax(-1)


def fit_temperature(log_probs: Tensor | None, targets: Tensor | None) -> TemperatureScaling:
    """The temperature that minimises the NLL of held-out examples.

    The NLL is convex in β = 1 / t, so its derivative, mean Σ_c p_c(β) (log p_c − log p_y), rises in β and its only
    root is the minimum. It is found by Brent's method in log β, to 10⁻¹⁰.

    Args:
        log_probs: log-probabilities of validation examples [N, C]; never those the metrics are then computed on.
            None, or no examples, where there is no validation set.
        targets: their classes [N].

    Returns:
        The temperature, in `TEMPERATURES`, or the reason why there is none.

    Raises:
        ConfigError: the shapes do not fit each other.
        DivergedError: a log-probability is NaN.

    Source: Guo, Pleiss, Sun, Weinberger (2017), "On calibration of modern neural networks".
    """
    if log_probs is None or targets is None or not len(targets):
        return _missing("there is no validation set to fit it on; dataset.validation_size gives one")
    shapes = f"{list(log_probs.shape)} and {list(targets.shape)}"
    fit = log_probs.ndim == 2 and targets.shape == log_probs.shape[:1]
    require(fit, f"a temperature is fitted to log_probs [N, C] and targets [N], not {shapes}")
    refuse_nan(log_probs)
    of_target = log_probs.double().gather(1, targets.long()[:, None])
    if of_target.isneginf().any():
        return _missing("a validation example's class has probability 0, which no temperature mends")
    gaps = log_probs.double() - of_target
    uniform = gaps.abs().max() < 1e-9
    temperature, reason = (1.0, "the predictions are uniform: any temperature will do") if uniform else _minimise(gaps)
    return TemperatureScaling(temperature, _nll(gaps, 1.0), _nll(gaps, temperature), reason)


def _minimise(gaps: Tensor) -> tuple[float, str | None]:
    """The best temperature for log p − log p of the target [N, C], and what to say if it lies at an end."""
    from scipy.optimize import brentq

    def slope(log_beta: float) -> float:
        probs = (gaps * math.exp(log_beta)).softmax(1)
        return torch.where(probs > 0, probs * gaps, 0).sum(1).mean().item()

    least, most = TEMPERATURES
    if slope(-math.log(least)) <= 0:
        return least, f"it lies at the lower end of the range searched: at {least} the NLL is still falling"
    if slope(-math.log(most)) >= 0:
        return most, f"it lies at the upper end of the range searched: at {most} the predictions are still too sharp"
    return math.exp(-brentq(slope, -math.log(most), -math.log(least), xtol=1e-10)), None


def _nll(gaps: Tensor, temperature: float) -> float:
    """Mean −log softmax(gaps / t) of the target, whose gap is 0, in nats."""
    return (gaps / temperature).logsumexp(1).mean().item()


def _missing(reason: str) -> TemperatureScaling:
    return TemperatureScaling(None, None, None, reason)
