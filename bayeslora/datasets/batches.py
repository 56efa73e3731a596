"""Batches as a function of (seed, chain, step): nothing to iterate, nothing to save, nothing to lose on resuming."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bayeslora.datasets.base import Data, Split, Transform
from bayeslora.errors import ConfigError
from bayeslora.rng import generator


class Batches:
    """The training batch of any step: `batches(step)` gives (inputs, targets).

    An epoch is a fresh permutation of the N training examples, cut into `N // batch_size` batches of equal size; the
    remainder is left out. Each batch is therefore, on its own, a uniformly random subset of the training set, so the
    potential estimated on it is unbiased. Augmentation is drawn anew at every step.

    Args:
        data: the dataset; its training split is moved to `device` once (and not copied if it is there already).
        batch_size: examples a batch; None for all N at every step, in order.
        seed, chain: whose batches these are.
        device: where batches are made and given.
        channels_last: give images [B, C, H, W] in channels-last memory format.

    Raises:
        ConfigError: the batch size is below 1 or above N.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int | None,
        seed: int,
        chain: int,
        device: torch.device | str = "cpu",
        *,
        channels_last: bool = False,
    ) -> None:
        size = len(data.train)
        if batch_size is not None and not 1 <= batch_size <= size:
            raise ConfigError(
                f"chain.batch_size={batch_size} must be from 1 to {size}, the number of training examples, or null"
                " for all of them at every step"
            )
        self.train = data.train.to(device)
        self.transform, self.augment = data.transform, data.augment
        self.batch_size = batch_size
        self.seed, self.chain = seed, chain
        self.channels_last = channels_last
        self.steps_per_epoch = 1 if batch_size is None else size // batch_size
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Model inputs float32 [B, …] and targets int64 [B] of a step, on the device."""
        batch = self.train if self.batch_size is None else self.train.take(self.indices(step))
        inputs = batch.inputs
        if self.augment is not None:
            inputs = self.augment(inputs, generator(self.seed, self.chain, step, "augment"))
        return _laid_out(self.transform(inputs), self.channels_last), batch.targets

    def indices(self, step: int) -> Tensor:
        """The training examples in a step's batch: int64 [B], on the device."""
        if self.batch_size is None:
            return torch.arange(len(self.train), device=self.train.targets.device)
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = generator(self.seed, self.chain, epoch, "batches")
            self._permutation = torch.randperm(len(self.train), generator=random).to(self.train.targets.device)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]


def evaluation_batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order, as (inputs float32 [B, …], targets int64 [B]) on the device; the last batch may be smaller.

    Args:
        split: the examples.
        transform: stored inputs to model inputs.
        batch_size: examples a batch.
        device: where batches are made and given.
        channels_last: give images [B, C, H, W] in channels-last memory format.

    Raises:
        ConfigError: the batch size is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size of an evaluation must be at least 1, not {batch_size}")
    for start in range(0, len(split), batch_size):
        batch = split.take(slice(start, start + batch_size)).to(device)
        yield _laid_out(transform(batch.inputs), channels_last), batch.targets


def _laid_out(inputs: Tensor, channels_last: bool) -> Tensor:
    """Images in channels-last memory format, if asked; other inputs as they are."""
    return inputs.contiguous(memory_format=torch.channels_last) if channels_last and inputs.ndim == 4 else inputs
