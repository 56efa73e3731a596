"""From the composed configuration of a command on runs to the settings that its function takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf

from bayeslora.errors import ConfigError

if TYPE_CHECKING:
    from bayeslora.experiment import Experiment
    from bayeslora.runs.directory import RunDirectory

T = TypeVar("T")


@dataclass(frozen=True)
class DataPlace:
    """`dataset` of a command on a run: where the data lie now, None where the run found them."""

    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """What commands on a run take.

    Attributes:
        run_dir: its folder.
        dataset: where its data lie now.
        trust: packages of one's own that its configuration may name.
    """

    run_dir: str = field(metadata={"question": "which run? Give its folder: run_dir=outputs/…"})
    dataset: DataPlace = field(default_factory=DataPlace)
    trust: Any = ()

    def experiment(self, run: RunDirectory, **evaluate: Any) -> Experiment:
        """The run's experiment, as `app.compose.load_experiment` makes it."""
        from bayeslora.app.compose import load_experiment

        return load_experiment(run, self.trust, self.dataset.path, **evaluate)


def command_settings(kind: type[T], cfg: DictConfig, command: str) -> T:
    """The settings of a command, a dataclass that checks itself; `question` is asked of a field that is not given.

    Raises:
        ConfigError: a key is unknown or missing, or a value is impossible.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    if unknown := sorted(_unknown(kind, values)):
        raise ConfigError(f"unknown key {', '.join(unknown)}: {command} takes {', '.join(sorted(_keys(kind)))}")
    given = {name: value for name, value in values.items() if value != "???"}
    questions = [one.metadata.get("question") for one in fields(kind) if one.name not in given]  # type: ignore[arg-type]
    if missing := [question for question in questions if question]:
        raise ConfigError(*missing)
    return _from_values(kind, given)


def _from_values(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{n: _from_values(hints[n], v) if is_dataclass(hints[n]) else v for n, v in values.items()})


def _keys(kind: Any, path: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        nested = is_dataclass(hints[one.name])
        yield from _keys(hints[one.name], f"{path}{one.name}.") if nested else (path + one.name,)


def _unknown(kind: Any, values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of keys that are no setting."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            yield path + name
        elif is_dataclass(hints[name]) and isinstance(value, Mapping):
            yield from _unknown(hints[name], value, f"{path}{name}.")
