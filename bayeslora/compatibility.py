"""Whether an experiment's model, data, likelihood and settings fit each other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from bayeslora.chain.batches import Batches
from bayeslora.chain.modes import evaluation_mode
from bayeslora.counts import counted
from bayeslora.datasets.base import Data, Split
from bayeslora.errors import ConfigError, Problems, require
from bayeslora.experiment import Experiment
from bayeslora.factories import FAILURES, first_line
from bayeslora.likelihood import NOISE, Bernoulli, Categorical, Gaussian, Likelihood, OfClasses
from bayeslora.parts import is_own, precision_of
from bayeslora.potential import matches

TAKES = {"in_channels": "images", "in_features": "tables", "name_or_path": "texts"}
"""Arguments of this package's models that say what kind of data they take."""
FEW = 20
"""Different targets up to which real numbers may have been meant as classes."""


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
        count = len(data.train.targets.unique())
        classes = f" (they have {counted(count, 'value')}: if these are classes, dataset.task=classification for a CSV"
        hint = f"{classes} file, whole numbers of an integer type elsewhere)" if count <= FEW else ""
        raise ConfigError(f"likelihood: the targets of {data.name} are real numbers; choose likelihood=gaussian{hint}")
    if isinstance(likelihood, Gaussian) and data.real is None:
        raise ConfigError(
            f"likelihood: the targets of {data.name} are {data.num_classes} classes; choose likelihood=categorical"
            " (or dataset.task=regression, where the dataset has that setting)"
        )
    if isinstance(likelihood, Categorical):
        _check_positions(data, likelihood)
    if isinstance(likelihood, OfClasses):
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(data, name)
            if split is not None and len(split):
                known = bool(likelihood.observed(split.targets).any())
                require(
                    known, f"{data.name}, {name}: no target is known, so there is nothing to learn or to be judged by"
                )


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
    with problems.collect():
        experiment.starts.check(model, experiment.chain.num_chains)
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
        what = f"chain.batch_size={batch_size}" if batch_size else f"the {counted(num_data, 'example')}"
        problems.add(f"{what} cannot be shared out among trainer.devices={devices}; choose a multiple")
    if devices > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        problems.add(
            f"batch norm would see a share of each batch alone with trainer.devices={devices}, which is another"
            " potential: choose model.norm=frn or group"
        )
    problems.raise_if_any()


def _check_outputs(experiment: Experiment, model: nn.Module) -> None:
    """Raise `ConfigError` unless the model takes two examples of the data and gives what the likelihood needs."""
    data, name = experiment.data.in_precision(precision_of(model)), f"model: {experiment.record['model']['_target_']}"
    try:
        with evaluation_mode(model):
            two = torch.arange(2) % len(data.train)  # the only one twice
            given = model(data.transform(data.train.take(two).inputs))
    except FAILURES as error:
        of_inputs, of_model = (
            sorted({str(t.dtype) for t in ts}) for ts in (tree_leaves(data.train.inputs), model.parameters())
        )
        kinds = f" (inputs are stored as {', '.join(of_inputs)}, the model's parameters are {', '.join(of_model)})"
        hint = kinds if "dtype" in str(error) else ""
        raise ConfigError(f"{name} does not take {data.name}: {first_line(error)}{hint}") from error
    require(
        isinstance(given, torch.Tensor),
        f"{name} gives a {type(given).__name__}; it must give one tensor: wrap it in a module whose forward returns the"
        " logits (or means) alone",
    )
    shape = list(given.shape)
    wanted = [2, experiment.likelihood.outputs(data.num_classes), *data.train.targets.shape[1 : 1 + data.axes]]
    if hasattr(model, NOISE) and len(shape) == 2:
        shape[1] //= 2  # the sampled noise is there too
    must_give = "logits " * (data.real is None) + str(wanted)
    hint = _hint(data, shape)
    require(shape == wanted, f"{name} gives {shape} for two examples of {data.name}; it must give {must_give}{hint}")
    if isinstance(experiment.likelihood, OfClasses):
        last = given.grad_fn.name().partition("Backward")[0].lower() if given.grad_fn is not None else ""
        given = given.detach()
        sums = given.double().sum(1)
        if isinstance(experiment.likelihood, Categorical) and bool((given >= 0).all()):
            last = "softmax" if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else last
        require(
            last not in ("softmax", "sigmoid"),
            f"{name} gives probabilities; it must give logits: leave its {last} out",
        )


def _hint(data: Data, shape: list[int]) -> str:
    """What may be the reason that a model's outputs are of another shape than the targets ask for."""
    if data.axes == 1 and shape == [2, data.train.targets.shape[1]]:
        return "; if the targets are labels that hold or do not, choose likelihood=bernoulli"
    if data.real is not None:
        return "; the targets are real numbers: if they are classes, give whole numbers, of an integer type"
    return "" if data.labels else f": the targets are of the classes 0 to {data.num_classes - 1}"
