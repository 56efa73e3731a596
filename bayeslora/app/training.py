"""From a configuration of `train` to a run: its keys, its place, its experiment; and what a search is told of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from bayeslora.app.config import check_keys
from bayeslora.errors import DivergedError, require

if TYPE_CHECKING:
    from bayeslora.evaluation.results import Results


def train(cfg: DictConfig) -> Results | None:
    """Run the chains of a configuration and evaluate them, as `engine.pipeline.run_experiment` does.

    Raises:
        ConfigError: anything wrong with the configuration or the data; nothing was started. Else as `run_experiment`.
    """
    from hydra.core.hydra_config import HydraConfig

    check_keys(cfg, HydraConfig.get().overrides.task if HydraConfig.initialized() else ())
    from bayeslora.app.compose import to_experiment  # torch takes seconds to import
    from bayeslora.app.places import set_paths, set_run_dir, set_tags
    from bayeslora.runs.directory import RunDirectory

    set_paths(cfg)
    set_run_dir(cfg)
    set_tags(cfg)
    run = RunDirectory(cfg.run_dir)
    experiment = to_experiment(cfg, run)
    from bayeslora.engine.pipeline import run_experiment  # Lightning takes more

    return run_experiment(experiment, run)


def train_or_search(cfg: DictConfig) -> float | None:
    """Train; in a search, give what it minimises: the ensemble's NLL on the validation set, ∞ if a chain diverged.

    Raises:
        ConfigError: the search would look at another split. Else as `train`.
    """
    from hydra.core.hydra_config import HydraConfig

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
