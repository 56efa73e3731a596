"""Which examples of a run are evaluated, in which order and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayeslora.chain.batches import Batches
from bayeslora.datasets.base import Split
from bayeslora.datasets.text import TokenCounts, token_counts
from bayeslora.experiment import Experiment, Loader


def evaluated_split(experiment: Experiment) -> Split:
    """The split that `evaluate.split` names, in the order of `evaluated_order`, on the run's device."""
    return experiment.by_length(getattr(experiment.data, experiment.evaluation.split)).to(experiment.device)


def evaluated_order(experiment: Experiment) -> Tensor:
    """Which example of that split is evaluated in each place, int64 [N]."""
    return experiment.order(getattr(experiment.data, experiment.evaluation.split))


def is_whole_test_set(experiment: Experiment) -> bool:
    """Whether that split is the whole test set in its order."""
    return experiment.evaluation.split == "test" and experiment.record["dataset"].get("limit_test") is None


def validation_set(experiment: Experiment) -> tuple[Loader, Tensor] | None:
    """Passes over the validation set and its targets; None where there is none, or where it is evaluated itself."""
    split = experiment.data.validation
    if not len(split) or experiment.evaluation.split == "validation":
        return None
    split = experiment.by_length(split)
    return experiment.loader(split.to(experiment.device)), split.targets


def precision(experiment: Experiment) -> AbstractContextManager[Any]:
    """The precision in which draws are evaluated, inside the block."""
    enabled = experiment.evaluation.precision == "bf16-mixed"
    return torch.autocast(experiment.device.type, torch.bfloat16, enabled=enabled)


def tokens(experiment: Experiment) -> TokenCounts | None:
    """Tokens and padding of an epoch's steps of a text dataset, of all stacked chains together or of one chain."""
    if experiment.data.lengths is None:
        return None
    chain, chains = experiment.chain, experiment.chain.chosen
    make = partial(Batches, experiment.data, chain.batch, experiment.seed, bucket=chain.bucket)
    batches = [make(number) for number in (chains if chain.parallel == "stacked" else chains[:1])]
    return token_counts(batches, range(batches[0].steps_per_epoch))
