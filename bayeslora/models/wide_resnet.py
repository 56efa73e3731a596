"""Wide residual nets with pre-activation blocks, without dropout.

Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146.
"""

from __future__ import annotations

from torch import Tensor, nn

from bayeslora.errors import require
from bayeslora.models.layers import Layers, global_average, initialise


class PreActivationBlock(nn.Module):
    """shortcut(x) + conv(activation(norm(conv(y)))) with y = activation(norm(x)); a projecting shortcut starts from y.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut.
        layers: what to build from.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.norm1 = layers.norm(inputs)
        self.conv1 = layers.conv(inputs, outputs, stride=stride)
        self.norm2 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs)
        self.shortcut = layers.shortcut(inputs, outputs, stride, norm=False)
        self.activation = layers.activation

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = self.activation(self.norm1(x))
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(y)
        change: Tensor = self.conv2(self.activation(self.norm2(self.conv1(y))))
        return change + kept


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks, a last norm, the global average, a linear head.

    Args:
        num_classes, in_channels: outputs and inputs.
        depth: number of 3x3 convolutions plus four, 6 n + 4 for n blocks a stage.
        width: the stages have 16, 32 and 64 times as many channels.
        layers: what to build from.
    """

    def __init__(self, num_classes: int, in_channels: int, depth: int, width: int, layers: Layers) -> None:
        super().__init__()
        self.stem = layers.conv(in_channels, 16)
        channels = 16
        body: list[nn.Module] = []
        for outputs, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for block in range((depth - 4) // 6):
                body.append(PreActivationBlock(channels, outputs, first_stride if block == 0 else 1, layers))
                channels = outputs
        self.blocks = nn.Sequential(*body)
        self.norm = layers.norm(channels)
        self.activation = layers.activation
        self.head = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.head(global_average(self.activation(self.norm(self.blocks(self.stem(x))))))
        return logits


def wide_resnet(
    depth: int, width: int, num_classes: int, *, in_channels: int = 3, norm: str = "batch", activation: str = "relu"
) -> WideResNet:
    """WRN-depth-width.

    Args:
        depth: 6 n + 4 for n blocks a stage: 10, 16, 22, 28, …
        width: the widening factor.
        num_classes, in_channels: outputs and inputs.
        norm: batch, group or frn.
        activation: relu or swish.

    Raises:
        ConfigError: an impossible depth or width, an unknown norm or activation.
    """
    require(depth >= 10 and depth % 6 == 4, f"model.depth must be 10, 16, 22, 28, … (6 n + 4), not {depth}")
    require(width >= 1, f"model.width must be at least 1, not {width}")
    return WideResNet(num_classes, in_channels, depth, width, Layers.named(norm, activation, bias=False))


def wrn28_10(num_classes: int, in_channels: int = 3, norm: str = "batch", activation: str = "relu") -> WideResNet:
    """WRN-28-10: 36,536,884 parameters for 100 classes with batch norm.

    Arguments and errors: see `wide_resnet`.
    """
    return wide_resnet(28, 10, num_classes, in_channels=in_channels, norm=norm, activation=activation)
