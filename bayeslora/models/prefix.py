"""Activations of the layers below the lowest adapter: computed once, since nothing in them is sampled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.datasets.base import Data, Split, Transform
from bayeslora.datasets.cache import cached
from bayeslora.datasets.text import ATTENTION_MASK, FIELDS
from bayeslora.models.fingerprint import base_fingerprint, frozen_tensors

log = logging.getLogger(__name__)


class Prefix:
    """The frozen layers at the bottom of a transformer, which can be replaced by their remembered output.

    Args:
        model: a transformer; its layers are the longest `ModuleList` in it.

    Attributes:
        depth: number of layers below the lowest one that holds a parameter which requires a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList())
        adapted = (place for place, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
        self.depth = next(adapted, 0)
        self.given: Tensor | None = None
        self.taken: Tensor | None = None
        self.recording = False
        for place in range(self.depth):
            layers[place] = _Skippable(layers[place], self)

    @contextmanager
    def replaced_by(self, hidden: Tensor) -> Iterator[None]:
        """Inside the block the layers give `hidden` [B, L, H] without being run."""
        self.given = hidden
        try:
            yield
        finally:
            self.given = None


class _Skippable(nn.Module):
    """A layer that is not run where its output is known."""

    def __init__(self, layer: nn.Module, prefix: Prefix) -> None:
        super().__init__()
        self.layer = layer
        self.prefix = (prefix,)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        (prefix,) = self.prefix
        if prefix.given is not None:
            return prefix.given
        output = self.layer(hidden, *args, **kwargs)
        if prefix.recording:
            prefix.taken = output
        return output


@dataclass(frozen=True)
class FromPrefix:
    """Stored tokens with pointers int32 [B, S, F + 1, L] -> `{"tokens": [B, S, F, L'], "hidden": [B, S, L', H]}`.

    Attributes:
        states: activations of all tokens, end to end, [1 + T, H]; the first is padding's, zero.
        trim: what the dataset does with stored tokens.
    """

    states: Tensor
    trim: Transform

    def __call__(self, stored: Tensor) -> Any:
        trimmed = self.trim(stored)
        pointers = trimmed[:, :, len(FIELDS)].to(self.states.device)
        return {"tokens": trimmed[:, :, : len(FIELDS)], "hidden": self.states[pointers]}


@torch.no_grad()
def with_prefix(data: Data, model: Any, device: torch.device | str, batch_size: int = 64) -> Data:
    """The same data with the activations of a model's frozen layers, if there are any; from the cache if it has them.

    Args:
        data: tokens, stored as int32 [N, S, F, L].
        model: a `LoraClassifier` on `device`; it is put in evaluation mode.
        device: where activations are computed and kept.
        batch_size: examples a pass.
    """
    prefix: Prefix | None = getattr(model, "prefix", None)
    if prefix is None or prefix.depth == 0:
        return data
    splits = data.train, data.validation, data.test
    real = [split.inputs[:, :, ATTENTION_MASK].bool() for split in splits]
    total = sum(int(mask.sum()) for mask in real)
    numbers = torch.arange(1, 1 + total, dtype=torch.int32).split([int(mask.sum()) for mask in real])
    pointed = [
        Split(torch.cat([split.inputs, _placed(mask, own)[:, :, None]], dim=2), split.targets)
        for split, mask, own in zip(splits, real, numbers, strict=True)
    ]

    def compute() -> dict[str, Tensor]:
        log.info("computing the lowest %d layers once for %s tokens", prefix.depth, f"{total:,}")
        batches = (split.inputs[i : i + batch_size] for split in splits for i in range(0, len(split), batch_size))
        found = [_activations(model, prefix, data.transform(batch).to(device)).cpu() for batch in batches]
        return {"states": torch.cat([torch.zeros_like(found[0][:1]), *found])}

    states = cached(f"prefix-{_key(model, splits, device)}", [], compute)["states"].to(device)
    train, validation, test = pointed
    return replace(data, train=train, validation=validation, test=test, transform=FromPrefix(states, data.transform))


def _placed(mask: Tensor, values: Tensor) -> Tensor:
    """A tensor of the mask's shape with values [T] where it holds, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)


def _key(model: Any, splits: Iterable[Split], device: torch.device | str) -> str:
    """Changes with the frozen weights, the depth of the prefix, the tokens and the kind of device."""
    digest = hashlib.sha256(f"{base_fingerprint(frozen_tensors(model.peft))}/{model.prefix.depth}/{device}".encode())
    for split in splits:
        digest.update(split.inputs.contiguous().numpy().data)
    return digest.hexdigest()[:32]


def _activations(model: Any, prefix: Prefix, tokens: Tensor) -> Tensor:
    """Tokens [B, S, F, L] -> activations of those that are no padding, in their order [T, H]."""
    prefix.recording = True
    try:
        model.eval()(tokens)
    finally:
        prefix.recording = False
    assert prefix.taken is not None
    hidden, prefix.taken = prefix.taken.unflatten(0, tokens.shape[:2]), None
    return hidden[tokens[:, :, ATTENTION_MASK].bool()]
