"""What a model may not do while it is sampled: drop units at random, or learn statistics in a trial pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_sampling_mode(model: nn.Module) -> None:
    """Evaluation mode, in which nothing is dropped at random, but for BatchNorm, which normalises by the batch.

    Dropout would change the potential at every step. Many models look at their own mode when they drop (attention
    does), so it is not enough to quieten the dropout layers.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()


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
