"""Activations of the layers below the lowest adapter: computed once, since nothing in them is sampled."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.atomic import digest
from bayeslora.cache import cached
from bayeslora.datasets.base import Data, Split, Transform
from bayeslora.datasets.text import ATTENTION_MASK, FIELDS
from bayeslora.factories import FAILURES
from bayeslora.models.fingerprint import frozen_tensors

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference between logits of remembered and of computed layers, relative to the largest logit."""
PROVENANCE = ("_name_or_path", "name_or_path", "transformers_version", "id2label", "label2id", "architectures")
"""Entries of a model's configuration that change no activation."""


class Prefix:
    """The frozen layers at the bottom of a transformer, which can be replaced by their remembered output.

    Args:
        model: a transformer; its layers are the longest `ModuleList` in it.

    Attributes:
        depth: number of layers below the lowest one that holds a parameter which requires a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        lists = (m for m in model.modules() if isinstance(m, nn.ModuleList))
        run = (m for m in lists if not any(isinstance(layer, nn.ModuleList) for layer in m))  # not lists of lists
        layers = max(run, key=len, default=nn.ModuleList())
        adapted = (place for place, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
        self.depth = next(adapted, 0)
        self.given: Tensor | None = None
        self.taken: Any = None
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
    """A layer that is not run where its output is known; it has the attributes of the layer."""

    def __init__(self, layer: nn.Module, prefix: Prefix) -> None:
        super().__init__()
        self.layer = layer
        self.prefix = (prefix,)
        self.others = -1  # values that the layer returns beside the activations; -1: it returns no tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None:
                raise
            return getattr(layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (prefix,) = self.prefix
        if prefix.given is not None:
            return prefix.given if self.others < 0 else (prefix.given, *[None] * self.others)
        output = self.layer(*args, **kwargs)
        if prefix.recording:
            self.others = len(output) - 1 if isinstance(output, tuple) else -1
            prefix.taken = output[0] if isinstance(output, tuple) else output
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

    Two examples are run both ways first: where the logits differ, or a family's layers cannot be left out, the data are
    returned as they are, with a warning that says why.

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
        activations = [_activations(model, prefix, data.transform(batch).to(device)).cpu() for batch in batches]
        return {"states": torch.cat([torch.zeros_like(activations[0][:1]), *activations])}

    try:
        fault = _unusable(model, prefix, data, device)
    except FAILURES:
        return data  # the model cannot be run at all, which the trial step says
    if fault is None:
        states = cached(f"prefix-{_key(model, splits, device)}", [], compute, slow=False)["states"].to(device)
        remembered = FromPrefix(states, data.transform)
        inputs = _shortest_and_longest(pointed)
        fault = _difference(model, data.transform(inputs[:, :, : len(FIELDS)]).to(device), remembered(inputs))
    if fault is not None:
        log.warning(
            "%s cannot be run from remembered layers (%s): every step computes all layers, to the same result",
            type(model.base).__name__,
            fault,
        )
        return data
    train, validation, test = pointed
    return replace(data, train=train, validation=validation, test=test, transform=remembered)


def _shortest_and_longest(splits: Iterable[Split]) -> Tensor:
    """Two stored examples: padding is where activations of one batch may differ from those of another."""
    inputs = torch.cat([split.inputs for split in splits])
    lengths = inputs[:, :, ATTENTION_MASK].sum((1, 2))
    return inputs[[int(lengths.argmin()), int(lengths.argmax())]]


def _unusable(model: Any, prefix: Prefix, data: Data, device: torch.device | str) -> str | None:
    """Why the layers' output cannot stand for them, by running two examples; None: it can."""
    tokens = data.transform(_shortest_and_longest((data.train, data.validation, data.test))).to(device)
    with torch.enable_grad():
        taken = _run(model, prefix, tokens)
    if not isinstance(taken, Tensor) or taken.shape[:2] != (tokens.shape[0] * tokens.shape[1], tokens.shape[-1]):
        return "they do not give activations [sequence, token, feature]"
    if taken.requires_grad:
        return "something sampled lies below them"
    return None


def _difference(model: Any, tokens: Tensor, remembered: dict[str, Tensor]) -> str | None:
    """Why remembered layers do not give the logits that computed ones give; None: they do."""
    computed = model(tokens)
    try:
        given = model(remembered)
    except FAILURES as error:  # of the family's own code
        return f"the layers above need more than their activations: {type(error).__name__}"
    off = float((given - computed).abs().max() / computed.abs().max())
    return None if off <= TOLERANCE else f"logits would be off by {off:.2g} of their size"


def _placed(mask: Tensor, values: Tensor) -> Tensor:
    """A tensor of the mask's shape with values [T] where it holds, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)


def _key(model: Any, splits: Iterable[Split], device: torch.device | str) -> str:
    """Changes with all that activations depend on.

    That is: frozen weights and buffers by name, the model's configuration, the depth of the prefix, the tokens, the
    kind of device, the versions of torch and transformers.
    """
    import transformers

    config = model.base.config
    settings = {key: value for key, value in config.to_dict().items() if key not in PROVENANCE}
    parts = [
        digest(frozen_tensors(model.peft) | dict(model.peft.named_buffers())),
        json.dumps(settings, sort_keys=True, default=str),
        *(type(model.base).__name__, config._attn_implementation, model.prefix.depth, device),
        *(torch.__version__, transformers.__version__),
    ]
    identity = hashlib.sha256("\n".join(map(str, parts)).encode())
    for split in splits:
        identity.update(split.inputs.contiguous().numpy().data)
    return identity.hexdigest()[:32]


def _run(model: Any, prefix: Prefix, tokens: Tensor) -> Any:
    """What the last of the layers gives for tokens [B, S, F, L]: activations [B * S, L, H]."""
    prefix.recording = True
    try:
        model.eval()(tokens)
    finally:
        prefix.recording = False
    taken, prefix.taken = prefix.taken, None
    return taken


def _activations(model: Any, prefix: Prefix, tokens: Tensor) -> Tensor:
    """Tokens [B, S, F, L] -> activations of those that are no padding, in their order [T, H]."""
    hidden: Tensor = _run(model, prefix, tokens).unflatten(0, tokens.shape[:2])
    return hidden[tokens[:, :, ATTENTION_MASK].bool()]
