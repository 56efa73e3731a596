"""Factories: classes and functions with settings, which are called later, and in other processes."""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Number
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from bayeslora.errors import ConfigError

T = TypeVar("T")

INJECTED = {
    "num_classes", "num_outputs", "in_channels", "in_features", "params", "kT", "seed", "chain", "fan_ins", "batches",
    "num_data",
}  # fmt: skip
"""Arguments that an experiment fills in where a factory takes them."""
FAILURES = (
    RuntimeError, TypeError, IndexError, AttributeError, ValueError, KeyError, AssertionError, OSError, ImportError
)  # fmt: skip
"""What code that is not ours raises when it cannot do what is asked of it."""
PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def offer(make: Callable[..., T], **offered: Any) -> T:
    """Call a factory with those of `offered` that it takes and does not set itself."""
    bound = settings_of(make)
    parameters = inspect.signature(make).parameters
    return make(**{key: value for key, value in offered.items() if key in parameters and key not in bound})


def settings_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a factory sets itself."""
    return settings_of(make.func) | make.keywords if isinstance(make, partial) else {}


def target_of(make: Callable[..., Any]) -> Callable[..., Any]:
    """The class or function that a factory calls."""
    return target_of(make.func) if isinstance(make, partial) else make


def described(make: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """A class or function as it is recorded: where a package offers it, and settings."""
    module, name = make.__module__, make.__qualname__
    package = module.rpartition(".")[0]
    if package and vars(sys.modules.get(package, sys)).get(name) is make:
        module = package
    return {"_target_": f"{module}.{name}", **settings}


def of_instance(made: Any) -> dict[str, Any]:
    """How an object that keeps its settings as attributes is recorded.

    What it keeps privately is no setting, nor is what a configuration cannot hold, such as a function.
    """
    held = {name: value for name, value in vars(made).items() if not name.startswith("_") and _can_be_recorded(value)}
    return described(type(made), **held)


def _can_be_recorded(value: Any) -> bool:
    """Whether a value is a number, text, or made of such."""
    if isinstance(value, Mapping):
        return all(map(_can_be_recorded, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_can_be_recorded, value))
    return isinstance(value, str | Number | NoneType) or getattr(value, "shape", None) == ()


def in_memory(dataset: Any) -> Mapping[str, Any] | None:
    """What a run records of examples that a program gave to `bayeslora.sample`: their number, shapes and digest.

    None where a dataset is recorded by its `_target_`, which makes it again.
    """
    held = dataset.get("in_memory") if isinstance(dataset, Mapping) else None
    return held if isinstance(held, Mapping) else None


@contextmanager
def naming(what: str) -> Iterator[None]:
    """What a factory not of this package fails with, as a problem of `what`; a `ConfigError` is passed on as it is."""
    try:
        yield
    except ConfigError:
        raise
    except FAILURES as error:
        raise ConfigError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an exception says, without the lines of context that libraries add."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_arguments(target: Callable[..., Any], settings: Mapping[str, Any], path: str) -> Iterator[str]:
    """What is wrong with settings by the names and the plain types of a target's arguments."""
    parameters = inspect.signature(target).parameters
    hints = _hints(_callee(target))
    for key, value in settings.items():
        if value == "auto" and path == "sampler" and key in ("lr", "momentum"):
            continue  # chain.tuning finds it
        if key in parameters:
            yield from _check_value(f"{path}.{key}", value, hints.get(key, Any))
        elif not _takes_any(target):
            yield unknown_key(f"{path}.{key}", key, [p for p in parameters if p not in INJECTED])


REFUSED = {
    **dict.fromkeys(("weight", "weights", "class_weight", "class_weights", "pos_weight"), "class weights"),
    **dict.fromkeys(("label_smoothing", "smoothing"), "label smoothing"),
    **dict.fromkeys(("gamma", "focal_gamma"), "a focal loss"),
}
"""Settings of losses that are none of a likelihood's, in words."""


def refusal(key: str) -> str | None:
    """Why a likelihood has no such setting; None for a key that says nothing."""
    if key not in REFUSED:
        return None
    return (
        f"likelihood.{key}: {REFUSED[key]} would change the likelihood into one of other data than yours, whose"
        " posterior predicts no frequencies. Leave it out; for decisions of unequal cost weigh the predicted"
        " probabilities"
    )


def unknown_key(name: str, key: str, choices: list[str]) -> str:
    """Message for a key that means nothing."""
    if name == f"likelihood.{key}" and (why := refusal(key)) is not None:
        return why
    close = difflib.get_close_matches(key, choices, n=1)
    removal = f"if it is an experiment's own, ~{name} takes it away"
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(choices)}; {removal}"
    return f"unknown key {name}: {hint}"


def _callee(target: Any) -> Callable[..., Any]:
    """The function whose arguments a target takes."""
    return target.__init__ if inspect.isclass(target) else target


def _takes_any(target: Any) -> bool:
    """Whether a target has a `**` for anyone's arguments (in this package a `**` is for subclasses only)."""
    kinds = {p.kind for p in inspect.signature(target).parameters.values()}
    ours = getattr(_callee(target), "__module__", "").startswith("bayeslora.")
    return inspect.Parameter.VAR_KEYWORD in kinds and not ours


def _hints(callee: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments by name; none where they cannot be resolved at run time."""
    try:
        return get_type_hints(callee)
    except (NameError, TypeError, AttributeError):
        return {}


def _check_value(name: str, value: Any, hint: Any) -> Iterator[str]:
    """A value against a type made of plain ones (`float`, `int | None`); other types are the target's own business."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fitting = {*kinds, int} if float in kinds else {*kinds}
    if fitting <= PLAIN.keys() and type(value) not in fitting:
        shown = json.dumps(value) if value is None or isinstance(value, bool) else value
        yield f"{name}={shown} must be {' or '.join(PLAIN[kind] for kind in kinds)}"
