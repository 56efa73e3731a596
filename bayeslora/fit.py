"""Whether model, data and likelihood fit each other, and the model made for them."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bayeslora.chains.ranks import require_shares
from bayeslora.config import accepted, first_line, instantiate
from bayeslora.datasets.base import Data
from bayeslora.errors import ConfigError, Problems, require
from bayeslora.likelihood import NOISE, Categorical, Gaussian, Likelihood
from bayeslora.models.modes import evaluation_mode
from bayeslora.potential import matches

log = logging.getLogger(__name__)

TAKES = {"in_channels": "images", "in_features": "tables", "name_or_path": "texts"}
"""Arguments of this package's models that say what kind of data they take."""


def make_likelihood(cfg: DictConfig) -> Likelihood:
    """The likelihood that a configuration names; classes where it names none."""
    node = cfg.get("likelihood")
    made: Likelihood = Categorical() if node is None else instantiate(node)
    return made


def load_data(dataset: Any) -> Data:
    """What a dataset's target gives: `Data`, or something with `load()` that does; or map-style datasets in its place.

    Raises:
        DataError: it gives something else, or the data are wrong.
    """
    from bayeslora.datasets.examples import from_examples

    found = dataset.load() if hasattr(dataset, "load") else dataset
    data = found if isinstance(found, Data) else from_examples(found, name=type(dataset).__name__)
    for note in data.notes:
        log.info("%s: %s", data.name, note)
    return data.with_scale_notes()


def build_model(node: DictConfig, data: Data, likelihood: Likelihood | None = None) -> nn.Module:
    """The model, told its numbers of outputs and inputs where it takes them, with the likelihood's parameters."""
    likelihood = likelihood or Categorical()
    outputs = likelihood.outputs(data.num_classes)
    sizes = {"in_channels": data.in_channels, "in_features": data.in_features}
    model = instantiate(node, **accepted(node, num_classes=outputs, num_outputs=outputs, **sizes))
    check_kind(model)
    return likelihood.attach(model, data.num_classes)


def try_model(node: DictConfig) -> None:
    """Build a model of this package, without memory, for the sake of the checks it makes of its settings."""
    if node._target_.startswith("bayeslora."):
        with torch.device("meta"):
            instantiate(node, **accepted(node, num_classes=10, num_outputs=10, in_features=10))


def check_kind(model: Any) -> None:
    """Raise `ConfigError` for a model whose parameters cannot be sampled or kept, whatever the data."""
    kind = type(model).__name__
    require(
        isinstance(model, nn.Module), f"model: {kind} is no torch.nn.Module; give a module or a function that makes one"
    )
    scripted = isinstance(model, torch.jit.ScriptModule)
    require(
        not scripted, "model: a scripted or traced module cannot be sampled; give the Python module it was made from"
    )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    require(
        not lazy,
        f"model: {', '.join(lazy[:3])} have no shape yet, since their layers are lazy; call the model once on a batch"
        " before it is given (in the function that makes it)",
    )
    wide = [name for name, t in tensors if any(n > 1 and t.stride(axis) == 0 for axis, n in enumerate(t.shape))]
    require(
        not wide,
        f"model: {', '.join(wide[:3])} are expanded views, into which no draw can be written; register a copy of each"
        " (tensor.clone())",
    )


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module. Results of its last pass that it keeps as attributes are copied by value.

    Raises:
        ConfigError: it cannot be copied.
    """
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    results = {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
    try:
        return copy.deepcopy(module, results)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"model: {type(module).__name__} cannot be copied ({first_line(error)}); give a function that makes the"
            " model instead of the module"
        ) from error


def check_fit(cfg: DictConfig, data: Data, likelihood: Likelihood) -> None:
    """Raise `ConfigError` unless likelihood and data, model and data, and settings by parameter name fit."""
    check_task(data, likelihood)
    _check_model(cfg, data, likelihood)


def check_task(data: Data, likelihood: Likelihood) -> None:
    """Raise `ConfigError` for classes with a likelihood of real numbers, or the other way round."""
    if isinstance(likelihood, Categorical) and data.real is not None:
        raise ConfigError(f"likelihood: the targets of {data.name} are real numbers; choose likelihood=gaussian")
    if isinstance(likelihood, Gaussian) and data.real is None:
        raise ConfigError(
            f"likelihood: the targets of {data.name} are {data.num_classes} classes; choose likelihood=categorical"
            " (or dataset.task=regression, where the dataset has that setting)"
        )


def _check_model(cfg: DictConfig, data: Data, likelihood: Likelihood) -> None:
    """Raise `ConfigError` unless the model can be made for these data and takes them."""
    node = cfg.model
    if node._target_.startswith("bayeslora."):
        _check_kind(node, data)
        with torch.device("meta"):
            _check_parts(cfg, build_model(node, data, likelihood), data)
        return
    model = build_model(node, data, likelihood)
    _check_parts(cfg, model, data)
    check_outputs(model, data, likelihood, f"model: {node._target_}")


def _check_parts(cfg: DictConfig, model: nn.Module, data: Data) -> None:
    """Raise `ConfigError` for a setting by a name that no sampled parameter has, or what devices cannot share."""
    check_names(cfg, model)
    require_shares(cfg, model, len(data.train))


def check_outputs(model: nn.Module, data: Data, likelihood: Likelihood, name: str) -> None:
    """Raise `ConfigError` unless the model takes two examples of the data and gives what the likelihood needs."""
    try:
        with torch.no_grad(), evaluation_mode(model):
            shape = list(model(data.transform(data.train.inputs[:2])).shape)
    except (RuntimeError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} does not take {data.name}: {first_line(error)}") from error
    wanted = likelihood.outputs(data.num_classes)
    if hasattr(model, NOISE) and len(shape) == 2:
        shape[1] //= 2  # the sampled noise is there too
    told = "logits " * (data.real is None) + f"[2, {wanted}]"
    require(shape == [2, wanted], f"{name} gives {shape} for two examples of {data.name}; it must give {told}")


def _check_kind(node: DictConfig, data: Data) -> None:
    """Raise `ConfigError` for a model of this package that takes another kind of data."""
    kinds = [kind for key, kind in TAKES.items() if key in node or accepted(node, **{key: 0})]
    if "tables" in kinds:
        kinds.append("images")  # a row of numbers, as they lie
    require(
        data.kind in kinds,
        f"model: {node._target_} takes {' or '.join(sorted({*kinds}))} and {data.name} holds {data.kind}; choose"
        " another model or dataset",
    )


def check_names(cfg: DictConfig, model: nn.Module) -> None:
    """Raise `ConfigError` for a setting by parameter name that no sampled parameter has."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    problems = Problems()
    for key in ("chain.lr_factors", "prior.overrides"):
        for pattern in OmegaConf.select(cfg, key) or {}:
            if not any(matches(name, pattern) for name in names):
                problems.add(f"{key}: no sampled parameter is called {pattern}; they are {', '.join(names[:6])}, …")
    problems.raise_if_any()
