"""Nets as functions of plain arguments."""

from bayeslora.chain.modes import frozen_statistics, set_sampling_mode
from bayeslora.models.lora import LoraClassifier, load_base, lora_classifier
from bayeslora.models.perceptron import Mlp, mlp
from bayeslora.models.resnet import resnet18, resnet20, resnet_small
from bayeslora.models.wide_resnet import wide_resnet, wrn28_10

__all__ = [
    "LoraClassifier",
    "Mlp",
    "frozen_statistics",
    "load_base",
    "lora_classifier",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet_small",
    "set_sampling_mode",
    "wide_resnet",
    "wrn28_10",
]
