"""Segmentation of small images: a class a pixel. python examples/segmentation.py [FOLDER]

FOLDER has images NAME.png and their masks NAME_mask.png, whose grey levels are the classes 0, 1, …; 255 is left out.
Without it, discs in noise are made up.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import bayeslora

LEFT_OUT = -100  # the target of pixels that have no likelihood


def made_up(count: int = 40, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images [N, 1, H, W] with a bright disc in noise, and masks [N, H, W] without its rim."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    center = torch.randint(4, size - 4, (count, 2, 1, 1), generator=random)
    away = ((y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2).float().sqrt()
    images = (away < 4).float() + 0.5 * torch.randn(count, size, size, generator=random)
    masks = (away < 4).long().masked_fill((away - 4).abs() < 0.5, LEFT_OUT)
    return images[:, None], masks


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """The images of a folder, grey, in [0, 1], and their masks."""
    files = sorted(file for file in folder.glob("*.png") if not file.stem.endswith("_mask"))
    images = np.stack([np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255 for file in files])
    masks = np.stack([np.asarray(Image.open(f.with_name(f"{f.stem}_mask.png")), dtype=np.int64) for f in files])
    return torch.from_numpy(images[:, None]), torch.from_numpy(np.where(masks == 255, LEFT_OUT, masks))


def main() -> bayeslora.Posterior:
    """Sample, and say where draws disagree most in the first image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--burn-in", type=int, default=1200)
    options = parser.parse_args()
    images, masks = read(options.path) if options.path else made_up()
    classes = int(masks.max()) + 1  # logits are [B, classes, H, W]
    posterior = bayeslora.sample(  # an image's likelihood is a product over 256 pixels: small steps
        lambda: nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, classes, 5, padding=2)),
        (images, masks), prior=0.1, lr=0.001, chains=2, draws=options.draws, burn_in=options.burn_in, thin=5,
        warmup=options.burn_in, warmup_lr=0.01, batch_size=20, parallel="stacked", test_dataset=(images, masks),
    )  # fmt: skip
    p, spread = posterior.predict(images[:1], return_std=True)  # [1, C, H, W] each
    row, column = divmod(int(spread[0, 1].argmax()), images.shape[-1])
    print(f"least sure of pixel ({row}, {column}): class 1 at {p[0, 1, row, column]:.0%} ± {spread[0, 1].max():.0%}")
    return posterior


if __name__ == "__main__":
    main()
