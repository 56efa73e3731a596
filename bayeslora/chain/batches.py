"""Batches as a function of (seed, chain, step): nothing to iterate, nothing to save, nothing to lose on resuming."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bayeslora.datasets.base import Data, Split, Transform
from bayeslora.errors import ConfigError, require
from bayeslora.rng import generator


class Batches:
    """The training batch of any step: `batches(step)` gives (inputs, targets).

    An epoch is a fresh permutation of the N training examples, cut into `N // batch_size` batches of equal size; the
    remainder is left out. Each batch is therefore, on its own, a uniformly random subset of the training set, so the
    potential estimated on it is unbiased. Augmentation is drawn anew at every step.

    With `bucket` > 1, examples of like length share a batch, so that less of it is padding. The permutation is cut
    into groups of `bucket` batches; the examples of a group are sorted by length and cut into batches, whose order is
    shuffled. Every example is still in the batch of every step of an epoch with the same probability B / N, so each
    batch's potential stays unbiased; a group visits the very examples it would visit unsorted; epochs stay independent.
    What changes is the noise: a batch's examples are alike in length, so the gradient of one batch varies more from
    step to step if it depends on length, and the batches of a group make up for one another (negatively correlated,
    as all batches of an epoch are to a lesser degree, being drawn without replacement). The order of short and long
    batches is the seed's, the same for every chain, so that stacked chains have texts of like length in the same step;
    given that order, chains' batches are independent.

    Args:
        data: the dataset; its training split is moved to `device` once (and not copied if it is there already).
        batch_size: examples a batch; None for all N at every step, in order.
        seed, chain: whose batches these are.
        device: where batches are made and given.
        channels_last: give images [B, C, H, W] in channels-last memory format.
        bucket: batches a group; 1 leaves the permutation as it is, as do data without lengths (images).

    Raises:
        ConfigError: the batch size is below 1 or above N, or the bucket is below 1.
    """

    augment_purpose = "augment"

    def __init__(
        self,
        data: Data,
        batch_size: int | None,
        seed: int,
        chain: int,
        device: torch.device | str = "cpu",
        *,
        channels_last: bool = False,
        bucket: int = 1,
    ) -> None:
        size = len(data.train)
        require(bucket >= 1, f"chain.bucket={bucket} must be at least 1, which leaves the batches unsorted")
        if batch_size is not None and not 1 <= batch_size <= size:
            raise ConfigError(
                f"chain.batch_size={batch_size} must be from 1 to {size}, the number of training examples, or null"
                " for all of them at every step"
            )
        self.train = data.train.to(device)
        self.transform, self.augment = data.transform, data.augment
        self.batch_size = batch_size
        self.bucket, self.lengths = bucket, data.lengths
        self.seed, self.chain = seed, chain
        self.channels_last = channels_last
        self.steps_per_epoch = 1 if batch_size is None else size // batch_size
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> tuple[Any, Tensor]:
        """Model inputs [B, …] and targets int64 [B] of a step, on the device."""
        inputs, targets = self.stored(step)
        return self.prepare(inputs), targets

    def prepare(self, stored: Any) -> Any:
        """Stored inputs [B, …] as the model takes them."""
        return _laid_out(self.transform(stored), self.channels_last)

    def stored(self, step: int) -> tuple[Any, Tensor]:
        """The same as they are stored, augmented but not yet transformed: all steps' inputs are of one shape."""
        batch = self.train if self.batch_size is None else self.train.take(self.indices(step))
        inputs = batch.inputs
        if self.augment is not None:
            inputs = self.augment(inputs, generator(self.seed, self.chain, step, self.augment_purpose))
        return inputs, batch.targets

    def indices(self, step: int) -> Tensor:
        """The training examples in a step's batch: int64 [B], on the device."""
        if self.batch_size is None:
            return torch.arange(len(self.train), device=self.train.targets.device)
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = self._order(epoch, self.batch_size).to(self.train.targets.device)
            self._epoch = epoch
        return self._permutation[position * self.batch_size : (position + 1) * self.batch_size]

    def _order(self, epoch: int, batch_size: int) -> Tensor:
        """The order in which an epoch visits the training examples, int64 on the CPU."""
        order = torch.randperm(len(self.train), generator=generator(self.seed, self.chain, epoch, "batches"))
        if self.bucket == 1 or self.lengths is None:
            return order
        random = generator(self.seed, 0, epoch, "buckets")
        return bucketed(order[: self.steps_per_epoch * batch_size], self.lengths, batch_size, self.bucket, random)


class FreshBatches(Batches):
    """Batches that do not depend on those a chain moves by: B of the N examples anew at every step, without an epoch.

    The state of a chain knows which examples of the present epoch are still to come, so the gradient on its own next
    batch is not independent of it; on one of these it is. Augmentation is as in training. No buckets.
    """

    augment_purpose = "thermometer/augment"

    def indices(self, step: int) -> Tensor:
        """The examples of a step: a uniformly random subset of the size of a training batch."""
        if self.batch_size is None:
            return super().indices(step)
        order = torch.randperm(len(self.train), generator=generator(self.seed, self.chain, step, "thermometer"))
        return order[: self.batch_size].to(self.train.targets.device)


def bucketed(order: Tensor, lengths: Tensor, batch_size: int, bucket: int, random: torch.Generator) -> Tensor:
    """A random order rearranged so that batches hold examples of like length, as `Batches` says.

    Args:
        order: examples in random order, int64 [M], M a multiple of the batch size.
        lengths: of all examples, [N].
        batch_size: examples a batch.
        bucket: batches a group; the last group may have fewer.
        random: shuffles the batches of each group.
    """
    groups = []
    for group in order.split(bucket * batch_size):
        batches = group[lengths[group].argsort(stable=True)].view(-1, batch_size)
        groups.append(batches[torch.randperm(len(batches), generator=random)].flatten())
    return torch.cat(groups)


class SharedBatches:
    """The share of one rank in the batch of any step: `batches(step)` gives (inputs, targets).

    The ranks' shares together are the step's batch, augmented as a whole, so K ranks see what one would see.

    Args:
        batches: the chain's batches.
        rank: whose share.
        ranks: K, which divides the batch.
    """

    def __init__(self, batches: Batches, rank: int, ranks: int) -> None:
        self.batches, self.rank, self.ranks = batches, rank, ranks

    def __call__(self, step: int) -> tuple[Any, Tensor]:
        """Model inputs [B/K, …] and targets int64 [B/K] of a step, on the device."""
        inputs, targets = tree_map(lambda whole: whole.chunk(self.ranks)[self.rank], self.batches.stored(step))
        return self.batches.prepare(inputs), targets


def evaluation_batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> Iterator[tuple[Any, Tensor]]:
    """A split in order, as (inputs [B, …], targets int64 [B]) on the device; the last batch may be smaller.

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


def _laid_out(inputs: Any, channels_last: bool) -> Any:
    """Images in channels-last memory format, if asked; other inputs as they are."""
    images = isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()
    return inputs.contiguous(memory_format=torch.channels_last) if channels_last and images else inputs
