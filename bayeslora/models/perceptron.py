"""A multilayer perceptron for tables, and for images taken as rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from bayeslora.errors import Problems

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "swish": nn.SiLU, "tanh": nn.Tanh}


class Mlp(nn.Module):
    """Linear layers with an activation between them; inputs [B, …] are flattened.

    Args:
        in_features: numbers an example.
        num_outputs: logits or means.
        hidden: widths of the hidden layers; none: a linear model.
        activation: relu, swish or tanh.
    """

    def __init__(self, in_features: int, num_outputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] -> [B, num_outputs]."""
        outputs: Tensor = self.head(self.body(x.flatten(1)))
        return outputs


def mlp(num_outputs: int, in_features: int, hidden: Sequence[int] = (64, 64), activation: str = "swish") -> Mlp:
    """An MLP; the application fills in its numbers of inputs and outputs.

    Args:
        num_outputs: logits or means.
        in_features: numbers an example.
        hidden: widths of the hidden layers; none: a linear model.
        activation: relu, swish or tanh.

    Raises:
        ConfigError: an unknown activation, or a width below 1.
    """
    problems = Problems()
    if activation not in ACTIVATIONS:
        problems.add(f"model.activation={activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    if not all(isinstance(width, int) and width >= 1 for width in hidden):
        problems.add(f"model.hidden={list(hidden)} must be widths of at least 1, e.g. [64,64]")
    problems.raise_if_any()
    return Mlp(in_features, num_outputs, hidden, activation)
