"""A dataset and a model of your own, as a configuration names them: `_target_: mine.Moons`."""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Moons:
    """Two half-moons of points in the plane."""

    def __init__(self, examples: int = 400, noise: float = 0.15, limit_train: int | None = None) -> None:
        self.examples, self.noise, self.limit_train = examples, noise, limit_train

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        """Training and test set."""
        from sklearn.datasets import make_moons

        x, y = (torch.tensor(part) for part in make_moons(self.examples, noise=self.noise, random_state=0))
        half = self.examples // 2
        train = slice(0, min(half, self.limit_train or half))
        return TensorDataset(x[train], y[train]), TensorDataset(x[half:], y[half:])


class Net(nn.Module):
    """One hidden layer; the application fills in `num_classes`."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
