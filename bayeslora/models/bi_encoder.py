"""A bi-encoder: two texts, each encoded by itself, compared by a linear head."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.datasets.text import ATTENTION_MASK, FIELDS
from bayeslora.errors import require


class BiEncoder(nn.Module):
    """Tokens of two texts -> logits, from their mean-pooled unit vectors: head([|u − v|, √H u∘v, √H (1 − cos(u, v))]).

    |u − v| and u∘v are taken by element. The scaling lets each of the three weigh about as much under one prior on the
    head: the first two have norms of order one, the cosine distance varies by about one.

    Args:
        encoder: a model of transformers that gives `last_hidden_state`.
        num_classes: C.

    Source: Reimers & Gurevych 2019, Sentence-BERT, with the product and the cosine added to its features.
    """

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.name_or_path = encoder.name_or_path
        self.head = nn.Linear(2 * encoder.config.hidden_size + 1, num_classes)
        nn.init.zeros_(self.head.bias)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, 2, F, L] -> logits [B, C]."""
        require(tokens.shape[1] == 2, "a bi-encoder takes two texts, each by itself; set dataset.layout=separate")
        sequences = tokens.flatten(0, 1)
        hidden = self.encoder(**model_fields(self.encoder, sequences)).last_hidden_state
        pooled = mean_pool(hidden, sequences[:, ATTENTION_MASK])
        u, v = F.normalize(pooled, dim=-1).unflatten(0, (-1, 2)).unbind(1)
        product, scale = u * v, pooled.shape[-1] ** 0.5
        distance = 1 - product.sum(-1, keepdim=True)
        logits: Tensor = self.head(torch.cat([(u - v).abs(), scale * product, scale * distance], dim=-1))
        return logits


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are no padding: hidden [B, L, H], mask [B, L] -> [B, H]."""
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def model_fields(model: Any, sequences: Tensor) -> dict[str, Tensor]:
    """A batch of sequences int64 [B, F, L] as the inputs that the model takes, by name."""
    taken = set(inspect.signature(type(model).forward).parameters)
    if getattr(model.config, "type_vocab_size", 0) < 2:
        taken.discard("token_type_ids")
    return {name: sequences[:, place] for place, name in enumerate(FIELDS) if name in taken}
