"""What draws say of examples: several draws of an adapter go through its base as one batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bayeslora.chain.stack import StackedLinear, is_adapter
from bayeslora.posterior.store import Draw

log = logging.getLogger(__name__)

DRAWS, WEIGHTS = 8, 64_000_000
"""Most draws at a time, and most numbers in their merged weights."""
EXAMPLES = {"cpu": 64, "cuda": 512}
"""Most examples × draws a forward pass, by device: more would not stay in a processor's cache."""
COMPARED = 4
"""Examples of which the first group's answers are compared with those of single draws."""
Loader = Callable[[], Iterable[tuple[Any, Tensor]]]
"""Starts a pass over (inputs, targets) batches."""
Read = Callable[[Tensor, Tensor], Tensor]
"""Outputs [K, B, …] of K draws for a batch, and its targets -> what is kept of them, [K, M, …]."""
Ask = Callable[[Loader, Read], Tensor]
"""Passes over examples, and what is kept of a batch -> that of each of K draws, [K, N, …], on the CPU."""


def raw_outputs(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """The outputs themselves."""
    return outputs


@torch.inference_mode()
def outputs(model: nn.Module, batches: Iterable[tuple[Any, Tensor]], read: Read = raw_outputs) -> Tensor:
    """Outputs of a model in evaluation mode for every example, or what is read of them, [N, …], on the CPU."""
    model.eval()
    return torch.cat([read(model(inputs)[None], targets)[0].cpu() for inputs, targets in batches])


class StackedDraws:
    """Asks draws for their outputs; where the model is an adapter (`is_adapter`), several of them at a time.

    Every layer in which draws differ holds one weight a draw while they are asked: of a layer of PEFT W + (α/r) B A, so
    that a draw costs what the base costs. Memory is bounded by `DRAWS`, `EXAMPLES` and `WEIGHTS`. The first group is
    compared with its draws one by one; where they differ, and for other models, draws are asked one at a time.

    Args:
        model: into which draws are loaded.
        load: loads a draw into it.
    """

    def __init__(self, model: nn.Module, load: Callable[[Draw], nn.Module]) -> None:
        self.model, self.load = model, load
        self.layers = _layers(model) if is_adapter(model) else {}
        numbers = sum(weight.numel() for weight, _ in map(_merged, self.layers.values()))
        self.size = max(1, min(DRAWS, WEIGHTS // numbers)) if numbers else 1
        self._agrees: bool | None = None

    def groups(self, draws: Iterable[Draw]) -> Iterator[tuple[list[Draw], Ask]]:
        """The draws in their order, in groups, each with what asks its draws until the next group is taken."""
        rest = iter(draws)
        while group := list(islice(rest, self.size)):
            merged = self._merge(group) if self.layers and self._agrees is not False else {}
            yield group, partial(self._ask, group, merged)

    def _ask(self, draws: list[Draw], merged: _Weights, loader: Loader, read: Read = raw_outputs) -> Tensor:
        if merged and self._agrees is None:
            self._agrees = self._compare(draws, merged, next(iter(loader()))[0])
        if not merged or not self._agrees:
            return torch.stack([outputs(self.load(draw), loader(), read) for draw in draws])
        return self._together(merged, len(draws), loader(), read)

    @torch.inference_mode()
    def _merge(self, draws: Sequence[Draw]) -> _Weights:
        """Weight [K, out, in] and bias [K, out] of every layer in which the draws differ."""
        rows: dict[str, list[tuple[Tensor, Tensor | None]]] = {path: [] for path in self.layers}
        for draw in draws:
            self.load(draw)
            for path, layer in self.layers.items():
                weight, bias = _merged(layer)
                rows[path].append((weight.clone(), None if bias is None else bias.clone()))
        return {
            path: (torch.stack([w for w, _ in row]), None if row[0][1] is None else torch.stack([b for _, b in row]))  # type: ignore[misc]
            for path, row in rows.items()
        }

    @torch.inference_mode()
    def _together(
        self, merged: _Weights, count: int, batches: Iterable[tuple[Any, Tensor]], read: Read = raw_outputs
    ) -> Tensor:
        """What is read of the outputs of K draws at once, [K, N, …]."""
        self.model.eval()
        rows = []
        for inputs, targets in batches:
            examples = tree_leaves(inputs)[0]
            at_once = max(1, EXAMPLES.get(examples.device.type, 64) // max(1, len(examples)))
            parts = [slice(at, min(at + at_once, count)) for at in range(0, count, at_once)]
            rows.append(torch.cat([read(self._forward(merged, part, inputs), targets) for part in parts]).cpu())
        return torch.cat(rows, dim=1)

    def _forward(self, merged: _Weights, part: slice, inputs: Any) -> Tensor:
        """Outputs [K, B, …] of some of the draws."""
        count = part.stop - part.start
        with _replaced(self.model, merged, part):
            outputs: Tensor = self.model(tree_map(lambda t: t.repeat(count, *[1] * (t.ndim - 1)), inputs))
        return outputs.unflatten(0, (count, -1))

    def _compare(self, draws: Sequence[Draw], merged: _Weights, inputs: Any) -> bool:
        """Whether a few examples get the same outputs from all draws at once as from each by itself."""
        device = next(self.model.parameters()).device.type
        few = [(tree_map(lambda t: t[:COMPARED], inputs), torch.empty(0))]
        with torch.autocast(device, enabled=False):
            alone = torch.stack([outputs(self.load(draw), few) for draw in draws])
            try:
                together = self._together(merged, len(draws), few)
            except (RuntimeError, TypeError, AttributeError, ValueError, IndexError, KeyError) as error:
                log.warning("draws are asked one at a time: together, %s", error)
                return False
        same = together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-4, atol=1e-4, equal_nan=True)
        if not same:
            log.warning(
                "draws are asked one at a time: together, %s gives them other outputs", type(self.model).__name__
            )
        return same


_Weights = Mapping[str, tuple[Tensor, Tensor | None]]
"""Weights and biases of all draws by the layer's path."""


@contextmanager
def _replaced(model: nn.Module, merged: _Weights, part: slice) -> Iterator[None]:
    """Stacked layers of some draws in the places of the model's own, inside the block."""
    before = []
    for path, (weight, bias) in merged.items():
        parent, _, name = path.rpartition(".")
        modules = model.get_submodule(parent)._modules
        before.append((modules, name, modules[name]))
        modules[name] = StackedLinear(weight[part], None if bias is None else bias[part])
    try:
        yield
    finally:
        for modules, name, own in before:
            modules[name] = own


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers in which draws of an adapter differ, by path: linear ones, and those of PEFT as a whole."""
    layers = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            parts = name.split(".")[:-1]
            paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            path = next((path for path in paths if _is_lora(model.get_submodule(path))), paths[-1])
            layers[path] = model.get_submodule(path)
    return layers


def _is_lora(module: Any) -> bool:
    """Whether it is a layer of PEFT that can add its low-rank update to its base's weight."""
    return hasattr(module, "get_delta_weight") and getattr(module.get_base_layer(), "weight", torch.empty(0)).ndim == 2


def _merged(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias [out] of a layer, its low-rank updates included."""
    if not _is_lora(layer):
        return layer.weight, layer.bias
    base = layer.get_base_layer()
    weight = base.weight + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
    return weight if isinstance(base, nn.Linear) else weight.T, base.bias  # transformers' Conv1D holds it transposed
