"""Draws as ordinary PEFT adapters: a folder each, which `PeftModel.from_pretrained` loads; and on the hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bayeslora.atomic import write_atomically
from bayeslora.counts import counted
from bayeslora.datasets.text import local_folder
from bayeslora.errors import DataError, Problems, require
from bayeslora.models.bi_encoder import BiEncoder
from bayeslora.models.fingerprint import base_fingerprint, frozen_tensors, is_saved
from bayeslora.posterior.store import Draw, load_into, read_tensors

ORIGIN = "bayeslora.json"
"""A file beside the adapter: which draw it is, and the class and fingerprint of the base model it belongs to."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
"""A file beside the adapter of a bi-encoder: `weight` [C, 2 H + 1] and `bias` [C] of its head."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model."""
FIRST_NUMBER = re.compile(r"(.*?)((?<=\.)\d+(?=\.)|$)(.*)")
"""A layer's name: what comes before its number, the number (or nothing), and the rest."""
FULL_NAMES = re.compile(r"(\w|\\\.|\(\?:\d+(\|\d+)*\)|\|)+")
"""Regular expressions of layers' full names as `full_names` writes them."""
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
    "target_modules": lambda value: (
        bool(value) and (_are(_is_text)(value) if not _is_text(value) else FULL_NAMES.fullmatch(value) is not None)
    ),
    "layers_to_transform": _are(_is_count),
    "modules_to_save": _are(_is_text),
    "fan_in_fan_out": lambda value: isinstance(value, bool),
    "task_type": lambda value: value in (None, "SEQ_CLS"),
}
"""Settings of an adapter that are used to load it, and what each must be."""

CARD = """---
{base}library_name: peft
tags: [lora, bayesian, bayeslora]
---

# Draw {index} of chain {chain}: {title}

One draw from a posterior over LoRA adapters, not a point estimate: average the *probabilities* of many draws.

```python
{load}
```

{loads}

| | |
|---|---|
{facts}
"""

CLASSIFIER = """{imports}from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained(
    {name}, num_labels={labels}, pad_token_id={padding}, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, {folder}).eval()"""

CLASSIFIER_LOADS = """The adapter goes onto `AutoModelForSequenceClassification` (`{kind}`) and brings the head. Two
arguments matter for some checkpoints only: `ignore_mismatched_sizes=True` where the checkpoint has a head of other
classes, which the adapter's replaces, and `pad_token_id` where it names no token to pad with."""

BI_ENCODER = """{imports}import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

base, folder = {name}, {folder}
pair = "A cat sat on the mat.", "A cat was sitting on the mat."

tokenizer = AutoTokenizer.from_pretrained(base)
encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
head = load_file(f"{{folder}}/{head}")
u, v = (F.normalize(encoder(**tokenizer(x, return_tensors="pt")).last_hidden_state[0].mean(0), dim=0) for x in pair)
features = torch.cat([(u - v).abs(), len(u) ** 0.5 * u * v, len(u) ** 0.5 * (1 - u @ v)[None]])
probabilities = (head["weight"] @ features + head["bias"]).softmax(-1)"""

BI_ENCODER_LOADS = """The adapter goes onto `AutoModel` (`{kind}`), each text is encoded by itself, and the head that
compares the two is in `{head}`. The adapter fits no `AutoModelForSequenceClassification`: PEFT finds none of its layers
there and says so."""


def export_adapters(
    model: Any, draws: Iterable[Draw], out_dir: Path | str, facts: Mapping[str, str] | None = None
) -> list[Path]:
    """Write draws as PEFT adapter folders `chain-<k>_draw-<index>`: configuration, safetensors, model card.

    An adapter of a sequence classifier holds the head and loads onto `AutoModelForSequenceClassification`, one of a
    bi-encoder loads onto `AutoModel` and has its head in `head.safetensors`. Layers are named in full, so that PEFT
    refuses a model that has none of them. A folder is there whole or not at all; one that is there already is replaced.

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
    plain = model.base.encoder if isinstance(model.base, BiEncoder) else model.base
    origin = {"base_class": type(plain).__name__, "base_sha256": base_fingerprint(frozen_tensors(model.peft).values())}
    folders = []
    for draw in draws:
        load_into(model, draw.tensors, f"draw {draw.index} of chain {draw.chain}")
        target = out / f"chain-{draw.chain}_draw-{draw.index:06d}"
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.peft.save_pretrained(temporary, save_embedding_layers=False)
        _name_in_full(temporary, model)
        write_atomically(temporary / "README.md", _card(model, draw, target.name, described).encode())
        which = {"chain": draw.chain, "index": draw.index, "step": draw.step}
        write_atomically(temporary / ORIGIN, json.dumps(which | origin, indent=2).encode())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folders.append(target)
    return folders


def _name_in_full(folder: Path, model: Any) -> None:
    """Rewrite what PEFT saved: layers by their full names in the plain base, a bi-encoder's head in its own file."""
    settings = json.loads((folder / CONFIG).read_text())
    separate = isinstance(model.base, BiEncoder)
    inside = "encoder." if separate else ""
    settings["target_modules"] = full_names(name.removeprefix(inside) for name in model.peft.targeted_module_names)
    settings["layers_to_transform"] = None
    if separate:
        saved = [name.removeprefix(inside) for name in settings["modules_to_save"] or () if name != "head"]
        kind = type(model.base.encoder)
        settings["modules_to_save"] = saved or None
        settings["auto_mapping"] = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        tensors = read_tensors(folder / WEIGHTS)
        head = {name: tensors.pop(f"{PREFIX}head.{name}") for name in ("weight", "bias")}
        encoder = {PREFIX + name.removeprefix(PREFIX + inside): tensor for name, tensor in tensors.items()}
        save_file(head, folder / HEAD, metadata={"format": "pt"})
        save_file(encoder, folder / WEIGHTS, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True).encode())


def full_names(names: Iterable[str]) -> str:
    """A regular expression that matches these names of layers and no other, as PEFT's `target_modules` takes it.

    Layers that differ in the first number of their names alone are one alternative:
    `encoder\\.layer\\.(?:0|1)\\.attention\\.query`.
    """
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in sorted(names):
        before, number, after = FIRST_NUMBER.fullmatch(name).groups()  # type: ignore[union-attr]  # it matches all
        numbers.setdefault((re.escape(before), re.escape(after)), []).append(number)
    one = {ends: f"(?:{'|'.join(numbers_of)})" if numbers_of[0] else "" for ends, numbers_of in numbers.items()}
    return "|".join(before + number + after for (before, after), number in one.items())


def load_adapter(base: Any, folder: Path | str) -> Any:
    """An exported draw on its base model: what `PeftModel.from_pretrained` gives, but that another base is refused.

    Args:
        base: the model without an adapter, from `AutoModelForSequenceClassification.from_pretrained`, or of a
            bi-encoder from `AutoModel.from_pretrained`; or `bayeslora.models.load_base`.
        folder: what `export_adapters` wrote.

    Returns:
        A `PeftModel`; of a `BiEncoder` itself, with the draw's adapter in its encoder and the draw's head.

    Raises:
        DataError: the folder holds no exported adapter, one that is corrupt, or one of another base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError

    path = Path(folder)
    origin, settings = read_origin(path), read_adapter_config(path)
    plain = base.encoder if isinstance(base, BiEncoder) else base
    _check_base(plain, path, origin, settings)
    config = LoraConfig(**{key: value for key, value in settings.items() if key in SETTINGS})
    try:
        names = set(read_tensors(path / WEIGHTS))
        if isinstance(base, BiEncoder):
            base.head.load_state_dict(read_tensors(path / HEAD))
        loaded = PeftModel.from_pretrained(plain, str(path), config=config, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the adapter in {path} is corrupt ({str(error).splitlines()[0]}); export it again") from error
    wrong = sorted(names ^ set(get_peft_model_state_dict(loaded, save_embedding_layers=False)))
    if wrong:
        raise DataError(f"the adapter in {path} is corrupt (it lacks, or should not have, {wrong[0]}); export it again")
    return base if isinstance(base, BiEncoder) else loaded


def _check_base(base: Any, path: Path, origin: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise `DataError` for a base of another class, or with other weights, than the one that was sampled on."""
    kind = origin.get("base_class", type(base).__name__)
    if type(base).__name__ != kind:
        raise DataError(
            f"{path} is an adapter of a {kind}, not of a {type(base).__name__}: load the base with"
            f" {'AutoModel' if (path / HEAD).is_file() else 'AutoModelForSequenceClassification'}.from_pretrained"
        )
    own = settings.get("modules_to_save") or ()
    digest = base_fingerprint(tensor for name, tensor in base.named_parameters() if not is_saved(name, own))
    if digest != origin["base_sha256"]:
        named = settings.get("base_model_name_or_path")
        raise DataError(
            f"{path} is an adapter of another base model ({named}): its weights have fingerprint"
            f" {origin['base_sha256'][:12]}, these have {digest[:12]}"
        )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What `adapter_config.json` says, which must be a plain LoRA adapter as `export_adapters` writes it.

    PEFT imports modules and reads files that some of its other settings name, so these must be at their defaults.

    Raises:
        DataError: it is missing, no JSON, or holds a setting that an exported draw does not have.
    """
    from peft import LoraConfig

    file = folder / CONFIG
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
    name, labels = model.base.name_or_path, model.num_classes
    if isinstance(model.base, BiEncoder):
        load, loads, kind = BI_ENCODER, BI_ENCODER_LOADS, type(model.base.encoder)
    else:
        load, loads, kind = CLASSIFIER, CLASSIFIER_LOADS, type(model.base)
    package, _, inside = name.removeprefix("package:").partition("/")
    packaged = name.startswith("package:")
    words = {
        "imports": "from importlib.resources import files\n\n" if packaged else "",
        "name": f'str(files("{package}") / "{inside}")' if packaged else json.dumps(name),
    }
    words |= {"labels": labels, "folder": json.dumps(folder), "head": HEAD}
    words |= {"padding": model.base.config.pad_token_id, "kind": kind.__name__}
    rows = {"Base model": f"`{name}`", "Chain, draw, step": f"{draw.chain}, {draw.index}, {draw.step:,}"}
    rows |= {label: text for label, text in facts.items() if label != "title"}
    rows |= {f"This draw's {scalar.replace('_', ' ')}": f"{value:.6g}" for scalar, value in draw.scalars.items()}
    return CARD.format(
        base="" if local_folder(name) else f"base_model: {name}\n",  # the hub refuses a card that names a folder
        title=facts.get("title", "a LoRA posterior"),
        index=draw.index,
        chain=draw.chain,
        load=load.format(**words),
        loads=loads.format(**words),
        facts="\n".join(f"| {label} | {text.replace('|', '/')} |" for label, text in rows.items()),
    )


def check_upload(repo: str) -> None:
    """Raise `ConfigError` where an upload to `repo` cannot succeed: before anything is written.

    Args:
        repo: `OWNER/NAME`, of a model of the hub.
    """
    from huggingface_hub import constants, get_token

    problems = Problems()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repo)):
        problems.add(f"push_to_hub={repo} must be OWNER/NAME of a model of the hub, e.g. push_to_hub=me/mrpc-posterior")
    if constants.HF_HUB_OFFLINE:
        problems.add("push_to_hub needs the network, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids it; unset it")
    if get_token() is None:
        problems.add("push_to_hub needs a token of the hub that may write: run `hf auth login`, or set HF_TOKEN")
    problems.raise_if_any()


def upload(folders: Sequence[Path], repo: str, title: str) -> str:
    """Commit adapter folders to a model repository of the hub, under their names; returns its address.

    The repository is made if there is none, as a private one. A README.md that it has is left as it is.

    Raises:
        DataError: the hub cannot be reached, or refuses; nothing of it is there then.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import HTTPError  # of the hub's HTTP library, whichever that is

    files = [(file, f"{folder.name}/{file.name}") for folder in folders for file in sorted(folder.iterdir())]
    try:
        api = HfApi()
        url = api.create_repo(repo, private=True, exist_ok=True)
        additions = [CommitOperationAdd(path, str(file)) for file, path in files]
        if not api.file_exists(repo, "README.md"):
            additions.append(CommitOperationAdd("README.md", _repository_card(repo, folders, title).encode()))
        api.create_commit(repo, additions, commit_message=f"{counted(len(folders), 'draw')} of {title}")
    except (OSError, ValueError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(
            f"{repo} could not be written on {constants.ENDPOINT} ({reason}); the adapters are in"
            f" {folders[0].parent}: repeat the command, or run `hf upload {repo} {folders[0].parent}`"
        ) from error
    return str(url)


def _repository_card(repo: str, folders: Sequence[Path], title: str) -> str:
    """The page of a repository that has none yet."""
    return f"""---
library_name: peft
tags: [lora, bayesian, bayeslora]
---

# {title}

{counted(len(folders), "draw")} from a posterior over LoRA adapters, a PEFT adapter each. Every folder has a
model card that says what was sampled, how, and how to load it; with the base of that card,
`PeftModel.from_pretrained(base, "{repo}", subfolder="{folders[0].name}")` loads one.
Average the *probabilities* of many.
"""
