"""Token batches as the named inputs of transformers' models."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from bayeslora.datasets.text import FIELDS


def model_fields(model: Any, sequences: Tensor) -> dict[str, Tensor]:
    """A batch of sequences int64 [B, F, L] as the inputs that the model takes, by name."""
    taken = set(inspect.signature(type(model).forward).parameters)
    if getattr(model.config, "type_vocab_size", 0) < 2:
        taken.discard("token_type_ids")
    return {name: sequences[:, place] for place, name in enumerate(FIELDS) if name in taken}
