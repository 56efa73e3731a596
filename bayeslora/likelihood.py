"""Likelihoods: what a model's outputs say of a target, as −log p(y|x, θ) in nats.

A likelihood is one term of the potential; its noise, if it is sampled, is one more parameter of the model with a prior
of its own. Samplers know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bayeslora.errors import ConfigError, require
from bayeslora.factories import refusal
from bayeslora.potential import Prior, categorical_nll

NOISE = "log_noise_variance"
"""The name of the sampled noise among a model's parameters: log σ² of each target, [D]."""


class Likelihood(Protocol):
    """How outputs [..., B, …] and targets [B, …] (or [..., B, …]) give nats an example, [..., B]."""

    def outputs(self, targets: int) -> int:
        """Outputs O that the model needs for so many classes, labels, or numbers an example."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """−log p(y|x, θ) in nats, at least fp32: [..., B]."""

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """What is followed on a validation set, of outputs [B, …] on the CPU; `nll` is one of them."""

    def attach(self, model: nn.Module, targets: int) -> nn.Module:
        """The model with the parameters of the likelihood, if it has any."""

    def extend(self, prior: Prior) -> Prior:
        """The prior with that of the likelihood's own parameters."""


class OfClasses:
    """What likelihoods of classes share: every prediction is log p [..., C], and some targets may be missing."""

    ignore_index: int

    def log_p(self, outputs: Tensor) -> Tensor:
        """Log-probabilities of every prediction, [B, …, C], at least fp32."""
        raise NotImplementedError

    def observed(self, targets: Tensor) -> Tensor:
        """Which targets are there, bool of their shape."""
        return targets != self.ignore_index

    def in_output_order(self, log_p: Tensor) -> Tensor:
        """Log-probabilities [B, …, C] as `Posterior.predict` gives them, in the order of the model's outputs."""
        return log_p

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Accuracy, NLL and ECE, means over the targets that are there."""
        from bayeslora.diagnostics.metrics import metrics

        observed = self.observed(targets)
        scores = metrics(self.log_p(outputs)[observed], targets[observed])
        return {name: scores[name] for name in ("accuracy", "nll", "ece")}

    def attach(self, model: nn.Module, targets: int) -> nn.Module:  # noqa: ARG002
        """The model as it is."""
        return model

    def extend(self, prior: Prior) -> Prior:
        """The prior as it is."""
        return prior


class Categorical(OfClasses):
    """Classes: p(y|x, θ) = softmax(outputs)_y, of one class an example, or of one at each of its positions.

    Args:
        axes: of positions within an example: 0, one class an example; 1, a class a token; 2, a class a pixel. Given θ,
            positions are independent: −log p of an example is the sum over its positions.
        ignore_index: the target of positions that are left out of the likelihood, e.g. padding.

    Raises:
        ConfigError: a negative number of axes, or an index to ignore that is a class.

    Note:
        N counts examples, not positions: the prior has weight 1/N against an example's whole sum. Neighbouring pixels
        or tokens say much the same, and the likelihood counts each as new evidence, so that the posterior is narrower
        than the data warrant. Curvature grows with the number of positions, and asks for steps smaller by as much.
    """

    def __init__(self, axes: int = 0, ignore_index: int = -100, **others: Any) -> None:
        _refuse(others)
        require(axes >= 0, f"likelihood.axes={axes} must be at least 0 (1: a class a token, 2: a class a pixel)")
        require(ignore_index < 0, f"likelihood.ignore_index={ignore_index} must be negative: classes count from 0")
        self.axes, self.ignore_index = axes, ignore_index

    def outputs(self, targets: int) -> int:
        """One logit a class."""
        return targets

    def log_p(self, outputs: Tensor) -> Tensor:
        """Logits [..., B, C] or [..., B, C, *positions] -> [..., B, *positions, C]."""
        logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return logits.movedim(-1 - self.axes, -1).log_softmax(-1)

    def in_output_order(self, log_p: Tensor) -> Tensor:
        """[B, *positions, C] -> [B, C, *positions]."""
        return log_p.movedim(-1, -1 - self.axes)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits [..., B, C, *positions] and classes [B, *positions] or [..., B, *positions] -> [..., B]."""
        if not self.axes:
            return categorical_nll(outputs, targets.expand(outputs.shape[:-1]))
        logits = outputs.movedim(-1 - self.axes, -1)
        classes = targets.expand(logits.shape[:-1])
        observed = self.observed(classes)
        nll = categorical_nll(logits, classes.where(observed, 0))
        return nll.where(observed, 0.0).flatten(-self.axes).sum(-1)


class Bernoulli(OfClasses):
    """Labels that hold or do not, several an example: p(y|x, θ) = Π_l sigmoid(±outputs_l), independent given θ.

    Targets are 1, 0, or −1 for a label that is not known, which is left out of the likelihood.

    Note:
        The posterior conditions on the labels as they are. Class weights and label smoothing are not offered: they
        would make another likelihood of it, whose predictions are of no frequency in the data.
    """

    ignore_index = -1

    def __init__(self, **others: Any) -> None:
        _refuse(others)

    def outputs(self, targets: int) -> int:
        """One logit a label."""
        return targets

    def log_p(self, outputs: Tensor) -> Tensor:
        """Logits [..., B, L] -> log-probabilities of 0 and of 1, [..., B, L, 2]."""
        logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return nn.functional.logsigmoid(torch.stack([-logits, logits], dim=-1))

    def in_output_order(self, log_p: Tensor) -> Tensor:
        """[B, L, 2] -> log-probability that a label holds, [B, L]."""
        return log_p[..., 1]

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits [..., B, L] and labels [B, L] or [..., B, L] -> [..., B]."""
        logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        observed = self.observed(targets)
        wrong_by = logits * torch.where(targets == 1, -1.0, 1.0).to(logits.dtype)  # log odds against the target
        return nn.functional.softplus(wrong_by).where(observed, 0.0).sum(-1)


class Gaussian:
    """Real numbers: y ~ N(μ(x), σ²), independent over D targets; −log p = ½ Σ_d [(y − μ)²/σ² + log σ² + log 2π].

    Args:
        noise: σ, in the unit of the targets as the model sees them (their standard deviation, where the dataset
            standardises them). A number: fixed and known. `"learned"`: one σ a target, sampled with the weights as
            log σ², so that its posterior is part of every prediction. `"per_example"`: the model gives log σ² of every
            example as further outputs, [μ, log σ²].
        prior_variance: of log σ² ~ N(0, ·) where it is learned.

    Raises:
        ConfigError: a noise that is neither positive nor one of the names, or an impossible variance.

    Note:
        `"learned"` is the Bayesian choice for noise that is alike everywhere: nothing is fitted, σ is integrated out.
        On each log σ² the potential Ũ has curvature about ½, that of a mean loss: it needs no step size of its own.

    Source: Nix & Weigend (1994) for `"per_example"`.
    """

    def __init__(self, noise: float | str = "learned", prior_variance: float = 4.0) -> None:
        fixed = isinstance(noise, Real) and not isinstance(noise, bool)
        require(
            (fixed and math.isfinite(noise) and noise > 0) or noise in ("learned", "per_example"),  # type: ignore[arg-type, operator]
            f"likelihood.noise={noise} must be a positive number (a standard deviation), learned, or per_example",
        )
        valid = math.isfinite(prior_variance) and prior_variance > 0
        require(valid, f"likelihood.prior_variance={prior_variance} must be a positive finite number")
        self.noise, self.prior_variance = noise, prior_variance

    def outputs(self, targets: int) -> int:
        """One mean a target; with noise per example also its log variance."""
        return 2 * targets if self.noise == "per_example" else targets

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log σ², [..., D] each, at least fp32."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if isinstance(self.noise, str):
            mean, log_variance = outputs.chunk(2, dim=-1)
            return mean, log_variance
        return outputs, torch.full_like(outputs, 2 * math.log(self.noise))

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs [..., B, O] and targets [B, D] or [..., B, D] -> [..., B]."""
        mean, log_variance = self.moments(outputs)
        square = (targets - mean).square() * (-log_variance).exp()
        return 0.5 * (square + log_variance + math.log(2 * math.pi)).sum(-1)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """NLL and RMSE, in the unit in which the model sees the targets."""
        mean, _ = self.moments(outputs)
        rmse = (targets - mean).double().square().mean().sqrt().item()
        return {"nll": self.nll(outputs, targets).double().mean().item(), "rmse": rmse}

    def attach(self, model: nn.Module, targets: int) -> nn.Module:
        """Where noise is learned: the model with a parameter `NOISE` [D], which it gives beside its means."""
        if self.noise == "learned" and not hasattr(model, NOISE):
            like = next(model.parameters(), torch.empty(0))
            model.register_parameter(NOISE, nn.Parameter(torch.zeros(targets, dtype=like.dtype, device=like.device)))
            model.register_forward_hook(_append_noise)
        return model

    def extend(self, prior: Prior) -> Prior:
        """The same prior with N(0, prior_variance) on log σ², unless it names `NOISE` itself."""
        if self.noise != "learned":
            return prior
        overrides = {NOISE: self.prior_variance} | prior.overrides
        return Prior(prior.variance, prior.scaling, overrides, prior.vectors, prior.fan_ins)


def _append_noise(model: nn.Module, inputs: Any, means: Tensor) -> Tensor:  # noqa: ARG001
    """Means [..., D] -> [means, log σ²], [..., 2D]."""
    return torch.cat([means, getattr(model, NOISE).expand_as(means).to(means.dtype)], dim=-1)


def _refuse(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that are no likelihood's, class weights and label smoothing among them."""
    if settings:
        raise ConfigError(*(refusal(key) or f"likelihood.{key} is unknown" for key in settings))


LIKELIHOODS: dict[str, type] = {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian": Gaussian}
"""By the name of the file in `conf/likelihood`."""


def from_recorded(node: Mapping[str, Any] | None) -> Likelihood:
    """The likelihood that a run's `config.yaml` names; classes for runs that name none."""
    settings = {key: value for key, value in (node or {}).items() if not key.startswith("_")}
    name = str((node or {}).get("_target_", "Categorical")).rpartition(".")[2].lower()
    require(name in LIKELIHOODS, f"likelihood {name} is none of this package's; give Posterior.load(…, likelihood=…)")
    made: Likelihood = LIKELIHOODS[name](**settings)
    return made
