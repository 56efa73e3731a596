"""From a configuration of `train` to a run: its keys, its place, its experiment; and what a search is told of it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from bayeslora.app.config import check_keys
from bayeslora.atomic import user_path
from bayeslora.errors import ConfigError, DataError, DivergedError, require
from bayeslora.runs.provenance import COMMAND

if TYPE_CHECKING:
    from bayeslora.evaluation.results import Results
    from bayeslora.runs.directory import RunDirectory


def train(cfg: DictConfig) -> Results | None:
    """Run the chains of a configuration and evaluate them, as `engine.pipeline.run_experiment` does.

    Raises:
        ConfigError: anything wrong with the configuration or the data; nothing was started. Else as `run_experiment`.
    """
    check_keys(cfg, HydraConfig.get().overrides.task if HydraConfig.initialized() else ())
    from bayeslora.app.compose import to_experiment  # torch takes seconds to import
    from bayeslora.runs.directory import RunDirectory

    set_paths(cfg)
    set_run_dir(cfg)
    set_tags(cfg)
    run = RunDirectory(cfg.run_dir)
    with recorded_as_asked(), saying_what_is_kept(run):
        experiment = to_experiment(cfg, run)
        from bayeslora.engine.pipeline import run_experiment  # Lightning takes more

        return run_experiment(experiment, run)


@contextmanager
def saying_what_is_kept(run: RunDirectory) -> Iterator[None]:
    """Inside the block, a signal that ends the command says whether there is a run to go on with."""
    try:
        yield
    except KeyboardInterrupt as stop:
        name = str(stop) or signal.SIGINT.name
        advice = (
            f"stopped by {name}; nothing is lost. Repeat the command with run_dir={run.root} to go on"
            if run.config_file.exists()
            else f"stopped by {name} before the run had begun: nothing was kept yet. Repeat the command to start it"
        )
        raise KeyboardInterrupt(advice) from stop


def train_or_search(cfg: DictConfig) -> float | None:
    """Train; in a search, give what it minimises: the ensemble's NLL on the validation set, ∞ if a chain diverged.

    Raises:
        ConfigError: the search would look at another split. Else as `train`.
    """
    hydra = HydraConfig.get()
    if "direction" not in hydra.sweeper:  # what Hydra's sweepers that search have
        train(cfg)
        return None
    require(
        cfg.evaluate.split == "validation",
        f"evaluate.split={cfg.evaluate.split}: a search would fit its settings to it; leave it to search=…, which looks"
        " at the validation set",
    )
    keys = Counter(override.lstrip("+").partition("=")[0] for override in hydra.overrides.task)
    twice = [key for key, count in keys.items() if count > 1]
    require(not twice, f"{', '.join(twice)}: given and searched for; leave it out, or write a search without it")
    try:
        results = train(cfg)
    except DivergedError as error:
        print(f"the worst a trial can be: {error}", flush=True)  # noqa: T201
        return float("inf")
    from bayeslora.evaluation.scores import score

    return None if results is None else score(results.ensemble, "nll")


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


@contextmanager
def recorded_as_asked() -> Iterator[None]:
    """Inside the block, a job of a sweep is recorded by its own settings: its process may be one of a launcher's."""
    before = [*COMMAND]
    if HydraConfig.initialized() and (hydra := HydraConfig.get()).mode == RunMode.MULTIRUN:
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        options = [option for folder in folders for option in ("--config-dir", folder)]
        given = [one.removeprefix("++") for one in hydra.overrides.task]
        COMMAND[:] = ["python", "-m", "bayeslora.train", *options, *given]
    try:
        yield
    finally:
        COMMAND[:] = before


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
        named = OmegaConf.select(cfg, key, throw_on_missing=False)
        if isinstance(named, str | ListConfig):
            OmegaConf.update(cfg, key, _place(named) if isinstance(named, str) else [_place(str(one)) for one in named])
    from bayeslora.app.compose import starts

    with suppress(ConfigError):  # which the check of the whole configuration reports
        starts(cfg)


def _place(path: str) -> str:
    """Where a path leads from the root, if it leads anywhere; `..` is followed, so that one place has one name."""
    place = user_path(path)
    if not place.exists():
        return str(place)
    return str(place.resolve() if ".." in place.parts else place.absolute())


def _resumed(cfg: DictConfig, named: bool) -> Path:
    """The run directory that was named; else the newest beside the one to be whose configuration is this one.

    Raises:
        ConfigError: there is none.
    """
    from bayeslora.app.compose import plain
    from bayeslora.runs.directory import RunDirectory, changed_settings, fixed
    from bayeslora.runs.provenance import as_asked

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
            if isinstance(recorded.get("chain"), dict) and not any(changed_settings(wanted, fixed(as_asked(recorded)))):
                return file.parent
    raise ConfigError(
        f"resume=true, but {beside} holds no run of this configuration; leave resume out to start one, or give"
        " run_dir=… of the run to go on with"
    )


class TellComparison(Callback):
    """Prints where a sweep's jobs write what they say, and where its run's report is or what compares its runs."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if "submitit" in str(config.hydra.launcher.get("_target_")):
            print(f"the jobs write to {config.hydra.sweep.dir}/.submitit what they say", flush=True)  # noqa: T201

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:  # noqa: ARG002
        folder = Path(str(config.hydra.sweep.dir))
        if (folder / "metrics.json").exists():  # one run, whose chains were the jobs
            print(f"all jobs have ended: {folder}/report/index.html", flush=True)  # noqa: T201
        if len([*folder.glob("*/metrics.json")]) > 1:
            print(f"compare them: python -m bayeslora.compare 'run_dirs={folder}/*'", flush=True)  # noqa: T201
