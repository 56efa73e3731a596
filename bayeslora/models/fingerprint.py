"""Which base model an adapter belongs to: a fingerprint of the weights that are frozen under it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

HEADS = ("classifier", "score", "head")
"""What transformers calls the head of a sequence classifier, and `BiEncoder` its own."""


def is_head(name: str) -> bool:
    """Whether a parameter of a base model belongs to its head."""
    return name.partition(".")[0] in HEADS


def frozen_tensors(peft_model: nn.Module) -> Iterable[Tensor]:
    """The base model's own parameters under an adapter: all but adapter and head."""
    added = ("lora_", "modules_to_save", "original_module")
    return (p for name, p in peft_model.named_parameters() if not any(part in name for part in added))


def base_fingerprint(tensors: Iterable[Tensor]) -> str:
    """A SHA-256 of a base model's parameters by content; their names do not count, since adapters rename layers."""
    digests = sorted(hashlib.sha256(t.detach().cpu().contiguous().numpy().tobytes()).hexdigest() for t in tensors)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
