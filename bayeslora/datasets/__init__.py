"""Datasets held in memory as tensors; one file a dataset."""

from bayeslora.datasets.base import Data, Dataset, Split
from bayeslora.datasets.cifar import Cifar10, Cifar100
from bayeslora.datasets.digits import Digits
from bayeslora.datasets.glue import Glue

__all__ = ["Cifar10", "Cifar100", "Data", "Dataset", "Digits", "Glue", "Split"]
