"""A recorded configuration, read as data: what it may name and where it may point, for it may be somebody else's."""

from __future__ import annotations

import inspect
import os
import pkgutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from bayeslora.errors import DataError
from bayeslora.runs.provenance import check_layout

MAX_BYTES = 1 << 20
"""A larger `config.yaml` is none of ours."""
MAX_DEPTH = 20
"""Nor is one whose nodes lie deeper in one another."""

PLACES = {
    "dataset": ("bayeslora.datasets",),
    "model": ("bayeslora.models",),
    "sampler": ("bayeslora.samplers",),
    "prior": ("bayeslora.potential",),
    "likelihood": ("bayeslora.likelihood",),
    "chain.warmup.optimizer": ("torch.optim",),
    "logger": ("bayeslora.loggers", "lightning.pytorch.loggers"),
    "callbacks": ("bayeslora.engine.callbacks",),
}
"""Packages whose classes (of models: functions too) a recorded configuration may name, by the node that names them."""


GROUPS = ("logger", "callbacks")
"""Of those the nodes that hold named nodes."""


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Plain values alone; in C where PyYAML has it."""


def read_config(file: Path) -> dict[str, Any]:
    """A `config.yaml` as plain Python: dictionaries with text as keys, lists, text, numbers, true, false and null.

    Raises:
        DataError: it is missing, unreadable, holds anything else, or is of another layout of run directories.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{file} cannot be read: it is larger than any configuration")
        text = content.decode()
        _check_yaml(text)
        loaded = yaml.load(text, Loader=LOADER)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{file.parent} is no run directory: it has no config.yaml. Give run_dir=… of a run") from None
    except (OSError, yaml.YAMLError, ValueError, OverflowError) as error:
        raise DataError(f"{file} cannot be read: {(str(error).splitlines() or [''])[0]}") from error
    if not isinstance(loaded, dict) or not _is_plain(loaded):
        raise DataError(f"{file} does not hold a configuration")
    check_layout(loaded, file)
    return loaded


def _check_yaml(text: str) -> None:
    """Raise `YAMLError` for tags, for aliases (a short text with them can stand for a huge one) and for depth."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise yaml.YAMLError("it holds tags or aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is more than {MAX_DEPTH} levels deep")


def _is_plain(value: Any) -> bool:
    """Whether it is made of dictionaries by text, lists and plain values."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def names(trust: Any) -> list[str]:
    """`trust=` of a command as a list: one name, or several."""
    return [trust] if isinstance(trust, str) else [str(name) for name in trust or ()]


def check_trusted(config: dict[str, Any], source: Path, trusted: Sequence[str] = ()) -> None:
    """Raise `DataError` unless building the parts of a recorded configuration runs only code that is known.

    Args:
        config: as `read_config` gives it, without its provenance.
        source: its file, for the message.
        trusted: packages, modules or classes that it may name too.
    """
    problems = [*_unknown_targets(config, trusted), *_strange_values(config), *_paths_outside(config)]
    if problems:
        raise DataError(*(f"{source}: {problem}" for problem in problems[:8]))


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All nodes and leaves by dotted name."""
    yield path, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _walk(entry, f"{path}.{key}" if path else str(key))


def _unknown_targets(config: dict[str, Any], trusted: Sequence[str]) -> Iterator[str]:
    """What is wrong with the classes that a configuration names."""
    for path, node in _walk(config):
        if not isinstance(node, dict) or "_target_" not in node:
            continue
        target = node["_target_"]
        if not isinstance(target, str):
            yield f"{path}._target_ is no text"
        elif not (_is_known(path, target) or _is_trusted(target, trusted)):
            package = target.partition(".")[0]
            if _is_named(target, trusted) and _resolve(target) is None:
                yield (
                    f"{path}._target_={target} is trusted and cannot be imported: run this in the folder of {package},"
                    " or put that folder on PYTHONPATH"
                )
                continue
            yield (
                f"{path}._target_={target} is not one of bayeslora's own parts, and to build it is to run its code."
                f" If the run is yours, or you trust where it comes from, add trust=[{package}]"
            )


def _is_known(path: str, target: str) -> bool:
    """Whether a target is a class of the packages that belong to its place."""
    group, _, name = path.partition(".")
    place = group if group in GROUPS and name and "." not in name else path
    if place not in PLACES or path in GROUPS:
        return False
    module = target.rpartition(".")[0]
    packages = tuple(f"{package}." for package in PLACES[place] if f"{module}.".startswith(f"{package}."))
    resolved = _resolve(target) if packages else None
    functions_too = place == "model" and inspect.isfunction(resolved)
    return (inspect.isclass(resolved) or functions_too) and f"{resolved.__module__}.".startswith(packages)


def _is_trusted(target: str, trusted: Sequence[str]) -> bool:
    """Whether a target, and what it turns out to be, lie in packages that the user named."""
    resolved = _resolve(target) if _is_named(target, trusted) else None
    place = f"{getattr(resolved, '__module__', '')}.{getattr(resolved, '__qualname__', '')}"
    return resolved is not None and _is_named(place, trusted)


def _is_named(target: str, trusted: Sequence[str]) -> bool:
    """Whether a dotted name lies in packages that the user named."""
    return any(target == one or target.startswith(f"{one}.") for one in trusted)


def _resolve(target: str) -> Any:
    """What a dotted name stands for: something that the module before its last part holds; None if there is none."""
    module, _, name = target.rpartition(".")
    try:
        return pkgutil.resolve_name(f"{module}:{name}")
    except (ImportError, ValueError, AttributeError):
        return None


def _strange_values(config: dict[str, Any]) -> Iterator[str]:
    """What Hydra and OmegaConf would make something else of."""
    for path, value in _walk(config):
        if isinstance(value, str) and "${" in value:
            yield f"{path} holds an interpolation, which a recorded configuration never does"
        if isinstance(value, dict):
            for key in value:
                if "${" in key or (key.startswith("_") and key not in ("_target_", "_partial_")):
                    yield f"{path}.{key} is no setting"


def _paths_outside(config: dict[str, Any]) -> Iterator[str]:
    """Places outside the run directory at which loggers or callbacks would write."""
    root = os.path.normpath(str(config.get("run_dir") or "."))
    for group in GROUPS:
        for path, value in _walk(config.get(group), group):
            leads_away = isinstance(value, str) and (value[:1] in ("/", "~") or ".." in Path(value).parts)
            if not leads_away and not path.endswith((".save_dir", ".root_dir", ".folder", ".folders")):
                continue
            if not isinstance(value, str) or not Path(os.path.normpath(value)).is_relative_to(root):
                yield f"{path}={value} lies outside its run_dir={root}, to which evaluating must not write; remove it"


def check_contained(root: Path) -> None:
    """Raise `DataError` where a folder holds what is neither file nor folder, or a link that leads out of it."""
    inside = Path(os.path.realpath(root))
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a temporary file of another process
                continue
            if stat.S_ISLNK(mode) and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise DataError(f"{path} is a link that leads out of the run directory; put a copy in its place")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise DataError(f"{path} is neither a file nor a folder; remove it from the run directory")
