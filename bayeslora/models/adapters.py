"""Draws as ordinary PEFT adapters: a folder each, which `PeftModel.from_pretrained` loads; and on the hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from bayeslora.atomic import write_atomically
from bayeslora.counts import counted
from bayeslora.errors import DataError, Problems, require
from bayeslora.models.adapter_card import HEAD, REST, card, repository_card
from bayeslora.models.bi_encoder import BiEncoder
from bayeslora.models.fingerprint import base_fingerprint, frozen_tensors, is_saved
from bayeslora.posterior.store import Draw, load_into, read_tensors

ORIGIN = "bayeslora.json"
"""A file beside the adapter: which draw it is, and the class and fingerprint of the base model it belongs to."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LORA = "LORA"
"""PEFT's word for the kind of adapter."""
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


def _by_name(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(re.fullmatch(r"[\w.]+", name) and kind(one) for name, one in value.items())
    )


SETTINGS: dict[str, Callable[[Any], bool]] = {
    "r": lambda value: _is_count(value) and value > 0,
    "lora_alpha": lambda value: isinstance(value, int | float) and 0 < value < float("inf"),
    "target_modules": lambda value: (
        bool(value) and (_are(_is_text)(value) if not _is_text(value) else FULL_NAMES.fullmatch(value) is not None)
    ),
    "layers_to_transform": _are(_is_count),
    "modules_to_save": _are(_is_text),
    "lora_dropout": lambda value: isinstance(value, int | float) and 0 <= value < 1,
    "rank_pattern": _by_name(lambda value: _is_count(value) and value > 0),
    "alpha_pattern": _by_name(lambda value: isinstance(value, int | float) and 0 < value < float("inf")),
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora"), lambda value: isinstance(value, bool)),
    # the other ways to initialise it change the base's own weights
    "init_lora_weights": lambda value: isinstance(value, bool) or value in ("gaussian", "orthogonal"),
    "task_type": lambda value: (
        value in (None, "SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "FEATURE_EXTRACTION")
    ),
}
"""Settings of an adapter that are used to load it, and what each must be."""


def export_adapters(
    model: Any, draws: Iterable[Draw], out_dir: Path | str, facts: Mapping[str, str] | None = None
) -> list[Path]:
    """Write draws as PEFT adapter folders `chain-<k>_draw-<index>`: configuration, safetensors, model card.

    An adapter of a sequence classifier holds the head and loads onto `AutoModelForSequenceClassification`, one of a
    bi-encoder loads onto `AutoModel` and has its head in `head.safetensors`. Of a model of one's own with a `PeftModel`
    in it, the adapter loads onto that model's base, and what was sampled outside it is in `rest.safetensors`. Layers
    are named in full, so that PEFT refuses a model that has none of them. A folder is there whole or not at all; one
    that is there already is replaced.

    Args:
        model: a `LoraClassifier`, or a module that is or holds one `PeftModel` with one LoRA adapter; it is left with
            the last draw's tensors.
        draws: of a posterior of that model.
        out_dir: made if missing.
        facts: label and text of each line of the model card; `title` is its heading.

    Returns:
        The folders, in the draws' order.

    Raises:
        ConfigError: the model has no adapter, or one that does not fit the base that others load.
        DataError: a draw is of another model.
    """
    path, peft_model = find_adapter(model)
    out, described = Path(out_dir), dict(facts or {})
    base = peft_model.get_base_model()
    plain = base.encoder if isinstance(base, BiEncoder) else base
    origin = {"base_class": type(plain).__name__, "base_sha256": base_fingerprint(frozen_tensors(peft_model).values())}
    folders = []
    for draw in draws:
        load_into(model, draw.tensors, f"draw {draw.index} of chain {draw.chain}")
        target = out / f"chain-{draw.chain}_draw-{draw.index:06d}"
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        peft_model.save_pretrained(temporary, save_embedding_layers=False)
        _name_in_full(temporary, peft_model)
        rest = {name: tensor for name, tensor in draw.tensors.items() if not name.startswith(path)}
        if rest:
            save_file(rest, temporary / REST, metadata={"format": "pt"})
        write_atomically(temporary / "README.md", card(model, peft_model, rest, draw, target.name, described).encode())
        which = {"chain": draw.chain, "index": draw.index, "step": draw.step}
        write_atomically(temporary / ORIGIN, json.dumps(which | origin, indent=2).encode())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folders.append(target)
    return folders


def find_adapter(model: nn.Module) -> tuple[str, Any]:
    """Where a model holds its `PeftModel` (what its parameters' names begin with), and that.

    Raises:
        ConfigError: it holds none, or several; its adapter is none that `load_adapter` would take, or changed the
            base's weights; or a parameter of the base is sampled itself.
    """
    from peft import PeftModel, get_peft_model_state_dict

    found = {f"{path}." if path else "": one for path, one in model.named_modules() if isinstance(one, PeftModel)}
    require(bool(found), "only draws of a LoRA model can be exported as adapters")
    several = len(found) > 1 or any(len(one.peft_config) > 1 for one in found.values())
    require(not several, "the model has several adapters, and a draw is exported as one; sample one of them at a time")
    ((path, peft_model),) = found.items()
    (config,) = peft_model.peft_config.values()
    settings = json.loads(json.dumps(config.to_dict(), default=list))
    if settings["peft_type"] == LORA:
        settings["target_modules"] = full_names(peft_model.targeted_module_names)
    wrong = _wrong_settings(settings)
    named = ", ".join(f"{key}={settings.get(key)}" for key in wrong[:3])
    require(
        not wrong,
        f"the model's adapter is no plain LoRA adapter ({named}): on the pretrained base that others load it might not"
        " be what was sampled. posterior.save(folder) keeps the draws whole",
    )
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    held = {tensor.data_ptr() for tensor in state.values()}
    own = [name for name, p in peft_model.named_parameters() if p.requires_grad and p.data_ptr() not in held]
    require(
        not own,
        f"{', '.join(own[:3])} of the base are sampled themselves, and no adapter holds them; name their modules in the"
        " adapter's modules_to_save",
    )
    return path, peft_model


def _name_in_full(folder: Path, peft_model: Any) -> None:
    """Rewrite what PEFT saved: layers by their full names in the plain base, a bi-encoder's head in its own file."""
    settings = json.loads((folder / CONFIG).read_text())
    base = peft_model.get_base_model()
    separate = isinstance(base, BiEncoder)
    inside = "encoder." if separate else ""
    settings["target_modules"] = full_names(name.removeprefix(inside) for name in peft_model.targeted_module_names)
    settings["layers_to_transform"] = settings["layers_pattern"] = None
    if separate:
        saved = [name.removeprefix(inside) for name in settings["modules_to_save"] or () if name != "head"]
        kind = type(base.encoder)
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
    file = folder / CONFIG
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {file} ({str(error).splitlines()[0]})") from error
    if not isinstance(settings, dict):
        raise DataError(f"{file} does not hold the settings of an adapter")
    wrong = _wrong_settings(settings)
    if wrong:
        raise DataError(f"{file} is not of an adapter that bayeslora exported: {', '.join(wrong[:4])}")
    return settings


def _wrong_settings(settings: Mapping[str, Any]) -> list[str]:
    """Entries of an adapter's configuration that no exported draw has."""
    from peft import LoraConfig

    defaults = json.loads(json.dumps(LoraConfig(inference_mode=True).to_dict(), default=list))
    wrong = [key for key, fits in SETTINGS.items() if key in settings and not fits(settings[key])]
    wrong += [
        key
        for key, value in settings.items()
        if key not in SETTINGS and key not in ABOUT and value and value != defaults.get(key)
    ]
    return wrong if settings.get("peft_type") == LORA else ["peft_type", *wrong]


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
            additions.append(CommitOperationAdd("README.md", repository_card(repo, folders, title).encode()))
        api.create_commit(repo, additions, commit_message=f"{counted(len(folders), 'draw')} of {title}")
    except (OSError, ValueError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(
            f"{repo} could not be written on {constants.ENDPOINT} ({reason}); the adapters are in"
            f" {folders[0].parent}: repeat the command, or run `hf upload {repo} {folders[0].parent}`"
        ) from error
    return str(url)
