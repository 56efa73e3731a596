"""Beyond the test set: a reference posterior, a second dataset, corrupted images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayeslora.datasets.base import Data, Split
from bayeslora.datasets.corruptions import CORRUPTIONS, SEVERITIES
from bayeslora.diagnostics.reference import Reference, load_reference
from bayeslora.errors import ConfigError, require
from bayeslora.evaluation.predictions import Predictions, View

if TYPE_CHECKING:
    from bayeslora.build import Setup

OTHER = "out of distribution"


@dataclass
class Further:
    """Examples beyond the test set that a run is asked about.

    Attributes:
        views: what MAP and every draw are asked about.
        missing: what was asked for and cannot be had, `ood` or `corruptions`, and why.
    """

    views: list[View] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def load_fitting_reference(setup: Setup, targets: Tensor) -> Reference | None:
    """The reference that `evaluate.reference` names, if any.

    Raises:
        ConfigError: the evaluated split is not the whole test set, to whose order a reference's `index` refers.
        DataError: it is of other examples, classes or order.
    """
    cfg = setup.cfg
    if cfg.evaluate.reference is None:
        return None
    require(
        cfg.evaluate.split == "test" and cfg.dataset.get("limit_test") is None,
        "evaluate.reference needs the whole test set in its order: set evaluate.split=test and dataset.limit_test=null",
    )
    return load_reference(cfg.evaluate.reference, targets, setup.data.num_classes)


def further_views(setup: Setup) -> Further:
    """A second dataset and corrupted test images, as far as `evaluate` asks for them.

    Raises:
        ConfigError: there is no such dataset.
        DataError: its files are not where they should be.
    """
    further, cfg = Further(), setup.cfg.evaluate
    if cfg.ood is not None:
        data = _load_dataset(cfg.ood, cfg.ood_path, setup)
        problem = _does_not_fit(setup.data, data)
        if problem is None:
            further.views.append(_other_dataset(setup, data))
        else:
            further.missing["ood"] = f"{cfg.ood} holds {problem}; choose a dataset of the same kind and size"
    kind = setup.data.kind
    if kind == "images" and not _bytes(setup.data):
        kind = "images of fractions"
    elif kind == "images" and setup.data.in_channels not in (1, 3):
        kind = f"images of {setup.data.in_channels} channels, not 1 or 3"
    if cfg.corruptions and kind != "images":
        further.missing["corruptions"] = f"the data are {kind}, and corruptions are of images"
    elif cfg.corruptions:
        further.views += _corrupted(setup)
    return further


def beyond(setup: Setup, predictions: Predictions, missing: Mapping[str, str]) -> dict[str, Any]:
    """What `metrics.json` says of them; None, with a `reason`, for what cannot be had."""
    from bayeslora.evaluation.summary import DETECTORS, corruption_rows, out_of_distribution

    found: dict[str, Any] = {}
    views = dict(predictions.views)
    dataset = {"dataset": setup.cfg.evaluate.ood}
    if "ood" in missing:
        found["ood"] = dataset | dict.fromkeys(DETECTORS) | {"reason": missing["ood"]}
    if OTHER in views:
        found["ood"] = dataset | out_of_distribution(predictions, views.pop(OTHER))
    if "corruptions" in missing:
        found["corruptions"] = {"examples": None, "reason": missing["corruptions"]}
    if views:
        targets = _to_corrupt(setup).targets.cpu()
        found["corruptions"] = {"examples": len(targets)} | corruption_rows(views, targets)
    return found


def _bytes(data: Data) -> bool:
    """Whether inputs are stored as bytes, as images are."""
    return data.train.inputs.dtype == torch.uint8


def _does_not_fit(ours: Data, theirs: Data) -> str | None:
    """What another dataset holds that a model for ours cannot take, beside ours; None if it can."""

    def kind(data: Data) -> str:
        if data.texts:
            return f"{'single texts' if data.test.inputs.shape[1] == 1 else 'pairs of texts'}"
        if data.kind == "tables":
            return f"rows of {data.in_features} numbers"
        channels, height, width = data.test.inputs.shape[1:]
        return f"images of {height} × {width} pixels in {channels} channel{'s' * (channels != 1)}"

    return None if kind(ours) == kind(theirs) else f"{kind(theirs)}, and {ours.name} {kind(ours)}"


def _other_dataset(setup: Setup, data: Data) -> View:
    """The test set of another dataset; images through the run's own transform."""
    if setup.cfg.model.get("cache_prefix"):
        from bayeslora.models.prefix import with_prefix

        none = data.train.take(slice(0))
        data = with_prefix(replace(data, train=none, validation=none), setup.model(), setup.device)
    transform = data.transform if data.texts else setup.data.transform
    return View(OTHER, setup.loader(data.test.to(setup.device), transform), None)


def _load_dataset(name: str, path: str | None, setup: Setup) -> Data:
    """A dataset by its name in `conf/dataset`."""
    from omegaconf import OmegaConf

    from bayeslora.config import CONF_DIR, instantiate

    folder = Path(CONF_DIR) / "dataset"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
        raise ConfigError(f"evaluate.ood={name} is no dataset; {hint}")
    node: Any = OmegaConf.load(folder / f"{name}.yaml")
    if "_target_" not in node:  # a variant of another file
        node = OmegaConf.merge(OmegaConf.load(folder / "glue.yaml"), node)
    node.pop("defaults", None)
    if path is not None:
        node["path"] = path
    if "augment" in node:
        node["augment"] = False
    if "max_length" in node and "max_length" in setup.cfg.dataset:
        node["max_length"] = setup.cfg.dataset.max_length
    whole = OmegaConf.create({"dataset": node, "model": setup.cfg.model})
    return instantiate(whole.dataset).load()


def _corrupted(setup: Setup) -> list[View]:
    """The test images under every corruption and severity."""
    clean = _to_corrupt(setup)
    views = []
    for name, corrupt in CORRUPTIONS.items():
        for severity in SEVERITIES:
            images = corrupt(clean.inputs.cpu(), severity)
            split = Split(images, clean.targets.cpu()).to(setup.device)
            views.append(View(f"corruption/{name}/{severity}", setup.loader(split), clean.targets.cpu()))
    return views


def _to_corrupt(setup: Setup) -> Split:
    """The images that are corrupted."""
    return setup.evaluation_split().take(slice(setup.cfg.evaluate.corruption_examples))
