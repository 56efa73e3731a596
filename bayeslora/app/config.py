"""The configuration: where it lies, what it may hold, and checks that run before any work starts."""

from __future__ import annotations

import copy
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bayeslora.errors import ConfigError, Problems
from bayeslora.factories import INJECTED, check_arguments, first_line, unknown_key
from bayeslora.runs.trust import LOADER
from bayeslora.settings import ChainSettings, Evaluation, TrainerSettings

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_DIR = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")
"""Absolute path of `conf/`: inside an installed wheel, else the checkout's."""


@dataclass
class RootConfig:
    """The top level. Nodes of type Any hold a `_target_` and its arguments, or named nodes of that kind."""

    name: str = "custom"
    seed: int = 0
    temperature: float = 1.0
    run_dir: str = ""
    resume: bool = False
    dataset: Any = None
    model: Any = None
    sampler: Any = None
    prior: Any = None
    likelihood: Any = None
    chain: ChainSettings = field(default_factory=ChainSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: Any = None
    callbacks: Any = None
    evaluate: Evaluation = field(default_factory=Evaluation)


GROUPS = ("experiment", "search", "size", "optimizer")
"""Groups that are chosen on the command line and leave no key of their own."""

PARTS = ("dataset", "model", "sampler", "prior", "likelihood")
"""Keys that hold a `_target_` and its settings, and the groups they are chosen from."""

APART = ("checkpoint", "checkpoint_digest")
"""Keys of `model` beside the arguments of what it names, unless that takes them: see `models.checkpoint`."""


def check_config(cfg: DictConfig) -> list[str]:
    """All unknown keys and wrongly typed values of a composed configuration, each with its fix."""
    return [problem for _, problem in _form_problems(cfg)]


def _form_problems(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """The dotted key and the message of what is unknown or has the wrong type."""
    yield from _check_node(cfg, RootConfig, "", GROUPS)
    for path in (*PARTS, "chain.warmup.optimizer"):
        if path != "likelihood" or cfg.get("likelihood") is not None:
            yield from ((path, problem) for problem in check_target(OmegaConf.select(cfg, path), path))
    for group in ("logger", "callbacks"):
        for name, node in members(OmegaConf.select(cfg, group)).items():
            yield from ((group, problem) for problem in check_target(node, f"{group}.{name}"))


def check_keys(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Raise `ConfigError` for unknown keys, before anything slow is imported: torch takes seconds, Lightning more.

    The files of `conf/` list all settings of this package's own parts. Where there is such a problem, and the command
    line gives parts no values that only they can check, nothing is left for the whole check to find.

    Args:
        cfg: a composed configuration.
        overrides: of the command line.
    """
    problems = [problem for _, problem in _check_node(cfg, RootConfig, "", GROUPS)]
    for path, targets in listed_settings().items():
        node = OmegaConf.select(cfg, path)
        known = targets.get(node.get("_target_"), []) if isinstance(node, DictConfig) else []
        problems += [
            unknown_key(f"{path}.{key}", str(key), known)
            for key in node or ()
            if known and key not in (*known, *INJECTED) and not str(key).startswith("_")
        ]
    named = [override.lstrip("+~").partition("=")[0] for override in overrides]
    elsewhere = [key for key in named if key.startswith(tuple(f"{path}." for path in (*PARTS, "logger", "callbacks")))]
    if problems and all(any(f"unknown key {key}:" in problem for problem in problems) for key in elsewhere):
        raise ConfigError(*problems)


def listed_settings() -> dict[str, dict[str, list[str]]]:
    """By part, the settings that `conf/` lists for each class or function of this package: all that it takes."""
    listed: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for part, targets in listed.items():
        for file in sorted(Path(CONF_DIR, part).glob("*.yaml")):
            node = yaml.load(file.read_bytes(), Loader=LOADER)
            if isinstance(node, dict) and str(node.get("_target_")).startswith("bayeslora."):
                targets[node["_target_"]] = [key for key in node if not key.startswith("_") and key != "defaults"]
    return listed


def known_keys() -> dict[str, list[str]]:
    """The keys that the nodes of a run's configuration may hold, of all their choices together."""
    sections = {"chain": ChainSettings, "trainer": TrainerSettings, "evaluate": Evaluation}
    own = {name: [f.name for f in fields(section)] for name, section in sections.items()}
    parts = {part: [key for keys in targets.values() for key in keys] for part, targets in listed_settings().items()}
    return {"sampler": parts.pop("sampler")} | own | parts


def _check_node(cfg: DictConfig, schema: type, path: str, also: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Keys and types of `cfg` against a dataclass, node by node; `also` may be meant by an unknown key."""
    fields_by_name = {f.name: f for f in fields(schema)}
    typed = OmegaConf.structured(schema)
    OmegaConf.set_readonly(typed, False)
    for key in cfg:
        name = path + str(key)
        if key not in fields_by_name:
            yield name, unknown_key(name, str(key), [*fields_by_name, *also])
            continue
        nested = OmegaConf.get_type(typed, key)
        try:
            value = cfg[key]
            if isinstance(value, DictConfig) and is_dataclass(nested):
                yield from _check_node(value, nested, f"{name}.")
            else:
                typed[key] = value
        except OmegaConfBaseException as error:
            if isinstance(value, str) and str(fields_by_name[str(key)].type).startswith("tuple"):
                yield name, f"{name}={value} must be a list: '{name}=[{value}]'"
            else:
                yield name, f"{name}: {first_line(error)}"


def check_target(node: Any, path: str) -> Iterator[str]:
    """The keys and plain values of a `_target_` node against the signature of what it names."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        yield f"{path} needs a _target_: choose one of the {path.partition('.')[0]} configs, or name your own class"
        return
    try:
        target = _named(node["_target_"])
    except (ImportError, ValueError, AttributeError, TypeError) as error:
        yield f"{path}._target_={node['_target_']} cannot be imported ({first_line(error)})"
        return
    if not callable(target):
        yield f"{path}._target_={node['_target_']} is a {type(target).__name__}; name a class or function in it"
        return
    beside = {*apart(node), *(without_limits(node)[1] if path == "dataset" else ())}
    settings = {str(key): node[key] for key in node if not str(key).startswith("_") and key not in beside}
    yield from check_arguments(target, settings, path)


def members(group: Mapping[Any, Any] | None) -> dict[str, DictConfig]:
    """The nodes of a group of named ones (`callbacks`, `logger`), without those that are null, which are turned off."""
    return {str(name): node for name, node in (group or {}).items() if node is not None}


def apart(node: DictConfig) -> dict[str, Any]:
    """What a node says beside the arguments of what it names (`APART`)."""
    beside = {key: node[key] for key in APART if key in node}
    taken = _parameters(node["_target_"]) if beside else {}
    return {key: value for key, value in beside.items() if key not in taken}


def _named(target: str) -> Any:
    """What a dotted name stands for, as Hydra reads it: what a package holds goes before its module of that name.

    Raises:
        ImportError, ValueError, AttributeError, TypeError: it stands for nothing.
    """
    package, _, name = str(target).rpartition(".")
    try:
        return pkgutil.resolve_name(f"{package}:{name}")
    except (ImportError, ValueError, AttributeError):  # e.g. a method: the class is no module
        return pkgutil.resolve_name(target)


def _parameters(target: str) -> Mapping[str, Any]:
    """The parameters of what a `_target_` names; none where that cannot be called (see `check_target`)."""
    try:
        return inspect.signature(_named(target)).parameters
    except (ImportError, ValueError, AttributeError, TypeError):
        return {}


def without_limits(node: DictConfig) -> tuple[DictConfig, dict[str, int | None]]:
    """A dataset's node without `limit_train` and `limit_test` where what it names takes none, and these apart.

    What such a dataset loads is shortened after, so that `size=smoke` is for any.
    """
    taken = _parameters(node["_target_"])
    limits = {key: node[key] for key in ("limit_train", "limit_test") if key in node and key not in taken}
    if not limits:
        return node, {}
    settings: Any = OmegaConf.to_container(node, resolve=True)
    return OmegaConf.create({key: value for key, value in settings.items() if key not in limits}), limits


def factory(node: DictConfig) -> partial[Any]:
    """What a node names, with its settings as plain Python arguments, to be called later."""
    return instantiate(node, _partial_=True)


def instantiate(node: DictConfig, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate` into plain Python arguments, with a target's own `ConfigError` passed on as it is."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    if beside := apart(node):
        settings: Any = OmegaConf.to_container(node, resolve=True)
        node = OmegaConf.create({key: value for key, value in settings.items() if key not in beside})
    try:
        return hydra_instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"{node['_target_']}: {first_line(error.__cause__ or error)}") from error


@dataclass
class Form:
    """What is wrong with a configuration's form, and what of it later checks can use all the same.

    Attributes:
        problems: to which later checks add theirs.
        usable: the configuration without unknown keys, with the schema's own values for those of the wrong type.
        broken: the parts (`sampler`, `model`, …) that cannot be made.
    """

    problems: Problems
    usable: DictConfig
    broken: set[str]

    @classmethod
    def of(cls, cfg: DictConfig) -> Form:
        """Check a composed configuration."""
        problems, usable, broken = Problems(), cfg, set()
        wrong = list(_form_problems(cfg))
        if wrong:
            usable = copy.deepcopy(cfg)
            OmegaConf.set_struct(usable, False)
        defaults = OmegaConf.structured(RootConfig)
        for key, problem in wrong:
            problems.add(problem)
            if key in (*PARTS, "chain.warmup.optimizer", "logger", "callbacks"):
                broken.add(key)
                continue
            place, _, name = key.rpartition(".")
            schema, node = (OmegaConf.select(cfg, place) if place else cfg for cfg in (defaults, usable))
            if name in schema:
                node[name] = schema[name]
            else:
                del node[name]
        return cls(problems, usable, broken)
