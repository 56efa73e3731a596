"""What image datasets share: one decoder of image files, normalisation, random crops and flips of a whole batch."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bayeslora.counts import counted
from bayeslora.errors import DataError

GREY_MODES = ("1", "L", "LA", "F")
"""Pillow's modes of grey images, once levels of more than 8 bits are `"F"`."""
DAMAGED = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, struct.error,
    zlib.error,
)  # fmt: skip
"""What Pillow's readers raise for files that are damaged or of no format they read."""
WHOLE_LEVELS = (255, 1023, 4095, 16_383, 65_535)
"""White in images of 8, 10, 12, 14 and 16 bits."""


@dataclass(frozen=True)
class Normalise:
    """Images uint8 [B, C, H, W] of 0..255 -> float32 (x / 255 - mean) / std, on the images' device.

    Attributes:
        mean, std: one number a channel, on the scale 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        shift, scale = _normalising(self.mean, self.std, images.device)
        return torch.addcmul(shift, images.float(), scale)


@lru_cache(maxsize=16)
def _normalising(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and scale [C, 1, 1] of bytes; every batch asks for the same ones."""
    with torch.inference_mode(mode=False):
        means, stds = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
        return -means / stds, 1 / (255 * stds)


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


@dataclass(frozen=True)
class Picture:
    """One decoded image file.

    Attributes:
        image: upright, without transparency, of mode `"L"`, `"RGB"` or, for levels of more than 8 bits, `"F"`.
        whole: whether levels of mode `"F"` are whole numbers.
        transparent: whether it had transparency, which was laid on white.
        frames: how many images the file holds; this is the first.
        cut: whether it has colours of 16 bits, of which Pillow reads the upper 8.
    """

    image: Image.Image
    whole: bool = False
    transparent: bool = False
    frames: int = 1
    cut: bool = False


def open_picture(source: Path | bytes | Image.Image, where: str, fix: str = "remove or mend it") -> Picture:
    """Decode an image file as a viewer shows it: turned by its EXIF orientation, transparent pixels on white.

    Args:
        source: the file, its contents, or an image of Pillow.
        where: its name in messages.
        fix: what to do where it cannot be read, for the message.

    Raises:
        DataError: it cannot be read, or holds NaN.
    """
    try:
        with (
            source.copy()
            if isinstance(source, Image.Image)
            else Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        ) as file:
            frames = getattr(file, "n_frames", 1)
            cut = file.mode[0] not in "IF" and any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                if image.has_transparency_data:
                    raise ValueError("16-bit grey levels with a transparent one are not supported")
                return Picture(Image.fromarray(_levels(image)), image.mode[0] == "I", frames=frames)
            if not image.has_transparency_data:
                return Picture(image.convert("L" if image.mode in GREY_MODES else "RGB"), frames=frames, cut=cut)
            grey, image = image.mode in GREY_MODES, image.convert("RGBA")
            transparent = image.getchannel("A").getextrema() != (255, 255)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return Picture(image.convert("L" if grey else "RGB"), transparent=transparent, frames=frames, cut=cut)
    except (*DAMAGED, Image.DecompressionBombError) as error:
        reason = str(error).split(" <")[0]
        raise DataError(f"{where} cannot be read as an image ({reason}); {fix}") from error


def _levels(image: Image.Image) -> np.ndarray:
    """Levels float32 [H, W] of an image of more than 8 bits.

    Raises:
        ValueError: they are not finite.
    """
    levels = np.asarray(image).astype(np.float32)
    if not np.isfinite(levels).all():
        raise ValueError(f"{int((~np.isfinite(levels)).sum())} of its levels are NaN or infinite")
    return levels


def stack_images(images: Sequence[Image.Image]) -> Tensor:
    """Images of Pillow as bytes [N, C, H, W], each as a viewer shows it; one channel if all are grey.

    Raises:
        DataError: they are of several sizes, or have levels of more than 8 bits.
    """
    pictures = [open_picture(image, f"image {row}").image for row, image in enumerate(images)]
    modes, sizes = ({getattr(picture, of) for picture in pictures} for of in ("mode", "size"))
    if len(sizes) > 1:
        raise DataError(f"images are of sizes {', '.join(map(str, sorted(sizes)[:3]))}; scale them to one")
    if "F" in modes:
        raise DataError("images have levels of more than 8 bits; give arrays of numbers, scaled to [0, 1]")
    arrays = [np.array(picture.convert("RGB" if "RGB" in modes else "L")) for picture in pictures]
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def decode_images(
    sources: Iterable[tuple[Path | bytes, str]], size: int | None, channels: int | None
) -> dict[str, Tensor]:
    """Decode image files, cut each to its middle square and scale it to one size.

    Levels of more than 8 bits are scaled to 0..255 by one line for all images, so that they can still be compared:
    whole numbers from 0 to the largest of `WHOLE_LEVELS` that is needed, fractions from 0 to 1; those of other ranges
    from their smallest to their largest. Of colours of 16 bits the upper 8 are taken.

    Args:
        sources: files or their contents, each with its name for messages; at least one.
        size: height and width in pixels; None: the height of the first image.
        channels: 3 (colour) or 1 (grey); None: 1 if all images are grey.

    Returns:
        `images` uint8 [N, C, size, size], and what `decoding_notes` reads: `transparent`, `several` (frames) and `cut`
        (colours of 16 bits), counts of images, and `whole` and `real`, float64 [3]: count of images of such levels, and
        which became 0 and 255.

    Raises:
        DataError: one cannot be read, or the upper 8 bits of all colours of 16 are nearly empty.
    """
    arrays: list[np.ndarray] = []
    kinds: dict[str, list[int]] = {"whole": [], "real": []}
    cut: list[tuple[int, str]] = []
    transparent = several = 0
    for row, (source, where) in enumerate(sources):
        picture = open_picture(source, where)
        image = picture.image
        size = size or image.height
        if channels is not None and image.mode != "F":
            image = image.convert("RGB" if channels == 3 else "L")
        if image.mode == "F":
            kinds["whole" if picture.whole else "real"].append(row)
        pixels = np.array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
        arrays.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        transparent += picture.transparent
        several += picture.frames > 1
        if picture.cut:
            cut.append((int(arrays[-1].max()), where))
    if cut and max(cut)[0] <= WHOLE_LEVELS[-2] >> 8:
        raise DataError(
            f"{cut[0][1]} has colours of 16 bits, as have {len(cut) - 1:,} others, and none a level above"
            f" {WHOLE_LEVELS[-2]:,}: the upper 8 bits, which are read, are nearly black; save them as images of 8 bits"
        )
    scales = {kind: _scale_levels(arrays, rows, kind == "whole") for kind, rows in kinds.items()}
    channels = channels or max(len(array) for array in arrays)
    wide = [np.broadcast_to(array, (channels, *array.shape[1:])) for array in arrays]
    images = torch.from_numpy(np.array(wide, order="C"))
    counts = {"transparent": transparent, "several": several, "cut": len(cut)}
    return {"images": images, **{name: torch.tensor(count) for name, count in counts.items()}, **scales}


def _scale_levels(arrays: list[np.ndarray], rows: Sequence[int], whole: bool) -> Tensor:
    """Scale the arrays of these rows to 0..255 in place; their number, and which levels became 0 and 255."""
    if not rows:
        return torch.zeros(3, dtype=torch.float64)
    low, high = float(min(arrays[row].min() for row in rows)), float(max(arrays[row].max() for row in rows))
    for white in WHOLE_LEVELS if whole else (1, 255):
        if low >= 0 and high <= white:
            low, high = 0.0, float(white)
            break
    for row in rows:
        fraction = (arrays[row].astype(np.float64) - low) / ((high - low) or 1)
        arrays[row] = (255 * fraction).round().astype(np.uint8)
    return torch.tensor([len(rows), low, high], dtype=torch.float64)


def decoding_notes(decoded: dict[str, Tensor]) -> list[str]:
    """What `decode_images` changed, in words."""
    notes = {
        ("image", "with transparency laid on white"): decoded["transparent"],
        ("image file", "with several frames, of which the first is taken"): decoded["several"],
        ("image", "with colours of 16 bits, of which the upper 8 are taken"): decoded["cut"],
    }
    for kind, levels in (("whole", "of more than 8 bits: levels"), ("real", "of real numbers:")):
        count, low, high = decoded[kind].tolist()
        notes["image", f"{levels} {low:g} to {high:g} scaled to 0 to 255"] = torch.tensor(count)
    return [f"{counted(int(count), thing)} {note}" for (thing, note), count in notes.items() if count]


def shared_notes(train: Any, test: Any, classes: Tensor | None = None, what: str = "image") -> list[str]:
    """Says how many test images [N, …], or other inputs, are training images as well, to the last byte.

    Args:
        train, test: the images, or several inputs by name.
        classes: of the training images, int64 [N]: says too how many of them are in several classes.
        what: one of them is called.
    """
    ours, theirs = _digests(train), _digests(test)
    labels: dict[bytes, set[int]] = {}
    for digest, label in zip(ours, [0] * len(ours) if classes is None else classes.tolist(), strict=True):
        labels.setdefault(digest, set()).add(label)
    count = sum(digest in labels for digest in theirs)
    twice = sum(len(own) > 1 for own in labels.values())
    notes = {
        f"{count:,} of {counted(len(theirs), f'test {what}')} also among the training {what}s": count,
        f"{counted(twice, f'training {what}')} under several classes": twice,
    }
    return [note for note, holds in notes.items() if holds]


def _digests(inputs: Any) -> list[bytes]:
    """One of each example, of all its inputs."""
    held = [one.contiguous().numpy() for one in tree_leaves(inputs)]
    return [hashlib.sha256(b"".join(row.tobytes() for row in rows)).digest() for rows in zip(*held, strict=True)]
