"""What a model may not do while it is sampled: drop units at random, or update statistics in a trial pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayeslora.errors import require


def set_sampling_mode(model: nn.Module) -> None:
    """Evaluation mode, in which nothing is dropped at random, but for BatchNorm, which normalises by the batch.

    Recurrent layers without dropout, which compute the same in both modes, are in training mode, as cuDNN asks. Dropout
    would change the potential at every step. Many models look at their own mode when they drop (attention does), so it
    is not enough to quieten the dropout layers. A BatchNorm that its owner froze, with no parameter to sample and in
    evaluation mode, stays in it: it normalises by its running statistics, which do not move.
    """
    batch_norms = normalise_by_batch(model)
    model.eval()
    for module in [*batch_norms, *_recurrent(model)]:
        module.train()


def _recurrent(model: nn.Module) -> list[nn.Module]:
    """Recurrent layers of torch that drop nothing: in evaluation mode cuDNN runs them forward only, not backward."""
    kinds = (nn.RNN, nn.LSTM, nn.GRU)
    return [m for m in model.modules() if isinstance(m, kinds) and type(m) in kinds and m.dropout == 0]


def normalise_by_batch(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that use a batch's statistics while the model is sampled: all that are not frozen."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and (module.training or any(p.requires_grad for p in module.parameters()))
    ]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; after it every layer is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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


def check_answers(model: nn.Module, equal: bool) -> None:
    """Raise `ConfigError` unless a model's answers to one batch are `equal`: dropout, say, that no mode turns off."""
    require(
        equal,
        f"model: {type(model).__name__} gives two answers to one batch, which changes the potential at every step."
        " Dropout layers are off already: look for F.dropout(…, training=True) and the like",
    )
