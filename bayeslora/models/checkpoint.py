"""A file of trained weights: anybody's state dict, as safetensors or as `torch.save` wrote it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.atomic import digest
from bayeslora.errors import ConfigError, DataError
from bayeslora.likelihood import NOISE
from bayeslora.posterior.store import read_tensors

CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Under which trainers save a state dict beside their own state."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DDP, torch.compile and Lightning put before every name."""


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights. It must hold all that is sampled, and the buffers that go with a draw; nothing unknown.

    Frozen parameters that it lacks keep what the model's constructor gave them.

    Attributes:
        path: `.safetensors`, or any other file for `torch.load`, which reads tensors only and runs no code.
        digest: of its tensors; None: not known.
    """

    path: str
    digest: str | None = None

    @property
    def title(self) -> str:
        """The setting that names it."""
        return f"model.checkpoint={self.path}"

    def read(self) -> dict[str, Tensor]:
        """Its tensors by name.

        Raises:
            ConfigError: there is no such file.
            DataError: it holds no state dict, or a NaN, or is not the file whose digest was recorded.
        """
        file, named = Path(self.path), self.title
        if not file.is_file():
            raise ConfigError(f"{named} does not exist; give a file of weights (safetensors, or a state dict)")
        tensors = read_tensors(file) if file.suffix == ".safetensors" else _unpickled(file)
        if not tensors:
            raise DataError(f"{named} holds no tensors")
        broken = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        if broken:
            raise DataError(f"{named}: {', '.join(broken[:3])} holds NaN or infinite numbers")
        if self.digest is not None and self.digest != digest(tensors)[:16]:
            raise DataError(f"{named} has other contents than when the run began; put the file of then there")
        return tensors

    def with_digest(self) -> Checkpoint:
        """The same with the digest of what the file holds now; raises as `read`."""
        return Checkpoint(self.path, digest(self.read())[:16])

    def fitting(self, model: nn.Module) -> dict[str, Tensor]:
        """Its tensors by their names in a model, which may be one without memory.

        Raises:
            ConfigError: names are missing or unknown, or shapes are others.
        """
        tensors, own = self.read(), model.state_dict()
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in tensors) and not tensors.keys() & own.keys():
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        missing = [name for name in own if name not in tensors and name not in frozen and name != NOISE]
        unknown = [name for name in tensors if name not in own]
        reshaped = [
            f"{name} {list(t.shape)} where the model has {list(own[name].shape)}"
            for name, t in tensors.items()
            if name in own and own[name].shape != t.shape
        ]
        wrong = {"it lacks": missing, "the model has no": unknown, "of other shapes:": reshaped}
        if any(wrong.values()):
            faults = [f"{words} {_listed(names)}" for words, names in wrong.items() if names]
            raise ConfigError(
                f"{self.title} does not fit {type(model).__name__}: {'; '.join(faults)}. Choose the"
                " settings of model and dataset with which it was trained, or rename its tensors"
            )
        return tensors


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`.

    Raises:
        DataError: it cannot be read as tensors alone, or holds something else.
    """
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        words = (str(error).splitlines() or [""])[0][:120]
        if "Weights only" in words:  # torch's words go on about how to run what is in the file
            words = "it is damaged, or holds other Python objects, whose loading would run code"
        raise DataError(
            f"model.checkpoint={file} cannot be read as tensors alone ({words}); save model.state_dict()"
        ) from error
    for key in CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    strange = [] if isinstance(state, Mapping) else [type(state).__name__]
    strange = strange or [
        f"{key}: {type(entry).__name__}" for key, entry in state.items() if not isinstance(entry, Tensor)
    ]
    if strange:
        raise DataError(
            f"model.checkpoint={file} is no state dict: it holds {_listed(strange)}; save model.state_dict()"
        )
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
