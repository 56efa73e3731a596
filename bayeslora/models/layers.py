"""What the residual nets are built from: convolutions, norms and activations, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.errors import ConfigError

Norm = Callable[[int], nn.Module]
"""Number of channels -> a norm of [B, C, H, W] that keeps the shape."""

Activation = Callable[[Tensor], Tensor]


class FilterResponseNorm(nn.Module):
    """Filter response normalisation with its thresholded linear unit: max(γ x / √(ν² + ε) + β, τ), ν² = mean_hw x².

    No example depends on another, so the likelihood factorises over examples, as batch norm's does not.
    γ, β and τ are [C]; they start at 1, 0 and 0. All is computed in fp32 at least, also under autocast; the output
    has the input's dtype. The maximum is taken as τ + relu(y - τ), three times as fast on a CPU as `torch.maximum`,
    whose gradient shares ties.

    Args:
        channels: C.
        eps: ε.

    Source: Singh & Krishnan 2020, arXiv:1911.09737, eqs. 1-4.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        gamma, beta, tau = (parameter.view(-1, 1, 1) for parameter in (self.gamma, self.beta, self.tau))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = gamma * torch.rsqrt(wide.square().mean((-2, -1), keepdim=True) + self.eps)
        return (tau + F.relu(wide * scale + (beta - tau))).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.gamma)}, eps={self.eps}"


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group norm in 8 groups, or in as many as the largest divisor of `channels` below 8 that leaves two channels each.

    Without its parameters a group of one channel could say nothing of where its mean lies.
    """
    least = 1 if affine else 2
    divisors = [groups for groups in range(1, 9) if channels % groups == 0 and channels // groups >= least]
    return nn.GroupNorm(max(divisors, default=1), channels, affine=affine)


NORMS: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm, "frn": FilterResponseNorm}
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "swish": F.silu}


@dataclass(frozen=True)
class Layers:
    """The layers of one net: its norm, its activation, and whether its convolutions have biases."""

    norm: Norm
    activation: Activation
    bias: bool

    @classmethod
    def named(cls, norm: str, activation: str, bias: bool, affine: bool = True) -> Layers:
        """Look the norm and the activation up by name; without `affine`, norms have no parameters.

        Raises:
            ConfigError: a name is unknown; every unknown one is listed, with the choices. Or an FRN without `affine`.
        """
        settings = (("norm", norm, list(NORMS)), ("activation", activation, list(ACTIVATIONS)))
        problems = [
            f"model.{setting}={name!r} is unknown; choose one of {', '.join(choices)}"
            for setting, name, choices in settings
            if name not in choices
        ]
        if norm == "frn" and not affine:
            problems.append(
                "model.affine=false: FRN is nothing without its parameters; choose model.norm=group or batch"
            )
        if problems:
            raise ConfigError(*problems)
        return cls(NORMS[norm] if affine else partial(NORMS[norm], affine=False), ACTIVATIONS[activation], bias)

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
        """A convolution padded to keep height and width (divided by the stride, rounded up)."""
        return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=self.bias)

    def shortcut(self, inputs: int, outputs: int, stride: int, norm: bool) -> nn.Module:
        """The identity where it fits, else a projection by a 1x1 convolution, with its own norm if `norm`."""
        if inputs == outputs and stride == 1:
            return nn.Identity()
        projection = self.conv(inputs, outputs, kernel=1, stride=stride)
        return nn.Sequential(projection, self.norm(outputs)) if norm else projection


def global_average(x: Tensor) -> Tensor:
    """Mean over height and width: [B, C, H, W] -> [B, C]."""
    return x.mean((-2, -1))


def initialise(net: nn.Module) -> None:
    """He-normal weights of convolutions and linear maps (fan in), zero biases; norms keep their own start.

    Source: He et al. 2015, arXiv:1502.01852, eq. 10.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
