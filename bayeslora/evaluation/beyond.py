"""Beyond the test set: a reference posterior, a second dataset, corrupted images."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bayeslora.datasets.base import Data, Split
from bayeslora.datasets.corruptions import CORRUPTIONS, SEVERITIES
from bayeslora.diagnostics.reference import Reference, load_reference
from bayeslora.errors import ConfigError, DataError, require
from bayeslora.evaluation.predictions import Predictions, View

if TYPE_CHECKING:
    from bayeslora.build import Setup

OTHER = "out of distribution"


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


def further_views(setup: Setup) -> list[View]:
    """A second dataset and corrupted test images, as far as `evaluate` asks for them."""
    return [*_other_dataset(setup), *_corrupted(setup)]


def beyond(setup: Setup, predictions: Predictions) -> dict[str, Any]:
    """What `metrics.json` says of them."""
    from bayeslora.evaluation.summary import corruption_rows, out_of_distribution

    found: dict[str, Any] = {}
    views = dict(predictions.views)
    if OTHER in views:
        found["ood"] = {"dataset": setup.cfg.evaluate.ood} | out_of_distribution(predictions, views.pop(OTHER))
    if views:
        targets = _to_corrupt(setup).targets.cpu()
        found["corruptions"] = {"examples": len(targets)} | corruption_rows(views, targets)
    return found


def _other_dataset(setup: Setup) -> list[View]:
    """The test set of the dataset that `evaluate.ood` names.

    Raises:
        ConfigError: there is no such dataset.
        DataError: its examples are not of the kind or size that the model takes.
    """
    name = setup.cfg.evaluate.ood
    if name is None:
        return []
    data = _load_dataset(name, setup.cfg.evaluate.ood_path, setup)
    ours, theirs = setup.data.test.inputs, data.test.inputs
    kind = "texts" if setup.data.texts else "images"
    if bool(data.texts) != bool(setup.data.texts) or (not data.texts and ours.shape[1:] != theirs.shape[1:]):
        raise DataError(
            f"evaluate.ood={name}: its examples are {list(theirs.shape[1:])}, those of {setup.data.name} are {kind} of"
            f" {list(ours.shape[1:])}; choose a dataset of the same kind and size"
        )
    split = data.test.to(setup.device)
    return [View(OTHER, setup.loader(split, setup.data.transform if not data.texts else data.transform), None)]


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
    whole = OmegaConf.create({"dataset": node, "model": setup.cfg.model})
    return instantiate(whole.dataset).load()


def _corrupted(setup: Setup) -> list[View]:
    """The test images under every corruption and severity."""
    if not setup.cfg.evaluate.corruptions:
        return []
    if setup.data.texts:
        raise ConfigError("evaluate.corruptions=true is for images, and the data are texts; leave it out")
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
