"""Corruptions of images: each by hand, and what all have in common."""

from __future__ import annotations

import colorsys
import io
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from torch import Tensor

from bayeslora.datasets import corruptions
from bayeslora.datasets.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    brightness,
    contrast,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    pixelate,
)
from bayeslora.datasets.digits import Digits
from bayeslora.errors import ConfigError

KINDS = ["digits", "colour", "wide"]
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Quantisation of the JPEG standard (ITU-T T.81, table K.1), at quality 50."""

names = pytest.mark.parametrize("name", CORRUPTIONS)


def by_severity(*values: float) -> list[tuple[int, float]]:
    return list(zip(SEVERITIES, values, strict=True))


def _images(kind: str) -> Tensor:
    """Grey digits of 8x8, or smooth colour images of 32x32 or 20x48."""
    if kind == "digits":
        return Digits().load().test.inputs
    coarse = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    size = (32, 32) if kind == "colour" else (20, 48)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return smooth.mul(255).round().clamp(0, 255).byte()


def _flat(*colour: int, count: int = 1, size: int = 32) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(1, -1, 1, 1).repeat(count, 1, size, size)


@names
def test_images_keep_their_form_and_damage_grows_with_severity(name: str) -> None:
    for kind in KINDS:
        images = _images(kind)
        before, changes = images.clone(), []
        for severity in SEVERITIES:
            corrupted = CORRUPTIONS[name](images, severity)
            assert (corrupted.shape, corrupted.dtype) == (images.shape, torch.uint8)
            assert corrupted.is_contiguous()
            assert torch.equal(images, before)
            assert torch.equal(CORRUPTIONS[name](images, severity), corrupted)
            changes.append((corrupted.float() - images.float()).abs().mean().item())
        assert changes[0] > 0
        if (name, kind) == ("pixelate", "digits"):  # 7, 7, 6, 6 and 5 pixels remain
            assert changes[0] == changes[1] < changes[4] < changes[2] == changes[3] < 1.1 * changes[4]
        else:
            assert all(less < more for less, more in pairwise(changes))


@names
def test_every_image_is_corrupted_on_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the images after it, the number held at a time nor the layout in memory matter; order does, for noise."""
    images = _images("wide")
    whole = CORRUPTIONS[name](images, 3)
    assert torch.equal(CORRUPTIONS[name](images[:17], 3), whole[:17])
    assert CORRUPTIONS[name](images[:0], 3).shape == (0, *images.shape[1:])
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(CORRUPTIONS[name](strided, 3), whole)
    monkeypatch.setattr(corruptions, "CHUNK", 7)
    assert torch.equal(CORRUPTIONS[name](images, 3), whole)
    if name != "gaussian_noise":
        assert torch.equal(CORRUPTIONS[name](images.flip(0), 3).flip(0), whole)


def test_flat_surfaces_stay_as_they_are() -> None:
    """Grey ones to the level, at every severity; colours are not mixed up."""
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None]
    for name in ("gaussian_blur", "contrast", "pixelate"):
        for images in (levels.expand(256, 1, 8, 8), levels.expand(256, 3, 8, 8)):
            assert all(torch.equal(CORRUPTIONS[name](images, severity), images) for severity in SEVERITIES), name
    images = _flat(200, 100, 20)
    for name in ("gaussian_blur", "contrast", "pixelate", "jpeg"):
        assert (CORRUPTIONS[name](images, 5).int() - images.int()).abs().max() <= 3, name


def test_noise_has_the_stated_sd() -> None:
    """On mid-grey nothing is cut off; rounding adds a variance of 1/12."""
    for severity, sd in by_severity(0.04, 0.06, 0.08, 0.09, 0.10):
        change = gaussian_noise(_flat(127, 127, 127, count=60), severity).double() - 127
        expected = math.sqrt((255 * sd) ** 2 + 1 / 12)
        number = change.numel()
        assert change.mean().item() == pytest.approx(0, abs=4 * expected / math.sqrt(number))
        assert change.std().item() == pytest.approx(expected, abs=4 * expected / math.sqrt(2 * number))


def test_noise_is_independent_between_images_channels_severities_and_seeds() -> None:
    images = _flat(127, 127, 127, count=2)
    noise = torch.cat(
        [
            gaussian_noise(images, severity, seed).double().flatten(2).flatten(0, 1) - 127
            for severity, seed in ((1, 0), (2, 0), (1, 1))
        ]
    )
    off_diagonal = torch.corrcoef(noise) - torch.eye(len(noise))
    assert off_diagonal.abs().max().item() < 4.5 / math.sqrt(noise.shape[1])


def test_a_point_is_blurred_to_a_normal_density() -> None:
    point = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    point[0, 0, 8, 8] = 255
    offset = torch.arange(17, dtype=torch.float64) - 8
    for severity, sd in by_severity(0.4, 0.6, 0.7, 0.8, 1.0):
        density = torch.exp(-(offset**2) / (2 * sd**2)) * (offset.abs() <= int(4 * sd + 0.5))
        density /= density.sum()
        expected = (255 * density[:, None] * density[None]).round()
        assert (gaussian_blur(point, severity)[0, 0].double() - expected).abs().max() <= 1


def test_contrast_by_hand() -> None:
    """Half black, half 200 in red, whose mean is 100; green is flat; severity 2 halves the distance."""
    images = _flat(0, 80, 0)
    images[:, 0, :16] = 200
    found = contrast(images, 2)
    assert found[0, 0, 0, 0] == 150
    assert found[0, 0, 31, 0] == 50
    assert found[0, 1].unique().tolist() == [80]
    assert contrast(images, 5)[0, 0, 0, 0] == 100 + 15


def test_brightness_raises_the_value_of_hsv() -> None:
    for severity, shift in by_severity(0.05, 0.1, 0.15, 0.2, 0.3):
        for colour in ((200, 100, 20), (10, 10, 250), (0, 0, 0), (255, 255, 255), (7, 0, 3)):
            hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in colour))
            expected = [255 * level for level in colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1))]
            assert brightness(_flat(*colour), severity)[0, :, 0, 0].tolist() == pytest.approx(expected, abs=0.501)
        assert brightness(_flat(100), severity)[0, 0, 0, 0] == pytest.approx(100 + 255 * shift, abs=0.501)


def test_pixelate_by_hand() -> None:
    """0.75 of four pixels is three: the middle two are averaged, and enlarging gives both their mean."""
    row = torch.tensor([0, 100, 200, 40], dtype=torch.uint8)
    assert pixelate(row.expand(1, 1, 4, 4), 4)[0, 0, 2].tolist() == [0, 150, 150, 40]
    assert pixelate(row.expand(1, 1, 4, 4).mT, 4)[0, 0, :, 2].tolist() == [0, 150, 150, 40]
    assert pixelate(row.expand(1, 3, 4, 4), 4)[0, 1, 0].tolist() == [0, 150, 150, 40]


def test_jpeg_rounds_the_cosine_transform_of_a_block() -> None:
    """A grey 8x8 image is one block. Coders transform in whole numbers: a level of difference, more where a frequency
    lies half way between two multiples (86 % of images or more agree; none at a quality 3 away).
    """
    images = _images("digits")
    frequencies = dctn(images.numpy() - 128.0, axes=(2, 3), norm="ortho")
    for severity, quality in by_severity(80, 65, 58, 50, 40):
        table = np.floor((LUMINANCE * (200 - 2 * quality if quality >= 50 else 5000 / quality) + 50) / 100)
        expected = idctn(np.rint(frequencies / table) * table, axes=(2, 3), norm="ortho") + 128
        difference = np.abs(jpeg(images, severity).numpy() - expected.clip(0, 255))
        assert (difference.max((1, 2, 3)) < 2).mean() > 0.8


@names
def test_what_is_no_severity_and_no_image_is_refused(name: str) -> None:
    for severity in (0, 6, -1, 1.0, "3", True, None):
        with pytest.raises(ConfigError, match=f"severity must be a whole number from 1 to 5, not {severity!r}"):
            CORRUPTIONS[name](_flat(1, 2, 3), severity)
    byte = torch.uint8
    for images in (
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=byte),
        torch.zeros(1, 2, 8, 8, dtype=byte),
        torch.zeros(1, 8, 8, 3, dtype=byte),
    ):
        given = re.escape(f"{images.dtype} {list(images.shape)}")
        with pytest.raises(ConfigError, match=rf"images uint8 \[B, C, H, W\] with C = 1 or 3, not {given}"):
            CORRUPTIONS[name](images, 1)


@pytest.mark.realdata
def test_damage_to_real_images_grows_with_severity(real_data: Path) -> None:
    shard = pq.read_table(next((real_data / "cifar10").glob("test-*.parquet")), columns=["img"])
    encoded = [cell["bytes"] for cell in shard["img"][:200].to_pylist()]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in encoded])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for name, corrupt in CORRUPTIONS.items():
        changes = [(corrupt(images, severity).float() - images.float()).abs().mean().item() for severity in SEVERITIES]
        assert all(less < more for less, more in pairwise(changes)), name
        assert changes[0] > 0.5, name
