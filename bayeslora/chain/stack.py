"""K chains of one model as one module: one forward and backward pass for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from bayeslora.chain.batches import Batches
from bayeslora.chain.modes import normalise_by_batch

LIBRARIES = {"torch", "bayeslora", "transformers", "peft"}
"""Packages whose modules treat every example of a batch by itself, but for BatchNorm."""


class Stack(nn.Module):
    """K models of one architecture with their sampled tensors and buffers along a leading axis; the rest is shared.

    What is sampled are the parameters that require a gradient. Frozen parameters, and buffers that are not saved with
    a model, are those of the first model and must be equal in all.

    Where all that is sampled are linear layers of known code (PEFT's adapters, a multilayer perceptron) all chains'
    examples go through the model as one large batch, and only those layers tell chains apart (`StackedLinear`). Other
    models run under `torch.func.vmap`.

    Args:
        models: K models, taken one at a time; the first lends its structure and its frozen parameters.
        flat: whether all chains' examples go through the model as one batch; None: where it `keeps_examples_apart`.

    Note:
        Chain k's outputs and gradients depend on row k alone: they equal those of model k run by itself, up to the
        order in which a batched matrix product adds. A structure cannot tell whether this holds: a layer may move the
        batch to another axis, or use a weight in another way than by calling its module. `engine/trial.py` compares.
    """

    def __init__(self, models: Iterable[nn.Module], flat: bool | None = None) -> None:
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
        self.places = _places(first)
        self.flat = keeps_examples_apart(first) if flat is None else flat
        if self.flat:
            for path in {name.rpartition(".")[0] for name in self.names}:
                self._stack_linear(path)
        for module in first.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False  # the same gradient, dense: vmap has no sparse one

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
        with unfused_attention():
            if self.flat:
                joined = tree_map(self._repeat if shared_inputs else _join, inputs)
                logits: Tensor = self.model(joined)
                return logits.unflatten(0, (self.size, -1))

            def one(held: dict[str, Tensor], x: Any) -> Tensor:
                tensors = {place: held[name] for place, name in self.places.items() if name in held}
                return functional_call(self.model, tensors, (x,), tie_weights=False)

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


def keeps_examples_apart(model: nn.Module) -> bool:
    """Whether what a model samples are linear layers (`samples_linear`) between modules of `LIBRARIES` alone.

    Code of one's own may treat a batch as a whole at values that no trial meets (`if logits.max().item() > 100`).
    """
    known = all(type(module).__module__.partition(".")[0] in LIBRARIES for module in model.modules())
    return known and samples_linear(model)


def is_adapter(model: nn.Module) -> bool:
    """Whether a model that `keeps_examples_apart` is frozen in part."""
    return any(not p.requires_grad for p in model.parameters()) and keeps_examples_apart(model)


def samples_linear(model: nn.Module) -> bool:
    """Whether all that is sampled are weights and biases of linear layers that a `StackedLinear` can take the place of.

    Each is a layer inside a model, under one name, without hooks, with no other parameters. BatchNorm that normalises
    by the batch would mix the chains' examples.
    """
    modules = dict(model.named_modules())
    sampled = [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    once = len(sampled) == sum(1 for p in model.parameters() if p.requires_grad)
    layers = {name.rpartition(".")[0] for name in sampled}
    replaceable = all(path and _is_plain_linear(modules.get(path)) for path in layers)
    return once and bool(sampled) and replaceable and not normalise_by_batch(model)


def _is_plain_linear(module: nn.Module | None) -> bool:
    """Whether a module is an `nn.Linear`, and calling it applies its weight and bias and does nothing else."""
    if type(module) is not nn.Linear:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Without torch's fused path of attention layers in evaluation mode, which reads their weights past `vmap`."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _places(model: nn.Module) -> dict[str, str]:
    """Every place of a parameter or buffer in a model, and the first name of the tensor there, which others may share.

    A module under two names is one place: `functional_call` would not put back what it replaces twice.
    """
    first: dict[int, str] = {}
    first_names = {}
    for path, module in model.named_modules():
        for tensors in (module.named_parameters, module.named_buffers):
            for place, tensor in tensors(path, recurse=False, remove_duplicate=False):
                first_names[place] = first.setdefault(id(tensor), place)
    return first_names


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
        first, size = self.chains[0], len(self.chains)
        shared = all(batches.train.inputs is first.train.inputs for batches in self.chains)
        if shared and first.augment is None:  # one gather for all
            batch = first.train.take(torch.cat([batches.indices(step) for batches in self.chains]))
            stored, targets = batch.inputs, batch.targets.unflatten(0, (size, -1))
        else:
            each, own = zip(*(batches.stored(step) for batches in self.chains), strict=True)
            stored, targets = tree_map(lambda *rows: torch.cat(rows), *each), torch.stack(own)
        return tree_map(lambda t: t.unflatten(0, (size, -1)), first.prepare(stored)), targets


def _key(name: str) -> str:
    """A tensor's name without dots, which modules do not take."""
    return name.replace(".", "/")
