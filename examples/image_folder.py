"""A torchvision model on a folder of images, one folder a class. python examples/image_folder.py [FOLDER]

Its last layer is sampled, what lies below stays as it is; without a folder it makes images up.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import bayeslora
from bayeslora.datasets import ImageFolder, Split


def made_up(each: int = 30) -> Path:
    """Discs and squares."""
    folder, rng = Path(tempfile.mkdtemp()) / "shapes", np.random.default_rng(0)
    row, column = np.mgrid[:32, :32] - 15.5
    shapes = {"disc": np.hypot(row, column), "square": np.maximum(abs(row), abs(column))}
    for name, distance in shapes.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            image = 120 + 100 * (distance < rng.uniform(6, 13)) + rng.normal(0, 30, (32, 32))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def network(classes: int) -> nn.Module:
    """A small ResNet of which the last layer is sampled; load trained weights into it before it is frozen."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes, norm_layer=lambda c: nn.GroupNorm(8, c))
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    return model


def main() -> bayeslora.Posterior:
    """Sample, and show what the ensemble says of three images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--burn-in", type=int, default=400)
    options = parser.parse_args()
    data = ImageFolder(options.path or made_up(), size=32).load()
    train, test = (Split(data.transform(part.inputs), part.targets) for part in (data.train, data.test))
    posterior = bayeslora.sample(
        network(data.num_classes), train, "sgld", test_dataset=test, class_names=data.class_names, lr=0.04, chains=2,
        prior=0.1, draws=options.draws, thin=5, burn_in=options.burn_in, batch_size=16, warmup=options.burn_in,
    )  # fmt: skip
    for p, truth in zip(posterior.predict(test.inputs[-3:]).exp(), test.targets[-3:], strict=True):
        print(f"{data.class_names[p.argmax()]} ({p.max():.0%}), true {data.class_names[truth]}")
    return posterior


if __name__ == "__main__":
    main()
