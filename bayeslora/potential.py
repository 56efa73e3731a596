"""The potential energy of a posterior: the only file that knows N.

    U(θ) = −Σᵢ log p(yᵢ|xᵢ, θ) − log p(θ),     target π(θ) ∝ exp(−U(θ)/T)

Samplers see the per-example potential Ũ = U/N, whose gradient has the size of an ordinary mean loss's, and the
thermal energy per example kT = T/N. A step size is then the `lr` of SGD on the mean loss.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bayeslora.errors import Problems, require

Params = Mapping[str, Tensor]


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter is meant by a pattern: one with shell wildcards for the whole name, or parts of the name.

    Examples:
        >>> [matches("encoder.query.lora_A.weight", p) for p in ("lora_A", "query.lora_A", "*.weight", "lora")]
        [True, True, True, False]
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return f".{pattern}." in f".{name}."


def last_match(name: str, values: Mapping[str, float], default: float) -> float:
    """The value of the last pattern that means a parameter (see `matches`), else the default."""
    return [default, *(value for pattern, value in values.items() if matches(name, pattern))][-1]


class Prior:
    """Gaussian prior with mean zero and one variance a tensor: log p(θ) = −½ Σₜ ‖θₜ‖²/σₜ² + const.

    Args:
        variance: σ², the variance of every parameter (constant scaling), or σ² of the unit that is divided by the
            fan-in (fan-in scaling: weights of two or more axes get σ²/fan_in, so that activations keep their size). The
            fan-in is the product of all axes but the first, unless `for_model` finds a layer that has it elsewhere.
        scaling: `"constant"` or `"fan_in"`.
        vectors: variance of tensors of one axis, biases and norm parameters; None: as `variance`.
        overrides: variance by parameter name (see `matches`), taken as it is; the last match wins.
        fan_ins: fan-in by parameter name, of those whose shape does not tell it.

    Raises:
        ConfigError: a variance that is not positive and finite, or an unknown scaling.

    Source: Neal (1996) for fan-in scaling; the constant prior is that of Izmailov et al. (2021).
    """

    def __init__(
        self,
        variance: float = 1.0,
        scaling: Literal["constant", "fan_in"] = "constant",
        overrides: Mapping[str, float] | None = None,
        vectors: float | None = None,
        fan_ins: Mapping[str, float] | None = None,
    ) -> None:
        self.variance, self.scaling, self.overrides = variance, scaling, dict(overrides or {})
        self.fan_ins = dict(fan_ins or {})
        self.vectors = variance if vectors is None else vectors
        self._known: tuple[Any, list[float]] = (None, [])
        self._tensor: tuple[list[float], Tensor] | None = None
        given = {"variance": variance, "vectors": vectors, **{f"overrides[{k}]": v for k, v in self.overrides.items()}}
        problems = Problems()
        for name, value in given.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                problems.add(f"prior.{name}={value} must be a positive finite number (a variance)")
        if scaling not in ("constant", "fan_in"):
            problems.add(f"prior.scaling={scaling!r} is unknown; choose constant or fan_in")
        problems.raise_if_any()

    def precision(self, name: str, shape: torch.Size) -> float:
        """1/σ² of the tensor called `name` with this shape (without a chain axis)."""
        if len(shape) < 2:
            variance = self.vectors
        else:
            fan_in = self.fan_ins.get(name, math.prod(shape[1:]))
            variance = self.variance / (fan_in if self.scaling == "fan_in" else 1)
        return 1.0 / last_match(name, self.overrides, variance)

    def precisions(self, params: Params, chain_axes: int = 0) -> list[float]:
        """1/σ² of each tensor, in their order."""
        key = tuple((name, p.shape) for name, p in params.items())
        if self._known[0] != (chain_axes, key):  # every step asks for the same ones
            self._known = (chain_axes, key), [self.precision(name, p.shape[chain_axes:]) for name, p in params.items()]
        return self._known[1]

    @torch.no_grad()
    def draw_into(self, model: nn.Module, patterns: Iterable[str]) -> None:
        """Put draws from the prior in the place of parameters of a model, with torch's own generator.

        Args:
            model: changed in place; frozen parameters stay as they are.
            patterns: which parameters, by name (see `matches`).

        Raises:
            ConfigError: a pattern names no sampled parameter.
        """
        sampled = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for pattern in patterns:
            chosen = [name for name in sampled if matches(name, pattern)]
            require(bool(chosen), f"chain.from_prior: {pattern} names no sampled parameter of {', '.join(sampled)}")
            for name in chosen:
                sampled[name].normal_(std=self.precision(name, sampled[name].shape) ** -0.5)

    def _weights(self, precisions: list[float], like: Tensor) -> Tensor:
        """The precisions as a tensor, made once."""
        kept = self._tensor
        if kept is None or kept[0] is not precisions or (kept[1].dtype, kept[1].device) != (like.dtype, like.device):
            kept = self._tensor = precisions, like.new_tensor(precisions)
        return kept[1]

    def for_model(self, model: nn.Module) -> Prior:
        """The same prior, with the fan-in of the layers of a model whose weights are not [out, in, …].

        Those are transposed convolutions, [in, out/groups, …], where a number of the output sums
        in/groups · kernel/stride terms, and the `Conv1D` of GPT-2, [in, out].
        """
        own = copy.copy(self)
        own.fan_ins = {**_fan_ins(model), **self.fan_ins}
        own._known = (None, [])
        return own

    def energy(self, params: Params, chain_axes: int = 0) -> Tensor:
        """−log p(θ) up to its constant, in nats, fp32 (fp64 for fp64 parameters).

        Args:
            params: tensors by name, each with `chain_axes` leading chain axes.
            chain_axes: 0 (one chain) or 1 (K stacked chains).

        Returns:
            Scalar, or [K] with a chain axis.
        """
        precisions = self.precisions(params, chain_axes)
        if not torch.is_grad_enabled():
            square = torch.stack(norms(list(params.values()), chain_axes)).square()
            return 0.5 * (self._weights(precisions, square) @ square)
        if chain_axes == 0:
            return _GaussianEnergy.apply(precisions, *params.values())
        terms = [
            0.5 * c * p.square().reshape(*p.shape[:chain_axes], -1).sum(-1)
            for c, p in zip(precisions, params.values(), strict=True)
        ]
        return torch.stack(terms).sum(0)


def norms(tensors: list[Tensor], chain_axes: int) -> list[Tensor]:
    """The 2-norm of each tensor: a scalar, or [K] with a chain axis."""
    if chain_axes == 0:
        return list(torch._foreach_norm(tensors))
    return [torch.linalg.vector_norm(t.reshape(len(t), -1), dim=-1) for t in tensors]


def _fan_ins(model: nn.Module) -> dict[str, float]:
    """Fan-in by name of a model's weights whose first axis is not that of the outputs."""
    fan_ins: dict[str, float] = {}
    for path, module in model.named_modules():
        weight = f"{path}.weight".lstrip(".")
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            terms = math.prod(module.kernel_size) / math.prod(module.stride)
            fan_ins[weight] = max(1.0, module.in_channels / module.groups * terms)
        elif type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):
            fan_ins[weight] = float(module.weight.shape[0])
    return fan_ins


class _GaussianEnergy(torch.autograd.Function):
    """½ Σₜ λₜ‖θₜ‖² with gradient λₜθₜ, all tensors in one call each way: an op a tensor slows a small net by 15 %."""

    @staticmethod
    def forward(ctx: Any, precisions: list[float], *params: Tensor) -> Tensor:
        ctx.precisions = precisions
        ctx.save_for_backward(*params)
        norms = torch.stack(torch._foreach_norm(params))
        return 0.5 * (norms.square() * norms.new_tensor(precisions)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = torch._foreach_mul(ctx.saved_tensors, ctx.precisions)
        return None, *torch._foreach_mul(scaled, upstream)


class Potential:
    """Per-example potential Ũ(θ) = U(θ)/N of a minibatch: mean NLL + prior energy / N.

    The minibatch mean is an unbiased estimate of the data term, so the gradient of Ũ is unbiased for ∇U/N.

    Args:
        prior: the prior over all sampled tensors.
        num_data: N, the number of training examples the posterior conditions on (not the batch size).

    Raises:
        ConfigError: N is not a positive integer.

    Examples:
        >>> potential = Potential(Prior(variance=1.0), num_data=2)
        >>> potential(torch.tensor([0.5, 1.5]), {"w": torch.tensor([2.0])})   # 1.0 + ½·2²/2
        tensor(2.)
        >>> potential.kT(1.0)
        0.5
    """

    def __init__(self, prior: Prior, num_data: int) -> None:
        require(num_data >= 1, f"num_data={num_data} must be the number of training examples, at least 1")
        self.prior, self.num_data = prior, num_data

    def __call__(self, nll: Tensor, params: Params) -> Tensor:
        """Ũ estimated from a minibatch.

        Args:
            nll: negative log-likelihood of each example in nats, [B], or [K, B] for K stacked chains.
            params: the sampled tensors by name; with a leading axis K where `nll` has one.

        Returns:
            Scalar Ũ, or [K]; at least fp32 whatever the precision of the forward pass.
        """
        return self.data_term(nll) + self.prior.energy(params, chain_axes=nll.ndim - 1) / self.num_data

    def data_term(self, nll: Tensor) -> Tensor:
        """The likelihood's part of Ũ: mean of `nll` over the batch, at least fp32."""
        return nll.to(torch.promote_types(nll.dtype, torch.float32)).mean(-1)

    @torch.no_grad()
    def prior_term(self, params: Params, chain_axes: int = 0) -> Tensor:
        """The prior's part of Ũ, without a graph: scalar, or [K]."""
        return self.prior.energy(params, chain_axes) / self.num_data

    @torch.no_grad()
    def add_prior_gradient(self, params: Params, chain_axes: int = 0) -> None:
        """Add the prior term's gradient λθ/N to the parameters' `grad`, in place; parameters without one get it."""
        groups: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for p, precision in zip(params.values(), self.prior.precisions(params, chain_axes), strict=True):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            elif p.grad.is_sparse:
                p.grad = p.grad.to_dense()
            gradients, values = groups.setdefault(precision, ([], []))
            gradients.append(p.grad)
            values.append(p)
        for precision, (gradients, values) in groups.items():
            torch._foreach_add_(gradients, values, alpha=precision / self.num_data)

    def for_model(self, model: nn.Module) -> Potential:
        """The same potential, whose prior knows the layers of a model (`Prior.for_model`)."""
        own = copy.copy(self)
        own.prior = self.prior.for_model(model)
        return own

    def kT(self, temperature: float) -> float:
        """Thermal energy per example, T/N: the only thing a sampler knows of N and T.

        Raises:
            ConfigError: the temperature is negative or not finite.
        """
        require(
            math.isfinite(temperature) and temperature >= 0,
            f"temperature={temperature} must be finite and at least 0 (1 is the Bayes posterior, 0 is MAP)",
        )
        return temperature / self.num_data

    def total(self, mean_nll: Tensor | float, params: Params) -> Tensor:
        """U(θ) in nats: N × (mean NLL over the data) + prior energy (detached scalar)."""
        with torch.no_grad():
            return self.num_data * torch.as_tensor(mean_nll) + self.prior.energy(params)


def categorical_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p(y|x, θ) of a classifier in nats, at least in fp32.

    Args:
        logits: [..., C], any float precision.
        targets: class numbers [...], the logits' leading axes.

    Returns:
        [...].
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(targets.shape)
