"""The configurations: every experiment composes and means something; and settings composed for other checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.app.config import CONF_DIR, check_config, factory
from bayeslora.doctor.finding import Finding, failure, ok
from bayeslora.factories import first_line

if TYPE_CHECKING:
    from omegaconf import DictConfig


def options(group: str, conf: Path = Path(CONF_DIR)) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def composed(*overrides: str, conf: Path = Path(CONF_DIR)) -> DictConfig:
    """What `python -m bayeslora.train` composes from these overrides."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def choice(group: str, name: str) -> Callable[..., Any]:
    """The factory that a choice of a config group names, with its settings."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return factory(compose(f"{group}/{name}")[group])


def experiments(conf: Path = Path(CONF_DIR)) -> Iterator[Finding]:
    """Whether every experiment of a folder of configurations composes, with every key known."""
    names = options("experiment", conf)
    failed = [finding for name in names for finding in _experiment(name, conf)]
    yield from failed
    if not failed:
        yield ok("experiments", f"all {len(names)} compose, and every key means something")


def _experiment(name: str, conf: Path) -> Iterator[Finding]:
    """What is wrong with an experiment."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    where = f"mend {conf / 'experiment' / name}.yaml"
    try:
        problems = check_config(composed(f"experiment={name}", "run_dir=unused", conf=conf))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        yield failure(f"experiment {name}", f"does not compose: {first_line(error)}", where)
        return
    if problems:
        yield failure(f"experiment {name}", "; ".join(problems), where)
