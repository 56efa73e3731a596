"""Which base model an adapter belongs to: a fingerprint of the weights that are frozen under it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from torch import Tensor, nn


def is_saved(name: str, modules: Sequence[str]) -> bool:
    """Whether a base model's parameter lies in a module that an adapter holds whole.

    Args:
        name: full name of the parameter in the model without an adapter.
        modules: `modules_to_save` of the adapter, which are ends of modules' names: PEFT's rule.
    """
    parts = name.split(".")
    return any(".".join(parts[:depth]).endswith(tuple(modules)) for depth in range(1, len(parts)))


def frozen_tensors(peft_model: nn.Module) -> dict[str, Tensor]:
    """The base model's own parameters under an adapter, by name: all but the adapter and the modules it holds whole."""
    added = ("lora_", "modules_to_save", "original_module")
    return {name: p for name, p in peft_model.named_parameters() if not any(part in name for part in added)}


def base_fingerprint(tensors: Iterable[Tensor]) -> str:
    """A SHA-256 of a base model's parameters by content; their names do not count, since adapters rename layers."""
    digests = sorted(hashlib.sha256(t.detach().cpu().contiguous().numpy().tobytes()).hexdigest() for t in tensors)
    return hashlib.sha256("".join(digests).encode()).hexdigest()
