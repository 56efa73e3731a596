"""K chains of one model as one module: one forward and backward pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from bayeslora.datasets.batches import Batches


class Stack(nn.Module):
    """K models of one architecture with their sampled tensors and buffers along a leading axis; the rest is shared.

    What is sampled are the parameters that require a gradient. Frozen parameters, and buffers that are not saved with
    a model, are those of the first model and must be equal in all.

    Args:
        models: K models; the first lends its structure and its frozen parameters.

    Note:
        Chain k's outputs and gradients depend on row k alone: they equal those of `models[k]` run by itself, up to
        the order in which a batched matrix product adds.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(models)
        self.shared = (models[0],)  # in a tuple, so that its parameters are not this module's
        sampled = [{n: p.detach() for n, p in model.named_parameters() if p.requires_grad} for model in models]
        saved = set(models[0].state_dict())
        buffers = [{n: b for n, b in model.named_buffers() if n in saved} for model in models]
        self.rows = nn.ParameterDict({_key(n): torch.stack([s[n] for s in sampled]) for n in sampled[0]})
        self.names = list(sampled[0])
        self.buffer_names = list(buffers[0])
        for name in self.buffer_names:
            self.register_buffer(_key(name), torch.stack([b[name] for b in buffers]))

    @property
    def model(self) -> nn.Module:
        """The model whose structure all chains have; its own sampled parameters are not used."""
        return self.shared[0]

    def sampled(self) -> dict[str, Tensor]:
        """The sampled parameters by their names in the model, each [K, …]."""
        return {name: self.rows[_key(name)] for name in self.names}

    def held(self) -> dict[str, Tensor]:
        """What a draw holds of all chains: sampled parameters and saved buffers, each [K, …]."""
        return self.sampled() | {name: getattr(self, _key(name)) for name in self.buffer_names}

    def row(self, chain: int) -> dict[str, Tensor]:
        """What a draw holds of one chain, by its place in the stack."""
        return {name: tensor[chain] for name, tensor in self.held().items()}

    def _apply(self, fn: Any, recurse: bool = True) -> Stack:
        """Moves the shared model along with the rows."""
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, inputs: Any, shared_inputs: bool = False) -> Tensor:
        """Inputs [K, B, …], each chain's own (or [B, …] for all, if `shared_inputs`) -> logits [K, B, C]."""

        def one(held: dict[str, Tensor], x: Any) -> Tensor:
            return functional_call(self.model, held, (x,))

        outputs: Tensor = vmap(one, in_dims=(0, None if shared_inputs else 0))(self.held(), inputs)
        return outputs


class StackedBatches:
    """The batches of K chains at a step, side by side: `batches(step)` gives inputs [K, B, …] and targets [K, B].

    Args:
        chains: the batches of each chain.
    """

    def __init__(self, chains: Sequence[Batches]) -> None:
        self.chains = list(chains)

    def __call__(self, step: int) -> tuple[Any, Tensor]:
        """Chain k's row is what `chains[k](step)` gives."""
        drawn = [batches(step) for batches in self.chains]
        inputs = tree_map(lambda *rows: torch.stack(rows), *(inputs for inputs, _ in drawn))
        return inputs, torch.stack([targets for _, targets in drawn])


def _key(name: str) -> str:
    """A tensor's name without dots, which modules do not take."""
    return name.replace(".", "/")
