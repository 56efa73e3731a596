"""Passes over whatever a posterior is to predict: the same examples in the same order for every draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from bayeslora.atomic import digest
from bayeslora.datasets.base import Split
from bayeslora.datasets.in_memory import Identity, as_split
from bayeslora.errors import DataError

Loader = Callable[[], Iterable[tuple[Any, Tensor]]]
"""Starts a pass over (inputs, targets) batches."""

BATCH = 500
"""Examples a forward pass, where the caller gives no batches."""
SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
ORDER = "predictions are averaged over draws row by row, so every pass must give the same examples in the same order"


def passes(inputs: Any, model: nn.Module, transform: Callable[[Tensor], Tensor] | None = None) -> Loader:
    """Passes over what `Posterior.predict` takes, in the model's precision.

    Args:
        inputs: a function that starts a pass, batches, a `DataLoader`, a map-style dataset, a tensor or an array.
        model: for which they are.
        transform: images of bytes to model inputs; None where it is not known.

    Raises:
        DataError: a loader that shuffles, at once or when a second pass differs from the first; images of bytes without
            a transform.
    """
    own = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if isinstance(inputs, Dataset | Split):
        inputs = as_split(inputs).inputs
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    if isinstance(inputs, Tensor):
        batches = inputs.split(BATCH)
        prepare = transform if inputs.dtype == torch.uint8 and inputs.ndim == 4 else Identity()
        if prepare is None:
            raise DataError("these images are bytes; give what the model takes, scaled as for the run's own images")
        return lambda: ((_as(prepare(batch.to(own.device)), own.dtype), batch.new_empty(0)) for batch in batches)
    if isinstance(inputs, DataLoader) and isinstance(inputs.sampler, SHUFFLING):
        raise DataError(f"this DataLoader shuffles, but {ORDER}: give one with shuffle=False")
    return _Repeated(inputs if callable(inputs) else lambda: inputs, own.dtype)


class _Repeated:
    """Passes over batches, each compared with the first.

    Args:
        start: starts a pass.
        dtype: of floating-point inputs to the model.
    """

    def __init__(self, start: Loader, dtype: torch.dtype) -> None:
        self.start, self.dtype = start, dtype
        self.first: list[str] | None = None

    def __call__(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches of a pass.

        Raises:
            DataError: they are not those of the first pass.
        """
        given: list[str] = []
        for inputs, targets in self.start():
            leaves = {str(i): leaf for i, leaf in enumerate(tree_leaves(inputs)) if isinstance(leaf, Tensor)}
            given.append(digest(leaves))
            if self.first is not None and given != self.first[: len(given)]:
                raise DataError(f"the batches of a second pass are not those of the first, but {ORDER}")
            yield tree_map(lambda leaf: _as(leaf, self.dtype), inputs), targets
        if self.first is not None and len(given) < len(self.first):
            raise DataError(
                f"a second pass gives {len(given)} batches and the first gave {len(self.first)}, but {ORDER}: give a"
                " list, a DataLoader or a function that starts a pass, not an iterator that is used up"
            )
        self.first = given


def _as(value: Any, dtype: torch.dtype) -> Any:
    """An array as a tensor, and a floating-point one in another precision; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
