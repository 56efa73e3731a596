"""Which model the draws of a run belong to: its structure, what of it is sampled, and all that is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayeslora.atomic import digest
from bayeslora.chain.modes import normalise_by_batch
from bayeslora.errors import ConfigError, DataError
from bayeslora.likelihood import NOISE

NAMED = 3
"""Differences that a message names; the others it counts."""
UNUSED = ".original_module."
"""PEFT keeps what a sampled copy of a module began with under this name, and never computes with it."""


@dataclass(frozen=True)
class Fingerprint:
    """What must be equal for draws to mean the same in two models.

    Attributes:
        structure: lines of the model's `repr`.
        sampled: shapes of the parameters that require a gradient, by name; a likelihood's own is left out.
        fixed: digests of the frozen parameters and of the buffers that are not saved with a model, by name.
    """

    structure: list[str]
    sampled: dict[str, list[int]]
    fixed: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Fingerprint:
        """The fingerprint of a model, on any device."""
        addresses = re.compile(r" at 0x[0-9a-f]+")  # of functions, where a layer's repr shows one
        sampled = {n: list(p.shape) for n, p in model.named_parameters() if p.requires_grad and n != NOISE}
        fixed = _digests(fixed_tensors(model))
        return cls([addresses.sub("", line) for line in repr(model).splitlines()], sampled, fixed)

    @classmethod
    def from_json(cls, value: Any, source: Any) -> Fingerprint:
        """What `to_json` gave, as it was read.

        Raises:
            DataError: it is none.
        """
        parts = [value.get(name) for name in ("structure", "sampled", "fixed")] if isinstance(value, dict) else [None]
        lines = isinstance(parts[0], list) and all(isinstance(line, str) for line in parts[0])
        if not (lines and all(isinstance(part, dict) for part in parts[1:])):
            raise DataError(f"{source}: fingerprint is not that of a model")
        return cls(*parts)

    def with_fixed(self, tensors: Mapping[str, Tensor]) -> Fingerprint:
        """The fingerprint that the model would have with other values of what is not sampled."""
        replaced = {name: tensor for name, tensor in tensors.items() if name in self.fixed}
        return replace(self, fixed=self.fixed | _digests(replaced))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def differences(self, other: Fingerprint) -> list[str]:
        """In words, how a model (this one) differs from that of a run (`there`); empty where it does not."""
        return [*self._in_structure(other), *self._in_sampled(other), *self._in_fixed(other)]

    def _in_structure(self, other: Fingerprint) -> Iterator[str]:
        for ours, theirs in zip_longest(self.structure, other.structure, fillvalue="nothing"):
            if ours != theirs:
                yield f"{ours.strip()} where the run has {theirs.strip()}"
                return

    def _in_sampled(self, other: Fingerprint) -> Iterator[str]:
        for name in {**other.sampled, **self.sampled}:
            if name not in self.sampled:
                yield f"{name} is not sampled, in the run it is" + " (it is frozen)" * (name in self.fixed)
            elif name not in other.sampled:
                yield f"{name} is sampled, in the run it is not"
            elif self.sampled[name] != other.sampled[name]:
                yield f"{name} is {self.sampled[name]}, in the run {other.sampled[name]}"

    def _in_fixed(self, other: Fingerprint) -> Iterator[str]:
        for name in {**other.fixed, **self.fixed}:
            if name in self.sampled or name in other.sampled:
                continue
            if name not in self.fixed or name not in other.fixed:
                yield f"only {'the run' if name in other.fixed else 'this model'} has {name}, which is not sampled"
            elif self.fixed[name] != other.fixed[name]:
                yield f"{name}, which is not sampled, has other values or another type of number"


def first_few(differences: list[str]) -> str:
    """The first differences, and how many more there are."""
    more = len(differences) - NAMED
    return "; ".join(differences[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def fixed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters, and buffers that are not saved with a model, by name: what no draw holds."""
    saved = set(model.state_dict(keep_vars=True))
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad and UNUSED not in f".{name}"}
    return frozen | {name: b for name, b in model.named_buffers() if name not in saved}


def unmoved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All that nothing moves while a model is sampled, by name: `fixed_tensors`, and buffers that are saved with it."""
    return fixed_tensors(model) | _still_buffers(model)


def _still_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that draws hold though nothing moves them: all that are saved but statistics of batches, by name."""
    saved, moving = set(model.state_dict(keep_vars=True)), _statistics(model)
    return {name: b for name, b in model.named_buffers() if name in saved and name not in moving}


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics of the layers that normalise by a batch while the model is sampled, by name."""
    norms = set(map(id, normalise_by_batch(model)))
    paths = {path for path, module in model.named_modules() if id(module) in norms}
    return {name: b for name, b in model.named_buffers() if name.rpartition(".")[0] in paths}


def _digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: digest({name: tensor})[:16] for name, tensor in tensors.items()}


@torch.no_grad()
def put_fixed(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a run's own values of what is not sampled into a model.

    Raises:
        DataError: the model has no such tensor, or it has another shape.
    """
    own = unmoved_tensors(model) if tensors else {}
    wrong = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise DataError(f"model: {', '.join(wrong[:NAMED])}, which is not sampled, is missing or of another shape")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def identify(make: Callable[[int], nn.Module], chains: int, inputs: Any) -> tuple[Fingerprint, dict[str, Tensor]]:
    """The fingerprint that the models of all chains share, and those of their fixed tensors that are drawn at random.

    Args:
        make: the model of a chain.
        chains: their number.
        inputs: a few examples, as the models take them.

    Returns:
        The fingerprint of chain 0's model; and its values of the unmoved tensors that chain 1's model has otherwise:
        every chain must take these, or each samples a posterior of its own.

    Raises:
        ConfigError: chains differ in structure, in what is sampled, or in something that is no tensor of the model.
    """
    first = make(0)
    ours, unmoved = Fingerprint.of(first), unmoved_tensors(first)
    if chains == 1 and not unmoved:
        return ours, {}
    second = make(1)
    theirs = Fingerprint.of(second)
    once, again = (
        {**known.fixed, **_digests(_still_buffers(model))} for known, model in ((ours, first), (theirs, second))
    )
    random = {n: unmoved[n].detach().cpu().clone() for n in once if n in again and once[n] != again[n]}
    if shared := _shared(first, second):
        raise ConfigError(
            f"model: the function gives two chains the same {first_few(shared)}, so that each would move the other's;"
            " make what is sampled anew at every call (what is frozen may be shared)"
        )
    put_fixed(second, random)
    differences = Fingerprint.of(second).differences(ours) if random else theirs.differences(ours)
    if differences:
        raise ConfigError(
            f"model: the models of two chains are not the same: {first_few(differences)}. Make what is not sampled"
            " once, outside the function, or seed it"
        )
    if chains > 1:
        _check_same_function(first, second, inputs)
    return ours, random


def _shared(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of what moves in a chain (sampled parameters, statistics of batches) and is one tensor in both models."""

    def moving(model: nn.Module) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad} | _statistics(model)

    storages = {tensor.untyped_storage().data_ptr() for tensor in moving(second).values() if tensor.numel()}
    return [name for name, t in moving(first).items() if t.numel() and t.untyped_storage().data_ptr() in storages]


@torch.no_grad()
def _check_same_function(first: nn.Module, second: nn.Module, inputs: Any) -> None:
    """Raise `ConfigError` where two chains' models give other outputs with the same parameters and buffers."""
    tensors = dict(first.named_parameters()) | dict(first.named_buffers())
    try:
        once, again = (first.eval()(inputs) for _ in range(2))
        other = functional_call(second.eval(), tensors, (inputs,))
    except (RuntimeError, TypeError, IndexError, AttributeError, ValueError):
        return  # a model that cannot be run: the trial step says so
    if _close(once, again) and not _close(once, other):  # one that is random in itself is for the trial step too
        raise ConfigError(
            f"model: two chains' {type(first).__name__} give different outputs with the same parameters and buffers, so"
            " something else in them is random, such as a tensor that is a plain attribute. Make it once, outside the"
            " function, or seed it, or register it as a buffer"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-3, equal_nan=True)
