"""The examples that an ensemble is least sure of, and its most confident errors, as images or as texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bayeslora.diagnostics.uncertainty import ONE_DRAW, Entropy
from bayeslora.report.words import percent

MOST_UNCERTAIN, MOST_CONFIDENT_ERRORS = 12, 6
SIDE = 128
"""Pixels that an image is enlarged to at least, by whole factors; larger ones stay as they are."""
LONGEST = 400
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Example:
    """One example and what is said of it.

    Attributes:
        image: as a data address, or empty.
        texts: its sentences; empty for images.
        truth: its true class.
        facts: what else is said, as (label, value) pairs.
        right: whether the ensemble is.
    """

    image: str
    texts: tuple[str, ...]
    truth: str
    facts: list[tuple[str, str]]
    right: bool


@dataclass(frozen=True)
class Gallery:
    """Examples to show, or why there are none."""

    items: list[Example] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class Shown:
    """The evaluated examples and what is said of them.

    Attributes:
        inputs: stored inputs [N, …]; those that are uint8 [N, 1 or 3, H, W] can be shown.
        texts: sentences of each example; empty for images.
        names: of the C classes.
        targets: true classes [N].
        ensemble: log p [N, C].
        map: log p [N, C] of the MAP baseline, or None.
        entropy: of the ensemble.
    """

    inputs: Any
    texts: Sequence[tuple[str, ...]]
    names: Sequence[str]
    targets: Tensor
    ensemble: Tensor
    map: Tensor | None
    entropy: Entropy

    @property
    def problem(self) -> str:
        """Why examples cannot be shown, or nothing."""
        size = len(self.targets)
        if self.texts:
            return "" if len(self.texts) == size else "the texts that are at hand are not those evaluated"
        held = self.inputs
        images = isinstance(held, Tensor) and held.ndim == 4 and held.dtype == torch.uint8 and held.shape[1] in (1, 3)
        return "" if images and len(held) == size else "the inputs are neither grey or colour images nor texts"


def most_uncertain(shown: Shown, draws: int, count: int = MOST_UNCERTAIN) -> Gallery:
    """The examples of highest mutual information: those that draws disagree about most."""
    if draws < 2:
        return Gallery(missing=ONE_DRAW)
    order = shown.entropy.mutual_information.sort(descending=True, stable=True).indices
    return _gallery(shown, order[:count])


def confident_errors(shown: Shown, count: int = MOST_CONFIDENT_ERRORS) -> Gallery:
    """The wrong predictions of highest confidence."""
    confidence, predicted = shown.ensemble.max(1)
    order = confidence.sort(descending=True, stable=True).indices
    order = order[(predicted != shown.targets)[order]]
    return _gallery(shown, order[:count]) if len(order) else Gallery(missing="no example was predicted wrong")


def _gallery(shown: Shown, index: Tensor) -> Gallery:
    if shown.problem:
        return Gallery(missing=shown.problem)
    return Gallery([_example(shown, row) for row in index.tolist()])


def _example(shown: Shown, row: int) -> Example:
    """One example with the two most probable classes, MAP's and the mutual information."""
    names, probs = shown.names, shown.ensemble[row].double().exp()
    top = probs.topk(min(2, len(probs)))
    guesses = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    facts = [("Ensemble", ", ".join(f"{names[c]} ({percent(p)})" for p, c in guesses))]
    if shown.map is not None:
        confidence, predicted = shown.map[row].double().exp().max(0)
        facts.append(("MAP", f"{names[int(predicted)]} ({percent(confidence.item())})"))
    facts.append(("Mutual information", f"{shown.entropy.mutual_information[row].item():.3f} nats"))
    truth = int(shown.targets[row])
    return Example(
        image="" if shown.texts else data_address(shown.inputs[row].cpu().numpy()),
        texts=tuple(_cut(text) for text in shown.texts[row]) if shown.texts else (),
        truth=names[truth],
        facts=facts,
        right=int(probs.argmax()) == truth,
    )


def data_address(image: np.ndarray) -> str:
    """A uint8 image [C, H, W], C 1 or 3, as the data address of a PNG, enlarged by a whole factor without smoothing."""
    factor = max(1, -(-SIDE // max(image.shape[1:])))
    pixels = image.repeat(factor, axis=1).repeat(factor, axis=2).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _cut(text: str) -> str:
    """A text of at most `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} …"
