"""From what a dataset's factory makes to `Data`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from bayeslora.datasets.base import Data, limited
from bayeslora.datasets.in_memory import from_examples

log = logging.getLogger(__name__)


def load_data(dataset: Any, labels: bool = False) -> Data:
    """What a dataset's target gives: `Data`, or something with `load()` that does; or map-style datasets in its place.

    Args:
        dataset: what was made.
        labels: the likelihood is of labels that hold or do not: so are targets of map-style datasets, and two classes.

    Raises:
        DataError: it gives something else, or the data are wrong.
    """
    loaded = dataset.load() if hasattr(dataset, "load") else dataset
    data = loaded if isinstance(loaded, Data) else from_examples(loaded, name=type(dataset).__name__, labels=labels)
    data = data.with_one_label() if labels and len(data.class_names) == 2 else data
    for note in data.notes:
        log.info("%s: %s", data.name, note)
    return data.with_scale_notes()


def made_data(
    make_dataset: Callable[[], Any], limits: Mapping[str, int | None] | None = None, labels: bool = False
) -> Data:
    """`load_data` of what a dataset's factory makes, shortened by `limited` where it has no such settings itself."""
    return limited(load_data(make_dataset(), labels), **(limits or {}))
