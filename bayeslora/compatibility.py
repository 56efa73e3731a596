"""Whether an experiment's model, data, likelihood and settings fit each other."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from bayeslora.chain.batches import Batches
from bayeslora.chain.modes import evaluation_mode
from bayeslora.datasets.base import Data
from bayeslora.errors import ConfigError, Problems, require
from bayeslora.factories import first_line, naming, offer, settings_of, target_of
from bayeslora.likelihood import NOISE, Bernoulli, Categorical, Gaussian, Likelihood
from bayeslora.potential import matches
from bayeslora.settings import AUTO

if TYPE_CHECKING:
    from bayeslora.experiment import Experiment

TAKES = {"in_channels": "images", "in_features": "tables", "name_or_path": "texts"}
"""Arguments of this package's models that say what kind of data they take."""


def with_numbers(make_sampler: Callable[..., Any]) -> Callable[..., Any]:
    """A sampler's factory with a number in the place of every `auto`, for what does not depend on it."""
    numbers = {"lr": 1e-3, "momentum": 0.9}
    open_ = {key: numbers[key] for key in numbers if settings_of(make_sampler).get(key) == AUTO}
    return partial(make_sampler, **open_) if open_ else make_sampler


def check_sampler(make_sampler: Callable[..., Any], seed: int = 0) -> None:
    """Make a sampler of a dummy parameter, so that its settings are checked.

    Raises:
        ConfigError: they are wrong, or it has no step size that could be found.
    """
    with naming("sampler"):
        made = with_numbers(make_sampler)([nn.Parameter(torch.zeros(1))], kT=1.0, seed=seed, chain=0)
    if AUTO not in (settings_of(make_sampler).get("lr"), settings_of(make_sampler).get("momentum")):
        return
    kind = type(made).__name__
    require(
        made.kT > 0,
        f"sampler.lr=auto: {kind} samples nothing, so no curvature tells its step size; give sampler.lr a number",
    )
    require(
        not made.scales_itself,
        f"sampler.lr=auto: {kind} has a step size of its own for every coordinate, which curvatures by block do not"
        " tell; give sampler.lr a number, or choose sampler=baoab",
    )


def check_warmup(make_warmup: Callable[..., Any]) -> None:
    """Make the warm-up's optimizer of a dummy parameter, so that its settings are checked."""
    lr = settings_of(make_warmup).get("lr", 1.0)
    valid = isinstance(lr, int | float) and 0 < lr < float("inf")
    require(valid, f"chain.warmup.optimizer.lr={lr} must be a positive finite number")
    with naming("chain.warmup.optimizer"):
        make_warmup([nn.Parameter(torch.zeros(1))])


def check_model_settings(make_model: Callable[..., Any], target: str) -> None:
    """Make a model of this package, without memory, so that its settings are checked."""
    if is_own(make_model):
        with naming(target), torch.device("meta"):
            offer(make_model, num_classes=10, num_outputs=10, in_features=10)


def is_own(make_model: Callable[..., Any]) -> bool:
    """Whether a model's factory is of this package: it can then be made without memory, for its checks and shapes."""
    return target_of(make_model).__module__.startswith("bayeslora.models.")


def check_fit(experiment: Experiment) -> None:
    """Check what can be said only with the data in memory.

    Raises:
        ConfigError: every problem of batches, splits, likelihood, model and settings by parameter name.
    """
    problems, data, chain = Problems(), experiment.data, experiment.chain
    with problems.collect():
        Batches(data, chain.batch, experiment.seed, 0, bucket=chain.bucket)
    if experiment.control_variates and data.augment is not None:
        problems.add("sampler.control_variates needs the gradient of all the data: set dataset.augment=false")
    if experiment.evaluation.split == "validation" and not len(data.validation):
        problems.add("evaluate.split=validation needs a validation set: train with dataset.validation_size=…")
    problems.add(*_until_problems(experiment))
    with problems.collect():
        check_task(data, experiment.likelihood)
        _check_model(experiment)
    problems.raise_if_any()


def _until_problems(experiment: Experiment) -> Iterator[str]:
    """What keeps `chain.until=converged` from ever being met."""
    if experiment.chain.until != "converged":
        return
    if experiment.effective_temperature == 0:
        yield "chain.until=converged: the run samples at T = 0, and has no law to converge to"
    elif experiment.evaluation.criteria.temperature is not None and "thermometer" not in experiment.callbacks:
        yield (
            "chain.until=converged: without callbacks.thermometer no temperature is measured; turn it on, or set"
            " evaluate.criteria.temperature=null"
        )


def check_task(data: Data, likelihood: Likelihood) -> None:
    """Raise `ConfigError` for a likelihood of other targets than these: classes, labels or real numbers."""
    if data.labels and isinstance(likelihood, Categorical | Gaussian):
        raise ConfigError(f"likelihood: the targets of {data.name} are labels; choose likelihood=bernoulli")
    if isinstance(likelihood, Bernoulli) and not data.labels:
        what = f"{data.num_classes} classes" if data.real is None else "real numbers"
        raise ConfigError(
            f"likelihood: the targets of {data.name} are {what}, not labels that hold or do not; choose"
            f" likelihood={'categorical' if data.real is None else 'gaussian'}"
        )
    if isinstance(likelihood, Categorical) and data.real is not None:
        raise ConfigError(f"likelihood: the targets of {data.name} are real numbers; choose likelihood=gaussian")
    if isinstance(likelihood, Gaussian) and data.real is None:
        raise ConfigError(
            f"likelihood: the targets of {data.name} are {data.num_classes} classes; choose likelihood=categorical"
            " (or dataset.task=regression, where the dataset has that setting)"
        )
    if isinstance(likelihood, Categorical):
        _check_positions(data, likelihood)


def _check_positions(data: Data, likelihood: Categorical) -> None:
    """Raise `ConfigError` unless classes are at the positions that the likelihood is of."""
    shape = list(data.train.targets.shape)
    require(
        data.axes == likelihood.axes,
        f"likelihood.axes={likelihood.axes}: the targets of {data.name} are {shape}, classes at positions of"
        f" {data.axes} axes within an example; set likelihood.axes={data.axes}",
    )
    marks = data.train.targets[data.train.targets < 0]
    require(
        not len(marks) or int(marks[0]) == likelihood.ignore_index,
        f"likelihood.ignore_index={likelihood.ignore_index}: positions of {data.name} without a class have the target"
        f" {int(marks[0]) if len(marks) else 0}; set likelihood.ignore_index to it",
    )


def _check_model(experiment: Experiment) -> None:
    """Raise `ConfigError` unless the model can be made for the data, takes them, and has what settings name."""
    own = is_own(experiment.make_model)
    if own:
        _check_takes(experiment)
    model = experiment.structure()
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    require(bool(names), "model: no parameter requires a gradient: none to sample")
    problems = Problems()
    if experiment.checkpoint is not None:
        with problems.collect():
            experiment.checkpoint.fitting(model)
    for key, patterns in (
        ("chain.lr_factors", experiment.chain.lr_factors),
        ("prior.overrides", experiment.prior.overrides),
    ):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                problems.add(f"{key}: no sampled parameter is called {pattern}; they are {', '.join(names[:6])}, …")
    problems.raise_if_any()
    _check_shares(experiment, model)
    if not own:
        _check_outputs(experiment, model)


def _check_takes(experiment: Experiment) -> None:
    """Raise `ConfigError` for a model of this package that takes another kind of data."""
    parameters, data = inspect.signature(experiment.make_model).parameters, experiment.data
    kinds = [kind for key, kind in TAKES.items() if key in parameters]
    if "tables" in kinds:
        kinds.append("images")  # a row of numbers, as they lie
    require(
        not data.axes,
        f"model: {experiment.record['model']['_target_']} gives one prediction an example, and {data.name} has classes"
        " at positions within an example; name a module of your own by model._target_",
    )
    require(
        data.kind in kinds,
        f"model: {experiment.record['model']['_target_']} takes {' or '.join(sorted({*kinds}))} and {data.name} holds"
        f" {data.kind}; choose another model or dataset",
    )


def _check_shares(experiment: Experiment, model: nn.Module) -> None:
    """Raise `ConfigError` unless a batch can be shared out among the devices without a change to the potential."""
    devices, batch_size, num_data = experiment.trainer.devices, experiment.chain.batch_size, len(experiment.data.train)
    problems = Problems()
    if (batch_size or num_data) % devices:
        what = f"chain.batch_size={batch_size}" if batch_size else f"the {num_data} examples"
        problems.add(f"{what} cannot be shared out among trainer.devices={devices}; choose a multiple")
    if devices > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        problems.add(
            f"batch norm would see a share of each batch alone with trainer.devices={devices}, which is another"
            " potential: choose model.norm=frn or group"
        )
    problems.raise_if_any()


def _check_outputs(experiment: Experiment, model: nn.Module) -> None:
    """Raise `ConfigError` unless the model takes two examples of the data and gives what the likelihood needs."""
    data, name = experiment.data, f"model: {experiment.record['model']['_target_']}"
    try:
        with torch.no_grad(), evaluation_mode(model):
            shape = list(model(data.transform(data.train.take(slice(2)).inputs)).shape)
    except (RuntimeError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} does not take {data.name}: {first_line(error)}") from error
    wanted = [2, experiment.likelihood.outputs(data.num_classes), *data.train.targets.shape[1 : 1 + data.axes]]
    if hasattr(model, NOISE) and len(shape) == 2:
        shape[1] //= 2  # the sampled noise is there too
    told = "logits " * (data.real is None) + str(wanted)
    labels = data.axes == 1 and shape == [2, data.train.targets.shape[1]]
    hint = "; if the targets are labels that hold or do not, choose likelihood=bernoulli" if labels else ""
    require(shape == wanted, f"{name} gives {shape} for two examples of {data.name}; it must give {told}{hint}")


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
