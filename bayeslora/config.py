"""The configuration: where it lies, what it may hold, and checks that run before any work starts."""

from __future__ import annotations

import difflib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bayeslora.errors import ConfigError, Problems, require
from bayeslora.settings import Evaluation

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf")
"""Absolute path of `conf/`: inside an installed wheel, else the checkout's."""


@dataclass
class WarmupConfig:
    """`chain.warmup`: steps, the optimizer (a node with `_target_`) and its schedule."""

    steps: int = 0
    optimizer: Any = None
    schedule: str = "cosine"
    schedule_settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class ChainConfig:
    """`chain`: how many chains, their phases in steps, the batch size."""

    num_chains: int = 4
    parallel: str = "sequential"
    index: Any = None
    batch_size: int | None = 128
    bucket: int = 1
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    burn_in: int = 2000
    num_draws: int = 100
    thin: int = 200
    schedule: str = "constant"
    schedule_settings: dict[str, Any] = field(default_factory=dict)
    lr_factors: dict[str, float] = field(default_factory=dict)
    cycles: int = 0
    exploration: float = 0.8
    probe_size: int = 1000
    on_divergence: str = "stop"
    max_potential: float = 1e6
    resume_every: float = 60.0


@dataclass
class TrainerConfig:
    """`trainer`: where and how the steps run."""

    accelerator: str = "cpu"
    strategy: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    channels_last: Any = False
    compile: Any = False
    num_threads: int | None = None


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
    chain: ChainConfig = field(default_factory=ChainConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: Any = None
    callbacks: Any = None
    evaluate: Evaluation = field(default_factory=Evaluation)


GROUPS = ("experiment", "search", "size", "optimizer")
"""Groups that are chosen on the command line and leave no key of their own."""

IN_PYTHON = "bayeslora.datasets.examples.InPython"
"""The dataset that runs of `bayeslora.sample` record."""

INJECTED = {"num_classes", "num_outputs", "in_channels", "in_features", "params", "kT", "seed", "chain"}
"""Arguments that the application fills in where a target takes them."""


def check_config(cfg: DictConfig) -> list[str]:
    """All unknown keys and wrongly typed values of a composed configuration, each with its fix."""
    problems = list(_check_node(cfg, RootConfig, "", GROUPS))
    for path in ("dataset", "model", "sampler", "prior", "chain.warmup.optimizer"):
        problems += check_target(OmegaConf.select(cfg, path), path)
    if cfg.get("likelihood") is not None:
        problems += check_target(cfg.likelihood, "likelihood")
    for group in ("logger", "callbacks"):
        for name, node in (OmegaConf.select(cfg, group) or {}).items():
            problems += check_target(node, f"{group}.{name}")
    return problems


def _check_node(cfg: DictConfig, schema: type, path: str, also: tuple[str, ...] = ()) -> Iterator[str]:
    """Keys and types of `cfg` against a dataclass, node by node; `also` may be meant by an unknown key."""
    known = {f.name: f for f in fields(schema)}
    defaults = OmegaConf.structured(schema)
    for key in cfg:
        name = path + str(key)
        if key not in known:
            yield unknown_key(name, str(key), [*known, *also])
            continue
        nested = OmegaConf.get_type(defaults, key)
        try:
            value = cfg[key]
            if isinstance(value, DictConfig) and is_dataclass(nested):
                yield from _check_node(value, nested, f"{name}.")
            else:
                one = OmegaConf.structured(schema)
                OmegaConf.set_readonly(one, False)
                one[key] = value
        except OmegaConfBaseException as error:
            yield f"{name}: {first_line(error)}"


def check_target(node: Any, path: str) -> Iterator[str]:
    """The keys and plain values of a `_target_` node against the signature of what it names."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        yield f"{path} needs a _target_: choose one of the {path.partition('.')[0]} configs, or name your own class"
        return
    try:
        target = pkgutil.resolve_name(node["_target_"])
    except (ImportError, ValueError, AttributeError) as error:
        yield f"{path}._target_={node['_target_']} cannot be imported ({first_line(error)})"
        return
    if not callable(target):
        yield f"{path}._target_={node['_target_']} is a {type(target).__name__}; name a class or function in it"
        return
    parameters = inspect.signature(target).parameters
    hints = _hints(_callee(target))
    for key in (str(key) for key in node if not str(key).startswith("_")):
        if key in parameters:
            yield from _check_value(f"{path}.{key}", node[key], hints.get(key, Any))
        elif not _takes_any(target):
            yield unknown_key(f"{path}.{key}", key, [p for p in parameters if p not in INJECTED])


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


PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def _check_value(name: str, value: Any, hint: Any) -> Iterator[str]:
    """A value against a type made of plain ones (`float`, `int | None`); other types are the target's own business."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fitting = {*kinds, int} if float in kinds else {*kinds}
    if fitting <= PLAIN.keys() and type(value) not in fitting:
        shown = json.dumps(value) if value is None or isinstance(value, bool) else value
        yield f"{name}={shown} must be {' or '.join(PLAIN[kind] for kind in kinds)}"


def unknown_key(name: str, key: str, known: list[str]) -> str:
    """Message for a key that means nothing."""
    close = difflib.get_close_matches(key, known, n=1)
    removal = f"if it is an experiment's own, ~{name} takes it away"
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}; {removal}"
    return f"unknown key {name}: {hint}"


def first_line(error: BaseException) -> str:
    """What an exception says, without the lines of context that Hydra and OmegaConf add."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def instantiate(node: DictConfig, **kwargs: Any) -> Any:
    """`hydra.utils.instantiate` into plain Python arguments, with a target's own `ConfigError` passed on as it is."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    try:
        return hydra_instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"{node['_target_']}: {first_line(error.__cause__ or error)}") from error


def accepted(node: DictConfig, **kwargs: Any) -> dict[str, Any]:
    """Those of `kwargs` that the node's target takes and the node does not set itself."""
    parameters = inspect.signature(pkgutil.resolve_name(node["_target_"])).parameters
    return {key: value for key, value in kwargs.items() if key in parameters and key not in node}


PRECISIONS = ("32-true", "bf16-mixed")


def check_precision(precision: str) -> None:
    """Raise `ConfigError` for a precision in which Langevin steps are lost or closures are not called."""
    require(
        precision in PRECISIONS,
        f"trainer.precision={precision} cannot be used for sampling: fp16 loss scaling skips and rescales steps, and "
        f"half-precision parameters lose steps of size √(2ε·kT). Choose one of {', '.join(PRECISIONS)}",
    )


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in which two plain configurations differ, with both values."""
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} (here {a!r}, there {b!r})"


def gather(cfg: DictConfig) -> Problems:
    """The problems of a configuration's form, to which later checks add theirs."""
    problems = Problems()
    if OmegaConf.select(cfg, "dataset._target_") == IN_PYTHON:  # then the rest is of a program too
        with problems.collect():
            instantiate(cfg.dataset)
        return problems
    problems.add(*check_config(cfg))
    return problems
