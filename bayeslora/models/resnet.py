"""Residual nets for small images: a tiny one, He et al.'s ResNet-20 for CIFAR, and ResNet-18 with a CIFAR stem.

Source: He et al. 2016, arXiv:1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bayeslora.errors import require
from bayeslora.models.layers import Layers, global_average, initialise


class BasicBlock(nn.Module):
    """activation(shortcut(x) + norm(conv(activation(norm(conv(x)))))).

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut.
        layers: what to build from.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, outputs, stride=stride)
        self.norm1 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs)
        self.norm2 = layers.norm(outputs)
        self.shortcut = layers.shortcut(inputs, outputs, stride, norm=True)
        self.activation = layers.activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.shortcut(x) + self.norm2(self.conv2(y)))


class ResNet(nn.Module):
    """A 3x3 stem, residual blocks, the global average and a linear head.

    Args:
        num_classes, in_channels: outputs and inputs.
        blocks: (channels, stride) of each block; the stem has the first block's channels.
        layers: what to build from.
        stem_stride: of the stem.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        blocks: Sequence[tuple[int, int]],
        layers: Layers,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        channels = blocks[0][0]
        self.stem = nn.Sequential(layers.conv(in_channels, channels, stride=stem_stride), layers.norm(channels))
        self.activation = layers.activation
        body: list[nn.Module] = []
        for outputs, stride in blocks:
            body.append(BasicBlock(channels, outputs, stride, layers))
            channels = outputs
        self.blocks = nn.Sequential(*body)
        self.head = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.head(global_average(self.blocks(self.activation(self.stem(x)))))
        return logits


def _stages(width: int, stages: int, depth: int) -> list[tuple[int, int]]:
    """(channels, stride) of each block, `depth` a stage; every later stage doubles the width and halves the size."""
    return [
        (width * 2**stage, 2 if stage > 0 and block == 0 else 1) for stage in range(stages) for block in range(depth)
    ]


def resnet_small(
    num_classes: int,
    in_channels: int = 3,
    norm: str = "frn",
    activation: str = "swish",
    *,
    width: int = 16,
    affine: bool = True,
    stem_stride: int = 1,
) -> ResNet:
    """Three residual blocks for images of 8x8 to 32x32: below 50,000 parameters at width 16, quick on a CPU.

    Without `affine` norms have no parameters and convolutions no biases. Convolutions are then scale-free: what they
    compute depends on directions alone, a bounded space in which chains mix fast (`experiment=digits_resnet`).

    Args:
        num_classes, in_channels: outputs and inputs.
        norm: batch, group or frn.
        activation: relu or swish.
        width: channels of the stem and the first block; the other two blocks, at half the size, have twice as many.
        affine: whether norms have parameters and convolutions biases.
        stem_stride: 2 halves the size from the start, a quarter of the work.

    Raises:
        ConfigError: an unknown norm or activation, no width or stride, FRN without `affine`.
    """
    require(width >= 1, f"model.width must be at least 1, not {width}")
    require(stem_stride >= 1, f"model.stem_stride must be at least 1, not {stem_stride}")
    blocks = [(width, 1), (2 * width, 2), (2 * width, 1)]
    layers = Layers.named(norm, activation, bias=affine, affine=affine)
    return ResNet(num_classes, in_channels, blocks, layers, stem_stride)


def resnet20(num_classes: int, in_channels: int = 3, norm: str = "frn", activation: str = "swish") -> ResNet:
    """ResNet-20 for CIFAR with convolution biases and projection shortcuts: 274,042 parameters with FRN and 10 classes.

    The same function as `resnet20_frn_swish` of google-research/bnn_hmc, on whose posterior Izmailov et al. 2021
    (arXiv:2104.14421) ran Hamiltonian Monte Carlo: every FRN has its threshold, and the activation follows it. One
    difference in alignment: strided convolutions pad one pixel on each side here, on the far side only there.

    Arguments and errors: see `resnet_small`.
    """
    return ResNet(num_classes, in_channels, _stages(16, 3, 3), Layers.named(norm, activation, bias=True))


def resnet18(num_classes: int, in_channels: int = 3, norm: str = "batch", activation: str = "relu") -> ResNet:
    """ResNet-18 with a CIFAR stem (3x3, stride 1, no pooling): 11,173,962 parameters for 10 classes with batch norm.

    Arguments and errors: see `resnet_small`.
    """
    return ResNet(num_classes, in_channels, _stages(64, 4, 2), Layers.named(norm, activation, bias=False))
