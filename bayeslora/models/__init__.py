"""Nets as functions of plain arguments."""

from bayeslora.models.resnet import resnet18, resnet20, resnet_small
from bayeslora.models.wide_resnet import wide_resnet, wrn28_10

__all__ = ["resnet18", "resnet20", "resnet_small", "wide_resnet", "wrn28_10"]
