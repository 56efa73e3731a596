"""Passes over whatever a posterior is to predict: the same examples in the same order for every draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bayeslora.atomic import digest
from bayeslora.counts import counted
from bayeslora.datasets.base import Split
from bayeslora.datasets.in_memory import Identity, as_split, pair
from bayeslora.errors import DataError
from bayeslora.models.keywords import take_keywords

Loader = Callable[[], Iterable[tuple[Any, Tensor]]]
"""Starts a pass over (inputs, targets) batches."""

BATCH = 500
"""Examples a forward pass, where the caller gives no batches."""
ORDER = "predictions are averaged over draws row by row, so every pass must give the same examples in the same order"


def passes(
    inputs: Any, model: nn.Module, transform: Callable[[Tensor], Tensor] | None = None, labels: bool = False
) -> Loader:
    """Passes over what `Posterior.predict` takes, in the model's precision.

    Args:
        inputs: a function that starts a pass, batches, a `DataLoader`, a map-style dataset, a tensor or an array, or
            several of these by name.
        model: for which they are, on whose device they are given.
        transform: what is stored (images of bytes, or a `Split`) to model inputs; None where it is not known.
        labels: the targets of a dataset are labels.

    Raises:
        DataError: a loader that shuffles, at once or when a second pass differs from the first; images of bytes without
            a transform; NaN.
    """
    own = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    stored = isinstance(inputs, Split) and transform is not None
    if isinstance(inputs, Dataset | Split) or _with_targets(inputs):
        inputs = as_split(inputs, labels=labels).inputs
    if not isinstance(inputs, Tensor) and hasattr(inputs, "__array__"):
        inputs = np.array(inputs)  # a copy: torch warns of arrays that it may not write to
    if isinstance(inputs, Tensor | np.ndarray | Mapping):
        whole = tree_map(torch.as_tensor, inputs)
        if isinstance(whole, Mapping):
            take_keywords(model, whole)
        count = _counted(whole)
        batches = [tree_map(lambda held, at=at: held[at : at + BATCH], whole) for at in range(0, count, BATCH)]
        bytes_of_images = isinstance(whole, Tensor) and whole.dtype == torch.uint8 and whole.ndim == 4
        prepare = transform if stored or bytes_of_images else Identity()

        def own_device(held: Tensor) -> Tensor:
            return held.to(own.device)

        if prepare is None:
            raise DataError("these images are bytes; give what the model takes, scaled as for the run's own images")
        return lambda: ((_like(prepare(tree_map(own_device, batch)), own), torch.empty(0)) for batch in batches)
    if isinstance(inputs, DataLoader) and _shuffles(inputs):
        raise DataError(f"this DataLoader shuffles, but {ORDER}: give one with shuffle=False")
    return _Repeated(inputs if callable(inputs) else lambda: inputs, model, own)


def _with_targets(inputs: Any) -> bool:
    """Whether it is a pair (inputs [N, …], targets) of tensors or arrays, as `bayeslora.sample` takes it."""
    if not (isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(p, Tensor | np.ndarray) for p in inputs)):
        return False
    return inputs[0].shape != inputs[1].shape and inputs[0].shape[:1] == inputs[1].shape[:1]


def _counted(whole: Any) -> int:
    """How many examples these are; raises `DataError` where there are none, or NaN is among them."""
    count = len(tree_leaves(whole)[0])
    if not count:
        raise DataError("there is no example to predict")
    for held in tree_leaves(whole):
        wrong = held.reshape(count, -1).isnan().any(1).nonzero()
        if len(wrong):
            raise DataError(f"NaN in {counted(len(wrong), 'input')}, the first in row {int(wrong[0])}")
    return count


def _shuffles(loader: DataLoader[Any]) -> bool:
    """Whether a loader gives the examples of two passes in different orders."""
    order = loader.batch_sampler or loader.sampler
    return not isinstance(loader.dataset, IterableDataset) and list(order) != list(order)


class _Repeated:
    """Passes over batches, each compared with the first.

    Args:
        start: starts a pass.
        model: for which they are.
        own: a tensor of the model, whose device inputs take, and floating-point ones its precision.
    """

    def __init__(self, start: Loader, model: nn.Module, own: Tensor) -> None:
        self.start, self.model, self.own = start, model, own
        self.first: list[str] | None = None

    def __call__(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches of a pass.

        Raises:
            DataError: they are not those of the first pass.
        """
        given: list[str] = []
        for batch in self.start():
            inputs, targets = both if isinstance(both := pair(batch), tuple | list) else (both, torch.empty(0))
            if isinstance(inputs, Mapping):
                take_keywords(self.model, inputs)
            leaves = {str(i): leaf for i, leaf in enumerate(tree_leaves(inputs)) if isinstance(leaf, Tensor)}
            given.append(digest(leaves))
            if self.first is not None and given != self.first[: len(given)]:
                raise DataError(f"the batches of a second pass are not those of the first, but {ORDER}")
            yield _like(inputs, self.own), targets
        if self.first is not None and len(given) < len(self.first):
            raise DataError(
                f"a second pass gives {len(given)} batches and the first gave {len(self.first)}, but {ORDER}: give a"
                " list, a DataLoader or a function that starts a pass, not an iterator that is used up"
            )
        self.first = given


def _like(inputs: Any, own: Tensor) -> Any:
    """Inputs on the device of a model's tensor, floating-point ones in its precision; arrays as tensors."""

    def moved(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, Tensor):
            return value
        return value.to(own.device, own.dtype if value.is_floating_point() else value.dtype)

    return tree_map(moved, inputs)
