"""K chains of one model as one module: one forward and backward pass for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from bayeslora.datasets.batches import Batches


class Stack(nn.Module):
    """K models of one architecture with their sampled tensors and buffers along a leading axis; the rest is shared.

    What is sampled are the parameters that require a gradient. Frozen parameters, and buffers that are not saved with
    a model, are those of the first model and must be equal in all.

    Adapters are sampled matrices in a frozen model: all chains' examples then go through it as one large batch, and
    only those matrices tell chains apart (`StackedLinear`). Other models run under `torch.func.vmap`.

    Args:
        models: K models, taken one at a time; the first lends its structure and its frozen parameters.

    Note:
        Chain k's outputs and gradients depend on row k alone: they equal those of model k run by itself, up to the
        order in which a batched matrix product adds.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        models = iter(models)
        first = next(models)
        self.shared = (first,)  # in a tuple, so that its parameters are not this module's
        rows = [_sampled(first), *map(_sampled, models)]
        self.size = len(rows)
        self.names = [name for name, p in first.named_parameters() if p.requires_grad]
        self.buffer_names = [name for name in rows[0] if name not in self.names]
        self.rows = nn.ParameterDict({_key(name): torch.stack([row[name] for row in rows]) for name in self.names})
        for name in self.buffer_names:
            self.register_buffer(_key(name), torch.stack([row[name] for row in rows]))
        self.flat = is_adapter(first)
        if self.flat:
            for path in {name.rpartition(".")[0] for name in self.names}:
                self._stack_linear(path)

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

    def forward(self, inputs: Any, shared_inputs: bool = False) -> Tensor:
        """Inputs [K, B, …], each chain's own (or [B, …] for all, if `shared_inputs`) -> logits [K, B, C]."""
        if self.flat:
            joined = tree_map(self._repeat if shared_inputs else _join, inputs)
            logits: Tensor = self.model(joined)
            return logits.unflatten(0, (self.size, -1))

        def one(held: dict[str, Tensor], x: Any) -> Tensor:
            return functional_call(self.model, held, (x,))

        outputs: Tensor = vmap(one, in_dims=(0, None if shared_inputs else 0))(self.held(), inputs)
        return outputs

    def _repeat(self, inputs: Tensor) -> Tensor:
        """[B, …] -> [K B, …], once for every chain."""
        return inputs.repeat(self.size, *[1] * (inputs.ndim - 1))

    def _stack_linear(self, path: str) -> None:
        """Put a `StackedLinear` in the place of a linear layer of the model; what is not sampled of it is shared."""
        parent, _, name = path.rpartition(".")
        layer = self.model.get_submodule(path)
        weight, bias = (self._of_all(f"{path}.{tensor}", getattr(layer, tensor)) for tensor in ("weight", "bias"))
        assert weight is not None
        self.model.get_submodule(parent)._modules[name] = StackedLinear(weight, bias)

    def _of_all(self, name: str, own: Tensor | None) -> Tensor | None:
        """A layer's tensor for every chain: its rows where it is sampled, else the model's own, repeated."""
        if own is None or name in self.names:
            return None if own is None else self.rows[_key(name)]
        return nn.Parameter(own.expand(self.size, *own.shape), requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Stack:
        """Moves the shared model along with the rows."""
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)


class StackedLinear(nn.Module):
    """K linear maps, each on its part of the batch: [K B, …, in] -> [K B, …, out].

    Args:
        weight: [K, out, in].
        bias: [K, out], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(self.weight), -1, x.shape[-1])
        y = torch.bmm(rows, self.weight.mT)
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(*x.shape[:-1], -1)


def is_adapter(model: nn.Module) -> bool:
    """Whether all that is sampled are weights and biases of linear maps in a model that is otherwise frozen.

    Batch norm in the model would mix the chains' examples.
    """
    modules = dict(model.named_modules())
    sampled = {name for name, p in model.named_parameters() if p.requires_grad}
    linear = all(type(modules[name.rpartition(".")[0]]) is nn.Linear for name in sampled)
    frozen = len(sampled) < sum(1 for _ in model.parameters())
    return linear and frozen and not any(isinstance(module, _BatchNorm) for module in modules.values())


def _sampled(model: nn.Module) -> dict[str, Tensor]:
    """What a draw of a model holds."""
    saved = set(model.state_dict())
    sampled = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return sampled | {name: b for name, b in model.named_buffers() if name in saved}


def _join(inputs: Tensor) -> Tensor:
    """[K, B, …] -> [K B, …]."""
    return inputs.flatten(0, 1)


class StackedBatches:
    """The batches of K chains at a step, side by side: `batches(step)` gives inputs [K, B, …] and targets [K, B].

    Args:
        chains: the batches of each chain.
    """

    def __init__(self, chains: Sequence[Batches]) -> None:
        self.chains = list(chains)

    def __call__(self, step: int) -> tuple[Any, Tensor]:
        """Chain k's row is what `chains[k](step)` gives; texts are padded to the longest of all chains."""
        stored, targets = zip(*(batches.stored(step) for batches in self.chains), strict=True)
        inputs = self.chains[0].prepare(torch.cat(stored))
        return tree_map(lambda t: t.unflatten(0, (len(stored), -1)), inputs), torch.stack(targets)


def _key(name: str) -> str:
    """A tensor's name without dots, which modules do not take."""
    return name.replace(".", "/")
