"""Where a run goes: its folder, and paths as they are seen from anywhere."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bayeslora.atomic import user_path
from bayeslora.errors import ConfigError, DataError, require


def set_run_dir(cfg: DictConfig) -> None:
    """In a multirun each job gets a folder of its own, unless `run_dir` was given; `resume` looks for the newest."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    given = hydra is not None and any(one.lstrip("+").startswith("run_dir=") for one in hydra.overrides.task)
    if cfg.resume:
        cfg.run_dir = str(_resumed(cfg, named=given))
        print(f"resume=true goes on with {cfg.run_dir}", flush=True)  # noqa: T201
        return
    if hydra is None:
        return
    if hydra.mode == RunMode.MULTIRUN and not given:  # jobs that run chains of one run share its folder
        cfg.run_dir = hydra.sweep.dir if cfg.chain.index is not None else f"{hydra.sweep.dir}/{hydra.job.num}"


def set_tags(cfg: DictConfig) -> None:
    """Give loggers that take tags, and have none, the settings of the command line: of a sweep, this job's."""
    if not HydraConfig.initialized():
        return
    given = [one.lstrip("+") for one in HydraConfig.get().overrides.task]
    tags = [one for one in given if not one.startswith(("run_dir=", "resume=", "logger", "evaluate.strict="))]
    for node in (cfg.get("logger") or {}).values():
        if node is not None and "tags" in node and node.tags is None:
            node.tags = tags


def set_paths(cfg: DictConfig) -> None:
    """Make `~` the home, and a dataset's path that is there absolute: the run is evaluated from anywhere."""
    cfg.run_dir = str(user_path(str(cfg.run_dir)))
    for key in ("dataset.path", "evaluate.reference", "evaluate.ood_path", "model.checkpoint"):
        if isinstance(path := OmegaConf.select(cfg, key, throw_on_missing=False), str):
            place = user_path(path)
            OmegaConf.update(cfg, key, str(place.absolute()) if place.exists() else str(place))
    from bayeslora.app.compose import checkpoint

    with suppress(ConfigError):  # which the check of the whole configuration reports
        checkpoint(cfg)


def _resumed(cfg: DictConfig, named: bool) -> Path:
    """The run directory that was named; else the newest beside the one to be whose configuration is this one.

    Raises:
        ConfigError: there is none.
    """
    from bayeslora.app.compose import plain
    from bayeslora.runs.directory import RunDirectory, as_asked, differences, fixed

    here = user_path(str(cfg.run_dir))
    if RunDirectory(here).config_file.exists():
        return here
    require(
        not named,
        f"resume=true, but run_dir={here} holds no run; leave run_dir out to go on with the newest run of this"
        " configuration, or leave resume out to start one there",
    )
    beside = here.parent
    wanted = fixed(plain(cfg))
    for file in sorted(beside.glob("*/config.yaml"), reverse=True):
        with suppress(DataError):  # a folder with a spoilt configuration is not the one
            recorded = RunDirectory(file.parent).config
            if isinstance(recorded.get("chain"), dict) and not any(differences(wanted, fixed(as_asked(recorded)))):
                return file.parent
    raise ConfigError(
        f"resume=true, but {beside} holds no run of this configuration; leave resume out to start one, or give"
        " run_dir=… of the run to go on with"
    )
