"""Rows of embeddings that stand for padding: torch gives them no gradient, so they are held where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.potential import Prior

Place = tuple[int, int]
"""An axis, counted from the end, and a place on it."""


class PaddingRows(nn.Module):
    """The rows at `padding_idx` of sampled embeddings, with the values that they have when the model is handed over.

    Through an embedding, torch drops the likelihood's gradient of such a row: sampled, it would follow its prior alone
    and change the outputs of every padded example from draw to draw. It is therefore no parameter: it keeps its value,
    has no prior energy, and every gradient of it is 0, also where the same tensor is a further layer's weight.

    Args:
        network: the model of one chain, or that of a stack, which tells the places.
        params: the sampled parameters by name, with a leading axis K in a stack.
    """

    def __init__(self, network: nn.Module, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        by_tensor: dict[int, set[Place]] = {}
        for tensor, place in _padding_of(network):
            by_tensor.setdefault(id(tensor), set()).add(place)
        names = {id(p): name for name, p in network.named_parameters() if name in params}
        self.places = {names[key]: sorted(places) for key, places in by_tensor.items() if key in names}
        for name, (axis, index) in self._each():
            values = params[name].detach().select(axis, index).clone()
            self.register_buffer(_key(name, axis, index), values, persistent=False)

    @torch.no_grad()
    def restore(self, params: Mapping[str, Tensor]) -> None:
        """Put the rows back where they were."""
        for name, (axis, index) in self._each():
            params[name].select(axis, index).copy_(self.get_buffer(_key(name, axis, index)))

    def drop_gradient(self, params: Mapping[str, Tensor]) -> None:
        """Set the rows' gradient to 0, which under `vmap` torch does for the first chain alone."""
        if self.places:
            self.drop({name: p.grad for name, p in params.items() if p.grad is not None})

    def drop(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the rows to 0 in tensors of the parameters' shapes, by name; what is missing is passed over."""
        for name, (axis, index) in self._each():
            if name in tensors:
                tensors[name].select(axis, index).zero_()

    def sizes(self, params: Mapping[str, Tensor], chain_axes: int) -> dict[str, int]:
        """Coordinates of each parameter of one chain that are sampled: all but those of these rows."""
        sizes = {name: math.prod(p.shape[chain_axes:]) for name, p in params.items()}
        for name, places in self.places.items():
            sampled = torch.ones(params[name].shape[chain_axes:], dtype=torch.bool)
            for axis, index in places:
                sampled.select(axis, index).zero_()
            sizes[name] = int(sampled.sum())
        return sizes

    def sampled(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the parameters' shapes by name: 0 in these rows, else 1."""
        sampled = {name: torch.ones_like(p, requires_grad=False) for name, p in params.items()}
        for name, (axis, index) in self._each():
            sampled[name].select(axis, index).zero_()
        return sampled

    def prior_energy(self, prior: Prior, params: Mapping[str, Tensor], chain_axes: int) -> Tensor | float:
        """What a prior over the whole tensors says of these rows, in nats: scalar, or [K]; 0 where there are none."""
        total: Tensor | float = 0.0
        for name, (axis, index) in self._each():
            row = self.get_buffer(_key(name, axis, index))
            square = row.square().reshape(*row.shape[:chain_axes], -1).sum(-1)
            total = total + 0.5 * prior.precision(name, params[name].shape[chain_axes:]) * square
        return total

    def _each(self) -> Iterator[tuple[str, Place]]:
        return ((name, place) for name, places in self.places.items() for place in places)


def _padding_of(network: nn.Module) -> Iterator[tuple[Tensor, Place]]:
    """Tensors of embeddings that have a `padding_idx`, and its place: [num_embeddings, d], or PEFT's [r, num]."""
    for module in network.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            if module.padding_idx is not None:
                yield module.weight, (-2, module.padding_idx)
        elif getattr(module, "lora_embedding_A", None):  # of PEFT, around an embedding
            base: Any = module.get_base_layer()  # type: ignore[operator]
            if getattr(base, "padding_idx", None) is not None:
                yield from ((tensor, (-1, base.padding_idx)) for tensor in module.lora_embedding_A.values())  # type: ignore[operator]


def _key(name: str, axis: int, index: int) -> str:
    return f"{name.replace('.', '/')}:{axis}:{index}"
