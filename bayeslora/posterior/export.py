"""Draws as ordinary PEFT adapters: a folder each, which `PeftModel.from_pretrained` loads onto the base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bayeslora.errors import DataError, require
from bayeslora.files import write_atomically
from bayeslora.models.fingerprint import base_fingerprint, frozen_tensors, is_saved
from bayeslora.posterior.store import Draw, load_into, read_tensors

ORIGIN = "bayeslora.json"
"""A file beside the adapter: which draw it is, and the fingerprint of the base model it belongs to."""

WEIGHTS = "adapter_model.safetensors"
ABOUT = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"}
"""Entries of an adapter's configuration that say where it comes from and are not used to load it."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 65_536


def _are(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, list) and all(map(kind, value)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


SETTINGS: dict[str, Callable[[Any], bool]] = {
    "r": lambda value: _is_count(value) and value > 0,
    "lora_alpha": lambda value: isinstance(value, int | float) and 0 < value < float("inf"),
    "target_modules": lambda value: value is not None and _are(_is_text)(value),
    "layers_to_transform": _are(_is_count),
    "modules_to_save": _are(_is_text),
    "fan_in_fan_out": lambda value: isinstance(value, bool),
    "task_type": lambda value: value in (None, "SEQ_CLS"),
}
"""Settings of an adapter that are used to load it, and what each must be."""

CARD = """---
base_model: {base}
library_name: peft
tags: [lora, bayesian, bayeslora]
---

# Draw {index} of chain {chain}: {title}

One draw from a posterior over LoRA adapters, not a point estimate: average the *probabilities* of many draws.

```python
from peft import PeftModel
{load}
model = PeftModel.from_pretrained(base, "{folder}")
```

| | |
|---|---|
{facts}
"""


def export_adapters(
    model: Any, draws: Iterable[Draw], out_dir: Path | str, facts: Mapping[str, str] | None = None
) -> list[Path]:
    """Write draws as PEFT adapter folders `chain-<k>_draw-<index>`: configuration, safetensors, model card.

    A folder is there whole or not at all; one that is there already is replaced.

    Args:
        model: a `LoraClassifier`; it is left with the last draw's tensors.
        draws: of a posterior of that model.
        out_dir: made if missing.
        facts: label and text of each line of the model card; `title` is its heading.

    Returns:
        The folders, in the draws' order.

    Raises:
        DataError: the model has no adapter, or a draw is of another model.
    """
    require(hasattr(model, "peft"), "only draws of a LoRA model can be exported as adapters")
    out, described = Path(out_dir), dict(facts or {})
    fingerprint = base_fingerprint(frozen_tensors(model.peft).values())
    folders = []
    for draw in draws:
        load_into(model, draw.tensors, f"draw {draw.index} of chain {draw.chain}")
        target = out / f"chain-{draw.chain}_draw-{draw.index:06d}"
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.peft.save_pretrained(temporary, save_embedding_layers=False)
        write_atomically(temporary / "README.md", _card(model, draw, target.name, described).encode())
        origin = {"chain": draw.chain, "index": draw.index, "step": draw.step, "base_sha256": fingerprint}
        write_atomically(temporary / ORIGIN, json.dumps(origin, indent=2).encode())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folders.append(target)
    return folders


def load_adapter(base: Any, folder: Path | str) -> Any:
    """An exported draw on its base model: what `PeftModel.from_pretrained` gives, but that another base is refused.

    Args:
        base: the model without an adapter, e.g. from `AutoModelForSequenceClassification.from_pretrained`, or
            `bayeslora.models.load_base`.
        folder: what `export_adapters` wrote.

    Raises:
        DataError: the folder holds no exported adapter, one that is corrupt, or one of another base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError

    path = Path(folder)
    recorded, settings = read_origin(path)["base_sha256"], read_adapter_config(path)
    own = settings.get("modules_to_save") or ()
    found = base_fingerprint(tensor for name, tensor in base.named_parameters() if not is_saved(name, own))
    if found != recorded:
        named = settings.get("base_model_name_or_path")
        raise DataError(
            f"{path} is an adapter of another base model ({named}): its weights have fingerprint {recorded[:12]}, these"
            f" have {found[:12]}"
        )
    config = LoraConfig(**{key: value for key, value in settings.items() if key in SETTINGS})
    try:
        names = set(read_tensors(path / WEIGHTS))
        loaded = PeftModel.from_pretrained(base, str(path), config=config, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the adapter in {path} is corrupt ({str(error).splitlines()[0]}); export it again") from error
    wrong = sorted(names ^ set(get_peft_model_state_dict(loaded, save_embedding_layers=False)))
    if wrong:
        raise DataError(f"the adapter in {path} is corrupt (it lacks, or should not have, {wrong[0]}); export it again")
    return loaded


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What `adapter_config.json` says, which must be a plain LoRA adapter as `export_adapters` writes it.

    PEFT imports modules and reads files that some of its other settings name, so these must be at their defaults.

    Raises:
        DataError: it is missing, no JSON, or holds a setting that an exported draw does not have.
    """
    from peft import LoraConfig

    file = folder / "adapter_config.json"
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file} ({str(error).splitlines()[0]})") from error
    if not isinstance(settings, dict):
        raise DataError(f"{file} does not hold the settings of an adapter")
    defaults = json.loads(json.dumps(LoraConfig(inference_mode=True).to_dict(), default=list))
    wrong = [key for key, fits in SETTINGS.items() if key in settings and not fits(settings[key])]
    wrong += [
        key
        for key, value in settings.items()
        if key not in SETTINGS and key not in ABOUT and value and value != defaults.get(key)
    ]
    if wrong or settings.get("peft_type") != "LORA":
        raise DataError(f"{file} is not of an adapter that bayeslora exported: {', '.join(wrong[:4]) or 'peft_type'}")
    return settings


def read_origin(folder: Path) -> dict[str, Any]:
    """What `bayeslora.json` says of an exported draw.

    Raises:
        DataError: it is missing or not what was written.
    """
    try:
        origin = json.loads((folder / ORIGIN).read_text())
        whole = isinstance(origin, dict) and isinstance(origin.get("base_sha256"), str)
    except (OSError, ValueError, RecursionError):
        whole = False
    if not whole or not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder} holds no adapter that bayeslora exported ({ORIGIN}, {WEIGHTS})")
    return origin


def _card(model: Any, draw: Draw, folder: str, facts: dict[str, str]) -> str:
    """The model card."""
    from bayeslora.models.bi_encoder import BiEncoder

    name, labels = model.base.name_or_path, model.num_classes
    if isinstance(model.base, BiEncoder):
        load = f'from bayeslora.models import load_base\nbase = load_base("{name}", "separate", {labels})'
    else:
        load = (
            "from transformers import AutoModelForSequenceClassification\n"
            f'base = AutoModelForSequenceClassification.from_pretrained("{name}", num_labels={labels})'
        )
    rows = {"Chain, draw, step": f"{draw.chain}, {draw.index}, {draw.step:,}"}
    rows |= {label: text for label, text in facts.items() if label != "title"}
    rows |= {f"This draw's {scalar.replace('_', ' ')}": f"{value:.6g}" for scalar, value in draw.scalars.items()}
    return CARD.format(
        base=name,
        title=facts.get("title", "a LoRA posterior"),
        index=draw.index,
        chain=draw.chain,
        load=load,
        folder=folder,
        facts="\n".join(f"| {label} | {text.replace('|', '/')} |" for label, text in rows.items()),
    )
