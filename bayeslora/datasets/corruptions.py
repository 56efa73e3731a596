"""The usual corruptions of images, at severities 1 to 5: noise, blur, contrast, brightness, pixelate, JPEG.

Every function takes images uint8 [B, C, H, W], grey (C = 1) or RGB (C = 3), of any size and on any device, and a
severity, and gives images of the same shape, dtype and device; it raises `ConfigError` for anything else. Formulas and
constants are those CIFAR-10-C was made with; their lengths are in pixels, whatever the size. Levels are rounded to the
nearest, where CIFAR-10-C cut them off, so that a corruption that changes nothing leaves the image as it is.

Source: Hendrycks & Dietterich (2019), "Benchmarking neural network robustness to common corruptions and perturbations".
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bayeslora.errors import require
from bayeslora.rng import generator

SEVERITIES = (1, 2, 3, 4, 5)

CHUNK = 1000
"""Images held as float32 at a time."""


def gaussian_noise(images: Tensor, severity: int, seed: int = 0) -> Tensor:
    """Add normal noise, independent for every pixel and channel, of sd 0.04 to 0.10 (on the scale 0..1).

    The i-th image gets the i-th noise of one stream, drawn on the CPU: give a whole split at once. Batches given one by
    one would all get the noise of the first.

    Args:
        images: [B, C, H, W], uint8.
        severity: 1 to 5.
        seed: of the noise; the default makes the same images for every run.
    """
    sd = _strength(images, severity, (0.04, 0.06, 0.08, 0.09, 0.10))
    numbers = generator(seed, 0, severity, "corruption/gaussian_noise")

    def add_noise(x: Tensor) -> Tensor:
        noise = torch.empty(x.shape)
        for image in noise:
            image.normal_(generator=numbers)
        return torch.add(x, noise.to(x.device), alpha=sd)

    return _in_chunks(images, add_noise)


def gaussian_blur(images: Tensor, severity: int) -> Tensor:
    """Blur by a normal density of sd 0.4 to 1 pixel, cut at 4 sd; beyond the border lies the border's colour."""
    from scipy.ndimage import gaussian_filter

    sd = _strength(images, severity, (0.4, 0.6, 0.7, 0.8, 1))

    def blur(x: Tensor) -> Tensor:
        blurred = gaussian_filter(x.cpu().numpy(), sd, mode="nearest", truncate=4, axes=(2, 3))
        return torch.from_numpy(blurred).to(x.device)

    return _in_chunks(images, blur)


def contrast(images: Tensor, severity: int) -> Tensor:
    """Shrink the distance from each channel's mean over the image to 0.75 to 0.15 of it."""
    factor = _strength(images, severity, (0.75, 0.5, 0.4, 0.3, 0.15))
    return _in_chunks(images, lambda x: torch.lerp(x.mean((2, 3), keepdim=True).expand_as(x), x, factor))


def brightness(images: Tensor, severity: int) -> Tensor:
    """Raise the value (of hue, saturation, value) by 0.05 to 0.3, at most to 1; in grey images, the level itself."""
    shift = _strength(images, severity, (0.05, 0.1, 0.15, 0.2, 0.3))

    def brighten(x: Tensor) -> Tensor:
        value = x.amax(1, keepdim=True)
        raised = (value + shift).clamp(max=1)
        return torch.where(value > 0, x * (raised / value), raised)

    return _in_chunks(images, brighten)


def pixelate(images: Tensor, severity: int) -> Tensor:
    """Shrink to 0.95 to 0.65 of the size by averaging over boxes, and enlarge again.

    The small size is a whole number of pixels: images of 8x8 become 7, 7, 6, 6 and 5 wide, and the last three lose
    about as much.
    """
    factor = _strength(images, severity, (0.95, 0.9, 0.85, 0.75, 0.65))
    height, width = images.shape[2:]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))

    def shrink(image: Image.Image) -> Image.Image:
        return image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)

    return _one_by_one(images, shrink)


def jpeg(images: Tensor, severity: int) -> Tensor:
    """Compress as JPEG of quality 80 to 40, by Pillow, in memory."""
    quality = int(_strength(images, severity, (80, 65, 58, 50, 40)))

    def compress(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _one_by_one(images, compress)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
    "brightness": brightness,
    "pixelate": pixelate,
    "jpeg": jpeg,
}
"""By name, functions of (images, severity)."""


def _strength(images: Tensor, severity: int, strengths: Sequence[float]) -> float:
    """The constant of a severity, after a check of both arguments."""
    fits = images.ndim == 4 and images.dtype == torch.uint8 and images.shape[1] in {1, 3}
    given = f"{images.dtype} {list(images.shape)}"
    require(fits, f"corruptions take images uint8 [B, C, H, W] with C = 1 or 3, not {given}")
    known = isinstance(severity, int) and not isinstance(severity, bool) and severity in SEVERITIES
    require(known, f"severity must be a whole number from 1 to 5, not {severity!r}")
    return strengths[severity - 1]


def _in_chunks(images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of levels 0..1 (float32) to some images at a time; round its result to uint8."""
    out = torch.empty_like(images)
    for part, place in zip(images.split(CHUNK), out.split(CHUNK), strict=True):
        place.copy_(function(part.float() / 255).mul(255).round().clamp(0, 255))
    return out


def _one_by_one(images: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Apply a function of Pillow images, grey or RGB."""
    arrays = np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    out = np.empty_like(arrays)
    for array, place in zip(arrays, out, strict=True):
        grey = array.shape[2] == 1
        changed = np.asarray(function(Image.fromarray(array[..., 0] if grey else array)))
        place[:] = changed[..., None] if grey else changed
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(images.device)
