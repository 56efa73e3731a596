"""What a model may not do while it is sampled: drop units at random, or learn statistics in a trial pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def set_sampling_mode(model: nn.Module) -> None:
    """Train mode (BatchNorm normalises by the batch) with all dropout off, which would change the potential."""
    model.train()
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave BatchNorm's running statistics alone inside the block (for the ascent pass of SAM)."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
