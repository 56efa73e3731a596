"""Datasets held in memory as tensors; one file a dataset."""

from bayeslora.datasets.base import Data, Dataset, Real, Split
from bayeslora.datasets.cifar import Cifar10, Cifar100
from bayeslora.datasets.csv import Csv
from bayeslora.datasets.digits import Digits
from bayeslora.datasets.glue import Glue
from bayeslora.datasets.hub import Hub
from bayeslora.datasets.image_folder import ImageFolder
from bayeslora.datasets.in_memory import from_examples
from bayeslora.datasets.npz import Npz

__all__ = [
    "Cifar10",
    "Cifar100",
    "Csv",
    "Data",
    "Dataset",
    "Digits",
    "Glue",
    "Hub",
    "ImageFolder",
    "Npz",
    "Real",
    "Split",
    "from_examples",
]
