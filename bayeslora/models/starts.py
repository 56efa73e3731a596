"""Where chains begin: all with the same trained weights, or each with its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bayeslora.errors import Problems
from bayeslora.runs.identity import first_few, unmoved_tensors


class Weights(Protocol):
    """Values of a model's tensors."""

    @property
    def title(self) -> str:
        """What messages call them."""
        ...

    def fitting(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The tensors by their names in a model, which may be one without memory.

        Raises:
            ConfigError: they are not those of such a model.
        """
        ...


@dataclass(frozen=True)
class OfModule:
    """The weights that a module has when a chain begins; whoever made the model has compared the two.

    Attributes:
        module: whose.
        title: what messages call it.
    """

    module: nn.Module
    title: str

    def fitting(self, model: nn.Module) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The module's tensors."""
        return self.module.state_dict()


@dataclass(frozen=True)
class Starts:
    """Weights with which chains begin.

    Attributes:
        weights: those of all chains, or one a chain; none: chains begin with what their models are made with.
    """

    weights: tuple[Weights, ...] = ()

    @property
    def apart(self) -> bool:
        """Whether each chain has its own."""
        return len(self.weights) > 1

    def check(self, model: nn.Module, chains: int) -> None:
        """Check that so many chains of a model, which may be one without memory, can begin there.

        Raises:
            ConfigError: other weights than a chain needs, or than there are chains; or what is not sampled is not the
                same in all.
        """
        problems, unmoved = Problems(), unmoved_tensors(model)
        if self.apart and len(self.weights) != chains:
            problems.add(
                f"{self.weights[0].title} and so on are weights for {len(self.weights)} chains, and"
                f" chain.num_chains={chains}; give those of as many, or of one for all"
            )
        first: Mapping[str, Tensor] | None = None
        for one in self.weights:
            with problems.collect():
                held = {name: tensor for name, tensor in one.fitting(model).items() if name in unmoved}
                first = held if first is None else first
                if others := [name for name in unmoved if not _same(first.get(name), held.get(name))]:
                    problems.add(
                        f"{one.title}: {first_few(others)}, which is not sampled, is not what it is in"
                        f" {self.weights[0].title}, so that chains would sample posteriors of two models"
                    )
        problems.raise_if_any()

    @torch.no_grad()
    def load_into(self, model: nn.Module, chain: int = 0) -> nn.Module:
        """The model, with a chain's weights in its own precision; raises as `Weights.fitting`."""
        if self.weights:
            own = model.state_dict()
            for name, tensor in self.weights[chain if self.apart else 0].fitting(model).items():
                own[name].copy_(tensor)
        return model


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two hold the same of a tensor, which may be nothing."""
    if one is None or other is None:
        return one is other
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(one.cpu(), other.cpu())
