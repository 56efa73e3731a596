"""Parts of an experiment, each checked by itself: sampler, warm-up, model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bayeslora.errors import ConfigError, require
from bayeslora.factories import first_line, naming, offer, settings_of, target_of
from bayeslora.potential import Potential, Prior
from bayeslora.settings import AUTO

FULL = (torch.float32, torch.float64)
"""Types of numbers that can be sampled."""


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


def precision_of(model: nn.Module) -> torch.dtype:
    """float64 where any of its parameters is in double precision, else float32."""
    return torch.float64 if any(p.dtype == torch.float64 for p in model.parameters()) else torch.float32


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
    sampled = [(name, p.dtype) for name, p in model.named_parameters() if p.requires_grad]
    of_complex = [name for name, kind in sampled if kind.is_complex]
    require(
        not of_complex,
        f"model: {', '.join(of_complex[:3])} are complex, and only real numbers are sampled; keep real and imaginary"
        " parts as two parameters, and join them in forward (torch.complex)",
    )
    narrow = {kind: name for name, kind in sampled if kind not in FULL}
    require(
        not narrow,
        f"model: {', '.join(f'{name} is {kind}' for kind, name in narrow.items())}, and is sampled: a Langevin step is"
        " lost in half precision. Make such parameters float32 (model.float()), and run the forward pass under bf16"
        " autocast where that is wanted (trainer.precision=bf16-mixed)",
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


def check_temperature(temperature: float) -> None:
    """Raise `ConfigError` for an impossible T."""
    Potential(Prior(), 1).kT(temperature)
