"""Models of several inputs: called with one dictionary, they are given it as keywords."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


def take_keywords(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """The same model, which from now on takes a dictionary of inputs, and gives a tensor.

    The dictionary goes to its forward pass as keywords, where that has arguments of these names; another model is left
    alone, as one that takes a dictionary. Of an output with `logits`, as those of transformers, the logits are given.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {p.kind for p in parameters}
    takes = inspect.Parameter.VAR_KEYWORD in kinds or set(names) <= {p.name for p in parameters}
    if takes and _spread not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_spread, with_kwargs=True)
        model.register_forward_hook(_logits)
    return model


def _spread(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:  # noqa: ARG001
    """One dictionary as keywords."""
    return ((), {**args[0], **kwargs}) if len(args) == 1 and isinstance(args[0], Mapping) else (args, kwargs)


def _logits(model: nn.Module, inputs: Any, outputs: Any) -> Any:  # noqa: ARG001
    is_named = isinstance(outputs, Mapping) and "logits" in outputs
    return outputs["logits"] if is_named else getattr(outputs, "logits", outputs)
