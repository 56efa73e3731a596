"""What `conf/` offers, without a command line: choices of its groups, and whole experiments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from bayeslora.app.config import CONF_DIR, check_config, factory
from bayeslora.factories import first_line

if TYPE_CHECKING:
    from bayeslora.evaluation.results import Results


def options(group: str, conf: Path = Path(CONF_DIR)) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (conf / group).glob("*.yaml"))


def choice(group: str, name: str) -> Callable[..., Any]:
    """The factory that a choice of a config group names, with its settings."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return factory(compose(f"{group}/{name}")[group])


def experiment_problems(name: str, conf: Path = Path(CONF_DIR)) -> list[str]:
    """What is wrong with an experiment of a folder of configurations."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return check_config(_composed(f"experiment={name}", "run_dir=unused", conf=conf))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        return [f"does not compose: {first_line(error)}"]


def train_with(*overrides: str) -> Results | None:
    """What `python -m bayeslora.train` does with these overrides."""
    from bayeslora.app.training import train

    return train(_composed(*overrides))


def _composed(*overrides: str, conf: Path = Path(CONF_DIR)) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose("train", overrides=list(overrides))
