"""Anyone's map-style datasets, tensors and arrays as `Data`: read into memory once, real numbers or classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.datasets.base import REALS, Data, Real, Split, Transform, cast, limited
from bayeslora.datasets.images import Normalise, shared_notes, stack_images
from bayeslora.datasets.validation import check_class_numbers, check_counted_from_0
from bayeslora.errors import DataError, require

log = logging.getLogger(__name__)

TARGETS = ("labels", "label", "targets", "target")
"""What the target may be called in an item that is a dictionary."""
REREAD = 16
"""Items of a map-style dataset that are read twice: a flip of every second image passes one time in 2¹⁶."""


@dataclass(frozen=True)
class Identity:
    """Stored inputs are the model's inputs."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs


def from_examples(
    train: Any,
    test: Any = None,
    validation: Any = None,
    *,
    name: str = "own data",
    class_names: Sequence[str] | None = None,
    transform: Transform | None = None,
    precision: torch.dtype | None = torch.float32,
    labels: bool = False,
) -> Data:
    """A dataset made of anyone's examples, each part as `as_split` takes it.

    Args:
        train: the training examples, or all parts: a mapping with `train`, `test` and perhaps `validation`, or a tuple
            (train, test) or (train, validation, test) of datasets.
        test, validation: further parts, or None.
        name: what to call it in reports.
        class_names: by class, or by label; None: their numbers.
        transform: stored inputs to model inputs; None: as they are, but images of bytes [N, C, H, W] scaled to [0, 1].
        precision: of real targets, and of inputs that are real numbers: the model's, float32 or float64; None: each as
            it is given.
        labels: the targets are labels that hold or do not, [N] or [N, L] of 1, 0, and -1 or NaN where one is not known.

    Raises:
        DataError: something that holds no (input, target) examples, or parts of different form.
    """
    parts = {"train": train, "test": test, "validation": validation}
    if isinstance(train, Mapping):
        parts |= dict(train)
    elif isinstance(train, tuple) and len(train) in (2, 3) and not _is_array(train[0]):
        parts |= dict(
            zip(("train", "validation", "test") if len(train) == 3 else ("train", "test"), train, strict=True)
        )
    splits = {part: as_split(one, part, precision, labels) for part, one in parts.items() if one is not None}
    require("train" in splits, f"{name}: there is no part called train")
    empty = splits["train"].take(slice(0))
    ours, held_out, tested = whole = [splits.get(part, empty) for part in ("train", "validation", "test")]
    _check_alike(splits, name)
    real: Real | None = None
    classes: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    if labels:
        named = tuple(class_names or (f"label {i}" for i in range(ours.targets.shape[1])))
    else:
        real, classes = _targets(whole, class_names, name)
    own_transform = transform or default_transform(ours.inputs)
    data = Data(name, ours, held_out, tested, class_names=classes, transform=own_transform, real=real, labels=named)
    return data.with_notes(*shared_notes(ours.inputs, tested.inputs, what="example"))


def as_split(
    examples: Any, part: str = "the data", precision: torch.dtype | None = torch.float32, labels: bool = False
) -> Split:
    """Examples in memory.

    Args:
        examples: a map-style dataset of (input, target) items, a pair of tensors or arrays (inputs [N, …], targets
            [N] or [N, D]), or a `Split`. An input may be a dictionary of several by name; so may an item whose target
            is called one of `TARGETS`.
        part: what to call it in messages.
        precision: of real numbers; None: as they are.
        labels: see `from_examples`.

    Raises:
        DataError: there is no example, or it is no (input, target) pair.
    """
    if isinstance(examples, Split):
        return examples
    if isinstance(examples, TensorDataset):
        examples = examples.tensors
    if isinstance(examples, tuple | list) and len(examples) == 2 and _is_array(examples[0]):
        given = dict(examples[0]) if isinstance(examples[0], Mapping) else examples[0]
        targets, inputs = _tensor(examples[1], part), tree_map(lambda values: _tensor(values, part), given)
    else:
        inputs, targets = _collected(examples, part)
    for name, held in inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]:
        if len(held) != len(targets):
            raise DataError(
                f"{part}: {len(held)} inputs{f' {name}' if name else ''} and {len(targets)} targets; there must be as"
                " many"
            )
    if not len(targets):
        raise DataError(f"{part} holds no examples")
    as_targets = _as_labels if labels else _as_targets
    inputs = tree_map(
        lambda held: cast(held, part, precision or _full(held.dtype)) if held.is_floating_point() else held, inputs
    )
    return Split(inputs, as_targets(targets, part, precision))


def _is_array(value: Any) -> bool:
    """Whether it is an array or a table of pandas, or several by name."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_array, value.values()))
    return isinstance(value, Tensor | np.ndarray) or hasattr(value, "to_numpy")


def _tensor(values: Any, part: str) -> Tensor:
    """A tensor of an array, of a table of pandas or of numbers."""
    try:
        return torch.as_tensor(np.array(values.to_numpy()) if hasattr(values, "to_numpy") else values)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(
            f"{part}: {kind} holds something else than numbers; make numbers of words (0, 1, … of classes), and leave"
            " out what is missing"
        ) from error


def _full(kind: torch.dtype) -> torch.dtype:
    """A type of real numbers, float32 in the place of half precision."""
    return kind if kind in REALS else torch.float32


def _collected(examples: Any, part: str) -> tuple[Any, Tensor]:
    """Inputs and targets of a map-style dataset, one item at a time."""
    if isinstance(examples, DataLoader):
        raise DataError(
            f"{part} is a DataLoader, whose batches and their order chains choose themselves; give its dataset"
            " (loader.dataset)"
        )
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
        raise DataError(
            f"{part} is {type(examples).__name__}; give a map-style dataset (with __len__ and __getitem__), or a pair"
            " of tensors (inputs, targets)"
        )
    items = [pair(examples[row]) for row in range(len(examples))]
    wrong = next((item for item in items if not (isinstance(item, tuple | list) and len(item) == 2)), None)
    if wrong is not None:
        described = f"a {type(wrong).__name__}" + (
            f" with {', '.join(map(str, wrong))}" if isinstance(wrong, dict) else ""
        )
        raise DataError(
            f"{part}: an item must be (input, target), or a dictionary of inputs with one of {', '.join(TARGETS)}, not"
            f" {described}"
        )
    if not items:
        raise DataError(f"{part} holds no examples")
    stacked = _of_items(items, part)
    rows = list(range(0, len(items), -(-len(items) // REREAD)))
    kept, again = tree_map(lambda held: held[rows], stacked), _of_items([pair(examples[row]) for row in rows], part)
    if not all(map(_same, tree_leaves(kept), tree_leaves(again))):
        raise DataError(
            f"{part}: an item is another one each time it is read, most likely by random augmentation, and a posterior"
            " is of data that stay; leave the random transforms out"
        )
    return stacked


def _of_items(items: Sequence[Any], part: str) -> tuple[Any, Tensor]:
    """Inputs and targets of (input, target) items."""
    try:
        return _stacked([item[0] for item in items], images=True), _stacked([item[1] for item in items])
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"{part}: items cannot be stacked to tensors ({str(error).splitlines()[0]})") from error


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN where NaN is."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def pair(item: Any) -> Any:
    """An item that is a dictionary with its target in it as (inputs, target); others as they are."""
    named = [name for name in TARGETS if isinstance(item, Mapping) and name in item]
    if len(named) != 1 or len(item) < 2:
        return item
    return {key: value for key, value in item.items() if key != named[0]}, item[named[0]]


def _stacked(values: Sequence[Any], what: str = "it ", images: bool = False) -> Any:
    """Tensors, numbers, arrays or images of several examples as a tensor; dictionaries of such by name.

    Args:
        values: of the examples.
        what: they are, for messages.
        images: whether images of Pillow are to be seen (`stack_images`), not masks whose levels are classes.
    """
    if isinstance(values[0], Mapping):
        return {name: _stacked([value[name] for value in values], f"{name} ", images) for name in values[0]}
    if isinstance(values[0], str):
        raise TypeError(f"{what}holds words; make numbers of them, e.g. by a tokenizer")
    if images and isinstance(values[0], Image.Image):
        return stack_images(values)
    return torch.stack([v if isinstance(v, Tensor) else torch.as_tensor(np.array(v)) for v in values])


def _as_targets(targets: Tensor, part: str, precision: torch.dtype | None) -> Tensor:
    """Class numbers int64 [N], or real numbers [N, D]."""
    if not targets.is_floating_point():
        classes = targets.squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 else targets
        check_class_numbers(classes, part)
        return classes.long()
    if not targets.isfinite().all():
        raise DataError(f"{part}: {int((~targets.isfinite()).sum())} targets are NaN or infinite; leave them out")
    return cast(targets, part, precision or _full(targets.dtype)).reshape(len(targets), -1)


def _as_labels(targets: Tensor, part: str, precision: torch.dtype | None) -> Tensor:  # noqa: ARG001
    """Labels int64 [N, L] of 1, 0, and -1 where one is not known."""
    if targets.is_floating_point():
        targets = targets.nan_to_num(nan=-1.0, posinf=2.0, neginf=2.0)
    whole = targets.long()
    if targets.ndim not in (1, 2) or not torch.equal(whole.to(targets.dtype), targets) or int(whole.max()) > 1:
        raise DataError(f"{part}: labels must be 1, 0, or -1 where one is not known, [N] or [N, L]")
    return whole.reshape(len(targets), -1)


def _check_alike(splits: Mapping[str, Split], name: str) -> None:
    first = splits["train"]
    for part, split in splits.items():
        shapes = (tree_map(lambda held: list(held.shape[1:]), s.inputs) for s in (first, split))
        ours, theirs = ((next(shapes), _kind(s.targets), tuple(s.targets.shape[1:])) for s in (first, split))
        if ours != theirs:
            raise DataError(
                f"{name}: inputs of {part} are {theirs[0]} with targets {theirs[1]}, those of train"
                f" {ours[0]} with targets {ours[1]}; all parts must be alike"
            )


def _kind(targets: Tensor) -> str:
    return "of real numbers" if targets.is_floating_point() else "of classes"


def _targets(
    splits: Sequence[Split], class_names: Sequence[str] | None, name: str
) -> tuple[Real | None, tuple[str, ...]]:
    """What the targets are: real numbers, or the names of the classes."""
    targets = torch.cat([split.targets for split in splits])
    if targets.is_floating_point():
        count = targets.shape[1]
        names = ("target",) if count == 1 else tuple(f"target {i}" for i in range(count))
        return Real(names, (0.0,) * count, (1.0,) * count), ()
    most = int(targets.max())
    if most < 0:
        raise DataError(f"{name}: no target is known, there is none of 0 or more")
    if class_names is None and targets.ndim == 1:
        check_counted_from_0(targets, name)
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(most + 1)))
    if most >= len(names):
        raise DataError(f"{name}: there is a class {most} and class_names has only {len(names)} names")
    if len(names) < 2:
        raise DataError(f"{name}: all examples are of one class; give real targets as floats, or class_names")
    return None, names


def default_transform(inputs: Any) -> Transform:
    """Images of bytes [N, C, H, W] scaled to [0, 1]; everything else as it is."""
    if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4:
        channels = inputs.shape[1]
        return Normalise((0.0,) * channels, (1.0,) * channels)
    return Identity()


def load_data(dataset: Any, labels: bool = False) -> Data:
    """What a dataset's target gives: `Data`, or something with `load()` that does; or map-style datasets in its place.

    Args:
        dataset: what was made.
        labels: the likelihood is of labels that hold or do not: so are targets of map-style datasets, and two classes.

    Raises:
        DataError: it gives something else, or the data are wrong.
    """
    loaded = dataset.load() if hasattr(dataset, "load") else dataset
    if isinstance(loaded, Data):
        data = loaded
    else:
        data = from_examples(loaded, name=type(dataset).__name__, labels=labels, precision=None)
    data = data.with_one_label() if labels and len(data.class_names) == 2 else data
    for note in data.notes:
        log.info("%s: %s", data.name, note)
    return data.with_notes()


def made_data(
    make_dataset: Callable[[], Any], limits: Mapping[str, int | None] | None = None, labels: bool = False
) -> Data:
    """`load_data` of what a dataset's factory makes, shortened by `limited` where it has no such settings itself."""
    return limited(load_data(make_dataset(), labels), **(limits or {}))
