"""What image datasets share: normalisation, and random crops and flips of a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Normalise:
    """Images uint8 [B, C, H, W] of 0..255 -> float32 (x / 255 - mean) / std, on the images' device.

    Attributes:
        mean, std: one number a channel, on the scale 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return torch.addcmul(-mean / std, images.float(), 1 / (255 * std))


@dataclass(frozen=True)
class RandomShift:
    """Random crops of the zero-padded image, and horizontal flips: each image is moved on its own.

    Shifts (uniform on the (2 padding + 1)² possible ones) and flips (one in two) are drawn on the CPU, so they are the
    same on every device; the images are moved by one gather on theirs.

    Attributes:
        padding: largest shift in pixels, in each direction; what enters at the border is 0 (black).
        flip: flip half of the images left to right.
    """

    padding: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, H, W] of any dtype -> the same shape and dtype."""
        batch, channels, height, width = images.shape
        tops, lefts = torch.randint(2 * self.padding + 1, (2, batch, 1), generator=generator)
        rows, columns = tops + torch.arange(height), lefts + torch.arange(width)
        if self.flip:
            flipped = torch.randint(2, (batch, 1), generator=generator).bool()
            columns = torch.where(flipped, columns.flip(1), columns)
        rows, columns = rows.to(images.device).unsqueeze(2), columns.to(images.device).unsqueeze(1)
        pixels = rows * (width + 2 * self.padding) + columns
        index = pixels.view(batch, 1, -1).expand(-1, channels, -1)
        return F.pad(images, [self.padding] * 4).flatten(2).gather(2, index).view_as(images)

    def __str__(self) -> str:
        return f"random crop (padding {self.padding})" + (" and horizontal flip" if self.flip else "")


def channel_problems(mean: Sequence[float], std: Sequence[float], channels: int) -> list[str]:
    """What is wrong with normalisation constants, one message each."""
    problems = [
        f"dataset.{name} must be {channels} numbers, one a channel, not {list(values)}"
        for name, values in (("mean", mean), ("std", std))
        if len(values) != channels or not all(isinstance(value, int | float) for value in values)
    ]
    if not problems and min(std) <= 0:
        problems.append(f"dataset.std must be above 0, not {list(std)}")
    return problems


def fitted(image: Any, size: int, mode: str) -> Tensor:
    """A PIL image cut to its middle square and scaled, as uint8 [C, size, size]; `mode` is `"RGB"` or `"L"`."""
    from PIL import Image, ImageOps

    pixels = np.array(ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
